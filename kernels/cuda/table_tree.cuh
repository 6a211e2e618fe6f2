#pragma once

// A table's numbers as a kernel searches them: a tree in shared memory, in which the threads of a warp that go different ways
// meet few bank conflicts.

#include "core/grid.h"
#include "core/step_buckets.h"
#include "kernels/cuda/launch.cuh"

namespace ulp::cuda {

inline constexpr int32_t kMostNumbers = 256;

/// Rounding that draws nothing is a staircase: from step i on, x becomes number i. Where it draws, the steps are the numbers
/// themselves but for the last, and x lies between number i and the next.
struct TableTree {
  // 2^levels: node j has the children 2j and 2j + 1; the root is node 1.
  const float* steps = nullptr;
  const float* numbers = nullptr;  // `size`, ascending
  const float* inverses =
      nullptr;  // where it draws: 2^32 over the way to the next number; NaN where that is no fp32 matter
  int32_t levels = 0, size = 0;
  float lowest = 0, highest = 0;

  /// The same in shared memory. Called by all threads of a block.
  __device__ __forceinline__ TableTree shared(bool draws) const {
    __shared__ float own_steps[kMostNumbers], own_numbers[kMostNumbers], own_inverses[kMostNumbers];
    for (int i = threadIdx.x; i < 1 << levels; i += blockDim.x) own_steps[i] = steps[i];
    for (int i = threadIdx.x; i < size; i += blockDim.x) own_numbers[i] = numbers[i];
    for (int i = threadIdx.x; draws && i < size; i += blockDim.x) own_inverses[i] = inverses[i];
    __syncthreads();
    return {own_steps, own_numbers, own_inverses, levels, size, lowest, highest};
  }

  /// The number of the last step that is not beyond each x; 0 if all are.
  template <int kCount>
  __device__ __forceinline__ void find(const float (&x)[kCount], int32_t (&found)[kCount]) const {
    // Nodes by their bytes.
    const char* const tree = reinterpret_cast<const char*>(steps);
    constexpr int32_t kBytes = sizeof(float);
    int32_t at[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) at[k] = kBytes;
    for (int32_t level = 0; level < levels; ++level)
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const float step = *reinterpret_cast<const float*>(tree + at[k]);
        at[k] = 2 * at[k] + (x[k] >= step ? kBytes : 0);
      }
#pragma unroll
    for (int k = 0; k < kCount; ++k) found[k] = at[k] / kBytes - (1 << levels);
  }
};

/// Of an element-wise table format, for any rounding but those that draw less than a whole word; built once.
TableTree tree_on(Device device, const Quantizer& quantizer);

/// The same steps by buckets (core/step_buckets.h), for kernels that have room for these. size: of the table; 0: there is none.
struct TableSteps {
  const float* steps = nullptr;
  const uint8_t* starts = nullptr;
  StepBuckets buckets;
  int32_t size = 0;
};
TableSteps steps_on(Device device, const Quantizer& quantizer);

__device__ __noinline__ inline bool draws_up(uint32_t word, float x, float low, float high) {
  return word < fraction_between(x, low, high);
}

/// Which of two neighbours a draw takes x to, low ≤ x < high. A quotient in fp32 decides, unless the word lies so close to it
/// that its error matters: less than 2^12 of 2^32, for two roundings of 2^−24, a division within 2^−22 and the word's own.
__device__ __forceinline__ float drawn_between(float x, float low, float high, uint32_t word) {
  const float gap = high - low, drawn = static_cast<float>(word);
  const float fraction = __fdividef(x - low, gap) * 0x1p32f;
  bool up = drawn < fraction;
  const bool sure = gap > 0x1p-100f && gap < 0x1p100f && fabsf(drawn - fraction) > 0x1p12f;
  if (!sure) up = draws_up(word, x, low, high);
  return up ? high : low;
}

/// The numbers of all codes of a format with up to 8 bits, in order, in a device's memory, copied there once.
const float* code_numbers_on(Device device, const Format& format);

}  // namespace ulp::cuda
