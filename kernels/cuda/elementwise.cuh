#pragma once

// The CUDA side of element-wise kernels, made from a functor (kernels/functors.h and its like). ULP_DEFINE_ELEMENTWISE defines
// the kernel of one row of a list.

#include <type_traits>

#include "kernels/cuda/quads.cuh"
#include "kernels/kernels.h"

namespace ulp::cuda::elementwise {

using kernels::Reach;
constexpr int kMostInputs = 3;

/// A block works on tiles of 4096 neighbours: four quads a thread, 1024 elements apart, so that four accesses wait for memory at
/// once and everything that is the same for all elements is decided once in sixteen.
constexpr int kTileQuads = 4;
constexpr int64_t kTileStep = int64_t{kThreads} * kQuad, kTile = kTileQuads * kTileStep;
using Tile = float[kTileQuads][kQuad];

struct Work {
  Source in[kMostInputs];
  Reach reach[kMostInputs];
  int64_t columns;  // of rows
  int64_t tile_step,
      column_step;  // from one tile of a block to its next, from quad to quad: modulo columns
  Sink out;
  Rounder rounder;
  float alpha, beta;
  int64_t n;
};

/// f of its inputs and one scalar or two.
template <class Functor, class... Inputs>
__device__ __forceinline__ float call_with(const Work& w, Inputs... x) {
  if constexpr (std::is_invocable_v<Functor, Inputs..., float, float>)
    return Functor{}(x..., w.alpha, w.beta);
  else
    return Functor{}(x..., w.alpha);
}

template <class Functor, int kInputs>
__device__ __forceinline__ float call(const Work& w, float a, float b, float c) {
  if constexpr (kInputs == 1)
    return call_with<Functor>(w, a);
  else if constexpr (kInputs == 2)
    return call_with<Functor>(w, a, b);
  else
    return call_with<Functor>(w, a, b, c);
}

__device__ __forceinline__ int64_t wrapped(int64_t at, int64_t columns) {
  return at >= columns ? at - columns : at;
}

/// This thread's quads from element i on, where all are inside and lie well: they begin at multiples of four.
__device__ __forceinline__ void load_tile(const Source& in, int64_t i, Tile& x) {
  for_type(in.dtype, [&]<DType kType>() {
    using Words = QuadWords<size_of(kType)>;
    const Words* at = reinterpret_cast<const Words*>(in.data) + i / kQuad;
    Words words[kTileQuads];
#pragma unroll
    for (int q = 0; q < kTileQuads; ++q) words[q] = at[q * kThreads];
#pragma unroll
    for (int q = 0; q < kTileQuads; ++q)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) x[q][k] = decode(words[q][k], kType);
  });
}

/// Out of line, in memory: single values, rows that quads do not fit, other types, ends. x[e] of 4·kTileQuads.
__device__ __noinline__ inline void load_tile_slowly(const Source& in, Reach reach, int64_t columns,
                                                     int64_t i, int64_t n, float* x) {
  for (int e = 0; e < kTileQuads * kQuad; ++e) {
    const int64_t at = i + e / kQuad * kTileStep + e % kQuad;
    if (at < n)
      x[e] = load_as_float(in.data, in.dtype,
                           reach == Reach::One   ? 0
                           : reach == Reach::Row ? at % columns
                                                 : at);
  }
}

/// column: where element i lies in a row.
__device__ __forceinline__ void load_input(const Work& w, int input, int64_t i, int64_t column,
                                           bool whole, Tile& x) {
  const Source& in = w.in[input];
  const Reach reach = w.reach[input];
  const bool plain = in.aligned && is_float_up_to_32(in.dtype);
  if (reach == Reach::All && plain && whole) return load_tile(in, i, x);
  if (reach == Reach::All && in.aligned && in.dtype == DType::U8 && whole) {  // masks
#pragma unroll
    for (int q = 0; q < kTileQuads; ++q) load_quad(in, i + q * kTileStep, kQuad, x[q]);
    return;
  }
  if (reach == Reach::Row && plain && whole && w.columns % kQuad == 0) {
#pragma unroll
    for (int q = 0; q < kTileQuads; ++q) {
      load_quad(in, column, x[q]);
      column = wrapped(column + w.column_step, w.columns);
    }
    return;
  }
  float values[kTileQuads * kQuad] = {};
  load_tile_slowly(in, reach, w.columns, i, w.n, values);
#pragma unroll
  for (int e = 0; e < kTileQuads * kQuad; ++e) x[e / kQuad][e % kQuad] = values[e];
}

