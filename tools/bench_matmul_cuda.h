#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/device.h"

namespace ulp::tools {

struct MatmulShape {
  int64_t m, n, k;
  double gflop() const {
    return 2e-9 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  }
};

struct CudaMatmulOptions {
  Device device;
  std::vector<MatmulShape> shapes;  // none: a list that shows every claim
  std::vector<std::string> math;    // none: strict and fast
  int repeats = 15;
  bool json = false, markdown = false;
};

/// `ulp bench matmul --device cuda`: products of each math beside cuBLAS on the same GPU, each checked first.
void bench_matmul_cuda(const CudaMatmulOptions& options);

}  // namespace ulp::tools
