#include "optim/grad_scaler.h"

#include <cmath>

#include "core/error.h"

namespace ulp::optim {
namespace {

constexpr double kLeast = 0x1p-126, kMost = 0x1p126;  // 1 / scale is an fp32 number too

void check_scale(const char* name, double value) {
  ULP_CHECK(value >= kLeast && value <= kMost,
            "grad scaler: {} must be from 2^-126 to 2^126, got {}", name, value);
}

GradPolicy policy_of(const GradScalerOptions& o) {
  check(o);
  GradPolicy policy;
  policy.grad_scaling = static_cast<float>(o.grad_scaling);
  policy.clip_norm = static_cast<float>(o.clip_norm);
  policy.undo_loss_scale = o.dynamic;
  if (o.dynamic)
    policy.scaling = {static_cast<float>(o.growth), static_cast<float>(o.backoff),
                      static_cast<float>(o.least), static_cast<float>(o.most),
                      static_cast<uint32_t>(o.interval)};
  return policy;
}

}  // namespace

void check(const GradScalerOptions& o) {
  ULP_CHECK(std::isfinite(static_cast<float>(o.clip_norm)) && o.clip_norm >= 0 &&
                (o.clip_norm == 0 || static_cast<float>(o.clip_norm) > 0),
            "grad scaler: clip_norm must be 0 or a number that fp32 holds, got {}", o.clip_norm);
  ULP_CHECK(o.grad_scaling >= 0 && std::isfinite(static_cast<float>(o.grad_scaling)),
            "grad scaler: grad_scaling must be a number >= 0, got {}", o.grad_scaling);
  ULP_CHECK(static_cast<float>(o.loss_scale) > 0 && std::isfinite(static_cast<float>(o.loss_scale)),
            "grad scaler: loss_scale must be a number above 0, got {}", o.loss_scale);
  if (!o.dynamic) return;
  check_scale("least", o.least);
  check_scale("most", o.most);
  ULP_CHECK(o.least <= o.most, "grad scaler: least, {}, is above most, {}", o.least, o.most);
  ULP_CHECK(o.least <= o.loss_scale && o.loss_scale <= o.most,
            "grad scaler: a loss_scale of {} is not between its bounds {} and {}", o.loss_scale,
            o.least, o.most);
  ULP_CHECK(o.growth >= 1 && o.growth <= kMost, "grad scaler: growth must be 1 or more, got {}",
            o.growth);
  ULP_CHECK(static_cast<float>(o.backoff) > 0 && static_cast<float>(o.backoff) < 1,
            "grad scaler: backoff must be above 0 and below 1, got {}", o.backoff);
  ULP_CHECK(o.interval >= 1 && o.interval <= UINT32_MAX,
            "grad scaler: interval must be from 1 to {}, got {}", UINT32_MAX, o.interval);
}

GradScaler::GradScaler(Run& run, std::vector<Parameter*> parameters,
                       const GradScalerOptions& options)
    : run_(run),
      parameters_(std::move(parameters)),
      options_(options),
      policy_(policy_of(options)) {
  StepState state = run_.state();
  state.loss_scale = static_cast<float>(options.loss_scale);
  run_.set_state(state);
}

void GradScaler::check() {
  if (!options_.checks()) return;
  std::vector<Tensor> gradients;
  for (const Parameter* p : parameters_)
    if (p->grad.defined()) gradients.push_back(p->grad);
  run_.check_gradients(std::move(gradients), policy_);
}

}  // namespace ulp::optim
