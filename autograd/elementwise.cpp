#include "autograd/elementwise.h"

#include "autograd/misfit.h"
#include "autograd/ops.h"

namespace ulp::ops {

Tensor apply(const RoleUse& use, const ElementwiseKernel& kernel,
             std::initializer_list<Tensor> inputs, Scalars scalars, const Quantizer& rounding,
             const char* role) {
  ElementwiseArgs args;
  size_t k = 0;
  for (const Tensor& input : inputs) args.in[k++] = kernels::contiguous(use.tape.stream(), input);
  // A one-element operand serves all: the result has the shape of the others.
  const Tensor& shaped =
      k > 1 && args.in[0].numel() == 1 && args.in[1].numel() != 1 ? args.in[1] : args.in[0];
  args.output = use.fused(rounding);
  args.out = Tensor::empty(shaped.shape(), use.result_type(shaped, args.output), shaped.device());
  args.alpha = scalars.alpha;
  args.beta = scalars.beta;
  args.key = use.fused_key(rounding, role);
  kernel(use.tape.stream(), args);
  return use.after(args.out, rounding, role, std::max(0, shaped.rank() - 1));
}

void check_same(const char* op, const Var& a, const Var& b) {
  ULP_CHECK(a.value.defined() && b.value.defined() && a.shape() == b.shape(),
            "{}: both operands must have one shape, got {} and {}", op, a.value, b.value);
}

Var activation(Tape& tape, const char* op, const ElementwiseKernel& forward,
               const ElementwiseKernel& backward, Scalars scalars, const Var& x, const OpFormats& f,
               RandomSite site, Keeps keeps) {
  ULP_CHECK(x.value.defined(), "{}: the input holds no tensor", op);
  const RoleUse use{tape, site};
  const int last = std::max(0, x.shape().rank() - 1);
  const Tensor xq = use.narrow(x.value, f.input, "input", last);
  const Tensor y = apply(use, forward, {xq}, scalars, f.output, "output");
  const bool result = keeps == Keeps::Result && f.output.is_identity() && xq.dtype() == y.dtype();
  const Saved saved = tape.save(op, result ? y : xq);
  return tape.record(
      op, f, {x}, y, [=, &backward](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
        const Tensor g = use.narrow(grads[0], f.grad_output_dx, "grad_output_dx", last);
        return {apply(use, backward, {saved.get(), g}, scalars, f.grad_input, "grad_input")};
      });
}

namespace {

/// y = f(x + b) with dx = backward(x, b, g).
Var biased_activation(Tape& tape, const char* op, const ElementwiseKernel& forward,
                      const ElementwiseKernel& backward, const Var& x, const Var& b,
                      const OpFormats& f, RandomSite site) {
  ULP_CHECK(x.value.defined() && x.shape().rank() >= 2, "{}: x must be (…, C), got {}", op,
            x.value);
  const int last = x.shape().rank() - 1;
  const int64_t columns = x.shape()[last];
  ULP_CHECK(b.value.defined() && b.shape() == Shape{columns}, "{}: b must be ({}) for x {}, got {}",
            op, columns, x.value, b.value);
  const RoleUse use{tape, site};
  const Tensor xq = use.narrow(x.value, f.input, "input", last);
  const Saved saved_x = tape.save(op, xq), saved_b = tape.save(op, b.value);
  return tape.record(
      op, f, {x, b}, apply(use, forward, {xq, b.value}, {}, f.output, "output"),
      [=, &backward](std::span<const Tensor> grads, Needs needs) -> std::vector<Tensor> {
        const Tensor g = use.narrow(grads[0], f.grad_output_dx, "grad_output_dx", last);
        const Quantizer none;
        Tensor dx = apply(use, backward, {saved_x.get(), saved_b.get(), g}, {},
                          needs[1] ? none : f.grad_input, "grad_input");
        if (!needs[1]) return {dx, {}};
        Tensor db = Tensor::empty({columns}, dx.dtype(), dx.device());
        kernels::sum(use.tape.stream(),
                     {dx, db, 1, columns == 0 ? 0 : dx.numel() / columns, columns});
        if (needs[0]) dx = use.kept(dx, f.grad_input, "grad_input", last);
        return {dx, db};
      });
}

}  // namespace

Var add(Tape& tape, const Var& a, const Var& b, const OpFormats& f, RandomSite site) {
  check_same("add", a, b);
  const RoleUse use{tape, site};
  return tape.record(
      "add", f, {a, b}, apply(use, kernels::add, {a.value, b.value}, {}, f.output, "output"),
      [=](std::span<const Tensor> grads, Needs needs) -> std::vector<Tensor> {
        Tensor da, db;
        const int last = std::max(0, grads[0].rank() - 1);
        if (needs[0]) da = use.kept(grads[0], f.grad_input, "grad_input", last);
        // Rounded without draws or a state of their own, both are the same.
        const bool alike = da.defined() && use.fuses(f.grad_input) && !f.grad_input.is_stochastic();
        if (needs[1]) db = alike ? da : use.kept(grads[0], f.grad_input, kSecond, last);
        return {da, db};
      });
}

Var subtract(Tape& tape, const Var& a, const Var& b, const OpFormats& f, RandomSite site) {
  check_same("subtract", a, b);
  const RoleUse use{tape, site};
  return tape.record("subtract", f, {a, b},
                     apply(use, kernels::subtract, {a.value, b.value}, {}, f.output, "output"),
                     [=](std::span<const Tensor> grads, Needs needs) -> std::vector<Tensor> {
                       Tensor da, db;
                       const int last = std::max(0, grads[0].rank() - 1);
                       if (needs[0]) da = use.kept(grads[0], f.grad_input, "grad_input", last);
                       if (needs[1])
                         db = apply(use, kernels::scale, {grads[0]}, {-1}, f.grad_input, kSecond);
                       return {da, db};
                     });
}

Var multiply(Tape& tape, const Var& a, const Var& b, const OpFormats& f, RandomSite site) {
  check_same("multiply", a, b);
  const RoleUse use{tape, site};
  const Saved sa = tape.save("multiply", a.value), sb = tape.save("multiply", b.value);
  return tape.record(
      "multiply", f, {a, b},
      apply(use, kernels::multiply, {a.value, b.value}, {}, f.output, "output"),
      [=](std::span<const Tensor> grads, Needs needs) -> std::vector<Tensor> {
        Tensor da, db;
        if (needs[0])
          da = apply(use, kernels::multiply, {grads[0], sb.get()}, {}, f.grad_input, "grad_input");
        if (needs[1])
          db = apply(use, kernels::multiply, {grads[0], sa.get()}, {}, f.grad_input, kSecond);
        return {da, db};
      });
}

Var scale(Tape& tape, const Var& a, double factor, const OpFormats& f, RandomSite site) {
  const RoleUse use{tape, site};
  return tape.record(
      "scale", f, {a}, apply(use, kernels::scale, {a.value}, {factor}, f.output, "output"),
      [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
        return {apply(use, kernels::scale, {grads[0]}, {factor}, f.grad_input, "grad_input")};
      });
}

Var square(Tape& tape, const Var& a, const OpFormats& f, RandomSite site) {
  const RoleUse use{tape, site};
  const Saved saved = tape.save("square", a.value);
  return tape.record(
      "square", f, {a}, apply(use, kernels::square, {a.value}, {}, f.output, "output"),
      [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
        const Tensor twice = apply(use, kernels::scale, {saved.get()}, {2}, {}, "");
        return {apply(use, kernels::multiply, {grads[0], twice}, {}, f.grad_input, "grad_input")};
      });
}

Var relu(Tape& tape, const Var& x, const OpFormats& f, RandomSite site) {
  // y is above 0, or NaN, where x is.
  return activation(tape, "relu", kernels::relu, kernels::relu_backward, {}, x, f, site,
                    Keeps::Result);
}

Var gelu(Tape& tape, const Var& x, Gelu form, const OpFormats& f, RandomSite site) {
  if (form == Gelu::Tanh)
    return activation(tape, "gelu_tanh", kernels::gelu_tanh, kernels::gelu_tanh_backward, {}, x, f,
                      site);
  return activation(tape, "gelu", kernels::gelu, kernels::gelu_backward, {}, x, f, site);
}

Var bias_relu(Tape& tape, const Var& x, const Var& b, const OpFormats& f, RandomSite site) {
  return biased_activation(tape, "bias_relu", kernels::bias_relu, kernels::bias_relu_backward, x, b,
                           f, site);
}

Var bias_gelu(Tape& tape, const Var& x, const Var& b, Gelu form, const OpFormats& f,
              RandomSite site) {
  if (form == Gelu::Tanh)
    return biased_activation(tape, "bias_gelu_tanh", kernels::bias_gelu_tanh,
                             kernels::bias_gelu_tanh_backward, x, b, f, site);
  return biased_activation(tape, "bias_gelu", kernels::bias_gelu, kernels::bias_gelu_backward, x, b,
                           f, site);
}

Var quantize(Tape& tape, const Var& x, const QuantizeFormats& q, RandomSite site) {
  ULP_CHECK(x.value.defined(), "quantize: the input holds no tensor");
  const RoleUse use{tape, site};
  const int last = std::max(0, x.shape().rank() - 1);
  Tensor y = kernels::contiguous(tape.stream(), x.value), mask;
  if (q.clamp_mask && !q.forward.is_identity()) {
    ULP_CHECK(x.value.dtype() != DType::F64, "quantize: F64 tensors are for gradient checks");
    const std::string problem = mask_misfit(q.forward);
    ULP_CHECK(problem.empty(), "quantize: clamp_mask: {}", problem);
    mask = Tensor::empty(x.shape(), DType::U8, x.value.device());
    QuantiseUse forward = use.use_of(q.forward, "forward", last);
    forward.mask = mask;
    forward.stats = use.stats_for(y, q.forward, "forward");
    y = quantised(tape.stream(), y, forward);
  } else {
    y = use.result(y, q.forward, "forward", last);
  }
  const Saved saved = tape.save("quantize", mask);
  OpFormats f;
  f.output = q.forward;
  f.grad_input = q.backward;
  return tape.record("quantize", f, {x}, y,
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       const Tensor g = use.result(grads[0], q.backward, "backward", last);
                       if (!saved.get().defined()) return {g};
                       return {apply(use, kernels::mask_gradient, {saved.get(), g}, {}, {}, "")};
                     });
}

