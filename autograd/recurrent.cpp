#include "autograd/recurrent.h"

#include <string>

#include "autograd/product.h"
#include "autograd/softmax.h"
#include "kernels/recurrent.h"

namespace ulp::ops {
namespace {

struct Sizes {
  int64_t n, t, in, h, gates;
  DType dtype;
  Device device;
};

void check_matrix(const char* op, const char* name, const Var& v, int64_t rows, int64_t columns) {
  ULP_CHECK(v.value.defined() && v.shape() == Shape({rows, columns}),
            "{}: {} must be ({}, {}), got {}", op, name, rows, columns, v.value);
}

Sizes checked(const char* op, int64_t gates, const Var& x, const RecurrentWeights& w,
              const RecurrentState& s) {
  ULP_CHECK(x.value.defined() && x.shape().rank() == 3 && x.shape()[1] >= 1 && x.shape()[2] >= 1,
            "{}: x must be (N, T, In) with T >= 1 and In >= 1, got {}", op, x.value);
  ULP_CHECK(w.hidden.value.defined() && w.hidden.shape().rank() == 2 && w.hidden.shape()[1] >= 1,
            "{}: the hidden weight must be ({}·H, H), got {}", op, gates, w.hidden.value);
  const bool wide = x.value.dtype() == DType::F64;
  const Sizes z{x.shape()[0],        x.shape()[1], x.shape()[2],
                w.hidden.shape()[1], gates,        wide ? DType::F64 : DType::F32,
                x.value.device()};
  check_matrix(op, "the hidden weight", w.hidden, gates * z.h, z.h);
  check_matrix(op, "the input weight", w.input, gates * z.h, z.in);
  ULP_CHECK(w.input_bias.value.defined() == w.hidden_bias.value.defined(),
            "{}: give both biases or neither", op);
  if (w.input_bias.value.defined())
    for (const Var* b : {&w.input_bias, &w.hidden_bias})
      ULP_CHECK(b->shape() == Shape{gates * z.h}, "{}: the {} bias must be ({}), got {}", op,
                b == &w.input_bias ? "input" : "hidden", gates * z.h, b->value);
  if (s.h.value.defined()) check_matrix(op, "the initial h", s.h, z.n, z.h);
  if (s.c.value.defined()) check_matrix(op, "the initial c", s.c, z.n, z.h);
  for (const Var* v : {&w.input, &w.hidden, &w.input_bias, &w.hidden_bias, &s.h, &s.c})
    ULP_CHECK(!v->value.defined() || (v->value.dtype() == DType::F64) == wide,
              "{}: F64 operands want F64 partners, got {} beside {}", op, v->value, x.value);
  return z;
}

/// (N, T, C) → (T, N, C), contiguous.
Tensor turned_in_time(Stream stream, const Tensor& x) {
  return kernels::contiguous(stream, x.transpose(0, 1));
}

/// (T·N, C) as (N, T, C).
Tensor by_sequence(Stream stream, const Tensor& x, const Sizes& z) {
  return turned_in_time(stream, x.reshape({z.t, z.n, x.size(1)}));
}

/// The matrix of one step of (T, N, C).
Tensor step_of(const Tensor& all, int64_t t) {
  return all.slice(0, t, t + 1).reshape({all.size(1), all.size(2)});
}

Tensor rows_of(const Tensor& all, int64_t from, int64_t to) {
  return all.slice(0, from, to).reshape({(to - from) * all.size(1), all.size(2)});
}

/// (T + 1, N, H) with the initial state in front.
Tensor states_from(Stream stream, const Sizes& z, const Var& first) {
  const Tensor all = Tensor::empty({z.t + 1, z.n, z.h}, z.dtype, z.device);
  if (first.value.defined())
    kernels::copy(stream, {first.value, step_of(all, 0)});
  else
    kernels::fill(stream, {step_of(all, 0), 0});
  return all;
}

Tensor contiguous_or_none(Stream stream, const Var& v) {
  return v.value.defined() ? kernels::contiguous(stream, v.value) : Tensor();
}

/// A role whose results a step's kernel makes: it rounds them itself if the format is element-wise and nobody counts.
struct StepRole {
  const RoleUse& use;
  const Quantizer& format;
  const char* name;

