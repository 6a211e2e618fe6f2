#pragma once

#include <vector>

#include "core/quantise_stats.h"
#include "core/sum.h"

namespace ulp::cpu {

/// QuantiseStats of a tensor, one share for each chunk of kSumChunk elements, so that the result does not depend on who
/// counted what.
class StatsSum {
 public:
  explicit StatsSum(int64_t elements)
      : count_(elements), chunks_(static_cast<size_t>((elements + kSumChunk - 1) / kSumChunk)) {}
  QuantiseStats& chunk(int64_t index) { return chunks_[static_cast<size_t>(index)]; }
  QuantiseStats total() const;

 private:
  int64_t count_;
  std::vector<QuantiseStats> chunks_;
};

/// One thread's walk over consecutive elements, from a multiple of kSumChunk on. `sum` may be null.
class StatsRun {
 public:
  StatsRun(StatsSum* sum, int64_t first) : sum_(sum), at_(first) {}
  /// The next n elements: they lie in one chunk.
  void add(const float* x, const float* y, const uint8_t* clamped, int64_t n);
  void finish();

 private:
  StatsSum* sum_;
  int64_t at_;
  QuantiseStats own_;
  double error_[kSumLanes] = {}, square_error_[kSumLanes] = {}, square_[kSumLanes] = {};
};

}  // namespace ulp::cpu
