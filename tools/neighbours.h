#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/grid.h"

namespace ulp::tools {

/// Where a finite value lies among a format's numbers.
struct Place {
  /// The largest number ≤ x and the smallest ≥ x, the same if x is a number. ±Inf where it follows; none beyond the ends.
  std::optional<float> below, above;
  /// The same on the format's lattice without bounds and without flushing. 2^128 where fp32 ends.
  double low = 0, high = 0;
};

/// The numbers of one grid: of an element-wise quantizer, or of one block of a block format. Everything is asked of
/// quantise_value.
class Neighbours {
 public:
  /// `grid` is make_grid(quantizer), for a block format after set_block.
  Neighbours(const Quantizer& quantizer, const Grid& grid);

  Place place(float x) const;
  /// What rounding makes of x before bounds, flushing or wrapping are looked at.
  float unbounded(float x, Rounding mode, uint32_t random = 0) const;
  float max() const { return max_; }
  float lowest() const { return lowest_; }
  /// Distance between the two topmost finite numbers.
  double top_step() const;
  /// Different finite numbers, ±0 being one. 0 if nothing bounds them.
  int64_t count() const;

 private:
  bool is_listed() const { return grid_.kind == GridKind::Posit || grid_.kind == GridKind::Table; }
  int64_t count_up_to(float max) const;

  Grid grid_, open_;
  std::vector<float> list_;  // ascending; posits and tables
  float max_ = 0, lowest_ = 0;
  bool bounded_ = true;
};

/// What a stochastic rounding makes of x: `first` for the words below `words_of_first`, `second` for the others, of 2^32.
struct Draw {
  float first = 0, second = 0;
  uint64_t words_of_first = 0;
  bool is_sure() const { return words_of_first == uint64_t{1} << 32; }
};
Draw draw_of(float x, const Grid& grid);

}  // namespace ulp::tools
