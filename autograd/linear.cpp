#include "autograd/ops.h"
#include "autograd/product.h"

namespace ulp::ops {
namespace {

/// (…, columns) → (rows, columns).
Tensor flat(Stream stream, const Tensor& x) {
  int64_t rows = 1;
  for (int axis = 0; axis + 1 < x.rank(); ++axis) rows *= x.size(axis);
  return kernels::contiguous(stream, x).reshape({rows, x.size(x.rank() - 1)});
}

}  // namespace

Var linear(Tape& tape, const Var& x, const Var& w, const Var& b, const OpFormats& f,
           RandomSite site, const ProductFactors& factors) {
  ULP_CHECK(w.value.defined() && w.shape().rank() == 2, "linear: w must be (Out, In), got {}",
            w.value);
  const int64_t out_features = w.shape()[0], in_features = w.shape()[1];
  ULP_CHECK(
      x.value.defined() && x.shape().rank() >= 2 && x.shape()[x.shape().rank() - 1] == in_features,
      "linear: x must be (…, {}) for a weight of shape {}, got {}", in_features, w.shape(),
      x.value);
  const bool biased = b.value.defined();
  ULP_CHECK(!biased || b.shape() == Shape{out_features}, "linear: b must be ({}), got {}",
            out_features, b.value);
  const Stream stream = tape.stream();
  const RoleUse use{tape, site};
  const Tensor x2 = flat(stream, x.value), w2 = kernels::contiguous(stream, w.value);

  const Tensor mask =
      clamp_mask("linear", x2, f.input, f.clamp_mask && tape.recording() && x.needs_grad());
  const Operand xq = use.operand(x2, f.input, "input", 1, Side::Left, mask);
  const Operand wq = use.operand(w2, f.weight, "weight", 1, Side::Right);
  constexpr auto kKept = Outcome::Type::Kept;
  const Tensor y =
      product(use, "linear", xq, wq, b.value, {f, kForwardProduct, factors.forward, kKept});

  SavedOperand x_dw, w_dx;
  if (tape.recording() && w.needs_grad())
    x_dw = {
        tape, "linear",
        shares(f.input, f.input_dw) ? xq : use.operand(x2, f.input_dw, "input_dw", 0, Side::Right)};
  if (tape.recording() && x.needs_grad())
    w_dx = {tape, "linear",
            shares(f.weight, f.weight_dx)
                ? wq
                : use.operand(w2, f.weight_dx, "weight_dx", 0, Side::Right)};

  const Saved clamped = tape.save("linear", mask);
  Shape y_shape = x.shape();
  y_shape[y_shape.rank() - 1] = out_features;
  const Shape x_shape = x.shape();
  return tape.record("linear", f, {x, w, b}, y.reshape(y_shape),
                     [=](std::span<const Tensor> grads, Needs needs) -> std::vector<Tensor> {
                       const Tensor g = flat(stream, grads[0]);
                       Tensor dx, dw, db;
                       Operand g_dx;
                       if (needs[0]) {
                         g_dx = use.operand(g, f.grad_output_dx, "grad_output_dx", 1, Side::Left);
                         dx = product(use, "linear", g_dx, turned(stream, w_dx.get()), {},
                                      {f, kDxProduct, factors.dx, kKept});
                         dx = unclamped(stream, clamped.get(), dx).reshape(x_shape);
                       }
                       if (needs[1]) {
                         const bool alike = shares(f.grad_output_dx, f.grad_output_dw);
                         // With equal quantizers the draw is that of grad_output_dx, whether or not dx is needed.
                         const Operand g_dw =
                             needs[0] && alike
                                 ? g_dx
                                 : use.operand(g, f.grad_output_dw,
                                               alike ? "grad_output_dx" : "grad_output_dw", 0,
                                               Side::Left);
                         dw = product(use, "linear", turned(stream, g_dw),
                                      turned(stream, x_dw.get()), {}, {f, kDwProduct, factors.dw});
                       }
                       if (needs[2]) {
                         db = Tensor::empty({out_features}, use.result_type(g, {}), g.device());
                         kernels::sum(stream, {g, db, 1, g.size(0), out_features, factors.db});
                       }
                       return {dx, dw, db};
                     });
}

}  // namespace ulp::ops
