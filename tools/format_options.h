#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <optional>
#include <string>

#include "core/op_formats.h"
#include "tools/values.h"

namespace ulp::tools {

/// An option that keeps its text as it was given, an empty one too.
CLI::Option* add_text(CLI::App& app, const std::string& flag, std::optional<std::string>& text,
                      const std::string& meaning);

/// The format flags that train and eval share: --forward, --backward and every role by its name.
class FormatOptions {
 public:
  enum class Passes : uint8_t { Both, Forward };
  explicit FormatOptions(Passes passes) : passes_(passes) {}

  void add_to(CLI::App& app);
  /// `base` with what was given: --forward and --backward first, then single roles. Throws UsageError naming the flag,
  /// also for a role of a backward pass that there is not.
  OpFormats apply(OpFormats base) const;

 private:
  void set(OpFormats& formats, const std::string& flag, const std::optional<std::string>& text,
           std::initializer_list<Quantizer OpFormats::*> roles) const;

  Passes passes_;
  std::optional<std::string> forward_, backward_;
  std::map<std::string, std::optional<std::string>> roles_;  // role name → text
};

/// Why a tensor with axes 0 and 1 cannot have this format; empty if it can. Activations, gradients and weights are such.
/// Of states with fewer axes the optimizer takes the last one instead.
std::string misfit(const Quantizer& quantizer);
/// The same for a role.
std::string misfit(const Role& role, const Quantizer& quantizer);

/// "grad_input" → "--grad-input".
std::string role_flag(const std::string& role);

}  // namespace ulp::tools
