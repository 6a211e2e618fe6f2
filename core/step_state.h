#pragma once

#include <cstdint>

#include "core/macros.h"

namespace ulp {

/// Everything that changes from one training step to the next and belongs to no optimizer. It lives in the memory of the
/// device that trains and is moved on there, so that a captured graph reads the current values, a skipped step predicates
/// the update on them, and a checkpoint saves them in one piece.
struct StepState {
  uint32_t random_step = 0;     // counter word 3 of every random draw
  uint32_t optimizer_step = 0;  // updates made so far; skipped steps do not count
  float loss_scale = 1;
  uint32_t found_inf = 0;    // this step's update is skipped
  int64_t batch_offset = 0;  // where the next batch begins in the order of its epoch
  float grad_factor = 1;     // gradients × it before the optimizer: inverse loss scale × clipping
  uint32_t good_steps = 0;   // since the last change of the scale
  uint32_t skipped_steps = 0;  // updates that were left out
  float grad_norm = 0;  // of the last gradients that were checked and finite, before clipping
};
static_assert(sizeof(StepState) == 40);  // no padding: states are compared as bytes

/// What ends a step.
ULP_HD void advance(StepState& state) {
  ++state.random_step;
  ++(state.found_inf == 0 ? state.optimizer_step : state.skipped_steps);
  state.found_inf = 0;
}

}  // namespace ulp
