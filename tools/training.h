#pragma once

#include <filesystem>

#include "core/error.h"
#include "tools/checkpoint_options.h"
#include "tools/experiment.h"

namespace ulp::tools {

/// A training whose loss is no number any more, or that skips every step: a fact about its formats and rates.
class Diverged : public Error {
 public:
  using Error::Error;
};

/// What config.json holds.
std::string config_text(const Experiment& experiment, const nn::Dataset& data);

/// Throws what a training would throw before its first step for what the settings and the numbers of samples and parameters
/// say together: schedule, average, batches of an epoch, states. Makes all of it once, on the device, and lets it go.
void check_training(const Experiment& experiment, const nn::Dataset& data);

/// Trains and writes DIR/config.json, DIR/metrics.jsonl (after every epoch) and DIR/model.safetensors, which earlier runs
/// may have left there or, for a baseline, in DIR/baseline: they are removed first. Returns the last test score. Throws
/// Diverged with epoch and step when a loss stops being a finite number, or naming a weight that is none at the end.
/// Writes DIR/checkpoint-STEP.safetensors as asked for, never one of a run whose loss or weights are no numbers: Diverged. To
/// resume goes on from the newest whole one; the files of the run are then those of a run that was never stopped, "seconds"
/// in metrics.jsonl apart. Damaged ones are kept aside. Throws if one cannot be read or is of another run, and then has
/// changed nothing. The caller has the folder's lock (FolderLock).
/// Call preflight() before: what only a step shows is thrown here when the files of the earlier run are gone.
nn::Score train(const Experiment& experiment, const nn::Dataset& data,
                const std::filesystem::path& dir, const char* title,
                const Checkpointing& checkpointing = {});

}  // namespace ulp::tools
