#pragma once

#include <cstdint>

#include "core/bits.h"
#include "core/scalar_math.h"
#include "core/step_state.h"

namespace ulp {

/// How the loss scale follows the gradients. An interval of 0: it stays as it is.
///   a gradient that is not finite   scale ← max(scale · backoff, least), and counting begins anew
///   `interval` good steps in a row  scale ← min(scale · growth, most), and counting begins anew
/// Source: Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740, §3.2, and NVIDIA's guide to it.
struct LossScaling {
  float growth = 2, backoff = 0.5f;
  float least = 0x1p-24f, most = 0x1p24f;
  uint32_t interval = 0;
};

/// What becomes of the gradients between the backward pass and the optimizer's step.
struct GradPolicy {
  LossScaling scaling;
  bool undo_loss_scale = false;  // by grad_factor; else grad_scaling does
  float grad_scaling = 1;        // what the optimizer multiplies by beside grad_factor
  float clip_norm = 0;           // the largest norm of the scaled gradients; 0: any
};

/// The scale of the next step.
ULP_HD void adapt_loss_scale(StepState& state, const LossScaling& how) {
  if (how.interval == 0) return;
  if (state.found_inf != 0) {
    const float scale = state.loss_scale * how.backoff;
    state.loss_scale = scale < how.least ? how.least : scale;
    state.good_steps = 0;
  } else if (++state.good_steps >= how.interval) {
    const float scale = state.loss_scale * how.growth;
    state.loss_scale = scale > how.most ? how.most : scale;
    state.good_steps = 0;
  }
}

/// Settles a step whose gradients have this sum of squares in fp64, which is a finite number exactly if they are: found_inf;
/// grad_norm; grad_factor = inverse loss scale · min(1, clip_norm / norm); and the loss scale of the next step.
ULP_HD void settle_gradients(StepState& state, double sum_of_squares, const GradPolicy& policy) {
  const double undo = policy.undo_loss_scale ? 1.0 / static_cast<double>(state.loss_scale) : 1.0;
  state.grad_factor = static_cast<float>(undo);
  if (!(sum_of_squares - sum_of_squares == 0)) state.found_inf = 1;
  if (state.found_inf == 0) {
    const double norm = sqrt_of(sum_of_squares) * (static_cast<double>(policy.grad_scaling) * undo);
    const double most = static_cast<double>(policy.clip_norm);
    state.grad_norm = static_cast<float>(norm < kMaxFloat ? norm : kMaxFloat);
    if (most > 0 && norm > most) state.grad_factor = static_cast<float>(undo * (most / norm));
  }
  adapt_loss_scale(state, policy.scaling);
}

}  // namespace ulp
