#pragma once

// Statistics of quantise, counted while a warp still holds what came and what it became (core/quantise_stats.h).

#include "core/quantise_stats.h"
#include "kernels/cuda/segment.cuh"

namespace ulp::cuda {

static_assert(kSegment == kStatsRun && kStatsLanes == 2 * kRow);

/// Where a launch leaves its statistics: counts in `total`, zero before, the three sums of run r in sums[r], sums[runs + r],
/// sums[2 · runs + r].
struct StatsSink {
  QuantiseStats* total;
  double* sums;
  int64_t runs;
};

/// One thread's counts.
struct StatsCounts {
  uint32_t overflow = 0, underflow = 0, nan = 0, infinite = 0, finite = 0, amax = 0;

  __device__ void finish(QuantiseStats* total) const {
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

/// The run that begins at `begin`: x came, y is stored, bit k of clamped[j] belongs to element k of row j.
__device__ __forceinline__ void add_stats(const StatsSink& sink, int64_t begin, int64_t n,
                                          Segment& x, const Segment& y,
                                          const uint32_t (&clamped)[kRows], StatsCounts& own) {
  uint32_t most_x = 0, most_error = 0;
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    const int count = quad_count(quad_at(begin, j), n);
    own.overflow += __popc(clamped[j] & ((1u << count) - 1u));
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const uint32_t a = bits_of(x[j][k]) & ~kSignBit;
      const bool exists = k < count;
      const bool has_share = exists && (bits_of(y[j][k] - x[j][k]) & ~kSignBit) < kInfinityBits;
      own.underflow += exists && a != 0 && (bits_of(y[j][k]) & ~kSignBit) == 0;
      own.nan += exists && a > kInfinityBits;
      own.infinite += exists && a == kInfinityBits;
      own.finite += has_share;
      if (exists && a < kInfinityBits) own.amax = max(own.amax, a);
      if (!has_share) continue;
      most_x = max(most_x, a);
      most_error = max(most_error, bits_of(y[j][k] - x[j][k]) & ~kSignBit);
    }
  }
  most_x = __reduce_max_sync(kFullWarp, most_x);
  most_error = __reduce_max_sync(kFullWarp, most_error);
  const float scale = stats_scale(most_x), error_scale = stats_scale(most_error);
  float error[2][kQuad], square_error[2][kQuad], square[2][kQuad];
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      StatsSums lane;
#pragma unroll
      for (int j = half; j < kRows; j += 2) {
        const float e = y[j][k] - x[j][k];
        const bool has_share =
            k < quad_count(quad_at(begin, j), n) && (bits_of(e) & ~kSignBit) < kInfinityBits;
        lane.add(has_share ? x[j][k] * scale : 0.0f, has_share ? e * error_scale : 0.0f);
      }
      error[half][k] = lane.error;
      square_error[half][k] = lane.square_error;
      square[half][k] = lane.square;
    }
  const StatsSums all{sum_stats_lanes(error), sum_stats_lanes(square_error),
                      sum_stats_lanes(square)};
  if (threadIdx.x % kWarp != 0) return;
  const double unit = stats_unit(most_x), error_unit = stats_unit(most_error);
  double* at = sink.sums + begin / kSegment;
  at[0] = all.error * error_unit;
  at[sink.runs] = all.square_error * (error_unit * error_unit);
  at[2 * sink.runs] = all.square * (unit * unit);
}

}  // namespace ulp::cuda
