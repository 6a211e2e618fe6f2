#include "nn/losses.h"

#include <fmt/core.h>

namespace ulp::nn {

Var Loss::forward(Tape&, const Var&) {
  throw_error("{}: {} has two arguments; call of(tape, prediction, target)",
              path().empty() ? "loss" : path(), describe());
}

std::string CrossEntropyLoss::describe() const {
  return label_smoothing_ == 0 ? "CrossEntropyLoss"
                               : fmt::format("CrossEntropyLoss, smoothing {}", label_smoothing_);
}
std::string SmoothL1Loss::describe() const { return fmt::format("SmoothL1Loss, beta {}", beta_); }
std::string HuberLoss::describe() const { return fmt::format("HuberLoss, delta {}", delta_); }

}  // namespace ulp::nn