  RecurrentRounding fused() const { return {use.fused(format), use.fused_key(format, name)}; }
  bool is_later() const { return !use.fuses(format); }
  /// Rounds what the kernel left, in its place, and counts it.
  void finish(Stream stream, const Tensor& made) const {
    if (!is_later()) return;
    const Tensor rounded = use.result(made, format, name, 1);
    if (!format.is_identity()) kernels::copy(stream, {rounded, made});
  }
};

RecurrentRounding interior_of(const RoleUse& use, const Quantizer& interior, uint32_t draws) {
  return {interior, interior_key(use, interior, draws)};
}
void count(const RoleUse& use, const RecurrentRounding& interior, const InteriorTrace& trace) {
  count_interior(use, interior.format, interior.key, trace);
}

/// The products of a recurrent op, with what they keep for the backward pass.
struct Products {
  const char* op;
  Sizes size;
  RecurrentFormats f;
  RecurrentFactors factors;
  RoleUse input, hidden;
  Operand w_hidden;  // forward
  Tensor bias_hidden;
  SavedOperand x_dw, w_input_dx, w_hidden_dx;

  /// Operand of the backward pass: that of the forward pass where both see the same.
  static SavedOperand kept(const char* op, const RoleUse& use, const Tensor& in, const Operand& now,
                           const Quantizer& forward, const Quantizer& backward, const char* role) {
    return {use.tape, op,
            shares(forward, backward) ? now : use.operand(in, backward, role, 0, Side::Right)};
  }

  /// The gates' sums by the inputs of all steps: (T, N, G·H).
  Tensor begin(const Var& x, const RecurrentWeights& w, bool needs_hidden_dx) {
    Tape& tape = input.tape;
    const Stream stream = tape.stream();
    const OpFormats &fi = f.input_product, &fh = f.hidden_product;
    const Tensor rows = turned_in_time(stream, x.value).reshape({size.t * size.n, size.in});
    const Tensor wi = kernels::contiguous(stream, w.input.value);
    const Tensor wh = kernels::contiguous(stream, w.hidden.value);
    const Operand xq = input.operand(rows, fi.input, "input", 1, Side::Left);
    const Operand wq = input.operand(wi, fi.weight, "weight", 1, Side::Right);
    const Tensor sums = product(input, op, xq, wq, contiguous_or_none(stream, w.input_bias),
                                {fi, kForwardProduct, factors.input.forward});
    w_hidden = hidden.operand(wh, fh.weight, "weight", 1, Side::Right);
    bias_hidden = contiguous_or_none(stream, w.hidden_bias);
    if (tape.recording() && w.input.needs_grad())
      x_dw = kept(op, input, rows, xq, fi.input, fi.input_dw, "input_dw");
    if (tape.recording() && x.needs_grad())
      w_input_dx = kept(op, input, wi, wq, fi.weight, fi.weight_dx, "weight_dx");
    if (tape.recording() && needs_hidden_dx)
      w_hidden_dx = kept(op, hidden, wh, w_hidden, fh.weight, fh.weight_dx, "weight_dx");
    return sums.reshape({size.t, size.n, size.gates * size.h});
  }

  /// The gates' sums by the state before one step.
  Tensor step(const Tensor& h) const {
    const OpFormats& fh = f.hidden_product;
    return product(hidden, op, hidden.operand(h, fh.input, "input", 1, Side::Left), w_hidden,
                   bias_hidden, {fh, kForwardProduct, factors.hidden.forward});
  }

  /// The gradient of the state before one step, through the product. w: the turned w_hidden_dx.
  Tensor step_backward(const Tensor& gates, const Operand& w) const {
    const OpFormats& fh = f.hidden_product;
    return product(hidden, op,
                   hidden.operand(gates, fh.grad_output_dx, "grad_output_dx", 1, Side::Left), w, {},
                   {fh, kDxProduct, factors.hidden.dx});
  }

  Tensor bias_gradient(const Tensor& g, double factor) const {
    const Tensor db = Tensor::empty({g.size(1)}, g.dtype(), g.device());
    kernels::sum(input.tape.stream(), {g, db, 1, g.size(0), g.size(1), factor});
    return db;
  }

