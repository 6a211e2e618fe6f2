#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/bits.h"

namespace ulp {

/// What one quantise call did, counted in its own pass: x came, y = v · factor is what it stands for.
struct QuantiseStats {
  int64_t count = 0;
  int64_t overflow = 0;           // finite x whose rounded value lay beyond the largest number
  int64_t underflow = 0;          // x ≠ 0 that became zero
  int64_t nan = 0, infinite = 0;  // x that were
  uint32_t amax_bits = 0;         // largest |x| among the finite ones
  // Over elements with finite x and y, in double, in the order of core/sum.h.
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

/// One element's share. Both backends add these up.
struct StatsTerms {
  double error, square_error, square;
  bool underflow, nan, infinite, finite;
  uint32_t finite_bits;  // |x| if it is finite, else 0
};

ULP_HD StatsTerms stats_terms(float x, float y) {
  const uint32_t a = bits_of(x) & ~kSignBit, b = bits_of(y) & ~kSignBit;
  StatsTerms t;
  t.nan = a > kInfinityBits;
  t.infinite = a == kInfinityBits;
  t.underflow = a != 0 && b == 0;
  t.finite = a < kInfinityBits && b < kInfinityBits;
  t.finite_bits = a < kInfinityBits ? a : 0u;
  const double from = static_cast<double>(t.finite ? x : 0.0f);
  const double to = static_cast<double>(t.finite ? y : 0.0f);
  t.error = to - from;
  t.square_error = t.error * t.error;
  t.square = from * from;
  return t;
}

}  // namespace ulp
