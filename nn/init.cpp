#include "nn/init.h"

#include <cmath>

namespace ulp::nn {

Initialiser Initialiser::kaiming_uniform(int64_t fan_in) {
  ULP_CHECK(fan_in > 0, "kaiming_uniform: fan_in must be positive, got {}", fan_in);
  return uniform(std::sqrt(6.0 / static_cast<double>(fan_in)));
}

Initialiser Initialiser::xavier_uniform(int64_t fan_in, int64_t fan_out) {
  ULP_CHECK(fan_in > 0 && fan_out > 0, "xavier_uniform: fans must be positive, got {} and {}",
            fan_in, fan_out);
  return uniform(std::sqrt(6.0 / static_cast<double>(fan_in + fan_out)));
}

Tensor Initialiser::make(Run& run, const Shape& shape, RandomSite site) const {
  Tensor value = Tensor::empty(shape, DType::F32, run.device());
  if (bound == 0) {
    kernels::fill(run.stream(), {value, constant});
    return value;
  }
  const RandomKey key{run.seed(), site.stream("init"), 0, nullptr};
  const float b = static_cast<float>(bound);
  kernels::uniform(run.stream(), {value, -b, b, key});
  return value;
}

}  // namespace ulp::nn
