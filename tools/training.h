#pragma once

#include <filesystem>

#include "tools/experiment.h"

namespace ulp::tools {

/// Trains and writes DIR/config.json, DIR/metrics.jsonl (after every epoch) and DIR/model.safetensors, which earlier runs
/// may have left there or, for a baseline, in DIR/baseline: they are removed first. Returns the last test score. Throws
/// ulp::Error with epoch and step when a loss stops being a finite number, or naming a weight that is none at the end.
nn::Score train(const Experiment& experiment, const nn::Dataset& data,
                const std::filesystem::path& dir, const char* title);

}  // namespace ulp::tools
