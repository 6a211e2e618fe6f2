#pragma once

#include "kernels/kernels.h"

namespace ulp::cuda {

/// sums (M, N, F32, contiguous) = a · b by cuBLASLt with fp32 accumulation. a and b: both BF16, both F16 or both F32,
/// each with unit stride along one axis; M, N, K > 0. Throws otherwise.
void matmul_fast(Stream stream, const Tensor& a, const Tensor& b, float* sums);

}  // namespace ulp::cuda
