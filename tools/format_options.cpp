#include "tools/format_options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "core/error.h"

namespace ulp::tools {
namespace {

std::optional<double> as_number(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
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

std::string role_flag(const std::string& role) {
  std::string flag = "--" + role;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

Quantizer format_value(const std::string& flag, const std::string& text,
                       const std::string& number_flag) {
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

double number_value(const std::string& flag, const std::string& text,
                    const std::string& format_flag) {
  const auto value = as_number(text);
  if (value && std::isfinite(*value)) return *value;
  std::string message = flag + " takes a number such as 0.9, got '" + text + "'";
  if (!value && !format_flag.empty() && is_format(text))
    message = flag + " takes a number, got the format " + text + "; formats go to " + format_flag +
              " " + text;
  throw UsageError(message);
}

void FormatOptions::add_to(CLI::App& app) {
  const char* group =
      "Formats (eXmY, fixedW.F, bfpW[-axisK|-gN], fp16, bf16, tf32, fp32; :rounding)";
  app.add_option("--forward", forward_,
                 "sets input, weight, weight_dx and input_dw of every layer with a product")
      ->group(group);
  app.add_option("--backward", backward_,
                 "sets grad_output_dx and grad_output_dw of every layer with a product")
      ->group(group);
  for (const Role& role : kRoles)
    app.add_option(role_flag(role.name), roles_[role.name], role.meaning)->group(group);
}

OpFormats FormatOptions::apply(OpFormats f) const {
  if (!forward_.empty())
    f.input = f.weight = f.weight_dx = f.input_dw = format_value("--forward", forward_);
  if (!backward_.empty())
    f.grad_output_dx = f.grad_output_dw = format_value("--backward", backward_);
  for (const Role& role : kRoles) {
    const std::string& text = roles_.at(role.name);
    if (!text.empty()) f.*role.quantizer = format_value(role_flag(role.name), text);
  }
  if (!f.interior.is_elementwise())
    throw UsageError("--interior: " + to_string(f.interior) +
                     " has blocks; the softmax takes a format without");
  return f;
}

bool FormatOptions::any() const {
  return !forward_.empty() || !backward_.empty() ||
         std::any_of(roles_.begin(), roles_.end(), [](const auto& r) { return !r.second.empty(); });
}

}  // namespace ulp::tools