  /// dx, dW_ih, dW_hh, db_ih, db_hh where they are needed, of the gradients of all steps' sums (T·N, G·H). h: the states before
  /// the steps.
  std::vector<Tensor> gradients(const Tensor& g_input, const Tensor& g_hidden, const Tensor& h,
                                Needs needs) const {
    const Stream stream = input.tape.stream();
    const OpFormats &fi = f.input_product, &fh = f.hidden_product;
    std::vector<Tensor> d(5);
    Operand g_dx;
    if (needs[0]) {
      g_dx = input.operand(g_input, fi.grad_output_dx, "grad_output_dx", 1, Side::Left);
      d[0] = by_sequence(stream,
                         product(input, op, g_dx, turned(stream, w_input_dx.get()), {},
                                 {fi, kDxProduct, factors.input.dx}),
                         size);
    }
    if (needs[1]) {
      const bool alike = shares(fi.grad_output_dx, fi.grad_output_dw);
      const Operand g_dw =
          needs[0] && alike
              ? g_dx
              : input.operand(g_input, fi.grad_output_dw,
                              alike ? "grad_output_dx" : "grad_output_dw", 0, Side::Left);
      d[1] = product(input, op, turned(stream, g_dw), turned(stream, x_dw.get()), {},
                     {fi, kDwProduct, factors.input.dw});
    }
    if (needs[2]) {
      const Operand g_dw =
          hidden.operand(g_hidden, fh.grad_output_dw, "grad_output_dw", 0, Side::Left);
      const Operand h_dw = hidden.operand(h, fh.input_dw, "input_dw", 0, Side::Right);
      d[2] = product(hidden, op, turned(stream, g_dw), turned(stream, h_dw), {},
                     {fh, kDwProduct, factors.hidden.dw});
    }
    if (needs[3]) d[3] = bias_gradient(g_input, factors.input.db);
    if (needs[4]) d[4] = bias_gradient(g_hidden, factors.hidden.db);
    return d;
  }
};

Products products_of(const char* op, Tape& tape, const Sizes& size, const RecurrentFormats& f,
                     const RecurrentSites& sites, const RecurrentFactors& factors) {
  Products p{op, size, f,  factors, {tape, sites.input_product}, {tape, sites.hidden_product}, {},
             {}, {},   {}, {}};
  return p;
}

/// The gradients that meet in h, for a kernel: as they are, or added and rounded where the kernel cannot round their sum.
class StateGradient {
 public:
  StateGradient(Stream stream, const StepRole& role, Tensor a, Tensor b, Tensor c = {}) {
    if (!role.is_later()) {
      parts_[0] = std::move(a);
      parts_[1] = std::move(b);
      parts_[2] = std::move(c);
      return;
    }
    Tensor sum;
    for (const Tensor& part : {a, b, c}) {
      if (!part.defined()) continue;
      if (!sum.defined()) {
        sum = part;
        continue;
      }
      const Tensor next = make_like(part);
      kernels::add(stream, {{sum, part}, next, 0, {}, {}});
      sum = next;
    }
    if (sum.defined()) parts_[0] = role.use.result(sum, role.format, role.name, 1);
  }
  const Tensor& operator[](size_t part) const { return parts_[part]; }

