#pragma once

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "tools/checkpoint_options.h"
#include "tools/experiment.h"
#include "tools/sweep_results.h"

namespace ulp::tools {

/// A training that is to be made: a row of a table under one seed.
struct PlannedRun {
  SweepRun run;  // without results
  std::string folder;
  bool wants_last = false;  // the score of the last weights beside that of an average
  Experiment experiment;
  nn::Dataset data;  // tensors are shared
};
PlannedRun plan(const std::string& name, const std::string& folder, const Experiment& experiment,
                const nn::Dataset& data);

/// Trains, each in DIR/FOLDER-seedN, what DIR/sweep.json does not have, and keeps it there after each; a line for each goes
/// to the log. Throws ulp::Error before anything is trained if the file has one with other settings or samples.
std::vector<SweepRun> train_all(const std::vector<PlannedRun>& planned,
                                const std::filesystem::path& dir,
                                const Checkpointing& checkpointing, std::FILE* log);

}  // namespace ulp::tools
