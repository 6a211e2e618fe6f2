#pragma once

// out (M, N) = a (M, K) · b (K, N) with a simulated accumulator (core/accumulate.h), term by term.
//
// A block makes a tile of out, each of its threads quads of neighbouring columns, so that one call of Philox serves a quad. The
// operands pass through two slices of shared memory as in strict_product.cuh, by the same loaders.

#include "core/accumulate.h"
#include "kernels/cuda/quads.cuh"
#include "kernels/cuda/strict_product.cuh"

namespace ulp::cuda {

template <class A, class B>
struct SimulatedProduct {
  A a;
  B b;
  float* out;  // (M, N)
  int64_t m, n, k, tiles_n;
  Accumulator::Kind kind;
  uint32_t draws;
  int64_t chunk;  // terms; k if there are none
  Rounder rounders[4];
  int64_t first_k, matrix, matrices;
};

/// What the loaders see of a block's work.
struct SimulatedCut {
  static constexpr int kBlockThreads = 128, kDepth = 16, kRows = 32, kColumns = 32;
  static constexpr int kQuadColumns = kColumns / kQuad, kRowLanes = kBlockThreads / kQuadColumns,
                       kRowsEach = kRows / kRowLanes;
};

/// The operations of add_term on a thread's quads.
struct QuadTerm {
  static constexpr int kRows = SimulatedCut::kRowsEach;
  using Values = float[kRows][kQuad];
  const Rounder* rounders;
  const RandomSource* random;
  float a[kRows], b[kQuad];
  int64_t index, row_step;  // of the first quad's words, and to that of the next row

  template <class Body>
  __device__ __forceinline__ static void each(const Body& body) {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kQuad; ++j) body(i, j);
  }
  __device__ __forceinline__ bool fp32(uint32_t r) const {
    return rounders[r].how == Rounder::How::Copy;
  }
  __device__ __forceinline__ void fuse(uint32_t r, Values& v, const Values& c,
                                       bool negative) const {
    const bool near = fp32(r);
    each([&](int i, int j) {
      const float addend = negative ? -c[i][j] : c[i][j];
      v[i][j] = near ? fmaf(a[i], b[j], addend) : fma_to_odd(a[i], b[j], addend);
    });
  }
  __device__ __forceinline__ void product(uint32_t r, Values& v) const {
    const bool near = fp32(r);
    each([&](int i, int j) { v[i][j] = near ? a[i] * b[j] : fma_to_odd(a[i], b[j], -0.0f); });
  }
  __device__ __forceinline__ void add(uint32_t r, Values& v, const Values& p, const Values& q,
                                      bool negative) const {
    const bool near = fp32(r);
    each([&](int i, int j) {
      const float addend = negative ? -q[i][j] : q[i][j];
      v[i][j] = near ? p[i][j] + addend : add_to_odd(p[i][j], addend);
    });
  }
  __device__ __forceinline__ void round(uint32_t r, Values& v) const {
    if (!fp32(r)) round_quads(rounders[r], random[r], index, row_step, v);
  }
  __device__ __forceinline__ static void move(Values& to, const Values& from) {
    each([&](int i, int j) { to[i][j] = from[i][j]; });
  }
  __device__ __forceinline__ static void clear(Values& v) {
    each([&](int i, int j) { v[i][j] = 0.0f; });
  }
};

