#pragma once

#include <cstdint>

namespace ulp {

/// Everything that changes from one training step to the next. It lives in the memory of the device that trains, so
/// that a captured graph reads the current values, a skipped step predicates the update on them, and a checkpoint
/// saves them in one piece.
struct StepState {
  uint32_t random_step = 0;     // counter word 3 of every random draw
  uint32_t optimizer_step = 0;  // updates made so far; skipped steps do not count
  float lr = 0;
  float loss_scale = 1;
  float grad_scaling = 1;  // what the optimizer multiplies a gradient by before it quantises it
  uint32_t found_inf = 0;
  int64_t batch_offset = 0;
};

}  // namespace ulp
