#pragma once

#include "kernels/attention.h"
#include "kernels/kernels.h"
#include "kernels/matmul_unit.h"

namespace ulp::cuda {

/// sums (M, N) = the strict product a · b. M, N > 0.
void matmul_strict(Stream stream, const MatmulArgs& args, float* sums);

/// sums (M, N) = a · b by a simulated accumulator. M, N > 0.
void matmul_simulated(Stream stream, const MatmulArgs& args, float* sums);

/// True for the units that multiply in the library.
constexpr bool is_fast(MatrixUnit unit) {
  return unit != MatrixUnit::Strict && unit != MatrixUnit::Simulated;
}

/// Where cuBLASLt writes a product: F32, or BF16, to which it rounds its fp32 sums.
struct FastOut {
  void* data;
  DType dtype = DType::F32;
};

/// out (M, N) = a · b on the unit by cuBLASLt, sums in fp32; with `whole` times the factors and plus the bias (contiguous, of
/// out's type) too; with `onto` plus what they are before. M, N, K > 0. False, and nothing done, if cuBLASLt has no algorithm
/// for it.
bool matmul_fast(Stream stream, const MatmulArgs& args, const UnitChoice& choice, bool whole,
                 FastOut out, bool onto = false);

/// The same of a batch of products.
bool batched_fast(Stream stream, const BatchedMatmulArgs& args, const UnitChoice& choice,
                  FastOut out);

/// What becomes of the sums of a product, see MatmulArgs.
struct Outcome {
  Tensor bias, a_factor, b_factor;  // bias: contiguous
  Tensor out;
  Quantizer output;
  RandomKey key;
  int64_t columns;  // of out
  double factor = 1;
};

/// cuBLASLt also multiplies by the factors and adds the bias, where nothing is rounded after that, or on bf16 tensor cores to
/// nearest bf16; its biases are of out's type, and its fp8 products add none of F32.
inline bool fast_finishes(const Outcome& o, MatrixUnit unit) {
  if (o.bias.defined() && (o.bias.dtype() != o.out.dtype() || unit == MatrixUnit::Fp8))
    return false;
  if (o.out.dtype() == DType::F32) return o.output.is_identity();
  return o.out.dtype() == DType::BF16 && unit == MatrixUnit::BF16 && unit_rounds(o.output);
}

/// out = quantise(fma(sums, factors) + bias), one pass, or none if nothing changes. sums (F32, like out) may be out itself.
void finish_product(const char* kernel, Stream stream, const Outcome& outcome, const float* sums);

}  // namespace ulp::cuda