template <class LoadA, class LoadB>
__global__ void __launch_bounds__(SimulatedCut::kBlockThreads) simulated_kernel(
    const __grid_constant__ SimulatedProduct<typename LoadA::Source, typename LoadB::Source> p) {
  using Cut = SimulatedCut;
  constexpr int kDepth = Cut::kDepth;
  constexpr int kAPitch = strict::pitch_of(Cut::kRows), kBPitch = strict::pitch_of(Cut::kColumns);
  constexpr int kSliceA = kDepth * kAPitch, kSlice = kSliceA + kDepth * kBPitch;
  alignas(16) __shared__ float slices[2 * kSlice];
  const int64_t row0 = blockIdx.x / p.tiles_n * Cut::kRows,
                column0 = blockIdx.x % p.tiles_n * Cut::kColumns;
  const int thread = static_cast<int>(threadIdx.x);
  const int own_row = thread / Cut::kQuadColumns, own_column = thread % Cut::kQuadColumns * kQuad;
  const int64_t pitch = (p.n + kQuad - 1) / kQuad * kQuad;
  RandomSource random[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) random[r] = p.rounders[r].random();

  LoadA a_loader(p.a, row0, 0);
  LoadB b_loader(p.b, column0, 0);
  const auto fetch = [&](float* slice, int k_left) {
    a_loader.fetch(slice, k_left);
    b_loader.fetch(slice + kSliceA, k_left);
  };
  SumState<QuadTerm::Values> state;
  QuadTerm::clear(state.s);
  QuadTerm::clear(state.t);
  QuadTerm::clear(state.x);
  QuadTerm::clear(state.y);
  QuadTerm term;
  term.rounders = p.rounders;
  term.random = random;
  term.row_step = Cut::kRowLanes * pitch;
  const int64_t in_matrix = (row0 + own_row) * pitch + column0 + own_column;
  int64_t until_end = p.chunk;  // terms of the chunk

  if (p.k > 0) fetch(slices, p.k < kDepth ? static_cast<int>(p.k) : kDepth);
  for (int64_t k = 0, turn = 0; k < p.k; k += kDepth, turn ^= 1) {
    float* const slice = slices + turn * kSlice;
    a_loader.land(slice);
    b_loader.land(slice + kSliceA);
    __syncthreads();  // the other slice has been read by all
    const int64_t left = p.k - k;
    if (left > kDepth)
      fetch(slices + (turn ^ 1) * kSlice,
            left - kDepth < kDepth ? static_cast<int>(left - kDepth) : kDepth);
    const int depth = left < kDepth ? static_cast<int>(left) : kDepth;
#pragma unroll 1
    for (int d = 0; d < depth; ++d) {
#pragma unroll
      for (int i = 0; i < Cut::kRowsEach; ++i)
        term.a[i] = slice[d * kAPitch + own_row + i * Cut::kRowLanes];
      const float4 b = *reinterpret_cast<const float4*>(slice + kSliceA + d * kBPitch + own_column);
      term.b[0] = b.x, term.b[1] = b.y, term.b[2] = b.z, term.b[3] = b.w;
      term.index = ((p.first_k + k + d) * p.matrices + p.matrix) * p.m * pitch + in_matrix;
      const bool ends = --until_end == 0 || k + d + 1 == p.k;
      if (ends) until_end = p.chunk;
      add_term(p.kind, p.draws, term, ends, state);
    }
  }
#pragma unroll
  for (int i = 0; i < Cut::kRowsEach; ++i) {
    const int64_t row = row0 + own_row + i * Cut::kRowLanes;
    if (row >= p.m) continue;
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      if (column0 + own_column + j < p.n)
        p.out[row * p.n + column0 + own_column + j] = canonical(state.s[i][j]);
  }
}

/// out (m, n) = a · b, m and n > 0.
template <template <class, int> class LoadA, template <class, int> class LoadB, class A, class B>
void run_simulated(const char* kernel, Stream stream, const A& a, const B& b, int64_t m, int64_t k,
                   int64_t n, float* out, const Sums& sums) {
  using Cut = SimulatedCut;
  SimulatedProduct<A, B> p{};
  p.a = a;
  p.b = b;
  p.out = out;
  p.m = m;
  p.n = n;
  p.k = k;
  p.tiles_n = (n + Cut::kColumns - 1) / Cut::kColumns;
  p.kind = sums.how.kind;
  p.draws = sums.how.draws();
  p.chunk = sums.how.kind == Accumulator::Kind::Chunked ? sums.how.chunk : std::max<int64_t>(1, k);
  for (uint32_t r = 0; r < p.draws; ++r) {
    RandomKey key = sums.key;
    key.ordinal += r;
    p.rounders[r] = make_rounder(stream.device, *sums.how.roundings()[r], key);
  }
  p.first_k = sums.first_k;
  p.matrix = sums.matrix;
  p.matrices = sums.matrices;
  launch(kernel, stream, (m + Cut::kRows - 1) / Cut::kRows * p.tiles_n, Cut::kBlockThreads,
         simulated_kernel<LoadA<Cut, Cut::kRows>, LoadB<Cut, Cut::kColumns>>, p);
}

}  // namespace ulp::cuda
