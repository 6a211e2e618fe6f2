#include "tools/values.h"

#include <cmath>
#include <limits>
#include <optional>

namespace ulp::tools {
namespace {

/// Any number, Inf for one that a double cannot hold.
std::optional<double> as_number(const std::string& text) {
  double value = std::numeric_limits<double>::infinity();
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc::invalid_argument || stop != end) return std::nullopt;
  return value;
}

bool is_format(const std::string& text) {
  try {
    Quantizer::parse(text);
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

Quantizer format_value(const std::string& flag, const std::string& text,
                       const std::string& number_flag) {
  if (text.empty())
    throw UsageError(flag + " takes a number format such as e4m3, bfp8 or fp32, got nothing");
  if (as_number(text)) {
    std::string message =
        flag + " takes a number format such as e4m3, bfp8 or fp32, got the number " + text;
    if (!number_flag.empty()) message += "; you may mean " + number_flag + " " + text;
    throw UsageError(message);
  }
  try {
    return Quantizer::parse(text);
  } catch (const Error& error) {
    throw UsageError(flag + ": " + error.what());
  }
}

double number_value(const std::string& flag, const std::string& text, Zero zero,
                    const std::string& format_flag) {
  const auto value = as_number(text);
  if (!value && !format_flag.empty() && is_format(text))
    throw UsageError(flag + " takes a number, got the format " + text + "; formats go to " +
                     format_flag + " " + text);
  if (!value) throw UsageError(flag + " takes a number such as 0.9, got '" + text + "'");
  if (*value == 0 && zero == Zero::Allowed) return 0;
  const auto used = static_cast<float>(*value);
  if (!(used > 0) || std::isinf(used))
    throw UsageError(flag + " takes " + (zero == Zero::Allowed ? "0 or " : "") +
                     "a number from 1.4e-45 to 3.4e+38 (fp32's range), got " + text);
  return *value;
}

}  // namespace ulp::tools
