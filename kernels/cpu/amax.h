#pragma once

#include <mutex>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/spans.h"

namespace ulp::cpu {

/// max(amax, the largest magnitude of elements first … last − 1, as bits).
inline uint32_t amax_run(const void* data, DType dtype, uint32_t amax, int64_t first,
                         int64_t last) {
  BlockBuffer buffer;
  for (int64_t begin = first; begin < last; begin += kBlock) {
    const int64_t count = std::min(kBlock, last - begin);
    amax = amax_span(read_block(data, dtype, begin, count, buffer.data()), count, amax);
  }
  return amax;
}

/// The same of all n elements.
inline uint32_t amax_of(const void* data, DType dtype, int64_t n) {
  uint32_t amax = 0;
  std::mutex mutex;
  parallel_for_units(n, kBlock, kGrain, [&](int64_t first, int64_t last) {
    const uint32_t own = amax_run(data, dtype, 0, first, last);
    const std::lock_guard lock(mutex);
    amax = std::max(amax, own);
  });
  return amax;
}

}  // namespace ulp::cpu
