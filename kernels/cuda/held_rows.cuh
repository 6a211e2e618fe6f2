#pragma once

// Rows that a warp holds, a multiple of four elements long. Lane t keeps elements 4t … 4t + 3 of every 128, so that a row is read
// and written in quads and each draw of Philox serves one; the 64 lanes of core/sum.h are the quads of 16 threads.

#include "kernels/cuda/interior.cuh"
#include "kernels/cuda/quads.cuh"
#include "kernels/cuda/sum.cuh"

namespace ulp::cuda {

inline constexpr int kRowStep = kWarp * kQuad;  // elements that a warp takes at once

/// body(q, at): quad q of this lane begins with element `at` of the row.
template <int kQuads, class Body>
__device__ __forceinline__ void for_row_quads(int keys, const Body& body) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int q = 0; q < kQuads; ++q)
    if (q * kRowStep < keys) body(q, q * kRowStep + lane * kQuad);
}

/// The sum of a row's first n elements in the order of core/sum.h; those from n on must be +0. At most one chunk.
template <int kQuads>
__device__ __forceinline__ float row_sum(int n, const float (&x)[kQuads][kQuad]) {
  float sum[kQuad] = {};  // of threads 0 … 15: lanes 4t … 4t + 3
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    if (q * kRowStep >= n) break;
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      sum[k] += x[q][k];
      sum[k] += __shfl_down_sync(kFullWarp, x[q][k], 16);
    }
  }
#pragma unroll
  for (int step = 8; step > 0; step /= 2)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) sum[k] += __shfl_down_sync(kFullWarp, sum[k], step);
  return __shfl_sync(kFullWarp, (sum[0] + sum[2]) + (sum[1] + sum[3]), 0);
}

/// The quads of this lane that begin before element n of the row at `begin`; 0 instead of the others.
template <int kQuads>
__device__ __forceinline__ void load_row(const Source& in, int64_t begin, int n,
                                         float (&x)[kQuads][kQuad]) {
#pragma unroll
  for (int q = 0; q < kQuads; ++q)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[q][k] = 0.0f;
  for_type(in.dtype, [&]<DType kType>() {
    const auto* words = reinterpret_cast<const QuadWords<size_of(kType)>*>(in.data) + begin / kQuad;
    for_row_quads<kQuads>(n, [&](int q, int at) {
      if (at < n) decode_quad<kType>(words[at / kQuad], x[q]);
    });
  });
}

/// All quads of a row. x: canonical.
template <int kQuads>
__device__ __forceinline__ void store_row(const Sink& out, int64_t begin, int keys,
                                          const float (&x)[kQuads][kQuad]) {
  if (!out.aligned) {
    for_row_quads<kQuads>(keys, [&](int q, int at) {
      if (at < keys) store_quad(out, begin + at, keys - at < kQuad ? keys - at : kQuad, x[q]);
    });
    return;
  }
  for_type(out.dtype, [&]<DType kType>() {
    auto* words = reinterpret_cast<QuadWords<size_of(kType)>*>(out.data) + begin / kQuad;
    for_row_quads<kQuads>(keys, [&](int q, int at) {
      if (at < keys) words[at / kQuad] = encode_quad<kType>(x[q]);
    });
  });
}

/// Rounds the steps of a row that hold one of its first n elements.
template <int kQuads>
__device__ __forceinline__ void round_row(const Rounder& rounder, const RandomSource& random,
                                          int64_t begin, int n, float (&x)[kQuads][kQuad]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  round_quads(rounder, random, begin + lane * kQuad, kRowStep, x, (n + kRowStep - 1) / kRowStep);
}

/// Of four elements from number i on the first `count` are noted, the others up to `all` are gaps. Out of line: it is rarely
/// asked for.
__device__ __noinline__ inline void note_quad(const InteriorRounder& rounder, int64_t i, int count,
                                              int all, float4 x) {
  const float values[kQuad] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    if (k < count)
      rounder.note(i + k, values[k]);
    else if (k < all)
      rounder.note_gap(i + k);
  }
}

/// Notes what is to be rounded of a row, its first n elements; the others are gaps.
template <int kQuads>
__device__ __forceinline__ void note_row(const InteriorRounder& rounder, int64_t begin, int n,
                                         int keys, const float (&x)[kQuads][kQuad]) {
  if (rounder.met == nullptr) return;
  for_row_quads<kQuads>(keys, [&](int q, int at) {
    note_quad(rounder, begin + at, n - at, keys - at,
              make_float4(x[q][0], x[q][1], x[q][2], x[q][3]));
  });
}

}  // namespace ulp::cuda
