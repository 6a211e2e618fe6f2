#pragma once

#include "kernels/kernels.h"
#include "kernels/matmul_unit.h"

namespace ulp::cuda {

/// sums (M, N) = the strict product a · b. M, N > 0.
void matmul_strict(Stream stream, const MatmulArgs& args, float* sums);

/// sums (M, N) = a · b on the unit by cuBLASLt, sums in fp32; with `whole` times the factors and plus the bias (F32,
/// contiguous) too. M, N, K > 0. False, and nothing done, if cuBLASLt has no algorithm for it.
bool matmul_fast(Stream stream, const MatmulArgs& args, const UnitChoice& choice, bool whole,
                 float* sums);

}  // namespace ulp::cuda
