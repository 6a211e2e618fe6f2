#pragma once

// Rows of (N, C), one warp each.

#include "kernels/cuda/interior.cuh"
#include "kernels/cuda/sum.cuh"
#include "kernels/kernel.h"

namespace ulp::cuda {

struct Rows {
  int64_t rows, columns;
};

/// Calls body(row) for this warp's rows, with all its lanes.
template <class Body>
__device__ __forceinline__ void for_rows(const Rows& shape, const Body& body) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  for (int64_t row = first; row < shape.rows; row += warps) body(row);
}

inline int64_t row_blocks(const Rows& shape) {
  return shape.columns == 0 ? 0 : blocks_for(shape.rows, kThreads / kWarp);
}

/// The larger one; NaN if one of them is.
__device__ __forceinline__ float larger(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

struct Largest {
  float value;
  uint32_t index;
  bool nan;  // somewhere in the row
};

/// Numbers in the order of their floats, −0 and +0 alike.
__device__ __forceinline__ uint32_t ordered(float x) {
  const uint32_t bits = bits_of(x + 0.0f);
  return bits ^ ((bits & kSignBit) != 0 ? 0xFFFFFFFFu : kSignBit);
}

/// Of each lane's first largest element that of the row; every lane gets it. Of +0 and −0 the first one counts. Element i is
/// lane i % 32's; lanes without an element have no part in it.
__device__ __forceinline__ Largest largest_of(float value, uint32_t index, bool nan, bool any) {
  const uint32_t key = any ? ordered(value) : 0u;
  const uint32_t most = __reduce_max_sync(kFullWarp, key);
  Largest best;
  best.index = __reduce_min_sync(kFullWarp, any && key == most ? index : 0xFFFFFFFFu);
  best.value = __shfl_sync(kFullWarp, value, static_cast<int>(best.index % kWarp));
  best.nan = __any_sync(kFullWarp, nan);
  return best;
}

/// The first largest element of a row with C ≥ 1. Its index means nothing where there is a NaN.
__device__ __forceinline__ Largest first_largest(const float* row, int64_t columns) {
  const uint32_t lane = threadIdx.x % kWarp;
  const auto count = static_cast<uint32_t>(columns);
  float value = lane < count ? row[lane] : 0.0f;
  uint32_t index = lane;
  bool nan = value != value;
  for (uint32_t j = lane + kWarp; j < count; j += kWarp) {
    const float x = row[j];
    nan = nan || x != x;
    if (x > value) value = x, index = j;
  }
  return largest_of(value, index, nan, lane < count);
}

/// An F32 matrix on the stream's device; its extents.
inline Rows check_matrix(const char* kernel, Stream stream, const Tensor& matrix) {
  check_kernel_tensor(kernel, stream, matrix, matrix.shape());
  ULP_CHECK(matrix.rank() == 2 && (matrix.size(1) > 0 || matrix.size(0) == 0),
            "{}: wanted (N, C) with C >= 1, got {}", kernel, matrix.shape());
  check_type(kernel, matrix, DType::F32);
  return {matrix.size(0), matrix.size(1)};
}

inline void check_like(const char* kernel, Stream stream, const Tensor& tensor, const Shape& shape,
                       DType dtype = DType::F32) {
  check_kernel_tensor(kernel, stream, tensor, shape);
  check_type(kernel, tensor, dtype);
}

inline void check_row_length(const char* kernel, const Rows& shape) {
  ULP_CHECK(shape.columns <= kWarpSumLimit, "{}: rows of at most {} elements, got {}", kernel,
            kWarpSumLimit, shape.columns);
}

}  // namespace ulp::cuda
