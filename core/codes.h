#pragma once

#include <cstdint>
#include <optional>

#include "core/bits.h"
#include "core/format.h"
#include "core/posit.h"

namespace ulp {

// The bits of a format's numbers, for packing and for looking at. Numbers have one code each:
//  floats       the sign, then codes that ascend with the magnitude (OCP, IEEE 754, P3109); NaN is the quiet NaN of the
//               positive sign. -ftz formats keep the codes of the subnormals they never make. e8mY-none: what lies beyond
//               fp32 is Inf, which has the least of those codes
//  fixed point  two's complement of word_bits; unsigned formats plain binary; step 2^−fraction_bits
//  bfp, hbfp    two's complement of word_bits in units of the block's step: hbfpM has M significand bits and the sign
//  posits       two's complement; NaN is NaR
//  tables       the index
//  fp32         its bits

/// "There is no code": no format has this one for a number, nor as its NaN.
inline constexpr uint32_t kNoCode = 0xFFFFFFFFu;

/// A format's codes as loops and kernels read them.
struct CodeRule {
  enum class Kind : uint8_t { None, Float, Integer, Posit, Table };
  Kind kind;
  int8_t bits;                 // of a code; 0: there are none
  int8_t significand_bits;     // Float: stored ones
  int8_t posit_exponent_bits;  // Posit
  uint32_t sign;               // the sign bit of a code; 0: unsigned
  int32_t quantum;             // Float, Integer: code 1 is 2^quantum, −149 … 127
  uint32_t first_infinity;     // Float: magnitudes from here on are Inf, kNoCode: none
  uint32_t first_nan;          // Float: magnitudes from here on are NaN, kNoCode: none
  uint32_t nan;                // Float: the code that NaN gets, kNoCode: none
  bool minus_zero_is_nan;      // Float
  int32_t table_size;
  const float* table;  // ascending, in the memory of the device that reads it
};

/// Throws for no format: one without codes (unbounded fixed point) has the kind None.
CodeRule make_code_rule(const Format& format);

/// Bits of one number's code; 0 where there are none (unbounded fixed point).
int code_bits(const Format& format);

ULP_HD uint32_t low_bits(int32_t count) { return count >= 32 ? 0xFFFFFFFFu : (1u << count) - 1u; }

/// |x| = significand · 2^(exponent − 23), 2^23 ≤ significand < 2^24; zero has the significand 0, Inf is 2^128.
struct Magnitude {
  uint32_t significand;
  int32_t exponent;
};

ULP_HD Magnitude magnitude_of(float x) {
  const uint32_t a = bits_of(x) & ~kSignBit;
  const uint32_t subnormal = 0u - static_cast<uint32_t>(a < 0x00800000u);  // scaled up by 2^24
  const uint32_t n = bits_of(float_of(a) * float_of(0x3F800000u + (subnormal & (24u << 23))));
  return {((n & 0x007FFFFFu) | 0x00800000u) & (0u - static_cast<uint32_t>(a != 0)),
          static_cast<int32_t>(n >> 23) - 127 - static_cast<int32_t>(subnormal & 24u)};
}

ULP_HD float decode_float(const CodeRule& rule, uint32_t code) {
  const int32_t m = rule.significand_bits;
  const uint32_t magnitude = code & ~rule.sign;
  const auto field = static_cast<int32_t>(magnitude >> m);
  const uint32_t k =
      (magnitude & low_bits(m)) | (static_cast<uint32_t>(field > 0) << m);  // of 2^quantum or more
  const int32_t exponent = min_of(max_of(field, 1) - 1 + rule.quantum, 127);
  uint32_t y = bits_of(static_cast<float>(static_cast<int32_t>(k)) * pow2(exponent));
  y = select_bits(magnitude >= rule.first_infinity, kInfinityBits, y);
  y |= select_bits((code & rule.sign) != 0, kSignBit, 0u);
  // No branch: | and & evaluate both sides, so that loops vectorise.
  const bool is_nan =
      (magnitude >= rule.first_nan) | (rule.minus_zero_is_nan & (code == rule.sign));
  return float_of(select_bits(is_nan, kNanBits, y));
}

ULP_HD uint32_t float_code(const CodeRule& rule, float x) {
  const uint32_t a = bits_of(x) & ~kSignBit;
  const Magnitude n = magnitude_of(x);
  const int32_t quantum = max_of(n.exponent - rule.significand_bits, rule.quantum);
  const uint32_t k = n.significand >> min_of(quantum - (n.exponent - 23), 31);
  const auto binades = static_cast<uint32_t>(min_of(quantum - rule.quantum, 255));
  const uint32_t magnitude =
      select_bits(a == kInfinityBits, rule.first_infinity, k + (binades << rule.significand_bits));
  const uint32_t sign = rule.sign & (0u - (bits_of(x) >> 31));
  return select_bits(a > kInfinityBits, rule.nan, magnitude | sign);
}

ULP_HD float decode_integer(const CodeRule& rule, uint32_t code) {
  const auto k = static_cast<int32_t>((code ^ rule.sign) - rule.sign);  // sign-extended
  return static_cast<float>(k) * pow2(rule.quantum);
}

ULP_HD uint32_t integer_code(const CodeRule& rule, float x) {
  const Magnitude n = magnitude_of(x);
  const int32_t shift = rule.quantum - (n.exponent - 24);  // one bit more: −2^24 is a 25-bit word
  const uint32_t k = (n.significand << 1) >> min_of(max_of(shift, 0), 31);
  return ((bits_of(x) & kSignBit) != 0 ? 0u - k : k) & low_bits(rule.bits);
}

ULP_HD float decode_posit(const CodeRule& rule, uint32_t code) {
  if (code == 0) return 0.0f;
  if (code == rule.sign) return float_of(kNanBits);
  const bool negative = (code & rule.sign) != 0;
  const uint32_t magnitude = negative ? (0u - code) & low_bits(rule.bits) : code;
  const float y = posit_value(magnitude, rule.bits, rule.posit_exponent_bits);
  return negative ? -y : y;
}

ULP_HD uint32_t posit_code(const CodeRule& rule, float x) {
  const uint32_t a = bits_of(x) & ~kSignBit;
  if (a == 0) return 0u;
  if (a >= kInfinityBits) return rule.sign;
  const int32_t e = static_cast<int32_t>(a >> 23) - 127, es = rule.posit_exponent_bits;
  uint32_t code = low_bits(rule.bits - 1);
  if ((e >> es) < 2 - rule.bits)
    code = 1;
  else if ((e >> es) < rule.bits - 2)
    code = posit_place(e, a & 0x007FFFFFu, rule.bits, es).code;
  return ((bits_of(x) & kSignBit) != 0 ? 0u - code : code) & low_bits(rule.bits);
}

ULP_HD float decode_table(const CodeRule& rule, uint32_t code) {
  return code < static_cast<uint32_t>(rule.table_size) ? rule.table[code] : float_of(kNanBits);
}

ULP_HD uint32_t table_code(const CodeRule& rule, float x) {
  uint32_t low = 0;
  for (uint32_t step = 1u << (rule.bits - 1); step > 0; step >>= 1) {
    const uint32_t next = low + step;
    if (next < static_cast<uint32_t>(rule.table_size) && rule.table[next] <= x) low = next;
  }
  return low;
}

/// The number of a code below 2^bits; NaN for a table's codes beyond its end.
ULP_HD float decode(const CodeRule& rule, uint32_t code) {
  switch (rule.kind) {
    case CodeRule::Kind::Float: return decode_float(rule, code);
    case CodeRule::Kind::Integer: return decode_integer(rule, code);
    case CodeRule::Kind::Posit: return decode_posit(rule, code);
    case CodeRule::Kind::Table: return decode_table(rule, code);
    case CodeRule::Kind::None: break;
  }
  return float_of(kNanBits);
}

/// The code that decodes to x, to the bit (all NaNs being one); kNoCode if there is none. So encoding rounds nothing, and
/// NaN, Inf and −0 have codes only in formats that have them.
ULP_HD uint32_t encode(const CodeRule& rule, float x) {
  uint32_t code = kNoCode;
  switch (rule.kind) {
    case CodeRule::Kind::Float: code = float_code(rule, x); break;
    case CodeRule::Kind::Integer: code = integer_code(rule, x); break;
    case CodeRule::Kind::Posit: code = posit_code(rule, x); break;
    case CodeRule::Kind::Table: code = table_code(rule, x); break;
    case CodeRule::Kind::None: return kNoCode;
  }
  const uint32_t back = bits_of(decode(rule, code & low_bits(rule.bits)));
  const bool is_code = (code <= low_bits(rule.bits)) & (back == bits_of(canonical(x)));
  return select_bits(is_code, code, kNoCode);
}

/// The number of a block scale's OCP e8m0 code X: 2^(X−127), NaN for 0xFF.
/// Source: OCP Microscaling Formats (MX) specification 1.0, §5.4.1.
ULP_HD float decode_e8m0(uint32_t code) {
  return code == 0xFFu ? float_of(kNanBits) : pow2(static_cast<int32_t>(code) - 127);
}

/// The same on the host, for one number. `encode`: none where there is no code. `decode` throws for a code that the format
/// does not have.
std::optional<uint32_t> encode(const Format& format, float number);
float decode(const Format& format, uint32_t code);

}  // namespace ulp
