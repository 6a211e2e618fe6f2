#pragma once

// Four consecutive elements a thread: enough threads wait for memory at once even where a tensor is small, and one call of
// Philox serves a quad. The rounding is one branch for all threads; what has no short form goes out of line.

#include "kernels/cuda/rounder.cuh"
#include "kernels/cuda/segment.cuh"

namespace ulp::cuda {

/// This thread's first element, and how far it is from one quad to its next.
__device__ __forceinline__ int64_t first_quad() {
  return (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kQuad;
}
__device__ __forceinline__ int64_t quad_step() {
  return static_cast<int64_t>(gridDim.x) * kThreads * kQuad;
}

/// Calls body(i, count) for the quads of [0, n) that are this thread's: element i is its first.
template <class Body>
__device__ __forceinline__ void for_quads(int64_t n, const Body& body) {
  const int64_t step = quad_step();
  for (int64_t i = first_quad(); i < n; i += step) body(i, quad_count(i, n));
}

inline int64_t quad_blocks(int64_t n) { return blocks_for(n, int64_t{kThreads} * kQuad); }

/// x[k] = element i + k for k < count, 0 beyond. i is a multiple of four.
__device__ __forceinline__ void load_quad(const Source& s, int64_t i, int count,
                                          float (&x)[kQuad]) {
  if (s.aligned && count == kQuad) {
    if (is_float_up_to_32(s.dtype)) return load_quad(s, i, x);
    if (s.dtype == DType::U8) {
      const auto words = reinterpret_cast<const QuadWords<1>*>(s.data)[i / kQuad];
#pragma unroll
      for (int k = 0; k < kQuad; ++k) x[k] = static_cast<float>(words[k]);
      return;
    }
  }
#pragma unroll
  for (int k = 0; k < kQuad; ++k) x[k] = k < count ? load_one(s.data, s.dtype, i + k) : 0.0f;
}

/// Element i + k = y[k] for k < count; y: canonical. i is a multiple of four.
__device__ __forceinline__ void store_quad(const Sink& s, int64_t i, int count,
                                           const float (&y)[kQuad]) {
  if (s.aligned && count == kQuad) return store_quad(s, i, y);
#pragma unroll
  for (int k = 0; k < kQuad; ++k)
    if (k < count) store_one(s.data, s.dtype, i + k, y[k]);
}

/// Rounds elements i … i + 3.
__device__ __forceinline__ void round_quad(const Rounder& rounder, const RandomSource& random,
                                           int64_t i, float (&x)[kQuad]) {
  using How = Rounder::How;
  using fast::Specials;
  const bool numbers = rounder.makes_no_nan && all_finite(x);
  const auto round = [&]<How kHow>() {
    PhiloxWords words{};
    if constexpr (Rounder::draws(kHow)) words = random.words(static_cast<uint64_t>(i) / kQuad);
    const auto each = [&]<Specials kSpecials>() {
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        x[k] = round_fast<kHow, kSpecials>(x[k], rounder, 0, words.word[k]).value;
    };
    if (numbers)
      each.template operator()<Specials::Absent>();
    else
      each.template operator()<Specials::Possible>();
  };
  switch (rounder.how) {
    case How::Copy:
#pragma unroll
      for (int k = 0; k < kQuad; ++k) x[k] = canonical(x[k]);
      return;
    case How::Nearest: return round.template operator()<How::Nearest>();
    case How::Stochastic: return round.template operator()<How::Stochastic>();
    case How::StochasticBounded: return round.template operator()<How::StochasticBounded>();
    case How::NearestCut: return round.template operator()<How::NearestCut>();
    case How::StochasticCut: return round.template operator()<How::StochasticCut>();
    default: break;
  }
  PhiloxWords words{};
  if (rounder.grid.rounding == Rounding::Stochastic)
    words = random.words(static_cast<uint64_t>(i) / kQuad);
#pragma unroll
  for (int k = 0; k < kQuad; ++k) x[k] = round_any(x[k], rounder.grid, words.word[k]).value;
}

/// Several quads, `step` elements apart from element `first` on, of finite numbers, in a short form that makes no NaN of these;
/// false, and nothing is done, if the rounder has none. count: how many of them, the same for a warp.
template <int kCount>
__device__ __forceinline__ bool round_quads_short(const Rounder& rounder,
                                                  const RandomSource& random, int64_t first,
                                                  int64_t step, float (&x)[kCount][kQuad],
                                                  int count = kCount) {
  using How = Rounder::How;
  if (rounder.how == How::Copy) return true;
  if (!rounder.makes_no_nan) return false;
  const auto round = [&]<How kHow>() {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (j >= count) break;
      PhiloxWords words{};
      if constexpr (Rounder::draws(kHow))
        words = random.words(static_cast<uint64_t>(first + j * step) / kQuad);
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        x[j][k] =
            round_fast<kHow, fast::Specials::Absent>(x[j][k], rounder, 0, words.word[k]).value;
    }
  };
  switch (rounder.how) {
    case How::Nearest: round.template operator()<How::Nearest>(); return true;
    case How::Stochastic: round.template operator()<How::Stochastic>(); return true;
    case How::StochasticBounded: round.template operator()<How::StochasticBounded>(); return true;
    case How::NearestCut: round.template operator()<How::NearestCut>(); return true;
    case How::StochasticCut: round.template operator()<How::StochasticCut>(); return true;
    default: return false;
  }
}

/// By the definition, out of line. x: of count quads.
__device__ __noinline__ inline void round_quads_slowly(const Rounder& rounder,
                                                       const RandomSource& random, int64_t first,
                                                       int64_t step, int count, float* x) {
  const bool stochastic = rounder.grid.rounding == Rounding::Stochastic;
  for (int e = 0; e < count * kQuad; ++e) {
    const auto i = static_cast<uint64_t>(first + e / kQuad * step + e % kQuad);
    x[e] =
        quantise_value(x[e], rounder.grid, rounder.grid.rounding, stochastic ? random.word(i) : 0u);
  }
}

/// Several quads of any numbers.
template <int kCount>
__device__ __forceinline__ void round_quads(const Rounder& rounder, const RandomSource& random,
                                            int64_t first, int64_t step, float (&x)[kCount][kQuad],
                                            int count = kCount) {
  if (rounder.how == Rounder::How::Copy) {
#pragma unroll
    for (int j = 0; j < kCount; ++j)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) x[j][k] = canonical(x[j][k]);
    return;
  }
  float zero = 0;
#pragma unroll
  for (int j = 0; j < kCount; ++j) zero = zero_of(x[j], zero);
  if (zero == 0 && round_quads_short(rounder, random, first, step, x, count)) return;
  float values[kCount * kQuad];
#pragma unroll
  for (int e = 0; e < kCount * kQuad; ++e) values[e] = x[e / kQuad][e % kQuad];
  round_quads_slowly(rounder, random, first, step, count, values);
#pragma unroll
  for (int e = 0; e < kCount * kQuad; ++e) x[e / kQuad][e % kQuad] = values[e];
}

}  // namespace ulp::cuda
