#include "autograd/ops.h"
#include "autograd/quantised.h"

namespace ulp::ops {
namespace {

/// a · b (+ bias), its sums kept by `accumulator`, rounded by `rounding`: → (M, N) F32.
Tensor product(const RoleUse& use, const Tensor& a, const Tensor& b, const Tensor& bias,
               const Quantizer& rounding, const char* role, const Accumulator& accumulator) {
  const DType dtype = a.dtype() == DType::F64 ? DType::F64 : DType::F32;
  Tensor out = Tensor::empty({a.size(0), b.size(1)}, dtype, a.device());
  MatmulArgs args;
  args.a = a;
  args.b = b;
  args.bias = bias;
  args.out = out;
  args.output = use.fused(rounding);
  args.key = use.fused_key(rounding, role);
  args.accumulator = accumulator;
  args.math = use.tape.run().math();
  kernels::matmul(use.tape.stream(), args);
  return use.after(out, rounding, role, 1);
}

/// (…, columns) → (rows, columns).
Tensor flat(Stream stream, const Tensor& x) {
  int64_t rows = 1;
  for (int axis = 0; axis + 1 < x.rank(); ++axis) rows *= x.size(axis);
  return kernels::contiguous(stream, x).reshape({rows, x.size(x.rank() - 1)});
}

}  // namespace

Var linear(Tape& tape, const Var& x, const Var& w, const Var& b, const OpFormats& f,
           RandomSite site) {
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

  const Tensor xq = use.operand(x2, f.input, "input", 1);
  const Tensor wq = use.operand(w2, f.weight, "weight", 1);
  const Tensor y = product(use, xq, wq.transpose(0, 1), b.value, f.output, "output", f.forward_acc);

  Saved x_dw, w_dx;
  if (tape.recording() && w.needs_grad())
    x_dw = {"linear",
            shares(f.input, f.input_dw) ? xq : use.operand(x2, f.input_dw, "input_dw", 0)};
  if (tape.recording() && x.needs_grad())
    w_dx = {"linear",
            shares(f.weight, f.weight_dx) ? wq : use.operand(w2, f.weight_dx, "weight_dx", 0)};

  Shape y_shape = x.shape();
  y_shape[y_shape.rank() - 1] = out_features;
  const Shape x_shape = x.shape();
  return tape.record(
      "linear", f, {x, w, b}, y.reshape(y_shape),
      [=](std::span<const Tensor> grads, Needs needs) -> std::vector<Tensor> {
        const Tensor g = flat(stream, grads[0]);
        Tensor dx, dw, db, g_dx;
        if (needs[0]) {
          g_dx = use.operand(g, f.grad_output_dx, "grad_output_dx", 1);
          dx = product(use, g_dx, w_dx.get(), {}, f.grad_input, "grad_input", f.dx_acc)
                   .reshape(x_shape);
        }
        if (needs[1]) {
          const bool shared = needs[0] && shares(f.grad_output_dx, f.grad_output_dw);
          const Tensor g_dw =
              shared
                  ? g_dx
                  // With equal quantizers the draw is that of grad_output_dx, whether or not dx is needed.
                  : use.operand(g, f.grad_output_dw,
                                shares(f.grad_output_dx, f.grad_output_dw) ? "grad_output_dx"
                                                                           : "grad_output_dw",
                                0);
          dw = product(use, g_dw.transpose(0, 1), x_dw.get(), {}, f.grad_weight, "grad_weight",
                       f.dw_acc);
        }
        if (needs[2]) {
          db = Tensor::empty({out_features}, g.dtype(), g.device());
          kernels::sum(stream, {g, db, 1, g.size(0), out_features});
        }
        return {dx, dw, db};
      });
}

}  // namespace ulp::ops
