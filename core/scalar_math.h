#pragma once

#include <cmath>

#include "core/bits.h"

namespace ulp {

// Transcendentals for fp32, from + − × ÷ and fma only, so that every device and instruction set computes the same bits.
// Coefficients: least-maximum fits made for this file. The double overloads serve gradient checks only and may use libm.

ULP_HD float fma_of(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
ULP_HD double fma_of(double a, double b, double c) { return a * b + c; }

/// Correctly rounded.
ULP_HD float sqrt_of(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}
ULP_HD double sqrt_of(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

ULP_HD float abs_of(float x) { return float_of(bits_of(x) & ~kSignBit); }
ULP_HD double abs_of(double x) { return x < 0 ? -x : x; }

ULP_HD float choose(bool condition, float a, float b) {
  return float_of(select_bits(condition, bits_of(a), bits_of(b)));
}

/// e^r − 1 for |r| ≤ ½·ln 2.
ULP_HD float exp_series(float r) {
  float p = 0x1.6db4e4p-10f;
  p = fma_of(p, r, 0x1.123be0p-7f);
  p = fma_of(p, r, 0x1.55545ep-5f);
  p = fma_of(p, r, 0x1.55548ep-3f);
  p = fma_of(p, r, 0.5f);
  return fma_of(p * r, r, r);
}

/// e^x, at most 1.06 ulp off; +Inf above 88.73, 0 below −103.98, subnormals included.
ULP_HD float exp_of(float x) {
  const float bounded = choose(x < -104.0f, -104.0f, choose(x > 89.0f, 89.0f, x));
  const float safe = choose(x == x, bounded, 0.0f);
  const float magic = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer
  const float near = safe * 0x1.715476p+0f + magic;
  const float n = near - magic;
  const float r = fma_of(n, -1.42860682030941723e-6f, fma_of(n, -0x1.62e4p-1f, safe));
  const float e = exp_series(r) + 1.0f;
  const int32_t exponent = static_cast<int32_t>(bits_of(near) - bits_of(magic));  // n
  const int32_t half = exponent >> 1;  // both halves are exponents of normal numbers
  const float low = float_of(static_cast<uint32_t>(half + 127) << 23),
              high = float_of(static_cast<uint32_t>(exponent - half + 127) << 23);
  const float y = (e * low) * high;
  return choose(x == x, y, float_of(kNanBits));
}
ULP_HD double exp_of(double x) { return ::exp(x); }

/// e^x − 1, at most 1.61 ulp off; +Inf above 88.73, −1 below −17.33.
ULP_HD float expm1_of(float x) {
  const float bounded = choose(x < -20.0f, -20.0f, choose(x > 89.0f, 89.0f, x));
  const float safe = choose(x == x, bounded, 0.0f);
  const float magic = 12582912.0f;  // as in exp_of
  const float near = safe * 0x1.715476p+0f + magic;
  const float n = near - magic;
  const float r = fma_of(n, -1.42860682030941723e-6f, fma_of(n, -0x1.62e4p-1f, safe));
  const float m = exp_series(r);
  // 2^n·(1 + m) − 1, by halves: 2^128 is no float, and 2^n − 1 is exact or rounds to 2^n
  const int32_t exponent = static_cast<int32_t>(bits_of(near) - bits_of(magic));
  const float half = float_of(static_cast<uint32_t>(exponent + 126) << 23);
  const float y = choose(exponent == 0, m, 2.0f * fma_of(m, half, half - 0.5f));
  return choose(x == x, choose(x == 0.0f, x, y), float_of(kNanBits));
}
ULP_HD double expm1_of(double x) { return ::expm1(x); }

/// What ln(1 + f) is beyond f − ½f², over f², for 1 + f in [√½, √2).
ULP_HD float log_series(float f) {
  float p = 0x1.1b5c52p-4f;
  p = fma_of(p, f, -0x1.e27ec2p-4f);
  p = fma_of(p, f, 0x1.e60866p-4f);
  p = fma_of(p, f, -0x1.fb5282p-4f);
  p = fma_of(p, f, 0x1.233954p-3f);
  p = fma_of(p, f, -0x1.55629ap-3f);
  p = fma_of(p, f, 0x1.99a4e2p-3f);
  p = fma_of(p, f, -0x1.ffffeep-3f);
  p = fma_of(p, f, 0x1.555546p-2f);
  return p * f;
}

/// ln x, at most 1 ulp off; −Inf at ±0, NaN below.
ULP_HD float log_of(float x) {
  const bool subnormal = x < 0x1p-126f;
  const float scaled = x * choose(subnormal, 0x1p24f, 1.0f);
  const uint32_t u = bits_of(scaled);
  // x = 2^e · (1 + f), 1 + f in [√½, √2)
  const uint32_t shifted = u - 0x3F3504F3u;
  const int32_t e = (static_cast<int32_t>(shifted) >> 23) - (subnormal ? 24 : 0);
  const float f = float_of((shifted & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
  const float n = static_cast<float>(e);
  const float f2 = f * f;
  float y = fma_of(log_series(f), f2, n * 1.42860682030941723e-6f);
  y = fma_of(-0.5f, f2, y) + f;
  y = fma_of(n, 0x1.62e4p-1f, y);
  y = choose(x > 0x1.fffffep127f, x, y);
  y = choose(x == 0.0f, float_of(kInfinityBits | kSignBit), y);
  return choose(x >= 0.0f, y, float_of(kNanBits));
}
ULP_HD double log_of(double x) { return ::log(x); }

/// ln(1 + x), at most 1.25 ulp off; −Inf at −1, NaN below.
ULP_HD float log1p_of(float x) {
  const float f2 = x * x;
  const float small = fma_of(-0.5f, f2, log_series(x) * f2) + x;  // for 1 + x in [√½, √2)
  // Else ln of u = fl(1 + x), plus what the rounding of u lost over u.
  const float u = 1.0f + x;
  const float lost = choose(x < 1.0f, x - (u - 1.0f), 1.0f - (u - x));
  const float far = log_of(u) + choose(u > 0.0f && u < 0x1p100f, lost / u, 0.0f);
  return canonical(choose(x > -0.29f && x < 0.41f, choose(x == 0.0f, x, small), far));
}
ULP_HD double log1p_of(double x) { return ::log1p(x); }

/// tanh x, at most 2 ulp off.
ULP_HD float tanh_of(float x) {
  const float a = abs_of(x);
  const float t = a * a;
  float p = 0x1.163b6cp-9f;
  p = fma_of(p, t, -0x1.0b43cep-7f);
  p = fma_of(p, t, 0x1.636962p-6f);
  p = fma_of(p, t, -0x1.b9eba8p-5f);
  p = fma_of(p, t, 0x1.111058p-3f);
  p = fma_of(p, t, -0x1.555554p-2f);
  const float near = fma_of(p * t, a, a);
  const float far = 1.0f - 2.0f / (exp_of(2.0f * a) + 1.0f);
  const float y = choose(a < 0.625f, near, far);
  return canonical(float_of(bits_of(y) | (bits_of(x) & kSignBit)));
}
ULP_HD double tanh_of(double x) { return ::tanh(x); }

/// 1 / (1 + e^−x), at most 2.41 ulp off; 1 from 17.33 on, 0 below −103.98, subnormals included.
ULP_HD float sigmoid_of(float x) {
  const float e = exp_of(-abs_of(x));
  return canonical(choose(x < 0.0f, e, 1.0f) / (1.0f + e));
}
ULP_HD double sigmoid_of(double x) {
  const double e = ::exp(-abs_of(x));
  return (x < 0 ? e : 1) / (1 + e);
}

/// erf x, at most 2.43 ulp off.
ULP_HD float erf_of(float x) {
  const float a = abs_of(x);
  const float t = a * a;
  float p = 0x1.4ae4c6p-14f;
  p = fma_of(p, t, -0x1.a485e8p-11f);
  p = fma_of(p, t, 0x1.5419f4p-8f);
  p = fma_of(p, t, -0x1.b7fbb4p-6f);
  p = fma_of(p, t, 0x1.ce2d20p-4f);
  p = fma_of(p, t, -0x1.81273ep-2f);
  p = fma_of(p, t, 0x1.20dd74p+0f);
  const float near = p * a;
  // erfc a = exp(−a²)·q(a) for 1 ≤ a ≤ 4
  const float b = choose(a > 4.0f, 4.0f, a);
  float q = -0x1.ed35a0p-16f;
  q = fma_of(q, b, 0x1.38a4d0p-11f);
  q = fma_of(q, b, -0x1.65eea8p-8f);
  q = fma_of(q, b, 0x1.ebe496p-6f);
  q = fma_of(q, b, -0x1.c7a01ap-4f);
  q = fma_of(q, b, 0x1.2f7346p-2f);
  q = fma_of(q, b, -0x1.2f4f0ap-1f);
  q = fma_of(q, b, 0x1.d4490cp-1f);
  q = fma_of(q, b, -0x1.19d028p+0f);
  q = fma_of(q, b, 0x1.fdef54p-1f);
  const float far = choose(a > 4.0f, 1.0f, fma_of(-exp_of(-(b * b)), q, 1.0f));
  const float y = choose(a < 1.0f, near, far);
  return canonical(float_of(bits_of(choose(x == x, y, x)) | (bits_of(x) & kSignBit)));
}
ULP_HD double erf_of(double x) { return ::erf(x); }

}  // namespace ulp
