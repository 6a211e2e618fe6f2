#include "autograd/dropout.h"

#include <algorithm>

#include "autograd/quantised.h"
#include "kernels/dropout.h"

namespace ulp::ops {
namespace {

/// One way through the mask, rounded by `rounding`.
Tensor masked(const RoleUse& use, const Tensor& in, double p, const RandomKey& mask,
              const Quantizer& rounding, const char* role, int last) {
  DropoutArgs args;
  args.in = in;
  args.output = use.fused(rounding);
  args.out = Tensor::empty(in.shape(), use.result_type(in, args.output), in.device());
  args.threshold = static_cast<uint32_t>(std::min(p * 0x1p32, 0x1p32 - 1));
  args.scale = 1 / (1 - p);
  args.mask = mask;
  args.key = use.fused_key(rounding, role);
  kernels::dropout(use.tape.stream(), args);
  return use.after(args.out, rounding, role, last);
}

}  // namespace

Var dropout(Tape& tape, const Var& x, double p, bool training, const OpFormats& f,
            RandomSite site) {
  ULP_CHECK(x.value.defined(), "dropout: the input holds no tensor");
  ULP_CHECK(p >= 0 && p < 1, "dropout: the probability must be from 0 to below 1, got {}", p);
  const RoleUse use{tape, site};
  const int last = std::max(0, x.shape().rank() - 1);
  const Tensor own = kernels::contiguous(tape.stream(), x.value);
  if (!training)
    return tape.record(
        "dropout", f, {x},
        use.result(use.result(own, f.input, "input", last), f.output, "output", last),
        [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
          const Tensor g = use.result(grads[0], f.grad_output_dx, "grad_output_dx", last);
          return {use.result(g, f.grad_input, "grad_input", last)};
        });
  const RandomKey mask = tape.run().key(site.stream("mask"));
  const Tensor in = use.narrow(own, f.input, "input", last);
  return tape.record("dropout", f, {x}, masked(use, in, p, mask, f.output, "output", last),
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       const Tensor g = use.narrow(kernels::contiguous(use.tape.stream(), grads[0]),
                                                   f.grad_output_dx, "grad_output_dx", last);
                       return {masked(use, g, p, mask, f.grad_input, "grad_input", last)};
                     });
}

}  // namespace ulp::ops