 private:
  std::array<Tensor, 3> parts_;
};

/// The step's part of an output's gradient, or none.
Tensor step_or_none(const Tensor& all, int64_t t) {
  return all.defined() ? step_of(all, t) : Tensor();
}
Tensor contiguous_gradient(Stream stream, const Tensor& g) {
  return g.defined() ? wide(stream, g) : Tensor();
}

std::string part(std::string_view path, const char* name) {
  return path.empty() ? name : std::string(path) + "." + name;
}

}  // namespace

RecurrentSites::RecurrentSites(std::string_view path)
    : input_product(part(path, "input_product")),
      hidden_product(part(path, "hidden_product")),
      gates(part(path, "gates")),
      hidden_state(part(path, "hidden_state")),
      cell_state(part(path, "cell_state")) {}

RecurrentResult lstm(Tape& tape, const Var& x, const RecurrentWeights& w,
                     const RecurrentState& first, const RecurrentFormats& f,
                     const RecurrentSites& sites, const RecurrentFactors& factors) {
  const Sizes z = checked("lstm", 4, x, w, first);
  const Stream stream = tape.stream();
  const RoleUse gates{tape, sites.gates}, h_use{tape, sites.hidden_state},
      c_use{tape, sites.cell_state};
  Products p = products_of("lstm", tape, z, f, sites, factors);
  const Tensor sums = p.begin(x, w, true);
  const Tensor h = states_from(stream, z, first.h), c = states_from(stream, z, first.c);
  const Tensor kept = Tensor::empty({tape.recording() ? z.t : 1, z.n, 5 * z.h}, z.dtype, z.device);
  const StepRole h_role{h_use, f.hidden_state.output, "output"},
      c_role{c_use, f.cell_state.output, "output"};
  for (int64_t t = 0; t < z.t; ++t) {
    LstmStepArgs args;
    args.input = step_of(sums, t);
    args.hidden = p.step(step_of(h, t));
    args.c_before = step_of(c, t);
    args.saved = step_of(kept, tape.recording() ? t : 0);
    args.c = step_of(c, t + 1);
    args.h = step_of(h, t + 1);
    args.interior = interior_of(gates, f.gates.interior, 3);
    args.trace =
        interior_trace(gates, f.gates.interior, {{z.n, 4 * z.h}, {z.n, 4 * z.h}, {z.n, z.h}});
    args.cell = c_role.fused();
    args.state = h_role.fused();
    if (c_role.is_later()) {
      args.part = LstmPart::Cell;
      kernels::lstm_step(stream, args);
      c_role.finish(stream, args.c);
      args.part = LstmPart::Hidden;
    }
    kernels::lstm_step(stream, args);
    count(gates, args.interior, args.trace);
    h_role.finish(stream, args.h);
  }
  const Tensor y = turned_in_time(stream, h.slice(0, 1, z.t + 1));
  Saved h_saved, c_saved, kept_saved;
  if (tape.recording()) {
    h_saved = tape.save("lstm", h);
    c_saved = tape.save("lstm", c);
    kept_saved = tape.save("lstm", kept);
  }
  p.w_hidden = {};
  const Var inputs[] = {x, w.input, w.hidden, w.input_bias, w.hidden_bias, first.h, first.c};
  const std::vector<Var> outputs = tape.record(
      "lstm", f.input_product, inputs, {y, step_of(h, z.t), step_of(c, z.t)},
      [=](std::span<const Tensor> grads, Needs needs) -> std::vector<Tensor> {
        const StepRole dh_role{h_use, f.hidden_state.grad_input, "grad_input"},
            dc_role{c_use, f.cell_state.grad_input, "grad_input"},
            gates_role{gates, f.gates.grad_input, "grad_input"};
        const Tensor dy =
            grads[0].defined() ? turned_in_time(stream, wide(stream, grads[0])) : Tensor();
        Tensor dh = contiguous_gradient(stream, grads[1]),
               dc = contiguous_gradient(stream, grads[2]);
        const Tensor dz = Tensor::empty({z.t, z.n, 4 * z.h}, z.dtype, z.device);
        const Operand turned_w = turned(stream, p.w_hidden_dx.get());
        for (int64_t t = z.t - 1; t >= 0; --t) {
          const StateGradient of_h(stream, dh_role, step_or_none(dy, t), dh);
          LstmStepBackwardArgs args;
          args.grad_y = of_h[0];
          args.grad_h = of_h[1];
          args.grad_c = dc;
          args.saved = step_of(kept_saved.get(), t);
          args.c_before = step_of(c_saved.get(), t);
          args.gates = step_of(dz, t);
          args.grad_c_before = Tensor::empty({z.n, z.h}, z.dtype, z.device);
          args.state = dh_role.fused();
          args.gates_format = gates_role.fused();
          args.cell = dc_role.fused();
          kernels::lstm_step_backward(stream, args);
          gates_role.finish(stream, args.gates);
          dc_role.finish(stream, args.grad_c_before);
          dc = args.grad_c_before;
          if (t > 0 || needs[5]) dh = p.step_backward(args.gates, turned_w);
        }
        const Tensor rows = rows_of(dz, 0, z.t);
        std::vector<Tensor> d = p.gradients(rows, rows, rows_of(h_saved.get(), 0, z.t), needs);
        d.push_back(needs[5] ? dh : Tensor());
        d.push_back(needs[6] ? dc : Tensor());
        return d;
      });
  return {outputs[0], {outputs[1], outputs[2]}};
}

RecurrentResult gru(Tape& tape, const Var& x, const RecurrentWeights& w,
                    const RecurrentState& first, const RecurrentFormats& f,
                    const RecurrentSites& sites, const RecurrentFactors& factors) {
  ULP_CHECK(!first.c.value.defined(), "gru: it has no cell state; give h only");
  const Sizes z = checked("gru", 3, x, w, first);
  const Stream stream = tape.stream();
  const RoleUse gates{tape, sites.gates}, h_use{tape, sites.hidden_state};
  Products p = products_of("gru", tape, z, f, sites, factors);
  const Tensor sums = p.begin(x, w, true);
  const Tensor h = states_from(stream, z, first.h);
  const Tensor kept = Tensor::empty({tape.recording() ? z.t : 1, z.n, 4 * z.h}, z.dtype, z.device);
  const StepRole h_role{h_use, f.hidden_state.output, "output"};
  for (int64_t t = 0; t < z.t; ++t) {
    GruStepArgs args;
    args.input = step_of(sums, t);
    args.hidden = p.step(step_of(h, t));
    args.h_before = step_of(h, t);
    args.saved = step_of(kept, tape.recording() ? t : 0);
    args.h = step_of(h, t + 1);
    args.interior = interior_of(gates, f.gates.interior, 2);
    args.trace = interior_trace(gates, f.gates.interior, {{z.n, 3 * z.h}, {z.n, 3 * z.h}});
    args.state = h_role.fused();
    kernels::gru_step(stream, args);
    count(gates, args.interior, args.trace);
    h_role.finish(stream, args.h);
  }
  const Tensor y = turned_in_time(stream, h.slice(0, 1, z.t + 1));
  Saved h_saved, kept_saved;
  if (tape.recording()) {
    h_saved = tape.save("gru", h);
    kept_saved = tape.save("gru", kept);
  }
  p.w_hidden = {};
  const Var inputs[] = {x, w.input, w.hidden, w.input_bias, w.hidden_bias, first.h};
  const std::vector<Var> outputs = tape.record(
      "gru", f.input_product, inputs, {y, step_of(h, z.t)},
      [=](std::span<const Tensor> grads, Needs needs) -> std::vector<Tensor> {
        const StepRole dh_role{h_use, f.hidden_state.grad_input, "grad_input"},
            gates_role{gates, f.gates.grad_input, "grad_input"};
        const Tensor dy =
            grads[0].defined() ? turned_in_time(stream, wide(stream, grads[0])) : Tensor();
        Tensor dh = contiguous_gradient(stream, grads[1]), direct;
        const Tensor dx = Tensor::empty({z.t, z.n, 3 * z.h}, z.dtype, z.device);
        const Tensor du = make_like(dx);
        const Operand turned_w = turned(stream, p.w_hidden_dx.get());
        for (int64_t t = z.t - 1; t >= 0; --t) {
          const StateGradient of_h(stream, dh_role, step_or_none(dy, t), dh, direct);
          GruStepBackwardArgs args;
          args.grad_y = of_h[0];
          args.grad_h = of_h[1];
          args.grad_direct = of_h[2];
          args.saved = step_of(kept_saved.get(), t);
          args.h_before = step_of(h_saved.get(), t);
          args.input_gates = step_of(dx, t);
          args.hidden_gates = step_of(du, t);
          args.direct = Tensor::empty({z.n, z.h}, z.dtype, z.device);
          args.state = dh_role.fused();
          args.input_format = gates_role.fused();
          args.hidden_format = gates_role.fused();
          kernels::gru_step_backward(stream, args);
          gates_role.finish(stream, args.input_gates);
          gates_role.finish(stream, args.hidden_gates);
          direct = args.direct;
          if (t > 0 || needs[5]) dh = p.step_backward(args.hidden_gates, turned_w);
        }
        std::vector<Tensor> d = p.gradients(rows_of(dx, 0, z.t), rows_of(du, 0, z.t),
                                            rows_of(h_saved.get(), 0, z.t), needs);
        Tensor dh0;
        if (needs[5]) {
          dh0 = make_like(direct);
          kernels::add(stream, {{dh, direct}, dh0, 0, {}, {}});
        }
        d.push_back(dh0);
        return d;
      });
  return {outputs[0], {outputs[1], {}}};
}

}  // namespace ulp::ops
