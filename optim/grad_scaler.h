#pragma once

#include <cstdint>
#include <vector>

#include "autograd/tape.h"

namespace ulp::optim {

/// What is done with gradients before the optimizer reads them.
struct GradScalerOptions {
  double loss_scale = 1;  // the first one, if it is dynamic
  bool dynamic = false;
  double growth = 2,
         backoff = 0.5;  // the scale's factor after `interval` good steps, after a bad one
  double least = 0x1p-24, most = 0x1p24;  // of the scale
  int64_t interval = 2000;                // good steps in a row
  double clip_norm = 0;                   // the largest L2 norm of all gradients together; 0: any
  double grad_scaling = 1;                // what the optimizer multiplies gradients by
  /// The optimizer needs check() before every step.
  bool checks() const { return dynamic || clip_norm > 0; }
};

/// Throws ulp::Error for a factor or bound out of range.
void check(const GradScalerOptions& options);

/// Loss scaling and clipping, on the run's device without waiting for it:
///   tape.backward(loss);  scaler.check();  optimizer.step();
/// The gradient of a loss begins as the run's loss_scale. A dynamic scale follows the gradients (LossScaling) and is undone by
/// the state's grad_factor; a static one is undone by the optimizer's grad_scaling. check() skips a step that has a gradient
/// with Inf or NaN: weights, states, delayed scales and averages stay as they were, the schedule and random draws go on, and
/// StepState counts it. Clipping multiplies all gradients by min(1, clip_norm / norm), the norm being that of the
/// gradients × all scaling, before they are rounded; one optimizer's worth of parameters has one norm.
/// Source of clipping: Pascanu et al., arXiv 1211.5063.
class GradScaler {
 public:
  /// Sets the run's loss scale. Throws as optim::check does.
  GradScaler(Run& run, std::vector<Parameter*> parameters, const GradScalerOptions& options);

  /// Looks at the gradients that there are. Between a backward pass and the optimizer's step; does nothing unless
  /// options().checks().
  void check();
  const GradScalerOptions& options() const { return options_; }

 private:
  Run& run_;
  std::vector<Parameter*> parameters_;
  GradScalerOptions options_;
  GradPolicy policy_;
};

}  // namespace ulp::optim