/// Rounding by the definition, for what the short forms do not serve. x[e] of 4·kTileQuads.
__device__ __noinline__ inline void round_tile_slowly(const Rounder& rounder,
                                                      const RandomSource& random, int64_t i,
                                                      float* x) {
  const bool stochastic = rounder.grid.rounding == Rounding::Stochastic;
  for (int e = 0; e < kTileQuads * kQuad; ++e) {
    const int64_t at = i + e / kQuad * kTileStep + e % kQuad;
    const uint32_t word = stochastic ? random.word(static_cast<uint64_t>(at)) : 0u;
    x[e] = quantise_value(x[e], rounder.grid, rounder.grid.rounding, word);
  }
}

__device__ __forceinline__ void round_tile(const Rounder& rounder, const RandomSource& random,
                                           int64_t i, Tile& x) {
  using How = Rounder::How;
  const auto fast = [&]<How kHow>() {
#pragma unroll
    for (int q = 0; q < kTileQuads; ++q) {
      PhiloxWords words{};
      if constexpr (Rounder::draws(kHow))
        words = random.words(static_cast<uint64_t>(i + q * kTileStep) / kQuad);
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        x[q][k] =
            round_fast<kHow, fast::Specials::Absent>(x[q][k], rounder, 0, words.word[k]).value;
    }
  };
  if (rounder.how == How::Copy) {
#pragma unroll
    for (int q = 0; q < kTileQuads; ++q)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) x[q][k] = canonical(x[q][k]);
    return;
  }
  float zero = 0;
#pragma unroll
  for (int q = 0; q < kTileQuads; ++q) zero = zero_of(x[q], zero);
  if (rounder.stays_a_number && zero == 0) {
    switch (rounder.how) {
      case How::Nearest: return fast.template operator()<How::Nearest>();
      case How::Stochastic: return fast.template operator()<How::Stochastic>();
      case How::StochasticBounded: return fast.template operator()<How::StochasticBounded>();
      case How::NearestCut: return fast.template operator()<How::NearestCut>();
      case How::StochasticCut: return fast.template operator()<How::StochasticCut>();
      default: break;
    }
  }
  float values[kTileQuads * kQuad];
#pragma unroll
  for (int e = 0; e < kTileQuads * kQuad; ++e) values[e] = x[e / kQuad][e % kQuad];
  round_tile_slowly(rounder, random, i, values);
#pragma unroll
  for (int e = 0; e < kTileQuads * kQuad; ++e) x[e / kQuad][e % kQuad] = values[e];
}

__device__ __noinline__ inline void store_tile_slowly(const Sink& out, int64_t i, int64_t n,
                                                      const float* y) {
  for (int e = 0; e < kTileQuads * kQuad; ++e) {
    const int64_t at = i + e / kQuad * kTileStep + e % kQuad;
    if (at < n) store_float(out.data, out.dtype, at, y[e]);
  }
}

__device__ __forceinline__ void store_tile(const Sink& out, int64_t i, int64_t n, bool whole,
                                           const Tile& y) {
  if (out.aligned && whole) {
    for_type(out.dtype, [&]<DType kType>() {
      auto* at = reinterpret_cast<QuadWords<size_of(kType)>*>(out.data) + i / kQuad;
#pragma unroll
      for (int q = 0; q < kTileQuads; ++q) at[q * kThreads] = encode_quad<kType>(y[q]);
    });
    return;
  }
  float values[kTileQuads * kQuad];
#pragma unroll
  for (int e = 0; e < kTileQuads * kQuad; ++e) values[e] = y[e / kQuad][e % kQuad];
  store_tile_slowly(out, i, n, values);
}

