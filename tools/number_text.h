#pragma once

#include <cstdint>
#include <string>

namespace ulp::tools {

/// All digits of a binary number: "0.100000001490116119384765625", "-0", "inf", "nan".
std::string exact_decimal(double value);

/// "2^-9" for a power of two outside 1 … 64, else six digits.
std::string short_number(double value);

/// The difference y − x where it is a double, with all digits; else "≈ " and nine digits. With its sign.
std::string difference(double y, double x);

/// numerator / 2^32 in lowest terms: "838861/1048576", "0", "1".
std::string fraction_of_2_32(uint64_t numerator);

}  // namespace ulp::tools
