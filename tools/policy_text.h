#pragma once

#include <string>

#include "nn/policy.h"
#include "tools/experiment.h"

namespace ulp::tools {

/// Every role of every layer for people; for later phases of a policy the layers that change. The layers' formats are
/// afterwards what they were.
std::string formats_text(const nn::Policy& policy, int64_t epochs,
                         const std::vector<nn::Layer>& layers);

/// The roles of a forward pass: a line for layers with the same formats, and how many are in fp32.
std::string forward_formats_text(const std::vector<nn::Layer>& layers);

/// What `ulp train --explain` prints: the run, the model as a tree with shapes, parameters, formats and products, and what
/// all of it takes. Nothing is computed on the experiment's device. Throws what a training would throw for the model and
/// the policy.
std::string explain_training(const Experiment& experiment, const nn::Dataset& data);

}  // namespace ulp::tools