Var reshape(Tape& tape, const Var& x, const Shape& shape) {
  const Shape before = x.shape();
  const Stream stream = tape.stream();
  return tape.record("reshape", {}, {x}, kernels::contiguous(stream, x.value).reshape(shape),
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       return {kernels::contiguous(stream, grads[0]).reshape(before)};
                     });
}

Var sum(Tape& tape, const Var& x) {
  ULP_CHECK(x.value.defined(), "sum: the input holds no tensor");
  const Stream stream = tape.stream();
  const Tensor in = kernels::contiguous(stream, x.value);
  Tensor out = Tensor::empty({}, in.dtype() == DType::F64 ? DType::F64 : DType::F32, in.device());
  kernels::sum(stream, {in, out, 1, in.numel(), 1});
  const Shape shape = in.shape();
  const DType dtype = out.dtype();
  const Device device = in.device();
  return tape.record("sum", {}, {x}, out,
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       Tensor dx = Tensor::empty(shape, dtype, device);
                       kernels::scale(stream, {{grads[0], {}, {}}, dx, 1, {}, {}});
                       return {dx};
                     });
}

Var mean(Tape& tape, const Var& x) {
  ULP_CHECK(x.value.defined() && x.value.numel() > 0, "mean: there are no elements, got {}",
            x.value);
  return scale(tape, sum(tape, x), 1.0 / static_cast<double>(x.value.numel()));
}

Var mse(Tape& tape, const Var& prediction, const Var& target, const OpFormats& f, RandomSite site) {
  check_same("mse", prediction, target);
  return mean(tape, square(tape, subtract(tape, prediction, target, f, site)));
}

}  // namespace ulp::ops
