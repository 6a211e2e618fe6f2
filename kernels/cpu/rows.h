#pragma once

// Kernels of rows (N, C).

#include <array>

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

/// The draws 0 … 3 of a softmax: difference, exp, sum, and the logarithm of log-softmax.
struct Interior {
  std::array<BlockQuantiser, 4> at;
  explicit Interior(const Quantizer& q, const RandomKey& key)
      : at{BlockQuantiser(q, shift(key, 0)), BlockQuantiser(q, shift(key, 1)),
           BlockQuantiser(q, shift(key, 2)), BlockQuantiser(q, shift(key, 3))} {}
  static RandomKey shift(RandomKey key, uint32_t by) {
    key.ordinal += by;
    return key;
  }
  void apply(size_t which, float* values, int64_t n, int64_t index) const {
    for (int64_t i = 0; i < n; i += kBlock)
      at[which].apply(values + i, std::min(kBlock, n - i), index + i);
  }
  void apply(size_t, double*, int64_t, int64_t) const {}
};

/// The first largest of n ≥ 1 values; NaN if one of them is.
template <class T>
T largest_of(const T* x, int64_t n) {
  T most = x[0];
  for (int64_t j = 0; j < n; ++j) most = !(x[j] <= most) ? x[j] : most;  // a NaN stays
  for (int64_t j = 0; j < n; ++j) most = x[j] == x[j] ? most : x[j];
  return most;
}

}  // namespace ulp::cpu
