#pragma once

#include <cstdint>

#include "core/bits.h"
#include "core/dtype.h"

namespace ulp {

// Bytes ↔ fp32 for the native storage types. Reading is exact. Writing is for values that the type holds exactly (what a
// quantizer that `fits` the type produced); nothing rounds here. Every NaN is written as the type's one quiet NaN.

ULP_HD float bf16_to_float(uint16_t code) { return float_of(static_cast<uint32_t>(code) << 16); }
ULP_HD uint16_t float_to_bf16(float value) {
  return static_cast<uint16_t>(bits_of(canonical(value)) >> 16);
}

/// A small IEEE-like float with `e` exponent bits, `m` fraction bits: code without sign → magnitude.
template <int E, int M>
ULP_HD float small_to_float(uint32_t code, bool fn) {
  constexpr int kBias = (1 << (E - 1)) - 1;
  const uint32_t magnitude = code & ((1u << (E + M)) - 1u);
  const uint32_t sign = (code >> (E + M)) << 31;
  const float normal =
      float_of((magnitude << (23 - M)) + (static_cast<uint32_t>(127 - kBias) << 23));
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * pow2(1 - kBias - M);
  uint32_t bits = select_bits((magnitude >> M) == 0, bits_of(subnormal), bits_of(normal));
  const uint32_t infinity = ((1u << E) - 1u) << M;
  if (fn) {
    bits = select_bits(magnitude == (1u << (E + M)) - 1u, kNanBits, bits | sign);
    return float_of(bits);
  }
  bits = select_bits(magnitude == infinity, kInfinityBits, bits) | sign;
  return float_of(select_bits(magnitude > infinity, kNanBits, bits));
}

template <int E, int M>
ULP_HD uint32_t float_to_small(float value, bool fn) {
  constexpr int kBias = (1 << (E - 1)) - 1;
  const uint32_t a = bits_of(value) & ~kSignBit;
  const uint32_t sign = (bits_of(value) >> 31) << (E + M);
  // Below the least normal number, adding it turns the code into the fraction of a number with its exponent.
  constexpr uint32_t kSmall = static_cast<uint32_t>(127 - kBias + 1) << 23;
  const bool subnormal = a < kSmall;
  const uint32_t shifted =
      subnormal ? bits_of(float_of(a) + float_of(kSmall)) : a + (uint32_t{1} << 23);
  uint32_t code = (shifted >> (23 - M)) - (static_cast<uint32_t>(127 - kBias + 1) << M);
  const uint32_t infinity = ((1u << E) - 1u) << M;
  if (fn) return select_bits(a > kInfinityBits, (1u << (E + M)) - 1u, code | sign);
  code = select_bits(a == kInfinityBits, infinity, code) | sign;
  return select_bits(a > kInfinityBits, infinity | (1u << (M - 1)), code);
}

ULP_HD float f16_to_float(uint16_t code) { return small_to_float<5, 10>(code, false); }
ULP_HD uint16_t float_to_f16(float value) {
  return static_cast<uint16_t>(float_to_small<5, 10>(value, false));
}
ULP_HD float e5m2_to_float(uint8_t code) { return small_to_float<5, 2>(code, false); }
ULP_HD uint8_t float_to_e5m2(float value) {
  return static_cast<uint8_t>(float_to_small<5, 2>(value, false));
}
ULP_HD float e4m3_to_float(uint8_t code) { return small_to_float<4, 3>(code, true); }
ULP_HD uint8_t float_to_e4m3(float value) {
  return static_cast<uint8_t>(float_to_small<4, 3>(value, true));
}

/// Element i of an array of `dtype` (F32, BF16, F16, F8E4M3, F8E5M2; integers are converted) as fp32.
ULP_HD float load_as_float(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::F32: return static_cast<const float*>(data)[i];
    case DType::BF16: return bf16_to_float(static_cast<const uint16_t*>(data)[i]);
    case DType::F16: return f16_to_float(static_cast<const uint16_t*>(data)[i]);
    case DType::F8E4M3: return e4m3_to_float(static_cast<const uint8_t*>(data)[i]);
    case DType::F8E5M2: return e5m2_to_float(static_cast<const uint8_t*>(data)[i]);
    case DType::I32: return static_cast<float>(static_cast<const int32_t*>(data)[i]);
    case DType::I8: return static_cast<float>(static_cast<const int8_t*>(data)[i]);
    case DType::U8: return static_cast<float>(static_cast<const uint8_t*>(data)[i]);
    case DType::F64: return static_cast<float>(static_cast<const double*>(data)[i]);
  }
  return 0;
}

/// Writes a value that `dtype` (a float type up to 32 bits) holds exactly.
ULP_HD void store_float(void* data, DType dtype, int64_t i, float value) {
  switch (dtype) {
    case DType::BF16: static_cast<uint16_t*>(data)[i] = float_to_bf16(value); break;
    case DType::F16: static_cast<uint16_t*>(data)[i] = float_to_f16(value); break;
    case DType::F8E4M3: static_cast<uint8_t*>(data)[i] = float_to_e4m3(value); break;
    case DType::F8E5M2: static_cast<uint8_t*>(data)[i] = float_to_e5m2(value); break;
    default: static_cast<float*>(data)[i] = canonical(value); break;
  }
}

}  // namespace ulp
