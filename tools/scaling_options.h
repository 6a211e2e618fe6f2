#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "tools/experiment.h"

namespace ulp::tools {

/// What happens around the optimizer's step: loss scaling, clipping, micro-batches, the learning rate's schedule, averages.
class ScalingOptions {
 public:
  void add_to(CLI::App& app);
  /// Sets scaling, accumulate_steps, lr_schedule, average and the optimizer's grad_order and grad_scaling. Throws UsageError
  /// naming the flag.
  void resolve(Experiment& experiment) const;

 private:
  double grad_scaling(const Experiment& experiment) const;
  void resolve_schedule(Experiment& experiment) const;
  void resolve_scaling(Experiment& experiment) const;
  void check_dynamic(const optim::GradScalerOptions& scaling) const;
  std::optional<Averaging> resolve_average() const;

  std::string loss_scale_ = "1", lr_schedule_ = "constant", grad_order_ = "scale-first",
              accumulate_ = "1";
  std::optional<std::string> start_, growth_, backoff_, interval_, least_, most_, clip_norm_,
      grad_scaling_;
  std::optional<std::string> average_, average_format_, average_start_, average_every_, decay_;
};

}  // namespace ulp::tools
