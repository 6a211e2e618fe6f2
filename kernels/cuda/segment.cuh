#pragma once

// 1024 consecutive elements a warp, 32 of them in each thread's registers: eight rows of 128, in each of which a thread has
// four neighbours, so that every access of a warp is one piece and one call of Philox serves one of its quads.

#include "kernels/cuda/pack.cuh"

namespace ulp::cuda {

inline constexpr int kQuad = 4, kRows = 8;
inline constexpr int64_t kRow = kWarp * kQuad, kSegment = kRows * kRow;
using Segment = float[kRows][kQuad];

/// The first element of this thread's quad in row j of the segment that begins at `begin`.
__device__ __forceinline__ int64_t quad_at(int64_t begin, int j) {
  return begin + j * kRow + threadIdx.x % kWarp * kQuad;
}

/// How many of the quad's elements there are.
__device__ __forceinline__ int quad_count(int64_t i, int64_t n) {
  return i >= n ? 0 : n - i < kQuad ? static_cast<int>(n - i) : kQuad;
}

/// Calls body(begin) for the segments of [0, n) that are this warp's.
template <class Body>
__device__ __forceinline__ void for_segments(int64_t n, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp) * kSegment;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  for (int64_t begin = warp * kSegment; begin < n; begin += step) body(begin);
}

inline int64_t segment_blocks(int64_t n) { return blocks_for(n, kThreads / kWarp * kSegment); }

/// Calls body.operator()<type>() for a float type: one branch for all that the body unrolls.
template <class Body>
__device__ __forceinline__ void for_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::BF16: return body.template operator()<DType::BF16>();
    case DType::F16: return body.template operator()<DType::F16>();
    case DType::F8E4M3: return body.template operator()<DType::F8E4M3>();
    case DType::F8E5M2: return body.template operator()<DType::F8E5M2>();
    default: return body.template operator()<DType::F32>();
  }
}

/// Four neighbours of a type, as they lie in memory.
template <int kBytes>
struct QuadWords;
template <>
struct QuadWords<4> {
  uint4 words;
  __device__ uint32_t operator[](int k) const {
    return k == 0 ? words.x : k == 1 ? words.y : k == 2 ? words.z : words.w;
  }
  __device__ static QuadWords of(const uint32_t (&w)[kQuad]) {
    return {make_uint4(w[0], w[1], w[2], w[3])};
  }
};
template <>
struct QuadWords<2> {
  uint2 words;
  __device__ uint32_t operator[](int k) const {
    return (k < 2 ? words.x : words.y) >> (16 * (k % 2)) & 0xFFFFu;
  }
  __device__ static QuadWords of(const uint32_t (&w)[kQuad]) {
    return {make_uint2(w[0] | w[1] << 16, w[2] | w[3] << 16)};
  }
};
template <>
struct QuadWords<1> {
  uint32_t words;
  __device__ uint32_t operator[](int k) const { return words >> (8 * k) & 0xFFu; }
  __device__ static QuadWords of(const uint32_t (&w)[kQuad]) {
    return {w[0] | w[1] << 8 | w[2] << 16 | w[3] << 24};
  }
};

/// Four neighbours of an aligned array; i is a multiple of four.
__device__ __forceinline__ void load_quad(const Source& s, int64_t i, float (&x)[kQuad]) {
  for_type(s.dtype, [&]<DType kType>() {
    using Words = QuadWords<size_of(kType)>;
    const Words words = reinterpret_cast<const Words*>(s.data)[i / kQuad];
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[k] = decode(words[k], kType);
  });
}
__device__ __forceinline__ void store_quad(const Sink& s, int64_t i, const float (&y)[kQuad]) {
  for_type(s.dtype, [&]<DType kType>() {
    using Words = QuadWords<size_of(kType)>;
    uint32_t words[kQuad];
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      words[k] = kType == DType::F32 ? bits_of(y[k]) : encode(y[k], kType);
    reinterpret_cast<Words*>(s.data)[i / kQuad] = Words::of(words);
  });
}

/// A segment that ends early or lies askew, element by element: out of line, in memory.
__device__ __noinline__ inline void load_slowly(const Source& s, int64_t begin, int64_t n,
                                                float* x) {
  for (int e = 0; e < kRows * kQuad; ++e) {
    const int64_t i = quad_at(begin, e / kQuad) + e % kQuad;
    x[e] = i < n ? load_as_float(s.data, s.dtype, i) : 0.0f;
  }
}
__device__ __noinline__ inline void store_slowly(const Sink& s, int64_t begin, int64_t n,
                                                 const float* y) {
  for (int e = 0; e < kRows * kQuad; ++e) {
    const int64_t i = quad_at(begin, e / kQuad) + e % kQuad;
    if (i < n) store_float(s.data, s.dtype, i, y[e]);
  }
}

/// 0 beyond n.
__device__ __forceinline__ void load_segment(const Source& s, int64_t begin, int64_t n,
                                             Segment& x) {
  if (!s.aligned || begin + kSegment > n) {
    float values[kRows * kQuad];
    load_slowly(s, begin, n, values);
#pragma unroll
    for (int e = 0; e < kRows * kQuad; ++e) x[e / kQuad][e % kQuad] = values[e];
    return;
  }
  for_type(s.dtype, [&]<DType kType>() {
    constexpr int kBytes = size_of(kType);
    using Words = QuadWords<kBytes>;
    const char* at = static_cast<const char*>(s.data) + quad_at(begin, 0) * kBytes;
    Words words[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j)
      words[j] = *reinterpret_cast<const Words*>(at + j * kRow * kBytes);
#pragma unroll
    for (int j = 0; j < kRows; ++j)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) x[j][k] = decode(words[j][k], kType);
  });
}

/// y: canonical.
__device__ __forceinline__ void store_segment(const Sink& s, int64_t begin, int64_t n,
                                              const Segment& y) {
  if (!s.aligned || begin + kSegment > n) {
    float values[kRows * kQuad];
#pragma unroll
    for (int e = 0; e < kRows * kQuad; ++e) values[e] = y[e / kQuad][e % kQuad];
    store_slowly(s, begin, n, values);
    return;
  }
  for_type(s.dtype, [&]<DType kType>() {
    constexpr int kBytes = size_of(kType);
    using Words = QuadWords<kBytes>;
    char* at = static_cast<char*>(s.data) + quad_at(begin, 0) * kBytes;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      uint32_t words[kQuad];
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        words[k] = kType == DType::F32 ? bits_of(y[j][k]) : encode(y[j][k], kType);
      *reinterpret_cast<Words*>(at + j * kRow * kBytes) = Words::of(words);
    }
  });
}

}  // namespace ulp::cuda
