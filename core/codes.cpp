#include "core/codes.h"

#include <bit>

#include "core/codebook.h"
#include "core/error.h"

namespace ulp {
namespace {

/// Which codes of a float are no numbers.
void set_specials(CodeRule& rule, const Format& f) {
  const uint32_t ones = low_bits(f.exponent_bits + f.significand_bits);
  const uint32_t top = low_bits(f.exponent_bits) << f.significand_bits;
  const uint32_t sign_only = ones + 1;
  switch (f.specials) {
    case Specials::Ieee:
      rule.first_infinity = top;
      rule.first_nan = top + 1;
      rule.nan = top | 1u << (f.significand_bits - 1);
      break;
    case Specials::Fn: rule.first_nan = rule.nan = ones; break;
    case Specials::P3109: rule.first_infinity = f.is_unsigned ? ones - 1 : ones; [[fallthrough]];
    case Specials::P3109Finite:
    case Specials::Fnuz:
      rule.minus_zero_is_nan = !f.is_unsigned;
      rule.nan = f.is_unsigned ? ones : sign_only;
      if (f.is_unsigned) rule.first_nan = ones;
      break;
    case Specials::None:
      if (f.exponent_bits == 8 && f.bias == 127) rule.first_infinity = top;  // e8mY-none
      break;
  }
}

CodeRule float_rule(const Format& f) {
  CodeRule rule{};
  rule.kind = CodeRule::Kind::Float;
  const int magnitude_bits = f.exponent_bits + f.significand_bits;
  rule.bits = static_cast<int8_t>(magnitude_bits + (f.is_unsigned ? 0 : 1));
  rule.sign = f.is_unsigned ? 0 : 1u << magnitude_bits;
  rule.significand_bits = static_cast<int8_t>(f.significand_bits);
  rule.quantum = 1 - f.bias - f.significand_bits;
  rule.first_infinity = rule.first_nan = rule.nan = kNoCode;
  set_specials(rule, f);
  return rule;
}

CodeRule integer_rule(int bits, bool is_signed, int quantum) {
  CodeRule rule{};
  rule.kind = CodeRule::Kind::Integer;
  rule.bits = static_cast<int8_t>(bits);
  rule.sign = is_signed ? 1u << (bits - 1) : 0;
  rule.quantum = quantum;
  return rule;
}

CodeRule posit_rule(const Format& f) {
  CodeRule rule{};
  rule.kind = CodeRule::Kind::Posit;
  rule.bits = static_cast<int8_t>(f.word_bits);
  rule.sign = 1u << (f.word_bits - 1);
  rule.posit_exponent_bits = static_cast<int8_t>(f.exponent_bits);
  return rule;
}

CodeRule table_rule(const Format& f) {
  const std::vector<float>& values = codebook(f.table).values;
  CodeRule rule{};
  rule.kind = CodeRule::Kind::Table;
  rule.bits = static_cast<int8_t>(std::bit_width(values.size() - 1));
  rule.table = values.data();
  rule.table_size = static_cast<int32_t>(values.size());
  return rule;
}

}  // namespace

CodeRule make_code_rule(const Format& f) {
  switch (f.kind) {
    case FormatKind::Fp32:
    case FormatKind::Float: return float_rule(f);
    case FormatKind::Fixed:
      if (f.overflow == Overflow::None) return CodeRule{};
      return integer_rule(f.word_bits, !f.is_unsigned, -f.fraction_bits);
    case FormatKind::BlockFloat:
    case FormatKind::Hbfp: return integer_rule(f.word_bits, true, 0);
    case FormatKind::Posit: return posit_rule(f);
    case FormatKind::Codebook: return table_rule(f);
  }
  throw_error("{}: codes are not known", f);
}

int code_bits(const Format& format) { return make_code_rule(format).bits; }

std::optional<uint32_t> encode(const Format& format, float number) {
  const uint32_t code = encode(make_code_rule(format), number);
  return code == kNoCode ? std::nullopt : std::optional(code);
}

float decode(const Format& format, uint32_t code) {
  const CodeRule rule = make_code_rule(format);
  ULP_CHECK(rule.bits > 0, "{}: it has no codes", format);
  const uint32_t last = rule.kind == CodeRule::Kind::Table
                            ? static_cast<uint32_t>(rule.table_size) - 1
                            : low_bits(rule.bits);
  ULP_CHECK(code <= last, "{}: its last code is 0x{:X}, got 0x{:X}", format, last, code);
  return decode(rule, code);
}

}  // namespace ulp
