#include "autograd/quantised.h"

namespace ulp::ops {
namespace {

Tensor quantise_to(const RoleUse& use, const Tensor& in, const Quantizer& quantizer,
                   const char* role, int group_axis, DType dtype) {
  if (quantizer.is_identity()) return in;
  ULP_CHECK(in.dtype() != DType::F64,
            "{}: F64 tensors are for gradient checks and take no format; "
            "{} was given for {}",
            role, quantizer, role);
  Tensor out = Tensor::empty(in.shape(), dtype, in.device());
  kernels::quantise(use.tape.stream(), {kernels::contiguous(use.tape.stream(), in),
                                        out,
                                        quantizer,
                                        group_axis,
                                        use.tape.run().key(use.site.stream(role)),
                                        {}});
  return out;
}

}  // namespace

Tensor RoleUse::operand(const Tensor& in, const Quantizer& quantizer, const char* role,
                        int group_axis) const {
  return quantise_to(*this, in, quantizer, role, group_axis, gemm_type(quantizer));
}

Tensor RoleUse::result(const Tensor& in, const Quantizer& quantizer, const char* role,
                       int group_axis) const {
  return quantise_to(*this, in, quantizer, role, group_axis, DType::F32);
}

RandomKey RoleUse::fused_key(const Quantizer& quantizer, const char* role) const {
  if (quantizer.is_identity() || !quantizer.is_elementwise()) return {};
  return tape.run().key(site.stream(role));
}

Tensor make_like(const Tensor& tensor) {
  return Tensor::empty(tensor.shape(), tensor.dtype(), tensor.device());
}

}  // namespace ulp::ops
