#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/dtype.h"

namespace ulp {

enum class FormatKind : uint8_t { Fp32, Float, Fixed, BlockFloat, Hbfp, Posit, Codebook };

/// Which codes of a float are not numbers.
enum class Specials : uint8_t {
  Ieee,  // the all-ones exponent holds Inf and NaN
  Fn,    // one NaN, all ones below the sign; no Inf
  Fnuz,  // one NaN, the sign-only code; no Inf, no −0
  None,  // every code is a number
  P3109,  // IEEE P3109, extended domain: one NaN (sign-only, or all ones if unsigned), ±Inf on top, no −0
  P3109Finite,  // the same without Inf
};

/// What a finite value beyond the largest one becomes.
enum class Overflow : uint8_t {
  Saturate,  // ±max; an infinite input too
  Clamp,     // ±max; an infinite input is NaN
  Infinity,  // ±Inf, except where a directed rounding points back to ±max
  Nan,
  Wrap,  // fixed point: two's complement
  None,  // fixed point: no bounds
};

/// One number's format, a value. `Fp32` leaves fp32 as it is.
///  Float       exponent_bits, significand_bits (stored fraction), bias, specials, overflow, flush_subnormals
///  Fixed       word_bits (with the sign), fraction_bits, symmetric, is_unsigned, overflow
///  BlockFloat  word_bits: two's-complement significands under one power-of-two exponent a block
///  Posit       word_bits (3 … 16), exponent_bits (0 … 3)
///  Codebook    table: an id of core/codebook.h
///  Hbfp        word_bits: the same with significands of word_bits − 1 bits and a sign, the exponent rounded up
struct Format {
  FormatKind kind = FormatKind::Fp32;
  Specials specials = Specials::Ieee;
  Overflow overflow = Overflow::Infinity;
  uint8_t exponent_bits = 8;
  uint8_t significand_bits = 23;
  int16_t bias = 127;
  uint8_t word_bits = 0;
  uint8_t table = 0;  // Codebook: its id
  int16_t fraction_bits = 0;
  bool flush_subnormals = false;
  bool symmetric = false;
  bool is_unsigned = false;

  bool operator==(const Format&) const = default;

  bool is_fp32() const { return kind == FormatKind::Fp32; }

  /// Reads the format part of the grammar: "e4m3", "e5m2-sat", "fixed8.4-sym", "bfp8", "fp16". Blocks are a part of
  /// the Quantizer. Throws ulp::Error that says why a format cannot exist or which names there are.
  static Format parse(std::string_view text);
};

/// The name that parses back to the same format, in its shortest form: "bf16", not "e8m7".
std::string to_string(const Format& format);

Format float_format(int exponent_bits, int significand_bits);
Format fixed_format(int word_bits, int fraction_bits);
Format block_float_format(int word_bits);
/// IEEE P3109 binary8pP: P significand bits with the leading one.
Format p3109_format(int precision, bool is_unsigned = false);

/// What the format can hold, for tables, storage choice and tests. Fp32 included. For BlockFloat only word_bits count.
struct FormatLimits {
  int emin = 0;              // exponent of the smallest normal number
  int emax = 0;              // exponent of the largest number
  int quantum = 0;           // exponent of the smallest spacing
  double max = 0;            // largest number
  double lowest = 0;         // most negative number
  double min_normal = 0;     // 0 where there is no such thing
  double min_positive = 0;   // smallest number above 0
  int significant_bits = 0;  // most bits from the first to the last 1 in any number
  bool has_infinity = false;
};
FormatLimits limits_of(const Format& format);

/// True if `dtype` represents every number of the format exactly (any block's numbers, for block formats).
bool fits(const Format& format, DType dtype);

}  // namespace ulp
