#pragma once

#include <charconv>
#include <concepts>
#include <cstdint>
#include <string>

#include "core/error.h"
#include "core/quantizer.h"

namespace ulp::tools {

inline constexpr int kMaxThreads = 1024;

// What the text after a flag stands for. Each throws UsageError, naming the flag and what is allowed.

/// A number format. A number gets an error that names the flag it was meant for (`number_flag`, may be empty).
Quantizer format_value(const std::string& flag, const std::string& text,
                       const std::string& number_flag = "");

/// A number above 0, or from 0 on. It is used as fp32: what would be 0 or Inf there, and was not typed so, is refused.
/// A format gets an error that names the flag it was meant for (`format_flag`, may be empty).
enum class Zero : uint8_t { Refused, Allowed };
double number_value(const std::string& flag, const std::string& text, Zero zero,
                    const std::string& format_flag = "");

/// A whole number in decimal digits.
template <std::integral T>
T integer_value(const std::string& flag, const std::string& text, T least, T most) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || value < least || value > most)
    throw UsageError(flag + " takes a whole number from " + std::to_string(least) + " to " +
                     std::to_string(most) + ", got '" + text + "'");
  return value;
}

}  // namespace ulp::tools
