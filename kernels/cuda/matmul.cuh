#pragma once

#include "kernels/attention.h"
#include "kernels/kernels.h"
#include "kernels/matmul_unit.h"

namespace ulp::cuda {

/// sums (M, N) = the strict product a · b. M, N > 0.
void matmul_strict(Stream stream, const MatmulArgs& args, float* sums);

/// sums (M, N) = a · b on the unit by cuBLASLt, sums in fp32; with `whole` times the factors and plus the bias (F32,
/// contiguous) too; with `onto` plus what they are before. M, N, K > 0. False, and nothing done, if cuBLASLt has no algorithm
/// for it.
bool matmul_fast(Stream stream, const MatmulArgs& args, const UnitChoice& choice, bool whole,
                 float* sums, bool onto = false);

/// The same of a batch of products.
bool batched_fast(Stream stream, const BatchedMatmulArgs& args, const UnitChoice& choice,
                  float* sums);

/// What becomes of the sums of a product, see MatmulArgs.
struct Outcome {
  Tensor bias, a_factor, b_factor;  // bias: contiguous
  Tensor out;
  Quantizer output;
  RandomKey key;
  int64_t columns;  // of out
  double factor = 1;
};

/// cuBLASLt also multiplies by the factors and adds the bias, where nothing is rounded after that; its fp8 products add biases
/// of 16 bits only.
inline bool fast_finishes(const Outcome& o, MatrixUnit unit) {
  return o.output.is_identity() &&
         (!o.bias.defined() || (o.bias.dtype() == DType::F32 && unit != MatrixUnit::Fp8));
}

/// out = quantise(fma(sums, factors) + bias), one pass, or none if nothing changes. sums (F32, like out) may be out itself.
void finish_product(const char* kernel, Stream stream, const Outcome& outcome, const float* sums);

}  // namespace ulp::cuda
