#include "kernels/cpu/table_search.h"

#include <algorithm>

#include "core/bits.h"
#include "kernels/cpu/isa.h"

namespace ulp::cpu {
namespace {

constexpr int kTopBits = 16;  // the sign, the exponent and seven bits of the fraction

/// Ascends with x; −0 counts as +0.
ULP_HD uint32_t ordered(float x) {
  const uint32_t bits = bits_of(x + 0.0f);
  return bits ^ ((0u - (bits >> 31)) | kSignBit);
}

}  // namespace

TableSearch::TableSearch(const std::vector<float>& steps)
    : below_(size_t{1} << kTopBits), steps_(steps) {
  steps_.push_back(float_of(kNanBits));
  size_t next = 1;
  for (size_t top = 0; top < below_.size(); ++top) {
    const uint32_t least = static_cast<uint32_t>(top) << (32 - kTopBits);
    while (next < steps.size() && ordered(steps[next]) <= least) ++next;
    below_[top] = static_cast<int32_t>(next) - 1;
    int among = 0;
    for (; next < steps.size() && ordered(steps[next]) >> (32 - kTopBits) == top; ++next) ++among;
    rounds_ = std::max(rounds_, among);
  }
}

void TableSearch::find(const float* x, int64_t n, int32_t* found) const {
  const int32_t* below = below_.data();
  const float* next = steps_.data() + 1;
  with_isa([=, rounds = rounds_]() ULP_INLINE {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) found[i] = below[ordered(x[i]) >> (32 - kTopBits)];
    for (int round = 0; round < rounds; ++round) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) found[i] += x[i] >= next[found[i]] ? 1 : 0;
    }
  });
}

}  // namespace ulp::cpu
