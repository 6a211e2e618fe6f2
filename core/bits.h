#pragma once

#include <cstdint>

#include "core/macros.h"

namespace ulp {

inline constexpr uint32_t kSignBit = 0x80000000u;
inline constexpr uint32_t kInfinityBits = 0x7F800000u;
inline constexpr uint32_t kNanBits =
    0x7FC00000u;  // the one NaN that every store through core writes

ULP_HD uint32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  return __builtin_bit_cast(uint32_t, value);
#endif
}

ULP_HD float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

inline constexpr float kMaxFloat = 3.40282346638528859811704183484516925e+38f;

/// condition ? a : b without a branch, so that loops around it vectorise.
ULP_HD uint32_t select_bits(bool condition, uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return condition ? a : b;  // one instruction there
#else
  return b ^ ((a ^ b) & (0u - static_cast<uint32_t>(condition)));
#endif
}

ULP_HD int32_t min_of(int32_t a, int32_t b) { return a < b ? a : b; }
ULP_HD int32_t max_of(int32_t a, int32_t b) { return a > b ? a : b; }

/// 2^exponent for −149 ≤ exponent ≤ 127.
ULP_HD float pow2(int32_t exponent) {
  return float_of(select_bits(exponent >= -126, static_cast<uint32_t>(exponent + 127) << 23,
                              1u << (static_cast<uint32_t>(exponent + 149) & 31u)));
}

/// ⌊x⌋ for 0 ≤ x < 2^32, in operations that every vector instruction set has: behind 2^52 lie the integers.
ULP_HD uint32_t floor_of(double x) {
  const double near = x + 0x1p52;
  const double below = near - (near - 0x1p52 > x ? 1.0 : 0.0);
#if defined(__CUDA_ARCH__)
  return static_cast<uint32_t>(__double_as_longlong(below));
#else
  return static_cast<uint32_t>(__builtin_bit_cast(uint64_t, below));
#endif
}

/// Any NaN becomes the one NaN; everything else is unchanged.
ULP_HD float canonical(float value) {
  const uint32_t bits = bits_of(value);
  return float_of(select_bits((bits & ~kSignBit) > kInfinityBits, kNanBits, bits));
}

ULP_HD double canonical(double value) { return value; }

}  // namespace ulp
