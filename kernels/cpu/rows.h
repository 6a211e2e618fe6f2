#pragma once

// Kernels of rows (N, C).

#include "kernels/cpu/interior.h"
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
  T most = x[0];
  for (int64_t j = 0; j < n; ++j) most = !(x[j] <= most) ? x[j] : most;  // a NaN stays
  for (int64_t j = 0; j < n; ++j) most = x[j] == x[j] ? most : x[j];
  return most;
}

}  // namespace ulp::cpu
