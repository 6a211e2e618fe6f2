#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "nn/policy.h"
#include "tools/experiment.h"
#include "tools/optimizer_options.h"

namespace ulp::tools {

/// --recipe NAME: a published method whose settings are the defaults of the other options.
class RecipeOption {
 public:
  void add_to(CLI::App& app);
  /// Gives the options that were not given what the recipe says, but for those that the optimizer chosen or the data have no
  /// use for. Throws UsageError for an unknown name.
  std::optional<RecipeUse> apply(const OptimizerFlags& optimizer, const std::string& data) const;
  /// Its rules; none without a recipe.
  nn::Policy policy() const;

 private:
  CLI::App* app_ = nullptr;
  std::optional<std::string> name_;
};

}  // namespace ulp::tools
