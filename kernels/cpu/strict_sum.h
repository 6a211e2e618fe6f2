#pragma once

#include <type_traits>
#include <vector>

#include "core/sum.h"
#include "kernels/cpu/isa.h"

#if defined(ULP_X86_ISA)
#include <immintrin.h>
#endif

namespace ulp::cpu {

#if defined(ULP_X86_ISA)
/// sum_chunk of contiguous floats, its lanes in registers. A lane starts at +0 and so never is −0: adding +0 beyond the
/// end keeps it.
ULP_TARGET_AVX2 inline float sum_chunk_avx2(const float* x, int64_t n) {
  __m256 lane[8];
  for (auto& l : lane) l = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes)
    for (int v = 0; v < 8; ++v) lane[v] = _mm256_add_ps(lane[v], _mm256_loadu_ps(x + i + v * 8));
  const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int v = 0; v < 8; ++v) {
    const int left = static_cast<int>(n - i) - v * 8;
    if (left <= 0) break;
    const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(left), place);
    lane[v] = _mm256_add_ps(lane[v], _mm256_maskload_ps(x + i + v * 8, there));
  }
  for (int width = 4; width > 0; width /= 2)
    for (int v = 0; v < width; ++v) lane[v] = _mm256_add_ps(lane[v], lane[v + width]);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(lane[0]), _mm256_extractf128_ps(lane[0], 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
#endif

/// Sum of a contiguous array in the order of core/sum.h.
template <class T>
T strict_sum(const T* values, int64_t n) {
  if (n <= kSumChunk) {
#if defined(ULP_X86_ISA)
    if constexpr (std::is_same_v<T, float>)
      if (current_isa() != Isa::Portable) return sum_chunk_avx2(values, n);
#endif
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
