#pragma once

// What CPU kernels are made of: they cut their work into blocks that stay in the first-level cache, decode a block of any
// storage type to fp32, compute, round, and encode it again.

#include <array>
#include <cstdint>

#include "core/quantizer.h"
#include "core/tensor.h"

namespace ulp::cpu {

inline constexpr int64_t kBlock = 1024;   // elements
inline constexpr int64_t kGrain = 65536;  // least elements worth a thread
using BlockBuffer = std::array<float, kBlock>;

/// Elements [begin, begin + n) of an array, n ≤ kBlock, as fp32: a pointer into the array itself if it is F32, else into
/// `buffer`.
const float* read_block(const void* data, DType dtype, int64_t begin, int64_t n, float* buffer);

/// Writes values that `dtype` holds exactly, NaNs canonical. `values` may point into the array itself.
void write_block(void* data, DType dtype, int64_t begin, int64_t n, const float* values);

/// Throws unless out's type is F32, or a float type that holds every value of the quantizer's format.
void check_output_type(const char* kernel, const Tensor& out, const Quantizer& quantizer);

}  // namespace ulp::cpu
