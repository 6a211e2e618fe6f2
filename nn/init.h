#pragma once

#include <cstdint>
#include <string>

#include "autograd/run.h"

namespace ulp::nn {

/// How a parameter gets its first values: uniform in [−bound, bound] or a constant. Draws depend on the run's seed and the
/// parameter's path only.
struct Initialiser {
  double bound = 0;
  double constant = 0;

  static Initialiser zeros() { return {}; }
  static Initialiser value(double constant) { return {0, constant}; }
  static Initialiser uniform(double bound) { return {bound, 0}; }
  /// Bound √(6/fan_in): keeps the variance through ReLU layers.  Source: He et al., arXiv 1502.01852, eq. 10.
  static Initialiser kaiming_uniform(int64_t fan_in);
  /// Bound √(6/(fan_in + fan_out)).  Source: Glorot, Bengio, AISTATS 2010, eq. 16.
  static Initialiser xavier_uniform(int64_t fan_in, int64_t fan_out);

  /// F32 values on the run's device.
  Tensor make(Run& run, const Shape& shape, RandomSite site) const;
};

}  // namespace ulp::nn
