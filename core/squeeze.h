#pragma once

#include "core/scalar_math.h"

namespace ulp {

// Shifted and squeezed tensors: with l = log2|x| of the elements that are not 0,
//   y = sign(x) · 2^(α·(l − mean)),  α = top / (max l − mean),  so that mean log2|y| = 0 and max log2|y| = top;  0 stays 0;
//   back:  sign(y) · 2^(log2|y| / α + mean)
// Source: Cambier et al., arXiv 2001.05674, section 3: its β is −α·mean, its top 15, the exponent of e5m2's largest number.

/// log2 x of a positive, finite x, off by half an ulp of the result (2^-17 from 2^±128 on) and 2^-22 at most.
ULP_HD float log2_of(float x) {
  const bool subnormal = x < 0x1p-126f;
  const uint32_t shifted = bits_of(x * choose(subnormal, 0x1p24f, 1.0f)) - 0x3F3504F3u;
  const int32_t e = (static_cast<int32_t>(shifted) >> 23) - (subnormal ? 24 : 0);
  const float m = float_of((shifted & 0x007FFFFFu) + 0x3F3504F3u);  // in [√½, √2)
  return fma_of(log_of(m), 0x1.715476p+0f, static_cast<float>(e));
}

/// 2^t, never Inf: t counts as 127.99999 at most.
ULP_HD float exp2_of(float t) {
  const float bounded = choose(t < -151.0f, -151.0f, choose(t > 0x1.fffffep6f, 0x1.fffffep6f, t));
  const float safe = choose(t == t, bounded, 0.0f);
  const float magic = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer
  const float near = safe + magic;
  const float r = safe - (near - magic);  // exact
  const int32_t exponent = static_cast<int32_t>(bits_of(near) - bits_of(magic));
  const int32_t half = exponent >> 1;  // both halves are exponents of normal numbers
  const float low = float_of(static_cast<uint32_t>(half + 127) << 23),
              high = float_of(static_cast<uint32_t>(exponent - half + 127) << 23);
  const float y = ((exp_series(r * 0x1.62e43p-1f) + 1.0f) * low) * high;
  return choose(t == t, choose(y > 0x1.fffffep127f, 0x1.fffffep127f, y), float_of(kNanBits));
}

/// Of a tensor, in the device's memory.
struct SqueezeTotals {
  uint64_t count;      // of elements that are not 0
  uint32_t amax_bits;  // of the largest magnitude; NaN's and Inf's are above those of numbers
  uint32_t unused;
};

struct Squeeze {
  float alpha, mean;  // alpha is NaN if an element is NaN or Inf
};

/// logs: Σ log2|x|. Magnitudes that are all alike, or none: α = 1.
ULP_HD Squeeze squeeze_of(float logs, const SqueezeTotals& totals, float top) {
  if (totals.amax_bits >= kInfinityBits) return {float_of(kNanBits), 0.0f};
  if (totals.count == 0) return {1.0f, 0.0f};
  const float mean = logs / static_cast<float>(totals.count);
  const float spread = log2_of(float_of(totals.amax_bits)) - mean;
  return {spread > 0.0f ? top / spread : 1.0f, mean};
}

ULP_HD float with_sign_of(float magnitude, float x) {
  return float_of(bits_of(magnitude) | (bits_of(x) & kSignBit));
}

ULP_HD float squeezed(float x, const Squeeze& s) {
  if (!(s.alpha == s.alpha)) return float_of(kNanBits);
  if (x == 0.0f) return x;
  return with_sign_of(exp2_of(s.alpha * (log2_of(abs_of(x)) - s.mean)), x);
}

ULP_HD float unsqueezed(float y, const Squeeze& s) {
  if (!(s.alpha == s.alpha) || !(abs_of(y) < float_of(kInfinityBits))) return float_of(kNanBits);
  if (y == 0.0f) return y;
  return with_sign_of(exp2_of(log2_of(abs_of(y)) / s.alpha + s.mean), y);
}

}  // namespace ulp
