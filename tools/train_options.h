#pragma once

#include <CLI/CLI.hpp>
#include <memory>

#include "tools/checkpoint_options.h"
#include "tools/experiment.h"

namespace ulp::tools {

/// The options that decide a training, but for formats of layers and the folder.
struct TrainOptions;
std::shared_ptr<TrainOptions> add_training_options(CLI::App& app);

/// What they say, those of a recipe too where they were not given. The experiment has no policy yet.
/// Throws UsageError naming the flag.
Experiment resolve(TrainOptions& options);
/// The policy of the recipe; none without one.
nn::Policy recipe_policy(const TrainOptions& options);
/// Sets the threads and reads the data, for which it finishes the experiment: a name that lasts, no batch above the data.
nn::Dataset prepare(const TrainOptions& options, Experiment& experiment);
/// The latter alone, for data that was read before.
void fit(const TrainOptions& options, Experiment& experiment, const nn::Dataset& data);
Checkpointing checkpointing_of(const TrainOptions& options);

}  // namespace ulp::tools
