#include "nn/dropout.h"

#include <fmt/core.h>

namespace ulp::nn {

Dropout::Dropout(double p, OpFormats formats) : p_(p), formats_(std::move(formats)) {
  ULP_CHECK(p >= 0 && p < 1, "Dropout: the probability must be from 0 to below 1, got {}", p);
}

std::string Dropout::describe() const { return fmt::format("Dropout {}", p_); }

}  // namespace ulp::nn
