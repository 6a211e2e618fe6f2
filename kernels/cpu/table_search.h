#pragma once

#include <cstdint>
#include <vector>

namespace ulp::cpu {

/// Where numbers lie among ascending steps, in loops that vectorise: the top bits of a number say how many steps lie below
/// all numbers with these bits, and what lies among them is compared.
class TableSearch {
 public:
  TableSearch() = default;
  /// steps[0] is not looked at: what lies below steps[1] has the index 0.
  explicit TableSearch(const std::vector<float>& steps);

  /// found[i] = how many of steps[1], steps[2] … are ≤ x[i]. NaN: any index that there is.
  void find(const float* x, int64_t n, int32_t* found) const;

 private:
  std::vector<int32_t> below_;  // by top bits
  std::vector<float> steps_;    // with a NaN behind them
  int rounds_ = 0;              // most steps among numbers with the same top bits
};

}  // namespace ulp::cpu
