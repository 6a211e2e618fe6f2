#pragma once

#include "tools/experiment.h"

namespace ulp::tools {

/// Throws what the first steps of a training would throw for its model, batch size, formats and policy, in any epoch of it:
/// the policy is checked, then a step (forward and backward) of a batch of zeros of two samples, or of one where batches have
/// one, is made on the CPU under the formats of each phase, by a model of its own. Nothing else changes.
void preflight(const Experiment& experiment, const nn::Dataset& data);

}  // namespace ulp::tools
