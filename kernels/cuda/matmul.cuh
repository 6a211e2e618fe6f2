#pragma once

#include "kernels/kernels.h"
#include "kernels/matmul_unit.h"

namespace ulp::cuda {

/// How a strict product is cut; no choice here shows in a result.
struct StrictPlan {
  bool small = false;  // tiles of 64 instead of 128
  int64_t chunks = 1;  // of k
  int64_t planes =
      1;  // of sums: 1, or one for each chunk where the tiles alone would not fill the GPU
};
StrictPlan plan_strict(const MatmulArgs& args);

/// sums (planes, M, N): added in ascending order the planes are the strict product a · b. M, N > 0.
void matmul_strict(Stream stream, const MatmulArgs& args, const StrictPlan& plan, float* sums);

/// sums (M, N) = a · b on the unit by cuBLASLt, sums in fp32; with `whole` times the factors and plus the bias (F32,
/// contiguous) too. M, N, K > 0. False, and nothing done, if cuBLASLt has no algorithm for it.
bool matmul_fast(Stream stream, const MatmulArgs& args, const UnitChoice& choice, bool whole,
                 float* sums);

}  // namespace ulp::cuda
