#pragma once

// out (M, N) = a (M, K) · b (K, N) with a simulated accumulator (core/accumulate.h), term by term.
//
// A block makes a tile of out, each of its threads quads of neighbouring columns, so that one call of Philox serves a quad. The
// operands pass through two slices of shared memory as in strict_product.cuh, by the same loaders. Sums of chunks do not depend on
// one another: where the tiles alone would not fill the GPU, blocks make those of a few chunks, and another kernel adds them.

#include "core/accumulate.h"
#include "kernels/cuda/quads.cuh"
#include "kernels/cuda/strict_product.cuh"

namespace ulp::cuda {

/// The sums of a product, its operands apart.
struct SimulatedSums {
  float* out;  // (M, N), or (chunks, M, N)
  int64_t m, n, k, tiles, tiles_n;
  Accumulator::Kind kind;
  uint32_t draws;
  int64_t chunk;        // terms; k if there are none
  int64_t chunks_each;  // of a block; 0: all, and their sum
  Rounder rounders[4];
  int64_t first_k, matrix, matrices;
};

template <class A, class B>
struct SimulatedProduct : SimulatedSums {
  A a;
  B b;
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
  int rows;                 // how many rows of quads there are, the same for a block

  template <class Body>
  __device__ __forceinline__ void each(const Body& body) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i >= rows) break;
#pragma unroll
      for (int j = 0; j < kQuad; ++j) body(i, j);
    }
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
    if (!fp32(r)) round_quads(rounders[r], random[r], index, row_step, v, rows);
  }
  __device__ __forceinline__ void move(Values& to, const Values& from) const {
    each([&](int i, int j) { to[i][j] = from[i][j]; });
  }
  __device__ __forceinline__ static void clear(Values& v) {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kQuad; ++j) v[i][j] = 0.0f;
  }
};

/// Where a thread's quads lie in a tile of out.
struct QuadPlace {
  int64_t row0, column0;  // of the tile
  int row, column;        // in it
  int rows, columns;      // that the tile has
  int64_t pitch, row_step,
      first;  // of words: from row to row, from quad to quad, and the first in a matrix

  __device__ QuadPlace(const SimulatedSums& p, int64_t tile)
      : row0(tile / p.tiles_n * SimulatedCut::kRows),
        column0(tile % p.tiles_n * SimulatedCut::kColumns),
        row(static_cast<int>(threadIdx.x) / SimulatedCut::kQuadColumns),
        column(static_cast<int>(threadIdx.x) % SimulatedCut::kQuadColumns * kQuad),
        rows(static_cast<int>(p.m - row0 < SimulatedCut::kRows ? p.m - row0 : SimulatedCut::kRows)),
        columns(static_cast<int>(p.n - column0 < SimulatedCut::kColumns ? p.n - column0
                                                                        : SimulatedCut::kColumns)),
        pitch((p.n + kQuad - 1) / kQuad * kQuad),
        row_step(SimulatedCut::kRowLanes * pitch),
        first((row0 + row) * pitch + column0 + column) {}

