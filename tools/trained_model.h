#pragma once

// What commands on a trained model share: their flags, and the model itself.

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "autograd/run.h"
#include "nn/policy.h"
#include "nn/training_loss.h"
#include "tools/experiment.h"
#include "tools/model_file.h"

namespace ulp::tools {

/// DIR, --threads, --device, --math and --last.
class TrainedModelFlags {
 public:
  /// `dir`: what the folder is, for --help.
  void add_to(CLI::App& app, const std::string& dir);
  /// Throws UsageError for what is wrong with the flags alone.
  void check() const;
  /// What config.json says, with the device and math of the flags; sets the number of threads. Throws ulp::Error naming the file.
  SavedExperiment read() const;

  const std::string& dir() const { return dir_; }
  std::filesystem::path config() const { return std::filesystem::path(dir_) / "config.json"; }
  std::filesystem::path weights() const {
    return std::filesystem::path(dir_) / "model.safetensors";
  }
  Weights which() const { return last_ ? Weights::Last : Weights::Average; }

 private:
  std::string dir_, device_ = "cpu";
  std::optional<std::string> threads_, math_;
  bool last_ = false;
};

/// A model with its stored weights and the formats of the last epoch, on a run of its own.
class TrainedModel {
 public:
  /// `data`: as much of it as make_model needs. Throws ulp::Error for weights that are not this model's, MemoryError with
  /// the model.
  static TrainedModel load(const Experiment& experiment, const nn::Dataset& data,
                           const TrainedModelFlags& flags);
  TrainedModel(const TrainedModel&) = delete;
  TrainedModel& operator=(const TrainedModel&) = delete;

  Run run;
  std::unique_ptr<nn::Sequential> model;
  nn::TrainingLoss loss;
  std::vector<nn::Layer> layers;  // of the model and the loss
  std::string which;              // as load_weights returns it

 private:
  TrainedModel(const Experiment& experiment, const nn::Dataset& data,
               const TrainedModelFlags& flags);
};

}  // namespace ulp::tools
