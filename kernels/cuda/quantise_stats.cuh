#pragma once

// Statistics of quantise, counted while a warp still holds what came and what it became (core/quantise_stats.h).

#include "core/quantise_stats.h"
#include "kernels/cuda/segment.cuh"
#include "kernels/kernels.h"

namespace ulp::cuda {

static_assert(kSegment == kStatsRun && kStatsLanes == 2 * kRow);

/// Where a launch leaves its statistics: counts in `total`, zero before (of `count` only minus the gaps), the three sums of run r
/// in sums[r], sums[runs + r], sums[2 · runs + r].
struct StatsSink {
  QuantiseStats* total;
  double* sums;
  int64_t runs;
  bool gaps;  // see kGapBits
};

/// One thread's counts.
struct StatsCounts {
  uint32_t overflow = 0, underflow = 0, nan = 0, infinite = 0, finite = 0, amax = 0, gaps = 0;

  /// Of count only what the gaps take from it: it is the elements' number for all threads.
  __device__ void finish(QuantiseStats* total) const {
    const uint32_t none = __reduce_add_sync(kFullWarp, gaps);
    if (threadIdx.x % kWarp == 0 && none != 0)
      atomicAdd(reinterpret_cast<unsigned long long*>(&total->count),
                -static_cast<unsigned long long>(none));
    const uint32_t counts[5] = {overflow, underflow, nan, infinite, finite};
    int64_t* totals[5] = {&total->overflow, &total->underflow, &total->nan, &total->infinite,
                          &total->finite};
#pragma unroll
    for (int k = 0; k < 5; ++k) {
      const uint32_t all = __reduce_add_sync(kFullWarp, counts[k]);
      if (threadIdx.x % kWarp == 0 && all != 0)
        atomicAdd(reinterpret_cast<unsigned long long*>(totals[k]), all);
    }
    const uint32_t most = __reduce_max_sync(kFullWarp, amax);
    if (threadIdx.x % kWarp == 0 && most != 0) atomicMax(&total->amax_bits, most);
  }
};

/// The halving tree over kStatsLanes sums: a thread holds lanes 4t … 4t + 3 of both halves. Valid in thread 0.
__device__ __forceinline__ float sum_stats_lanes(const float (&lane)[2][kQuad]) {
  float sum[kQuad];
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    sum[k] = lane[0][k] + lane[1][k];
#pragma unroll
    for (int width = kWarp / 2; width > 0; width /= 2)
      sum[k] += __shfl_down_sync(kFullWarp, sum[k], width);
  }
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/// Counts what is not finite or lies beyond n, and puts zeros in its place.
__device__ __noinline__ inline void count_others(int64_t begin, int64_t n, bool gaps, float* x,
                                                 float* y, StatsCounts& own) {
  for (int e = 0; e < kRows * kQuad; ++e) {
    const bool inside = quad_at(begin, e / kQuad) + e % kQuad < n;
    const bool gap = inside && gaps && bits_of(x[e]) == kGapBits, exists = inside && !gap;
    const uint32_t a = bits_of(x[e]) & ~kSignBit, b = bits_of(y[e]) & ~kSignBit;
    const bool has_share = exists && (bits_of(y[e] - x[e]) & ~kSignBit) < kInfinityBits;
    own.gaps += gap;
    own.underflow += exists && a != 0 && b == 0;
    own.nan += exists && a > kInfinityBits;
    own.infinite += exists && a == kInfinityBits;
    own.finite += has_share;
    if (exists && a < kInfinityBits) own.amax = max(own.amax, a);
    if (!has_share) x[e] = y[e] = 0.0f;
  }
}

struct StatsMost {
  uint32_t x = 0, error = 0;
};
__device__ __forceinline__ StatsMost stats_most(const Segment& x, const Segment& y) {
  StatsMost most;
#pragma unroll
  for (int j = 0; j < kRows; ++j)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      most.x = max(most.x, bits_of(x[j][k]) & ~kSignBit);
      most.error = max(most.error, bits_of(y[j][k] - x[j][k]) & ~kSignBit);
    }
  most.x = __reduce_max_sync(kFullWarp, most.x);
  most.error = __reduce_max_sync(kFullWarp, most.error);
  return most;
}

/// The run that begins at `begin`: x came, y is stored (both are changed), bit k of clamped[j] belongs to element k of row j.
__device__ __forceinline__ void add_stats(const StatsSink& sink, int64_t begin, int64_t n,
                                          Segment& x, Segment& y, const uint32_t (&clamped)[kRows],
                                          StatsCounts& own) {
#pragma unroll
  for (int j = 0; j < kRows; ++j) own.overflow += __popc(clamped[j]);
  StatsMost most = stats_most(x, y);
  if (most.error < kInfinityBits && begin + kSegment <= n) {
    own.finite += kRows * kQuad;
    own.amax = max(own.amax, most.x);
#pragma unroll
    for (int j = 0; j < kRows; ++j)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) own.underflow += y[j][k] == 0.0f && x[j][k] != 0.0f;
  } else {
    float came[kRows * kQuad], made[kRows * kQuad];
#pragma unroll
    for (int e = 0; e < kRows * kQuad; ++e) {
      came[e] = x[e / kQuad][e % kQuad];
      made[e] = y[e / kQuad][e % kQuad];
    }
    count_others(begin, n, sink.gaps, came, made, own);
#pragma unroll
    for (int e = 0; e < kRows * kQuad; ++e) {
      x[e / kQuad][e % kQuad] = came[e];
      y[e / kQuad][e % kQuad] = made[e];
    }
    most = stats_most(x, y);
  }
  const float scale = stats_scale(most.x), error_scale = stats_scale(most.error);
  float error[2][kQuad], square_error[2][kQuad], square[2][kQuad];
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      StatsSums lane;
#pragma unroll
      for (int j = half; j < kRows; j += 2)
        lane.add(x[j][k] * scale, (y[j][k] - x[j][k]) * error_scale);
      error[half][k] = lane.error;
      square_error[half][k] = lane.square_error;
      square[half][k] = lane.square;
    }
  const StatsSums all{sum_stats_lanes(error), sum_stats_lanes(square_error),
                      sum_stats_lanes(square)};
  if (threadIdx.x % kWarp != 0) return;
  const double unit = stats_unit(most.x), error_unit = stats_unit(most.error);
  double* at = sink.sums + begin / kSegment;
  at[0] = all.error * error_unit;
  at[sink.runs] = all.square_error * (error_unit * error_unit);
  at[2 * sink.runs] = all.square * (unit * unit);
}

/// Statistics of one call, in memory that `sums` keeps.
StatsSink stats_sink(Stream stream, const QuantiseArgs& args, Tensor& sums);
/// Adds a tensor that another kernel has quantised; mask: what was clamped.
void count_quantised(Stream stream, const StatsSink& sink, const Source& in, const Source& out,
                     const uint8_t* mask, int64_t n);
/// The sums of all that was added, of n elements.
void finish_stats(Stream stream, const StatsSink& sink, int64_t n);

}  // namespace ulp::cuda
