#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <optional>
#include <string>

#include "core/op_formats.h"
#include "nn/policy.h"
#include "tools/values.h"

namespace ulp::tools {

/// An option that keeps its text as it was given, an empty one too.
CLI::Option* add_text(CLI::App& app, const std::string& flag, std::optional<std::string>& text,
                      const std::string& meaning);

/// What says which formats go where, for train, eval and sweep: --policy, --forward, --backward, and every role
/// and the sums of every product by name.
class FormatOptions {
 public:
  enum class Passes : uint8_t { Both, Forward };
  explicit FormatOptions(Passes passes) : passes_(passes) {}

  void add_to(CLI::App& app);
  /// The rules of the file, without one those of `preset`, then those of the flags: one for the layers with a product, one for
  /// the interior of all layers.
  /// Throws UsageError naming the flag, also for a role of a backward pass that there is not; then ulp::Error for the file.
  nn::Policy policy(nn::Policy preset = {}) const;
  bool has_file() const { return policy_.has_value(); }

 private:
  std::optional<Accumulator> read_sums(const nn::RuleSums& sums) const;
  std::optional<Quantizer> read(const std::string& flag, const std::optional<std::string>& text,
                                std::initializer_list<Quantizer OpFormats::*> roles) const;

  Passes passes_;
  std::optional<std::string> policy_, forward_, backward_;
  std::map<std::string, std::optional<std::string>> roles_;  // name of a role, or of sums → text
};

/// Of states with fewer axes the optimizer takes the last one instead.
using nn::misfit;

/// "grad_input" → "--grad-input".
std::string role_flag(const std::string& role);

}  // namespace ulp::tools
