#include "tools/codes.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/bits.h"
#include "core/codebook.h"
#include "core/error.h"
#include "core/posit.h"
#include "tools/number_text.h"

namespace ulp::tools {
namespace {

std::string bit_text(uint32_t code, int bits) {
  std::string text;
  for (int i = bits - 1; i >= 0; --i) text += (code >> i & 1u) != 0 ? '1' : '0';
  return text;
}

/// Digits that fit under a box.
std::string meaning(double value) {
  const std::string exact = exact_decimal(value);
  return exact.size() <= 25 ? exact : fmt::format("{:.9g}", value);
}

// ---- floats ---------------------------------------------------------------------------------------------------------
/// The codes that are no numbers, sign included where it matters.
struct SpecialCodes {
  std::optional<uint32_t> nan, infinity;  // of the positive sign
};

int magnitude_bits(const Format& f) { return f.exponent_bits + f.significand_bits; }

SpecialCodes special_codes(const Format& f) {
  const uint32_t ones = (1u << magnitude_bits(f)) - 1u;
  const uint32_t top = ((1u << f.exponent_bits) - 1u) << f.significand_bits;
  const uint32_t sign_only = 1u << magnitude_bits(f);
  switch (f.specials) {
    case Specials::Ieee: return {top | 1u << (f.significand_bits - 1), top};
    case Specials::Fn: return {ones, {}};
    case Specials::Fnuz: return {sign_only, {}};
    case Specials::None: return {};
    case Specials::P3109:
      if (f.is_unsigned) return {ones, ones - 1u};
      return {sign_only, ones};
    case Specials::P3109Finite: return {f.is_unsigned ? ones : sign_only, {}};
  }
  return {};
}

std::optional<uint32_t> encode_float(const Format& f, float number) {
  const SpecialCodes special = special_codes(f);
  const uint32_t sign = std::signbit(number) && !f.is_unsigned ? 1u << magnitude_bits(f) : 0u;
  if (std::isnan(number)) return special.nan;
  if (std::isinf(number)) {
    if (!special.infinity) return std::nullopt;
    return *special.infinity | sign;
  }
  const double a = std::abs(static_cast<double>(number));
  const int least = 1 - f.bias, m = f.significand_bits;
  const int e = a == 0 ? least : std::max(std::ilogb(a), least);
  const auto k = static_cast<uint32_t>(std::ldexp(a, m - e));  // with the leading one, if there is
  return ((k + (static_cast<uint32_t>(e - least) << m)) | sign);
}

bool is_nan_code(const Format& f, uint32_t code) {
  const SpecialCodes special = special_codes(f);
  if (f.specials == Specials::Ieee)
    return (code & ((1u << magnitude_bits(f)) - 1u)) > *special.infinity;
  if (f.specials == Specials::Fn) return (code & ((1u << magnitude_bits(f)) - 1u)) == *special.nan;
  return special.nan.has_value() && code == *special.nan;
}

float decode_float(const Format& f, uint32_t code) {
  const SpecialCodes special = special_codes(f);
  const uint32_t magnitude = code & ((1u << magnitude_bits(f)) - 1u);
  const bool negative = !f.is_unsigned && (code >> magnitude_bits(f)) != 0;
  if (is_nan_code(f, code)) return float_of(kNanBits);
  if (special.infinity && magnitude == *special.infinity) return negative ? -INFINITY : INFINITY;
  const int m = f.significand_bits;
  const auto field = static_cast<int>(magnitude >> m);
  const uint32_t fraction = magnitude & ((1u << m) - 1u);
  const double k = fraction + (field == 0 ? 0.0 : std::ldexp(1.0, m));
  const double a = std::ldexp(k, std::max(field, 1) - f.bias - m);
  return static_cast<float>(negative ? -a : a);
}

std::vector<CodeField> float_fields(const Format& f, uint32_t code) {
  const float number = decode_float(f, code);
  const int m = f.significand_bits;
  const uint32_t field = code >> m & ((1u << f.exponent_bits) - 1u);
  const uint32_t fraction = code & ((1u << m) - 1u);
  const bool negative = !f.is_unsigned && (code >> magnitude_bits(f)) != 0;
  std::string power =
      fmt::format("2^{}", std::max<int>(static_cast<int>(field), 1) - static_cast<int>(f.bias));
  std::string significand = meaning((field == 0 ? 0.0 : 1.0) + std::ldexp(fraction, -m));
  if (m == 0 && field == 0) power = "0";
  if (!std::isfinite(number)) {
    power = std::isnan(number) ? "NaN" : "Inf";
    significand.clear();
  }
  std::vector<CodeField> fields;
  if (!f.is_unsigned) fields.push_back({"sign", negative ? "1" : "0", negative ? "-" : "+"});
  fields.push_back({"exponent", bit_text(field, f.exponent_bits), power});
  if (m > 0) fields.push_back({"significand", bit_text(fraction, m), significand});
  return fields;
}

// ---- fixed point ----------------------------------------------------------------------------------------------------
uint32_t low_bits(int bits) { return bits >= 32 ? UINT32_MAX : (1u << bits) - 1u; }

std::optional<uint32_t> encode_fixed(const Format& f, float number) {
  if (!std::isfinite(number)) return std::nullopt;
  const auto k = static_cast<int64_t>(std::ldexp(static_cast<double>(number), f.fraction_bits));
  return static_cast<uint32_t>(k) & low_bits(f.word_bits);
}

float decode_fixed(const Format& f, uint32_t code) {
  int64_t k = code;
  if (!f.is_unsigned && (code >> (f.word_bits - 1)) != 0) k -= int64_t{1} << f.word_bits;
  return static_cast<float>(std::ldexp(static_cast<double>(k), -f.fraction_bits));
}

std::vector<CodeField> fixed_fields(const Format& f, uint32_t code) {
  const int body = f.word_bits - (f.is_unsigned ? 0 : 1);
  const int fraction = std::clamp<int>(f.fraction_bits, 0, body), integer = body - fraction;
  const auto worth = [&](uint32_t bits) { return meaning(std::ldexp(bits, -f.fraction_bits)); };
  std::vector<CodeField> fields;
  if (!f.is_unsigned) {
    const uint32_t sign = code >> body & 1u;
    fields.push_back({"sign", bit_text(sign, 1), (sign != 0 ? "-" : "") + worth(sign << body)});
  }
  const uint32_t high = code >> fraction & low_bits(integer), low = code & low_bits(fraction);
  if (integer > 0)
    fields.push_back({"integer", bit_text(high, integer), "+" + worth(high << fraction)});
  if (fraction > 0) fields.push_back({"fraction", bit_text(low, fraction), "+" + worth(low)});
  return fields;
}

// ---- posits ---------------------------------------------------------------------------------------------------------
std::optional<uint32_t> encode_posit(const Format& f, float number) {
  const int n = f.word_bits;
  if (!std::isfinite(number)) return 1u << (n - 1);
  if (number == 0) return 0u;
  uint32_t low = 1, high = 1u << (n - 1);  // value(low) ≤ |number| < value(high)
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (posit_value(middle, n, f.exponent_bits) <= std::abs(number) ? low : high) = middle;
  }
  return (number < 0 ? 0u - low : low) & low_bits(n);
}

float decode_posit(const Format& f, uint32_t code) {
  const int n = f.word_bits;
  const uint32_t sign = 1u << (n - 1);
  if (code == 0) return 0;
  if (code == sign) return float_of(kNanBits);
  if ((code & sign) != 0) return -posit_value((0u - code) & low_bits(n), n, f.exponent_bits);
  return posit_value(code, n, f.exponent_bits);
}

/// A negative posit's fields are those of its magnitude: the code is its two's complement.
std::vector<CodeField> posit_fields(const Format& f, uint32_t code) {
  const int n = f.word_bits, es = f.exponent_bits;
  const uint32_t sign = 1u << (n - 1);
  if (code == 0 || code == sign)
    return {{"sign", code == 0 ? "0" : "1", ""},
            {"regime", bit_text(0, n - 1), code == 0 ? "0" : "NaR"}};
  const bool negative = (code & sign) != 0;
  const std::string bits = bit_text(negative ? (0u - code) & low_bits(n) : code, n).substr(1);
  const size_t run = std::min(bits.find(bits[0] == '1' ? '0' : '1'), bits.size());
  const int k = bits[0] == '1' ? static_cast<int>(run) - 1 : -static_cast<int>(run);
  const std::string regime = bits.substr(0, std::min(run + 1, bits.size()));
  const std::string rest = bits.substr(regime.size());
  const std::string exponent = rest.substr(0, static_cast<size_t>(es));
  const std::string fraction = rest.substr(exponent.size());
  std::string full = exponent;
  full.resize(static_cast<size_t>(es), '0');
  std::vector<CodeField> fields{{"sign", negative ? "1" : "0", negative ? "-" : "+"},
                                {"regime", regime, fmt::format("2^{}", k * (1 << es))}};
  if (!exponent.empty())
    fields.push_back({"exponent", exponent, fmt::format("2^{}", std::stoi(full, nullptr, 2))});
  if (!fraction.empty())
    fields.push_back({"fraction", fraction,
                      meaning(1 + std::ldexp(std::stoi(fraction, nullptr, 2),
                                             -static_cast<int>(fraction.size())))});
  return fields;
}

// ---- tables ---------------------------------------------------------------------------------------------------------
std::optional<uint32_t> encode_table(const Format& f, float number) {
  const std::vector<float>& values = codebook(f.table).values;
  const auto at = std::find(values.begin(), values.end(), number);
  if (at == values.end()) return std::nullopt;
  return static_cast<uint32_t>(at - values.begin());
}

}  // namespace

