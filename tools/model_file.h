#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "autograd/run.h"
#include "nn/module.h"

namespace ulp::tools {

/// Throws unless all elements are finite. `before` and `after` go around the message.
void check_finite(const std::string& before, const std::string& path, const Tensor& tensor,
                  const std::string& after);

/// An average of the weights as model.safetensors has it: `<parameter>.average` beside each parameter, and beside each buffer
/// (running statistics) that of a model with these weights.
struct SavedAverage {
  std::map<std::string, Tensor> tensors;  // by these names
  std::string format;
  int64_t count = 0;         // weights taken
  uint32_t random_step = 0;  // of its last test
};

/// Writes model.safetensors: every parameter and every buffer, each with that of the average if there is one, and what delayed
/// scaling remembers.
/// `random_step`: that of the training's last test. `weights`: the name of their format.
void save_model(const Run& run, nn::Module& model, const std::filesystem::path& file,
                uint32_t random_step, const std::string& weights,
                const std::optional<SavedAverage>& average = {});

/// Reads model.safetensors into an initialised model of the run, and sets the run to the random step of the training's last
/// test of what is read, so that the same formats draw the same words. Throws for missing, surplus, misshapen or non-finite
/// tensors. Returns which weights those are, "the average of 12 in bf16,"; empty where there is no average.
enum class Weights : uint8_t { Average, Last };  // Average: where there is one
std::string load_weights(Run& run, nn::Module& model, const std::filesystem::path& file,
                         Weights which = Weights::Average);

}  // namespace ulp::tools
