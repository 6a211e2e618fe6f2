#include "autograd/scaling.h"

#include "autograd/quantised.h"

namespace ulp::ops {
namespace {

Tensor multiplied(Stream stream, const Tensor& x, double factor) {
  if (factor == 1) return x;
  const Tensor from = kernels::contiguous(stream, x);
  const DType dtype = x.dtype() == DType::F64 ? DType::F64 : DType::F32;
  const Tensor y = Tensor::empty(x.shape(), dtype, x.device());
  kernels::scale(stream, {{from}, y, factor, {}, {}});
  return y;
}

}  // namespace

Var scaling(Tape& tape, const Var& x, double forward, double backward) {
  if (forward == 1 && backward == 1) return x;
  const Stream stream = tape.stream();
  return tape.record("scaling", {}, {x}, multiplied(stream, x.value, forward),
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       return {multiplied(stream, grads[0], backward)};
                     });
}

}  // namespace ulp::ops
