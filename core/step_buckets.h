#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/bits.h"

namespace ulp {

/// Where numbers lie among at most 256 ascending steps: the leading bits of a number tell its bucket, each bucket its first
/// answer, and few comparisons the rest. Positive and negative numbers have buckets of their own.
struct StepBuckets {
  static constexpr int32_t kSteps = 256, kBuckets = 1024;

  int32_t shift = 0, first = 0;  // magnitudes' bits >> shift, less first
  int32_t last = 0;   // the bucket of all larger magnitudes; bucket 0 is that of all smaller ones
  int32_t width = 0;  // 2^comparisons

  ULP_HD int32_t bucket_of(float x) const {
    const int32_t count = last + 1, negative = static_cast<int32_t>(bits_of(x) >> 31);
    const int32_t own = static_cast<int32_t>((bits_of(x) & ~kSignBit) >> shift) - first;
    return std::min(std::max(own, 0), count - 1) + negative * count;
  }

  /// found[k] ← the number of the last step, not the first, that is not beyond x[k]; 0 if all are. Finite x.
  template <int kCount>
  ULP_HD void find(const float* steps, const uint8_t* starts, const float (&x)[kCount],
                   int32_t (&found)[kCount]) const {
    for (int k = 0; k < kCount; ++k) found[k] = starts[bucket_of(x[k])];
    for (int32_t step = width >> 1; step > 0; step >>= 1)
      for (int k = 0; k < kCount; ++k)
        if (x[k] >= steps[found[k] + step]) found[k] += step;
  }
};

/// steps: kSteps, Inf where there are no more. starts: kBuckets.
struct StepTable {
  StepBuckets buckets;
  std::vector<float> steps;
  std::vector<uint8_t> starts;
};

/// The buckets that leave the fewest comparisons. steps: finite, ascending, at most kSteps.
StepTable make_step_table(const std::vector<float>& steps);

}  // namespace ulp
