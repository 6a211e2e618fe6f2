#include "tools/number_text.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstdint>

namespace ulp::tools {
namespace {

/// Binary digits behind the point.
int fraction_bits(double value) {
  if (value == 0) return 0;
  int exponent = 0;
  const auto digits = static_cast<int64_t>(std::ldexp(std::frexp(value, &exponent), 53));
  const int zeros = std::countr_zero(static_cast<uint64_t>(digits));
  return std::max(0, 53 - exponent - zeros);
}

}  // namespace

std::string exact_decimal(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::array<char, 1500> buffer;  // 2^-1074 has 1074 decimals, 2^1023 has 309 digits
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                 std::chars_format::fixed, fraction_bits(value));
  return {buffer.data(), end.ptr};
}

std::string short_number(double value) {
  int exponent = 0;
  if (std::frexp(value, &exponent) == 0.5 && (exponent < 1 || exponent > 7))
    return fmt::format("2^{}", exponent - 1);
  return fmt::format("{:.6g}", value);
}

std::string difference(double y, double x) {
  const double d = y - x;
  const std::string sign = d > 0 ? "+" : "";
  if (y - d == x && d + x == y) return sign + exact_decimal(d);
  return fmt::format("≈ {}{:.9g}", sign, d);
}

std::string fraction_of_2_32(uint64_t numerator) {
  if (numerator == 0) return "0";
  const int shared = std::min(32, std::countr_zero(numerator));
  const uint64_t denominator = uint64_t{1} << (32 - shared);
  if (denominator == 1) return fmt::format("{}", numerator >> shared);
  return fmt::format("{}/{}", numerator >> shared, denominator);
}

}  // namespace ulp::tools
