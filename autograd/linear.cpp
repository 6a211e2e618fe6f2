#include <algorithm>

#include "autograd/ops.h"
#include "autograd/quantised.h"

namespace ulp::ops {
namespace {

/// A saved operand: values as the tape keeps them, and the rest.
struct SavedOperand {
  Saved values;
  Factors factors;
  int hadamard = 0;
  bool fits_tf32 = false;

  SavedOperand() = default;
  SavedOperand(Tape& tape, const Operand& o)
      : values(tape.save("linear", o.values)),
        factors(o.factors),
        hadamard(o.hadamard),
        fits_tf32(o.fits_tf32) {}
  Operand get() const { return {values.get(), factors, hadamard, fits_tf32}; }
};

Operand turned(Stream stream, const Operand& o) {
  return {o.values.transpose(0, 1), transposed(stream, o.factors, o.values.shape()), o.hadamard,
          o.fits_tf32};
}

/// What a product makes beside its operands.
struct Outcome {
  const Quantizer& rounding;
  const char* role;
  const Accumulator& accumulator;
};

/// a · bᵀ (+ bias), a: (M, K), b: (N, K), its sums kept by the accumulator, rounded: → (M, N) F32.
Tensor product(const RoleUse& use, const Operand& a, const Operand& b, const Tensor& bias,
               const Outcome& outcome) {
  ULP_CHECK(a.hadamard == b.hadamard,
            "linear: the operands of {} are rotated in groups of {} and {}; give both +rht{} or "
            "neither",
            outcome.role, a.hadamard, b.hadamard, std::max(a.hadamard, b.hadamard));
  const DType dtype = a.values.dtype() == DType::F64 ? DType::F64 : DType::F32;
  Tensor out = Tensor::empty({a.values.size(0), b.values.size(0)}, dtype, a.values.device());
  MatmulArgs args;
  args.a = a.values;
  args.b = b.values.transpose(0, 1);
  args.bias = bias;
  args.out = out;
  args.output = use.fused(outcome.rounding);
  args.key = use.fused_key(outcome.rounding, outcome.role);
  args.accumulator = outcome.accumulator;
  args.math = use.tape.run().math();
  args.fits_tf32 = (a.fits_tf32 || a.values.dtype() != DType::F32) &&
                   (b.fits_tf32 || b.values.dtype() != DType::F32);
  scaled_matmul(use.tape.stream(), args, a.factors, b.factors);
  return use.after(out, outcome.rounding, outcome.role, 1);
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

  const Operand xq = use.operand(x2, f.input, "input", 1, Side::Left);
  const Operand wq = use.operand(w2, f.weight, "weight", 1, Side::Right);
  const Tensor y = product(use, xq, wq, b.value, {f.output, "output", f.forward_acc});

  SavedOperand x_dw, w_dx;
  if (tape.recording() && w.needs_grad())
    x_dw = {tape, shares(f.input, f.input_dw)
                      ? xq
                      : use.operand(x2, f.input_dw, "input_dw", 0, Side::Right)};
  if (tape.recording() && x.needs_grad())
    w_dx = {tape, shares(f.weight, f.weight_dx)
                      ? wq
                      : use.operand(w2, f.weight_dx, "weight_dx", 0, Side::Right)};

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
                         dx = product(use, g_dx, turned(stream, w_dx.get()), {},
                                      {f.grad_input, "grad_input", f.dx_acc})
                                  .reshape(x_shape);
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
                         dw = product(use, turned(stream, g_dw), turned(stream, x_dw.get()), {},
                                      {f.grad_weight, "grad_weight", f.dw_acc});
                       }
                       if (needs[2]) {
                         db = Tensor::empty({out_features}, g.dtype(), g.device());
                         kernels::sum(stream, {g, db, 1, g.size(0), out_features});
                       }
                       return {dx, dw, db};
                     });
}

}  // namespace ulp::ops
