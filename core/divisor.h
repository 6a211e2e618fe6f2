#pragma once

#include "core/scalar_math.h"

namespace ulp {

inline constexpr float kLeastDividend = 0x1p-100f;

/// Many quotients by one number, each what / gives, with one division in all.
/// divisor: 1 … 2^24. Dividends: +0, or kLeastDividend … 1; so no quotient and no remainder is too small for fp32.
/// The first fma pair brings the quotient within one ulp, whatever rounded before; from there the second is exact: its remainder
/// is a float, and a reciprocal that is rounded to nearest suffices. Source: Markstein, Computation of elementary functions on the
/// IBM RISC System/6000 processor, IBM J. Res. Dev. 34 (1990), theorem on correctly rounded division.
struct Divisor {
  float divisor, reciprocal;

  ULP_HD explicit Divisor(float by) : divisor(by), reciprocal(1.0f / by) {}

  ULP_HD float quotient_of(float dividend) const {
    float q = dividend * reciprocal;
    q = fma_of(fma_of(-divisor, q, dividend), reciprocal, q);
    return fma_of(fma_of(-divisor, q, dividend), reciprocal, q);
  }
};

}  // namespace ulp
