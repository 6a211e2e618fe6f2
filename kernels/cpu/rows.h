#pragma once

// Kernels of rows (N, C).

#include "kernels/cpu/interior.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/spans.h"

namespace ulp::cpu {

/// Runs body(row) for every row of (N, C), in parallel.
template <class Body>
void for_rows(int64_t rows, int64_t columns, const Body& body) {
  parallel_for(rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, 8 * columns)),
               [&](int64_t first, int64_t last) {
                 for (int64_t n = first; n < last; ++n) body(n);
               });
}

/// The first largest of n ≥ 1 values; NaN if one of them is.
template <class T>
T largest_of(const T* x, int64_t n) {
  constexpr int64_t kLanes = 16;
  if (n >= kLanes) {
    // Lanes decide unless a NaN is there or the sign of a zero.
    T most = 0;
    bool same = true;
    T* const to = &most;
    bool* const numbers = &same;
    with_isa([=]() ULP_INLINE {
      T lane[kLanes];
      int32_t nan[kLanes] = {};
      for (int64_t l = 0; l < kLanes; ++l) lane[l] = x[l];
      for (int64_t j = 0;;) {
        for (int64_t l = 0; l < kLanes; ++l) {
          const T v = x[j + l];
          lane[l] = v > lane[l] ? v : lane[l];
          nan[l] |= v == v ? 0 : 1;
        }
        if (j + kLanes == n) break;
        j = j + 2 * kLanes <= n ? j + kLanes : n - kLanes;
      }
      int32_t any = 0;
      for (int64_t width = kLanes / 2; width > 0; width /= 2)
        for (int64_t l = 0; l < width; ++l)
          lane[l] = lane[l + width] > lane[l] ? lane[l + width] : lane[l];
      for (int64_t l = 0; l < kLanes; ++l) any |= nan[l];
      *to = lane[0];
      *numbers = any == 0;
    });
    if (same && most != T(0)) return most;
  }
  T most = x[0];
  for (int64_t j = 0; j < n; ++j) most = !(x[j] <= most) ? x[j] : most;  // a NaN stays
  for (int64_t j = 0; j < n; ++j) most = x[j] == x[j] ? most : x[j];
  return most;
}

}  // namespace ulp::cpu
