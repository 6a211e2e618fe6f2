#pragma once

#include <omp.h>

namespace ulp::tests {

/// OpenMP's threads while it lives.
struct Threads {
  int before = omp_get_max_threads();
  explicit Threads(int n) { omp_set_num_threads(n); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  ~Threads() { omp_set_num_threads(before); }
};

}  // namespace ulp::tests