template <class Functor, int kInputs>
__global__ void __launch_bounds__(kThreads, kInputs == 1 ? 4 : 3)
    elementwise_kernel(const __grid_constant__ Work w) {
  const RandomSource random = w.rounder.random();
  const int64_t first = blockIdx.x * kTile + threadIdx.x * kQuad;
  int64_t column = w.columns == 0 ? 0 : first % w.columns;
  for (int64_t begin = blockIdx.x * kTile; begin < w.n; begin += gridDim.x * kTile) {
    const int64_t i = begin + threadIdx.x * kQuad;
    const bool whole = begin + kTile <= w.n;
    Tile x[kMostInputs] = {};
#pragma unroll
    for (int k = 0; k < kInputs; ++k) load_input(w, k, i, column, whole, x[k]);
    if (w.columns != 0) column = wrapped(column + w.tile_step, w.columns);
#pragma unroll
    for (int q = 0; q < kTileQuads; ++q)
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        x[0][q][k] = call<Functor, kInputs>(w, x[0][q][k], x[1][q][k], x[2][q][k]);
    round_tile(w.rounder, random, i, x[0]);
    store_tile(w.out, i, w.n, whole, x[0]);
  }
}

/// The same with a quad a thread, for tensors so small that tiles would leave most of the GPU idle.
template <class Functor, int kInputs>
__global__ void __launch_bounds__(kThreads)
    elementwise_small_kernel(const __grid_constant__ Work w) {
  const RandomSource random = w.rounder.random();
  for_quads(w.n, [&](int64_t i, int count) {
    float x[kMostInputs][kQuad] = {};
#pragma unroll
    for (int k = 0; k < kInputs; ++k) {
      if (w.reach[k] == Reach::All) {
        load_quad(w.in[k], i, count, x[k]);
        continue;
      }
#pragma unroll
      for (int e = 0; e < kQuad; ++e)
        if (e < count)
          x[k][e] = load_one(w.in[k].data, w.in[k].dtype,
                             w.reach[k] == Reach::One ? 0 : (i + e) % w.columns);
    }
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[0][k] = call<Functor, kInputs>(w, x[0][k], x[1][k], x[2][k]);
    round_quad(w.rounder, random, i, x[0]);
    store_quad(w.out, i, count, x[0]);
  });
}

template <class Functor, int kInputs>
void run(const char* name, Stream stream, const ElementwiseArgs& args) {
  check_kernel_tensor(name, stream, args.out, args.out.shape());
  check_output(name, args.out, args.output);
  Work w{};
  w.n = args.out.numel();
  w.alpha = static_cast<float>(args.alpha);
  w.beta = static_cast<float>(args.beta);
  w.rounder = make_elementwise_rounder(name, stream.device, args.output, args.key);
  for (size_t k = 0; k < kInputs; ++k) {
    const Tensor& in = args.in[k];
    ULP_CHECK(in.defined(), "{}: input {} is missing", name, k);
    w.reach[k] = kernels::reach_of(name, stream, in, args.out);
    if (w.reach[k] == Reach::Row) w.columns = in.numel();
    check_no_f64(name, in);
    w.in[k] = source_of(in);
  }
  w.out = sink_of(args.out);
  constexpr int64_t kSmall = int64_t{1} << 21;
  if (w.n < kSmall)
    return launch(name, stream, quad_blocks(w.n), kThreads,
                  elementwise_small_kernel<Functor, kInputs>, w);
  const int64_t blocks = blocks_for(w.n, kTile);
  if (w.columns != 0) {
    w.tile_step = blocks * kTile % w.columns;
    w.column_step = kTileStep % w.columns;
  }
  launch(name, stream, blocks, kThreads, elementwise_kernel<Functor, kInputs>, w);
}

}  // namespace ulp::cuda::elementwise

/// For the lists X(name, functor, inputs), inside namespace ulp::cuda.
#define ULP_DEFINE_ELEMENTWISE(name, Functor, inputs)                 \
  void name(Stream stream, const ElementwiseArgs& args) {             \
    elementwise::run<functors::Functor, inputs>(#name, stream, args); \
  }
