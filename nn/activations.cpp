#include "nn/activations.h"

#include <fmt/core.h>

namespace ulp::nn {

std::string LeakyReLU::describe() const { return fmt::format("LeakyReLU, slope {}", slope_); }
std::string ELU::describe() const { return fmt::format("ELU, alpha {}", alpha_); }
std::string Hardtanh::describe() const { return fmt::format("Hardtanh [{}, {}]", low_, high_); }
std::string Softplus::describe() const {
  return fmt::format("Softplus, beta {}, threshold {}", beta_, threshold_);
}

}  // namespace ulp::nn
