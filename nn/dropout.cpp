#include "nn/dropout.h"

#include <fmt/core.h>

#include <cmath>

namespace ulp::nn {

Dropout::Dropout(double p, OpFormats formats) : p_(p), formats_(std::move(formats)) {
  ULP_CHECK(p >= 0 && p < 1, "Dropout: the probability must be from 0 to below 1, got {}", p);
}

bool Dropout::unit_scale(const UnitPlace&) {
  gains_.forward = gains_.backward = std::sqrt(1 - p_);
  set_scaled(unit_text(gains_));
  return true;
}

std::string Dropout::describe() const { return fmt::format("Dropout {}", p_); }

}  // namespace ulp::nn
