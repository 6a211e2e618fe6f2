#include "autograd/quantised.h"

namespace ulp::ops {
namespace {

void check_type(const Tensor& in, const Quantizer& quantizer, const char* role) {
  ULP_CHECK(in.dtype() != DType::F64,
            "{}: F64 tensors are for gradient checks and take no format; "
            "{} was given for {}",
            role, quantizer, role);
}

}  // namespace

QuantiseUse RoleUse::use_of(const Quantizer& quantizer, const char* role, int group_axis) const {
  Run& run = tape.run();
  const uint32_t stream = site.stream(role);
  QuantiseUse use;
  use.quantizer = quantizer;
  use.axis = group_axis;
  use.key = run.key(stream);
  use.math = run.math();
  if (quantizer.scale.kind == Scale::Kind::Delayed) {
    use.scaling = run.scaling(stream, quantizer);
    use.frozen = !tape.recording();
  }
  return use;
}

Operand RoleUse::operand(const Tensor& in, const Quantizer& quantizer, const char* role,
                         int group_axis, Side side) const {
  if (quantizer.is_identity()) return {in, {}, 0};
  check_type(in, quantizer, role);
  return quantised_operand(tape.stream(), in, use_of(quantizer, role, group_axis), side);
}

Tensor RoleUse::narrow(const Tensor& in, const Quantizer& quantizer, const char* role,
                       int group_axis) const {
  if (quantizer.is_identity()) return in;
  check_type(in, quantizer, role);
  const DType dtype = storage_type(quantizer) == DType::F32 ? DType::F32 : gemm_type(quantizer);
  return quantised(tape.stream(), in, use_of(quantizer, role, group_axis), dtype);
}

Tensor RoleUse::result(const Tensor& in, const Quantizer& quantizer, const char* role,
                       int group_axis) const {
  if (quantizer.is_identity()) return in;
  check_type(in, quantizer, role);
  return quantised(tape.stream(), in, use_of(quantizer, role, group_axis));
}

RandomKey RoleUse::fused_key(const Quantizer& quantizer, const char* role) const {
  if (quantizer.is_identity() || !quantizer.is_elementwise()) return {};
  return tape.run().key(site.stream(role));
}

Tensor make_like(const Tensor& tensor) {
  return Tensor::empty(tensor.shape(), tensor.dtype(), tensor.device());
}

}  // namespace ulp::ops
