#include "tools/codes.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/codes.h"
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
std::vector<CodeField> float_fields(const Format& f, uint32_t code) {
  const float number = decode(f, code);
  const int m = f.significand_bits;
  const uint32_t field = code >> m & low_bits(f.exponent_bits);
  const uint32_t fraction = code & low_bits(m);
  const bool negative = !f.is_unsigned && code >> (f.exponent_bits + m) != 0;
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

}  // namespace

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
