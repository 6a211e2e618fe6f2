#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "tools/experiment.h"

namespace ulp::tools {

/// The flags of ulp train that say how samples come into batches.
class DataOptions {
 public:
  void add_to(CLI::App& app);
  /// What can be said without the data. Sets augmentation and resident_bytes. Throws UsageError naming the flag.
  void resolve(Experiment& experiment) const;
  /// The rest: sets normalisation. Throws ulp::Error naming the flag where it or the augmentation does not fit the data.
  void fit(Experiment& experiment, const nn::Dataset& data) const;

 private:
  std::string normalize_ = "none", augment_ = "none", resident_mib_ = "4096";
};

/// "0.286,0.4:0.353,0.2" → means and standard deviations. Throws UsageError.
nn::Normalisation parse_normalisation(const std::string& text);
/// The same text, with all digits; "none".
std::string to_string(const nn::Normalisation& normalisation);

/// How batches of the experiment's training split are made. Those of tests are not augmented.
nn::BatchOptions batch_options(const Experiment& experiment);

}  // namespace ulp::tools
