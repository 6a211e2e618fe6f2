#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ulp::optim {

/// The learning rate of each step, from the fraction of the run that is done.
///   constant  base
///   cosine    base·½(1 + cos(π·step/total)): from base toward 0.   Source: Loshchilov, Hutter, arXiv 1608.03983, eq. 5
///   step      base, a tenth of it after half of the run, a hundredth after three quarters
class Schedule {
 public:
  enum class Kind : uint8_t { Constant, Cosine, Step };
  /// Throws, listing the names, for another one.
  static Kind parse(std::string_view name);

  Schedule(Kind kind, double base, int64_t total_steps)
      : kind_(kind), base_(base), total_(total_steps) {}
  /// step counts from 0.
  double lr(int64_t step) const;
  /// Those of `count` steps from `first` on, as Optimizer::set_rates takes them.
  std::vector<float> rates(int64_t first, int64_t count) const;

 private:
  Kind kind_;
  double base_;
  int64_t total_;
};

}  // namespace ulp::optim
