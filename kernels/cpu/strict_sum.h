#pragma once

#include <vector>

#include "core/sum.h"
#include "kernels/cpu/isa.h"

namespace ulp::cpu {

/// Sum of a contiguous array in the order of core/sum.h.
template <class T>
T strict_sum(const T* values, int64_t n) {
  if (n <= kSumChunk) {
    T result = 0;
    T* out = &result;
    with_isa([=]() ULP_INLINE {
      *out = sum_chunk<T>(n, [=](int64_t i) ULP_INLINE { return values[i]; });
    });
    return result;
  }
  std::vector<T> chunks;
  for (int64_t begin = 0; begin < n; begin += kSumChunk)
    chunks.push_back(strict_sum(values + begin, std::min(kSumChunk, n - begin)));
  return strict_sum(chunks.data(), static_cast<int64_t>(chunks.size()));
}

}  // namespace ulp::cpu