int code_bits(const Format& f) {
  switch (f.kind) {
    case FormatKind::Fp32: return 32;
    case FormatKind::Float: return magnitude_bits(f) + (f.is_unsigned ? 0 : 1);
    case FormatKind::Fixed: return f.overflow == Overflow::None ? 0 : f.word_bits;
    case FormatKind::Posit: return f.word_bits;
    case FormatKind::Codebook:
      return static_cast<int>(std::bit_width(codebook(f.table).values.size() - 1));
    case FormatKind::BlockFloat:
    case FormatKind::Hbfp: return 0;
  }
  return 0;
}

std::optional<uint32_t> encode(const Format& f, float number) {
  if (code_bits(f) == 0) return std::nullopt;
  switch (f.kind) {
    case FormatKind::Fixed: return encode_fixed(f, number);
    case FormatKind::Posit: return encode_posit(f, number);
    case FormatKind::Codebook: return encode_table(f, number);
    default: return encode_float(f, number);
  }
}

float decode(const Format& f, uint32_t code) {
  switch (f.kind) {
    case FormatKind::Fixed: return decode_fixed(f, code);
    case FormatKind::Posit: return decode_posit(f, code);
    case FormatKind::Codebook: {
      const std::vector<float>& values = codebook(f.table).values;
      ULP_CHECK(code < values.size(), "{}: its last code is {}, got {}", f,
                code_text(f, static_cast<uint32_t>(values.size()) - 1), code_text(f, code));
      return values[code];
    }
    default: return decode_float(f, code);
  }
}

std::string code_text(const Format& f, uint32_t code) {
  return fmt::format("0x{:0{}X}", code, (code_bits(f) + 3) / 4);
}

std::vector<CodeField> code_fields(const Format& f, uint32_t code) {
  switch (f.kind) {
    case FormatKind::Fixed: return fixed_fields(f, code);
    case FormatKind::Posit: return posit_fields(f, code);
    case FormatKind::Codebook:
      return {{"index", bit_text(code, code_bits(f)), fmt::format("{}", code)}};
    default: return float_fields(f, code);
  }
}

}  // namespace ulp::tools
