#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/bits.h"

namespace ulp {

/// What one quantise call did, counted in its own pass: x came, y = v · factor is what it stands for.
struct QuantiseStats {
  int64_t count = 0;              // of x, without gaps (kGapBits)
  int64_t overflow = 0;           // finite x whose rounded value lay beyond the largest number
  int64_t underflow = 0;          // x ≠ 0 that became zero
  int64_t nan = 0, infinite = 0;  // x that were
  uint32_t amax_bits = 0;         // largest |x| among the finite ones
  // Over elements with finite x, y and y − x (the fp32 difference), in the order below.
  int64_t finite = 0;
  double error = 0;         // Σ (y − x)
  double square_error = 0;  // Σ (y − x)²
  double square = 0;        // Σ x²

  float amax() const { return float_of(amax_bits); }
  double mean_error() const { return finite == 0 ? 0.0 : error / static_cast<double>(finite); }
  /// 10 log10(Σ x² / Σ (y − x)²) in dB; Inf if nothing changed.
  double sqnr_db() const {
    if (square_error == 0) return std::numeric_limits<double>::infinity();
    return 10 * std::log10(square / square_error);
  }
};

/// Stands for no element where a call is told of gaps; no kernel makes such a NaN.
inline constexpr uint32_t kGapBits = 0xFFFFFFFFu;

/// The order of the sums. Elements are cut into runs of 1024. Powers of two bring a run's largest |x| and its largest |y − x|
/// near 1, so that fp32 loses no square that matters. Lane l adds the run's elements l, l + 256, l + 512 and l + 768 to +0
/// (StatsSums::add), the 256 lanes are added by halving as in core/sum.h, all in fp32; the runs' sums are scaled back in
/// double and added in the order of core/sum.h. A term meets up to 16 roundings in fp32: the relative error of Σ x² and
/// Σ (y − x)² is at most 16 · 2⁻²⁴, that of Σ (y − x) the same share of Σ |y − x|.
inline constexpr int64_t kStatsRun = 1024, kStatsLanes = 256;

/// From the largest magnitude of a run: what to multiply by, and what that makes 1. Both are powers of two, the first normal.
ULP_HD uint32_t stats_exponent(uint32_t most_bits) {
  const uint32_t field = most_bits >> 23;
  const uint32_t least = field > 1 ? field : 1;
  return least < 253 ? least : 253;
}
ULP_HD float stats_scale(uint32_t most_bits) {
  return float_of((254 - stats_exponent(most_bits)) << 23);
}
ULP_HD double stats_unit(uint32_t most_bits) {
  return static_cast<double>(float_of(stats_exponent(most_bits) << 23));
}

/// A lane, or what lanes make together.
struct StatsSums {
  float error = 0, square_error = 0, square = 0;

  /// x and e = y − x, scaled; both 0 for an element that has no share.
  ULP_HD void add(float x, float e) {
    error += e;
    square_error += e * e;
    square += x * x;
  }
};

}  // namespace ulp
