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

/// The same for dividends as small as they come, in fp64; a divisor that is NaN makes quotients NaN.
/// The product is off by less than 2^−52 of the quotient and the correction by its remainder leaves 2^−53, while a quotient of two
/// floats that is no midpoint of floats, subnormal ones included, lies 2^−49 of itself from the next. One that is a midpoint has few
/// bits and comes out exact.
struct WideDivisor {
  double divisor, reciprocal;

  ULP_HD explicit WideDivisor(float by) : divisor(by), reciprocal(1.0 / divisor) {}

  ULP_HD float quotient_of(float dividend) const {
    const double x = dividend, q = x * reciprocal;
    return static_cast<float>(exact_fma(exact_fma(-divisor, q, x), reciprocal, q));
  }

 private:
  ULP_HD static double exact_fma(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
    return fma(a, b, c);
#else
    return __builtin_fma(a, b, c);
#endif
  }
};

}  // namespace ulp
