#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/step_state.h"

namespace ulp {

/// Which weights an average takes and how much each counts.
///   equal        average ← average + (weight − average) / (k + 1) for the (k + 1)-th weights: their mean
///   exponential  the first weights, then average ← average + (1 − decay)·(weight − average)
struct AverageRule {
  bool exponential = false;
  float share = 0;     // 1 − decay
  uint32_t start = 0;  // steps before the first weights, at least 1 is made
  uint32_t every = 1;  // steps from weights to weights
};

/// Where an average stands, in the memory of the device that trains. `gate` is a step's state for kernels that write nothing
/// where found_inf is set: it is unless the average takes the step's weights.
struct AverageState {
  StepState gate;
  uint64_t steps = 0;    // seen, skipped ones too
  uint32_t count = 0;    // weights taken
  uint32_t updates = 0;  // StepState.optimizer_step when it looked last
  uint32_t due = 0;      // it is time to take weights, and every step since then was skipped
  float factor = 1;      // of the difference to the weights
};
static_assert(sizeof(AverageState) == 64);  // no padding: states are compared as bytes

/// After each step: takes its weights if it is time to. A skipped step, which changed no weight, changes no average either:
/// then those of the next one are taken.
ULP_HD void begin_average(AverageState& average, const StepState& state, const AverageRule& rule) {
  const bool skipped = state.optimizer_step == average.updates;
  average.updates = state.optimizer_step;
  ++average.steps;
  if (average.steps >= rule.start && (average.steps - rule.start) % rule.every == 0)
    average.due = 1;
  const bool takes = average.due != 0 && !skipped;
  average.gate.found_inf = takes ? 0 : 1;
  if (!takes) return;
  average.due = 0;
  average.factor = rule.exponential && average.count > 0
                       ? rule.share
                       : 1.0f / static_cast<float>(average.count + 1);
  ++average.count;
}

}  // namespace ulp
