#pragma once

// The order of core/sum.h, spoken by a warp: thread t keeps lanes t and t + 32.

#include "core/sum.h"
#include "kernels/cuda/launch.cuh"

namespace ulp::cuda {

static_assert(kSumLanes == 2 * kWarp);

/// The halving tree over the 64 lanes of a warp; the result is valid in every thread.
template <class T>
__device__ __forceinline__ T warp_sum_lanes(T low, T high) {
  T sum = low + high;  // width 32
#pragma unroll
  for (int width = kWarp / 2; width > 0; width /= 2)
    sum +=
        __shfl_down_sync(kFullWarp, sum, width);  // threads from `width` on hold what nobody reads
  return __shfl_sync(kFullWarp, sum, 0);
}

/// Sum of value(0) … value(n − 1), n ≤ kSumChunk, by a whole warp.
template <class T = float, class Value>
__device__ __forceinline__ T warp_sum_chunk(int64_t n, const Value& value) {
  T low = 0, high = 0;
  int64_t i = threadIdx.x % kWarp;
#pragma unroll 4
  for (; i + kWarp < n; i += kSumLanes) {
    low += value(i);
    high += value(i + kWarp);
  }
  if (i < n) low += value(i);
  return warp_sum_lanes(low, high);
}

/// The longest vector that warp_sum takes: a chunk of chunks.
inline constexpr int64_t kWarpSumLimit = kSumChunk * kSumChunk;

/// Sum of value(0) … value(n − 1), n ≤ kWarpSumLimit, by a whole warp.
template <class T = float, class Value>
__device__ __forceinline__ T warp_sum(int64_t n, const Value& value) {
  T low = 0, high = 0;
  for (int64_t begin = 0, chunk = 0;; begin += kSumChunk, ++chunk) {
    if (begin > 0 && begin >= n) break;
    const T sum = warp_sum_chunk<T>(n - begin < kSumChunk ? n - begin : kSumChunk,
                                    [&](int64_t i) { return value(begin + i); });
    if (n <= kSumChunk) return sum;
    const int64_t lane = chunk % kSumLanes, own = threadIdx.x % kWarp;
    if (lane == own) low += sum;
    if (lane == own + kWarp) high += sum;
  }
  return warp_sum_lanes(low, high);
}

}  // namespace ulp::cuda
