#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace ulp::cpu {

/// Stores past the caches: a result too long to be found there again need not be read before it is written.
#if defined(__SSE2__)
inline bool worth_streaming(int64_t bytes) { return bytes >= int64_t{16} << 20; }

inline void stream_store(float* to, const float* values, int64_t n) {
  int64_t i = 0;
  for (; i < n && reinterpret_cast<uintptr_t>(to + i) % 16 != 0; ++i) to[i] = values[i];
  for (; i + 4 <= n; i += 4)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i)));
  for (; i < n; ++i) to[i] = values[i];
}

/// Before another thread may read what was streamed.
inline void stream_fence() { _mm_sfence(); }
#else
inline bool worth_streaming(int64_t) { return false; }
inline void stream_store(float* to, const float* values, int64_t n) {
  std::memcpy(to, values, static_cast<size_t>(n) * sizeof(float));
}
inline void stream_fence() {}
#endif

}  // namespace ulp::cpu
