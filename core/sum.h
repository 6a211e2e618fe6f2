#pragma once

#include <cstdint>

#include "core/macros.h"

namespace ulp {

/// The order of every strict sum. A vector of n values is cut into chunks of 4096; in each chunk lane l adds the elements
/// l, l + 64, l + 128 … to +0 in ascending order; the 64 lanes are added by halving: lane l += lane l + width for
/// width = 32, 16 … 1. The chunk sums are a vector again, summed in the same way until one value is left.
inline constexpr int64_t kSumChunk = 4096;
inline constexpr int64_t kSumLanes = 64;

/// Chunks of k in a strict matmul: inside one chunk a single fp32 accumulator from +0, ascending k, one fma a step;
/// the chunk sums are added in ascending order.
inline constexpr int64_t kMatmulChunk = 4096;

/// The halving tree over kSumLanes partial sums.
template <class T>
ULP_HD T sum_lanes(T* lane) {
  for (int64_t width = kSumLanes / 2; width > 0; width /= 2)
    for (int64_t l = 0; l < width; ++l) lane[l] += lane[l + width];
  return lane[0];
}

/// Sum of at most kSumChunk values; `value(i)` reads element i.
template <class T, class Value>
ULP_HD T sum_chunk(int64_t n, Value value) {
  T lane[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes)
    for (int64_t l = 0; l < kSumLanes; ++l) lane[l] += value(i + l);
  for (int64_t l = 0; i + l < n; ++l) lane[l] += value(i + l);
  return sum_lanes(lane);
}

}  // namespace ulp
