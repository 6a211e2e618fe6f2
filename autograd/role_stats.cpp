#include "autograd/role_stats.h"

#include <algorithm>

namespace ulp {
namespace {

void add(QuantiseStats& to, const QuantiseStats& more) {
  to.count += more.count;
  to.overflow += more.overflow;
  to.underflow += more.underflow;
  to.nan += more.nan;
  to.infinite += more.infinite;
  to.amax_bits = std::max(to.amax_bits, more.amax_bits);
  to.finite += more.finite;
  to.error += more.error;
  to.square_error += more.square_error;
  to.square += more.square;
}

}  // namespace

Tensor RoleStats::slot(uint32_t stream, const Quantizer& quantizer) {
  uses_.push_back(
      {stream, quantizer,
       Tensor::empty({static_cast<int64_t>(sizeof(QuantiseStats))}, DType::U8, device_)});
  return uses_.back().stats;
}

std::map<uint32_t, RoleStats::Total> RoleStats::totals() const {
  std::map<uint32_t, Total> totals;
  for (const Use& use : uses_) {
    QuantiseStats stats;
    copy_bytes(&stats, kCpu, use.stats.raw(), device_, sizeof stats);
    Total& total = totals[use.stream];
    total.quantizer = use.quantizer;
    add(total.stats, stats);
  }
  return totals;
}

}  // namespace ulp
