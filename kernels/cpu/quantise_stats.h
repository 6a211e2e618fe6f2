#pragma once

#include <mutex>
#include <vector>

#include "core/quantise_stats.h"

namespace ulp::cpu {

/// QuantiseStats of a tensor: counts in any order, sums one a run, so that the result does not depend on who counted what.
class StatsSum {
 public:
  explicit StatsSum(int64_t elements, bool gaps = false);
  QuantiseStats total() const;

 private:
  friend class StatsWalk;
  bool gaps_;  // see kGapBits
  std::mutex mutex_;
  QuantiseStats counts_;
  std::vector<double> error_, square_error_, square_;  // of each run
};

/// One thread's walk over consecutive elements, from a multiple of kStatsRun on. `sum` may be null.
class StatsWalk {
 public:
  StatsWalk(StatsSum* sum, int64_t first) : sum_(sum), at_(first) {}
  /// The next n elements: they lie in one run. Overflows are counted by whoever rounds them.
  void add(const float* x, const float* y, int64_t n);
  int64_t* overflow() { return &own_.overflow; }
  void finish();

 private:
  void add_run(const float* x, const float* y, int64_t run);

  StatsSum* sum_;
  int64_t at_;
  QuantiseStats own_;
  alignas(64) float x_[kStatsRun], y_[kStatsRun];  // of a run that comes in pieces
};

}  // namespace ulp::cpu
