#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "autograd/run.h"
#include "nn/module.h"

namespace ulp::tools {

/// Throws unless all elements are finite. `before` and `after` go around the message.
void check_finite(const std::string& before, const std::string& path, const Tensor& tensor,
                  const std::string& after);

/// Writes model.safetensors: every parameter, and what delayed scaling remembers. `random_step`: that of the training's last
/// test. `weights`: the name of their format.
void save_model(const Run& run, nn::Module& model, const std::filesystem::path& file,
                uint32_t random_step, const std::string& weights);

/// Reads model.safetensors into an initialised model of the run, and sets the run to the random step of the training's last
/// test, so that the same formats draw the same words. Throws for missing, surplus, misshapen or non-finite tensors.
void load_weights(Run& run, nn::Module& model, const std::filesystem::path& file);

}  // namespace ulp::tools
