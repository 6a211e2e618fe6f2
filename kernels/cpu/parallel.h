#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>

namespace ulp::cpu {

/// Calls body(begin, end) for consecutive pieces of [0, n), at least `grain` long (except the last), on OpenMP's threads.
/// The pieces depend on the number of threads: body must give the same bits for any cut. All threads take part, some with
/// nothing to do: libgomp ends those that a smaller team leaves out, and starts others for the next larger one.
template <class Body>
void parallel_for(int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  const int64_t pieces = std::min<int64_t>(omp_get_max_threads(), (n + grain - 1) / grain);
  if (pieces <= 1 || omp_in_parallel()) {
    body(int64_t{0}, n);
    return;
  }
  std::exception_ptr error;
#pragma omp parallel
  {
    const int64_t piece = omp_get_thread_num();
    const int64_t count = std::min<int64_t>(omp_get_num_threads(), pieces);
    const int64_t begin = n * piece / count, end = n * (piece + 1) / count;
    try {
      if (piece < count && begin < end) body(begin, end);
    } catch (...) {
#pragma omp critical(ulp_parallel_for)
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

/// The same with cuts at multiples of `unit`.
template <class Body>
void parallel_for_units(int64_t n, int64_t unit, int64_t grain, const Body& body) {
  const int64_t units = (n + unit - 1) / unit;
  parallel_for(units, std::max<int64_t>(1, grain / unit),
               [&](int64_t begin, int64_t end) { body(begin * unit, std::min(n, end * unit)); });
}

}  // namespace ulp::cpu
