#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <string>

#include "core/op_formats.h"

namespace ulp::tools {

/// The format flags that train and eval share: --forward, --backward and every role by its name.
class FormatOptions {
 public:
  void add_to(CLI::App& app);
  /// `base` with what was given: --forward and --backward first, then single roles. Throws UsageError naming the flag.
  OpFormats apply(OpFormats base) const;
  bool any() const;

 private:
  std::string forward_, backward_;
  std::map<std::string, std::string> roles_;  // role name → text
};

/// Reads a format flag. A number gets an error that names the flag it was meant for (`number_flag`, may be empty).
Quantizer format_value(const std::string& flag, const std::string& text,
                       const std::string& number_flag = "");

/// Reads a number flag. A format gets an error that names the flag it was meant for (`format_flag`, may be empty).
double number_value(const std::string& flag, const std::string& text,
                    const std::string& format_flag = "");

/// "grad_input" → "--grad-input".
std::string role_flag(const std::string& role);

}  // namespace ulp::tools
