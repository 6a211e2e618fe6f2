#include "autograd/quantised.h"

#include "autograd/misfit.h"
#include "autograd/role_stats.h"

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
                         int group_axis, Side side, const Tensor& mask) const {
  if (quantizer.is_identity()) {
    count(in, role);
    return {in, {}, 0};
  }
  check_type(in, quantizer, role);
  QuantiseUse use = use_of(quantizer, role, group_axis);
  use.stats = stats_for(in, quantizer, role);
  if (use.stats.defined() && quantizer.has_factor()) {
    // Kernels that keep factors apart do not count: once more with the same draws, and with what delayed scaling remembers as
    // it is.
    QuantiseUse counting = use;
    counting.frozen = true;
    quantised(tape.stream(), in, counting);
    use.stats = {};
  }
  use.mask = mask;
  return quantised_operand(tape.stream(), in, use, side);
}

Tensor RoleUse::narrow(const Tensor& in, const Quantizer& quantizer, const char* role,
                       int group_axis, const Tensor& mask) const {
  return rounded(in, quantizer, role, group_axis,
                 storage_type(quantizer) == DType::F32 ? DType::F32 : gemm_type(quantizer), mask);
}

Tensor RoleUse::rounded(const Tensor& in, const Quantizer& quantizer, const char* role,
                        int group_axis, DType dtype, const Tensor& mask) const {
  if (quantizer.is_identity()) {
    count(in, role);
    return in;
  }
  check_type(in, quantizer, role);
  QuantiseUse use = use_of(quantizer, role, group_axis);
  use.stats = stats_for(in, quantizer, role);
  use.mask = mask;
  return quantised(tape.stream(), in, use, dtype);
}

Tensor RoleUse::result(const Tensor& in, const Quantizer& quantizer, const char* role,
                       int group_axis) const {
  return rounded(in, quantizer, role, group_axis, DType::F32);
}

Tensor RoleUse::kept(const Tensor& in, const Quantizer& quantizer, const char* role,
                     int group_axis) const {
  return rounded(in, quantizer, role, group_axis, result_type(in, quantizer));
}

DType RoleUse::result_type(const Tensor& in, const Quantizer& quantizer) const {
  if (in.dtype() == DType::F64) return DType::F64;
  const bool apart = !quantizer.is_elementwise() || quantizer.scale.kind != Scale::Kind::None;
  return tape.run().keeps_narrow() && !apart ? storage_type(quantizer) : DType::F32;
}

Tensor RoleUse::stats_for(const Tensor& in, const Quantizer& quantizer, const char* role) const {
  RoleStats* stats = tape.run().role_stats();
  return stats == nullptr || in.numel() == 0 || *role == 0
             ? Tensor()
             : stats->slot(site.stream(role), quantizer);
}

void RoleUse::count(const Tensor& in, const char* role) const {
  const DType type = in.dtype();
  if (tape.run().role_stats() == nullptr || type == DType::F64 || type == DType::I32 ||
      type == DType::U8)
    return;
  QuantiseUse use;
  use.stats = stats_for(in, use.quantizer, role);
  if (use.stats.defined()) quantised(tape.stream(), in, use);
}

RandomKey RoleUse::fused_key(const Quantizer& quantizer, const char* role) const {
  if (quantizer.is_identity() || !fuses(quantizer)) return {};
  return tape.run().key(site.stream(role));
}

Sums RoleUse::sums(const Accumulator& accumulator, const char* role) const {
  Sums sums;
  sums.how = accumulator;
  if (accumulator.is_stochastic())
    sums.key = tape.run().key(site.stream(role), accumulator.draws());
  return sums;
}

Tensor wide(Stream stream, const Tensor& x) {
  if (x.dtype() == DType::F32 || x.dtype() == DType::F64) return kernels::contiguous(stream, x);
  Tensor out = Tensor::empty(x.shape(), DType::F32, x.device());
  kernels::copy(stream, {x, out});
  return out;
}

Tensor make_like(const Tensor& tensor) {
  return Tensor::empty(tensor.shape(), tensor.dtype(), tensor.device());
}

Tensor clamp_mask(const char* op, const Tensor& in, const Quantizer& quantizer, bool wanted) {
  if (!wanted || quantizer.is_identity()) return {};
  const std::string problem = mask_misfit(quantizer);
  ULP_CHECK(problem.empty(), "{}: clamp_mask: input {}", op, problem);
  return Tensor::empty(in.shape(), DType::U8, in.device());
}

Tensor unclamped(Stream stream, const Tensor& mask, const Tensor& g) {
  if (!mask.defined()) return g;
  const Tensor out = Tensor::empty(g.shape(), DType::F32, g.device());
  kernels::mask_gradient(stream, {{mask, g, {}}, out, 0, {}, {}});
  return out;
}

}  // namespace ulp::ops
