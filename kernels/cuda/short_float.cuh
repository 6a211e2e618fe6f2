#pragma once

// Codes of small floats in a few operations: a multiplication by a power of two turns fp32's fields into the format's, its
// subnormal numbers into the format's.

#include <algorithm>

#include "core/codes.h"

namespace ulp::cuda {

struct ShortFloat {
  bool serves = false;           // else the definition in core/codes.h tells
  uint32_t limit = 0, sign = 0;  // magnitudes below the limit are finite; the sign bit
  int32_t drop = 0, bits = 0;    // bits of fp32's fraction that are none of the format's; of a code
  float unit = 1, inverse_unit = 1;  // from fp32's exponents to the format's, and back

  /// The code of |x| as a magnitude, for |x| · inverse_unit; nearest, where that is no number of the format.
  __device__ __forceinline__ uint32_t magnitude(float scaled) const {
    return (bits_of(scaled) + (1u << drop >> 1)) >> drop;
  }
  /// A magnitude's number, before unit is multiplied in.
  __device__ __forceinline__ float scaled(uint32_t magnitude) const {
    return float_of(magnitude << drop);
  }
  /// The sign bit of x in its place in a code, and of a code in fp32's.
  __device__ __forceinline__ uint32_t sign_of(float x) const {
    return bits_of(x) >> (32 - bits) & sign;
  }
  __device__ __forceinline__ uint32_t float_sign(uint32_t code) const {
    return code << (32 - bits) & kSignBit;
  }
};

inline ShortFloat make_short_float(const CodeRule& r) {
  ShortFloat s;
  const int32_t least = r.quantum + r.significand_bits;  // exponent of the least normal number
  if (r.kind != CodeRule::Kind::Float || r.sign == 0 || r.minus_zero_is_nan || least < -126 ||
      least > 1)
    return s;
  s.serves = true;
  s.limit = std::min({r.first_infinity, r.first_nan, r.sign});
  s.sign = r.sign;
  s.drop = 23 - r.significand_bits;
  s.bits = r.bits;
  s.unit = pow2(126 + least);
  s.inverse_unit = pow2(-126 - least);
  return s;
}

/// Codes of up to 8 bits whose numbers, times a power of two, are fp16's with fewer fraction bits: two at a time.
struct HalfFloat {
  bool serves = false;
  int32_t drop = 0, sign_drop = 0;  // from fp16's magnitude and sign down to a code's
  // In both halves of a word:
  uint32_t low = 0;   // fraction bits that no number of the format has
  uint32_t room = 0;  // added to a magnitude: carries into the sign where it is no finite number's
  uint32_t magnitudes = 0, signs = 0;
  float unit = 1, inverse_unit = 1;  // numbers over fp16's, and back
};

inline HalfFloat make_half_float(const CodeRule& r) {
  constexpr int32_t kFraction = 10, kLeast = -14;  // of fp16
  const ShortFloat s = make_short_float(r);
  HalfFloat h;
  h.drop = kFraction - r.significand_bits;
  if (!s.serves || r.bits > 8 || s.limit << h.drop > 0x7C00u) return h;
  constexpr uint32_t kBoth = 0x00010001u;
  const int32_t least = r.quantum + r.significand_bits;
  h.serves = true;
  h.sign_drop = 16 - r.bits;
  h.low = low_bits(h.drop) * kBoth;
  h.room = (0x8000u - (s.limit << h.drop)) * kBoth;
  h.magnitudes = (s.sign - 1) * kBoth;
  h.signs = s.sign * kBoth;
  h.unit = pow2(least - kLeast);
  h.inverse_unit = pow2(kLeast - least);
  return h;
}

}  // namespace ulp::cuda
