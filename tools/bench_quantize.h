#pragma once

#include <vector>

#include "core/device.h"
#include "core/quantizer.h"
#include "core/tensor.h"

namespace ulp::tools {

struct CudaQuantizeOptions {
  Device device;
  std::vector<Quantizer> formats;
  int repeats = 9, log2_size = 27;
  bool json = false, markdown = false;
};

/// `ulp bench quantize --device cuda`: beside a copy on the same GPU, each format checked against the CPU first.
void bench_quantize_cuda(const CudaQuantizeOptions& options);

/// Values of every magnitude that training meets, both signs: random significands, exponents −10 … 5. On the CPU.
Tensor quantize_input(int64_t rows, int64_t columns);

/// "element", "block" or "table".
const char* class_of(const Quantizer& quantizer);

}  // namespace ulp::tools
