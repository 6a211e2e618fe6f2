#pragma once

// The roundings of a kernel's interior (kernels/interior.h).

#include "kernels/cuda/rounder.cuh"
#include "kernels/interior.h"

namespace ulp::cuda {

/// The rounding of one named intermediate. met: null, or gets what it meets. Any thread may make an intermediate, and several may:
/// they write the same number. The identity meets nothing.
struct InteriorRounder : Rounder {
  float* met = nullptr;

  __device__ __forceinline__ void note(int64_t i, float value) const {
    if (met != nullptr) met[i] = canonical(value);
  }
  /// Word i rounds nothing.
  __device__ __forceinline__ void note_gap(int64_t i) const {
    if (met != nullptr) met[i] = float_of(kGapBits);
  }
};

/// Draws 0 … kCount − 1.
template <int kCount>
void make_interior(const char* kernel, Stream stream, const Quantizer& interior,
                   const RandomKey& key, const InteriorTrace& trace,
                   InteriorRounder (&rounders)[kCount]) {
  for (int draw = 0; draw < kCount; ++draw) {
    Rounder& rounder = rounders[draw];
    rounder = make_elementwise_rounder(kernel, stream.device, interior,
                                       later_draw(key, static_cast<uint32_t>(draw)));
    if (Tensor t = trace.at[static_cast<size_t>(draw)]; t.defined() && !interior.is_identity())
      rounders[draw].met = t.mutable_data<float>();
  }
}

__device__ __noinline__ inline float round_out_of_line(const Rounder& rounder,
                                                       const RandomSource& random, int64_t i,
                                                       float value) {
  return round_one(rounder, random, i, value);
}
__device__ __noinline__ inline float round_out_of_line(const InteriorRounder& rounder,
                                                       const RandomSource& random, int64_t i,
                                                       float value) {
  rounder.note(i, value);
  return round_one(rounder, random, i, value);
}

/// A value among others; mostly there is nothing to do.
__device__ __forceinline__ float round_interior(const Rounder& rounder, const RandomSource& random,
                                                int64_t i, float value) {
  if (rounder.how == Rounder::How::Copy) return canonical(value);
  return round_out_of_line(rounder, random, i, value);
}
__device__ __forceinline__ float round_interior(const InteriorRounder& rounder,
                                                const RandomSource& random, int64_t i,
                                                float value) {
  if (rounder.how == Rounder::How::Copy) return canonical(value);
  return round_out_of_line(rounder, random, i, value);
}

}  // namespace ulp::cuda
