#include "nn/activations.h"

#include <fmt/core.h>

#include <utility>

namespace ulp::nn {

bool Activation::unit_scale(const UnitPlace& place) {
  const OpFormats kept = std::exchange(formats_, {});
  const Gains gains =
      unit_gains(inputs(), [&](Tape& tape, const Var& x) { return forward(tape, x); });
  formats_ = kept;
  gains_ = settled(gains, place.edge);
  set_scaled(unit_text(gains_));
  return true;
}

std::string LeakyReLU::describe() const { return fmt::format("LeakyReLU, slope {}", slope_); }
std::string ELU::describe() const { return fmt::format("ELU, alpha {}", alpha_); }
std::string Hardtanh::describe() const { return fmt::format("Hardtanh [{}, {}]", low_, high_); }
std::string Softplus::describe() const {
  return fmt::format("Softplus, beta {}, threshold {}", beta_, threshold_);
}

}  // namespace ulp::nn
