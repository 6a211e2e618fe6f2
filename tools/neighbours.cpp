#include "tools/neighbours.h"

#include <algorithm>
#include <cmath>

namespace ulp::tools {
namespace {

/// All numbers of a posit or table, ascending.
std::vector<float> listed(const Grid& grid) {
  if (grid.kind == GridKind::Table) return {grid.table, grid.table + grid.table_size};
  std::vector<float> all{0.0f};
  for (uint32_t code = 1; code < 1u << (grid.posit_bits - 1); ++code)
    for (const float sign : {1.0f, -1.0f})
      all.push_back(sign * posit_value(code, grid.posit_bits, grid.posit_exponent_bits));
  std::sort(all.begin(), all.end());
  return all;
}

double beyond_fp32(float value) {
  return std::isinf(value) ? std::copysign(0x1p128, value) : static_cast<double>(value);
}

}  // namespace

Neighbours::Neighbours(const Quantizer& quantizer, const Grid& grid) : grid_(grid), open_(grid) {
  if (is_listed()) {
    list_ = listed(grid);
    max_ = list_.back();
    lowest_ = list_.front();
    return;
  }
  open_.max_bits[0] = open_.max_bits[1] = kInfinityBits;
  open_.min_normal_bits = 0;
  open_.wrap_bits = 0;
  bounded_ = quantizer.format.overflow != Overflow::None;
  if (grid.max_bits[0] == kInfinityBits) {  // wrapping or no bounds: the grid does not have them
    const FormatLimits limits = limits_of(quantizer.format);
    max_ = static_cast<float>(limits.max);
    lowest_ = static_cast<float>(limits.lowest);
    return;
  }
  max_ = float_of(grid.max_bits[0]);
  lowest_ = grid.max_bits[1] == 0 ? 0.0f : -float_of(grid.max_bits[1]);
}

float Neighbours::unbounded(float x, Rounding mode, uint32_t random) const {
  return quantise_value(x, open_, mode, random);
}

Place Neighbours::place(float x) const {
  Place p;
  if (is_listed()) {
    const auto at = std::lower_bound(list_.begin(), list_.end(), x);
    if (at != list_.end()) p.above = *at;
    if (at != list_.end() && *at == x)
      p.below = x;
    else if (at != list_.begin())
      p.below = *(at - 1);
    p.low = p.below.value_or(lowest_);
    p.high = p.above.value_or(max_);
    return p;
  }
  float low = unbounded(x, Rounding::Down), high = unbounded(x, Rounding::Up);
  p.low = beyond_fp32(low);
  p.high = beyond_fp32(high);
  const float least = float_of(grid_.min_normal_bits);  // 0: subnormals are numbers
  if (low > 0 && low < least) low = 0;
  if (low < 0 && low > -least) low = -least;
  if (high > 0 && high < least) high = least;
  if (high < 0 && high > -least) high = 0;
  const auto infinity = [&](int side) -> std::optional<float> {
    const uint32_t bits = grid_.infinity_bits[side];
    if ((bits & ~kSignBit) != kInfinityBits) return std::nullopt;
    return float_of(bits);
  };
  p.below = low < lowest_ ? infinity(1) : std::min(low, max_);
  p.above = high > max_ ? infinity(0) : std::max(high, lowest_);
  return p;
}

double Neighbours::top_step() const {
  const Place p = place(std::nextafter(max_, -INFINITY));
  return static_cast<double>(max_) - static_cast<double>(p.below.value_or(lowest_));
}

int64_t Neighbours::count_up_to(float max) const {
  int64_t count = 0;
  for (int e = std::max(open_.min_quantum, -149); e <= 127 && std::ldexp(1.0, e) <= max; ++e) {
    const int quantum = std::max({e - open_.significand_bits, open_.min_quantum, e - 23});
    const double least = std::max(std::ldexp(1.0, e), double{float_of(grid_.min_normal_bits)});
    const double step = std::ldexp(1.0, quantum);
    const double most = std::min(static_cast<double>(max), std::ldexp(1.0, e + 1) - step);
    if (most >= least) count += static_cast<int64_t>((most - least) / step) + 1;
  }
  return count;
}

int64_t Neighbours::count() const {
  if (is_listed()) return static_cast<int64_t>(list_.size());
  if (!bounded_) return 0;
  return count_up_to(max_) + count_up_to(-lowest_) + 1;
}

Draw draw_of(float x, const Grid& grid) {
  const auto drawn = [&](uint32_t random) {
    return quantise_value(x, grid, Rounding::Stochastic, random);
  };
  Draw d;
  d.first = drawn(0);
  d.second = drawn(UINT32_MAX);
  d.words_of_first = uint64_t{1} << 32;
  if (bits_of(d.first) == bits_of(d.second)) return d;
  uint32_t low = 0, high = UINT32_MAX;  // a word of the first, a word of the second
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    (bits_of(drawn(middle)) == bits_of(d.first) ? low : high) = middle;
  }
  d.words_of_first = high;
  return d;
}

}  // namespace ulp::tools