  __device__ __forceinline__ QuadTerm term(const SimulatedSums& p,
                                           const RandomSource (&random)[4]) const {
    QuadTerm term{};
    term.rounders = p.rounders;
    term.random = random;
    term.row_step = row_step;
    term.rows = (rows + SimulatedCut::kRowLanes - 1) / SimulatedCut::kRowLanes;
    return term;
  }
  /// Of the term k.
  __device__ __forceinline__ int64_t index(const SimulatedSums& p, int64_t k) const {
    return ((p.first_k + k) * p.matrices + p.matrix) * p.m * pitch + first;
  }
  /// Calls body(i, j, element) for this thread's elements of a matrix.
  template <class Body>
  __device__ __forceinline__ void each(const SimulatedSums& p, const Body& body) const {
#pragma unroll
    for (int i = 0; i < SimulatedCut::kRowsEach; ++i) {
      const int own = row + i * SimulatedCut::kRowLanes;
      if (own >= rows) continue;
#pragma unroll
      for (int j = 0; j < kQuad; ++j)
        if (column + j < columns) body(i, j, (row0 + own) * p.n + column0 + column + j);
    }
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
  const QuadPlace place(p, blockIdx.x % p.tiles);
  const bool apart = p.chunks_each != 0;  // sums of chunks are stored
  const int64_t first_chunk = blockIdx.x / p.tiles * p.chunks_each, begin = first_chunk * p.chunk;
  const int64_t all = p.k - begin,
                terms = apart && p.chunks_each * p.chunk < all ? p.chunks_each * p.chunk : all;
  RandomSource random[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) random[r] = p.rounders[r].random();

  LoadA a_loader(p.a, place.row0, begin);
  LoadB b_loader(p.b, place.column0, begin);
  const auto fetch = [&](float* slice, int k_left) {
    a_loader.fetch(slice, k_left);
    b_loader.fetch(slice + kSliceA, k_left);
  };
  SumState<QuadTerm::Values> state;
  QuadTerm::clear(state.s);
  QuadTerm::clear(state.t);
  QuadTerm::clear(state.x);
  QuadTerm::clear(state.y);
  QuadTerm::clear(state.v);
  QuadTerm term = place.term(p, random);
  int64_t until_end = p.chunk;  // terms of the chunk
  float* sums = p.out + first_chunk * p.m * p.n;

  if (terms > 0) fetch(slices, terms < kDepth ? static_cast<int>(terms) : kDepth);
  for (int64_t k = 0, turn = 0; k < terms; k += kDepth, turn ^= 1) {
    float* const slice = slices + turn * kSlice;
    a_loader.land(slice);
    b_loader.land(slice + kSliceA);
    __syncthreads();  // the other slice has been read by all
    const int64_t left = terms - k;
    if (left > kDepth)
      fetch(slices + (turn ^ 1) * kSlice,
            left - kDepth < kDepth ? static_cast<int>(left - kDepth) : kDepth);
    const int depth = left < kDepth ? static_cast<int>(left) : kDepth;
#pragma unroll 1
    for (int d = 0; d < depth; ++d) {
      // Zeros where there are no rows or columns: what lies there is no number.
#pragma unroll
      for (int i = 0; i < Cut::kRowsEach; ++i) {
        const int row = place.row + i * Cut::kRowLanes;
        term.a[i] = row < place.rows ? slice[d * kAPitch + row] : 0.0f;
      }
      const float4 b =
          *reinterpret_cast<const float4*>(slice + kSliceA + d * kBPitch + place.column);
      term.b[0] = place.column < place.columns ? b.x : 0.0f;
      term.b[1] = place.column + 1 < place.columns ? b.y : 0.0f;
      term.b[2] = place.column + 2 < place.columns ? b.z : 0.0f;
      term.b[3] = place.column + 3 < place.columns ? b.w : 0.0f;
      term.index = place.index(p, begin + k + d);
      const bool ends = --until_end == 0 || k + d + 1 == terms;
      if (ends) until_end = p.chunk;
      add_term(p.kind, apart ? 1 : p.draws, term, ends, state);
      if (!apart || !ends) continue;
      place.each(p, [&](int i, int j, int64_t at) { sums[at] = state.t[i][j]; });
      QuadTerm::clear(state.t);
      sums += p.m * p.n;
    }
  }
  if (!apart) place.each(p, [&](int i, int j, int64_t at) { sums[at] = canonical(state.s[i][j]); });
}

/// out = the sums of the chunks' sums (chunks, M, N).
static __global__ void __launch_bounds__(SimulatedCut::kBlockThreads)
    add_chunks_kernel(const __grid_constant__ SimulatedSums p, const float* chunks, int64_t count) {
  const QuadPlace place(p, blockIdx.x);
  RandomSource random[4];
  random[1] = p.rounders[1].random();
  QuadTerm term = place.term(p, random);
  QuadTerm::Values s, t, v;
  QuadTerm::clear(s);
  QuadTerm::clear(t);
  QuadTerm::clear(v);
  for (int64_t c = 0; c < count; ++c, chunks += p.m * p.n) {
    place.each(p, [&](int i, int j, int64_t at) { t[i][j] = chunks[at]; });
    const int64_t end = (c + 1) * p.chunk;
    term.index = place.index(p, (end < p.k ? end : p.k) - 1);
    term.add(1, v, t, s, false);
    term.round(1, v);
    term.move(s, v);
  }
  place.each(p, [&](int i, int j, int64_t at) { p.out[at] = canonical(s[i][j]); });
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
  p.tiles = (m + Cut::kRows - 1) / Cut::kRows * p.tiles_n;
  const auto run = [&](int64_t blocks) {
    launch(kernel, stream, blocks, Cut::kBlockThreads,
           simulated_kernel<LoadA<Cut, Cut::kRows>, LoadB<Cut, Cut::kColumns>>, p);
  };
  constexpr int64_t kBlocksEach = 8, kMostBytes = int64_t{256} << 20;
  const int64_t chunks = (k + p.chunk - 1) / p.chunk,
                wanted = kBlocksEach * strict::multiprocessors(stream.device) / p.tiles,
                bytes = chunks * m * n * static_cast<int64_t>(sizeof(float));
  const bool aligned = p.chunk % 4 == 0;  // loaders read four terms at once
  if (chunks < 2 || wanted < 2 || bytes > kMostBytes || !aligned) return run(p.tiles);
  const Tensor sums_of_chunks = Tensor::empty({chunks, m, n}, DType::F32, stream.device);
  p.out = static_cast<float*>(written(sums_of_chunks));
  p.chunks_each = (chunks + wanted - 1) / wanted;
  run(p.tiles * ((chunks + p.chunks_each - 1) / p.chunks_each));
  const auto* const parts = p.out;
  p.out = out;
  launch(kernel, stream, p.tiles, Cut::kBlockThreads, add_chunks_kernel,
         static_cast<const SimulatedSums&>(p), parts, chunks);
}

}  // namespace ulp::cuda
