#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/op_formats.h"
#include "nn/data/dataset.h"
#include "nn/evaluate.h"
#include "nn/sequential.h"
#include "optim/schedule.h"
#include "optim/sgd.h"

namespace ulp::tools {

/// Everything that decides a training run. What it prints and what config.json holds is this, resolved.
struct Experiment {
  std::string data = "digits";
  std::string model = "mlp";
  std::vector<int64_t> hidden = {256, 128};
  int64_t epochs = 10;
  int64_t batch_size = 128;
  uint64_t seed = 1;
  Device device{};
  OpFormats formats;
  optim::SgdOptions sgd;  // its lr is the schedule's base
  std::string lr_schedule = "constant";
  double loss_scale = 1;

  /// The same run in fp32 throughout, without loss scaling.
  Experiment baseline() const;
};

nlohmann::ordered_json to_json(const Experiment& experiment, const nn::Dataset& data);
/// Reads what to_json wrote. Throws ulp::Error naming the file and the key that is missing or wrong.
Experiment experiment_from_json(const nlohmann::ordered_json& json, const std::string& file);

/// The whole resolved configuration for people, every role of every layer.
std::string describe(const Experiment& experiment, const nn::Dataset& data, nn::Module& model);

/// Throws UsageError listing the models there are.
std::unique_ptr<nn::Sequential> make_model(const Experiment& experiment, const nn::Dataset& data);

/// The test split's score, in batches of a fixed size, so that block formats see the same blocks in every evaluation.
nn::Score test_score(Run& run, nn::Module& model, const nn::Dataset& data,
                     const OpFormats& formats);

/// Trains and writes DIR/config.json, DIR/metrics.jsonl (after every epoch) and DIR/model.safetensors. Returns the last
/// test score. Throws ulp::Error with epoch and step when the loss stops being a finite number.
nn::Score train(const Experiment& experiment, const nn::Dataset& data,
                const std::filesystem::path& dir, const char* title);

/// Reads DIR/model.safetensors into an initialised model. Throws for missing, surplus, misshapen or non-finite tensors.
void load_weights(nn::Module& model, const std::filesystem::path& file, Device device);

}  // namespace ulp::tools
