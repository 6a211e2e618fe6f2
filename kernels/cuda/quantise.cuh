#pragma once

// What all kernels of quantise share: a segment that is loaded, rounded by a rule, counted and stored.

#include "core/grid.h"
#include "kernels/cuda/quads.cuh"
#include "kernels/cuda/quantise_stats.cuh"

namespace ulp::cuda {

struct QuantiseWork {
  Source in;
  Sink out;
  uint8_t* mask;
  bool mask_aligned;
  Rounder rounder;
  int64_t n;
  StatsSink stats;
};

inline bool tells(const QuantiseWork& w) { return w.mask != nullptr || w.stats.total != nullptr; }

/// mask[i + k] = bit k of `clamped`, for k < count.
__device__ __forceinline__ void store_mask(const QuantiseWork& w, int64_t i, int count,
                                           uint32_t clamped) {
  if (w.mask_aligned && count == kQuad) {
    // Bit k times 2^(7k) is bit 8k.
    *reinterpret_cast<uint32_t*>(w.mask + i) = clamped * 0x00204081u & 0x01010101u;
    return;
  }
  for (int k = 0; k < count; ++k) w.mask[i + k] = static_cast<uint8_t>(clamped >> k & 1u);
}

constexpr bool is_lattice(Rounder::How how) { return how <= Rounder::How::StochasticCut; }

/// Any rounding of a segment, one element after the other. Small rather than fast.
template <class RoundOne>
__device__ __forceinline__ void round_slowly(const Rounder& rounder, const RandomSource& random,
                                             int64_t begin, Segment& x, uint32_t (&clamped)[kRows],
                                             const RoundOne& round_one) {
  float values[kRows * kQuad];
  uint32_t bits = 0;
#pragma unroll
  for (int e = 0; e < kRows * kQuad; ++e) values[e] = x[e / kQuad][e % kQuad];
  PhiloxWords words{};
#pragma unroll 1
  for (int e = 0; e < kRows * kQuad; ++e) {
    if (rounder.grid.rounding == Rounding::Stochastic && e % kQuad == 0)
      words = random.words(static_cast<uint64_t>(quad_at(begin, e / kQuad)) / kQuad);
    const uint32_t word = e % kQuad == 0   ? words.word[0]
                          : e % kQuad == 1 ? words.word[1]
                          : e % kQuad == 2 ? words.word[2]
                                           : words.word[3];
    const Rounded r = round_one(e / kQuad, values[e], word);
    values[e] = r.value;
    bits |= static_cast<uint32_t>(r.clamped) << e;
  }
#pragma unroll
  for (int e = 0; e < kRows * kQuad; ++e) x[e / kQuad][e % kQuad] = values[e];
#pragma unroll
  for (int j = 0; j < kRows; ++j) clamped[j] = bits >> (kQuad * j) & 15u;
}

/// Rounds a segment in place; bit k of clamped[j] tells whether element k of row j was clamped. round_one(kHow, j, x, word)
/// rounds an element of row j.
template <Rounder::How kHow, class RoundOne>
__device__ __forceinline__ void round_fast_segment(const RandomSource& random, int64_t begin,
                                                   Segment& x, uint32_t (&clamped)[kRows],
                                                   const RoundOne& round_one) {
  using How = Rounder::How;
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    clamped[j] = 0;
    PhiloxWords words{};
    if constexpr (Rounder::draws(kHow))
      words = random.words(static_cast<uint64_t>(quad_at(begin, j)) / kQuad);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const Rounded r = round_one(j, x[j][k], words.word[k]);
      x[j][k] = r.value;
      clamped[j] |= static_cast<uint32_t>(r.clamped) << k;
    }
  }
}

/// x[e / kQuad][e % kQuad] = round_one(x, its index) for the bits e of `which`: for the few that a short form leaves alone.
template <class RoundOne>
__device__ __forceinline__ void round_rest(uint32_t which, int64_t begin, Segment& x,
                                           const RoundOne& round_one) {
  if (which == 0) return;
  float values[kRows * kQuad];
#pragma unroll
  for (int e = 0; e < kRows * kQuad; ++e) values[e] = x[e / kQuad][e % kQuad];
  for (; which != 0; which &= which - 1) {
    const int e = __ffs(static_cast<int>(which)) - 1;
    values[e] = round_one(values[e], quad_at(begin, e / kQuad) + e % kQuad);
  }
#pragma unroll
  for (int e = 0; e < kRows * kQuad; ++e) x[e / kQuad][e % kQuad] = values[e];
}

/// Loads, rounds by `round(begin, x, clamped)` and stores the segments that are this warp's. kTell: there are a mask, or
/// statistics, or both.
template <bool kTell, class Round>
__device__ __forceinline__ void quantise_segments(const QuantiseWork& w, const Round& round) {
  StatsCounts counts;
  for_segments(w.n, [&](int64_t begin) {
    Segment x, came;
    uint32_t clamped[kRows];
    load_segment(w.in, begin, w.n, x);
    if constexpr (kTell) {
#pragma unroll
      for (int j = 0; j < kRows; ++j)
#pragma unroll
        for (int k = 0; k < kQuad; ++k) came[j][k] = x[j][k];
    }
    round(begin, x, clamped);
    store_segment(w.out, begin, w.n, x);
    if constexpr (kTell) {
      if (begin + kSegment > w.n) {  // what is not there was not clamped
#pragma unroll
        for (int j = 0; j < kRows; ++j)
          clamped[j] &= (1u << quad_count(quad_at(begin, j), w.n)) - 1u;
      }
      if (w.mask != nullptr) {
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          const int64_t i = quad_at(begin, j);
          store_mask(w, i, quad_count(i, w.n), clamped[j]);
        }
      }
      if (w.stats.total != nullptr) add_stats(w.stats, begin, w.n, came, x, clamped, counts);
    }
  });
  if (kTell && w.stats.total != nullptr) counts.finish(w.stats.total);
}

/// Formats with blocks; the work's rounder is that of a block at shift 0.
void quantise_blocks(Stream stream, const QuantiseArgs& args, const QuantiseWork& w,
                     const BlockRule& rule);

}  // namespace ulp::cuda
