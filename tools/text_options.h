#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "tools/experiment.h"

namespace ulp::tools {

/// The flags of ulp train for texts and for their models.
class TextFlags {
 public:
  void add_to(CLI::App& app);
  /// Sets sequence, tokens, validation, and with --steps epochs and epoch_steps. Throws UsageError naming the flag, also where
  /// one of them is given for images.
  void resolve(Experiment& experiment, bool epochs_given) const;

 private:
  /// Throws for a flag of gpt with another model of texts.
  void check_gpt_alone(const std::string& model) const;

  std::optional<std::string> layers_, width_, heads_, context_, positions_, mlp_, norm_, tokens_,
      validation_, steps_, validate_every_;
  bool tie_ = false;
};

}  // namespace ulp::tools
