#include "core/hadamard.h"
#include "kernels/cuda/pack.cuh"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

struct Work {
  const void* in;
  DType in_type;
  float* out;
  int64_t axis, inner, groups,
      tail;       // groups of the axis, the last one a tail of `tail` elements if that is not 0
  int64_t count;  // of groups in all
  RandomSource random;
  float scale;
  bool inverse;
};

/// A thread rotates one group; consecutive threads take neighbours along the inner axes.
template <int kSize>
__global__ void __launch_bounds__(kThreads) rotate_kernel(Work w) {
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; index < w.count;
       index += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t r = index % w.inner, g = index / w.inner % w.groups,
                  o = index / w.inner / w.groups;
    const int64_t begin = (o * w.axis + g * kSize) * w.inner + r;
    if (w.tail != 0 && g + 1 == w.groups) {
      for (int64_t k = 0; k < w.tail; ++k)
        w.out[begin + k * w.inner] = canonical(load_as_float(w.in, w.in_type, begin + k * w.inner));
      continue;
    }
    float v[kSize];
    uint32_t flips = 0;
#pragma unroll
    for (int k = 0; k < kSize; k += 4) {
      const PhiloxWords words = w.random.words(static_cast<uint64_t>(g * kSize + k) / 4);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        flips |= static_cast<uint32_t>(is_flipped(words.word[j])) << (k + j);
    }
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const float x = load_as_float(w.in, w.in_type, begin + k * w.inner);
      v[k] = !w.inverse && (flips >> k & 1u) != 0 ? -x : x;
    }
#pragma unroll
    for (int h = 1; h < kSize; h *= 2)
#pragma unroll
      for (int i = 0; i < kSize; ++i)
        if ((i & h) == 0) {
          const float sum = v[i] + v[i + h], difference = v[i] - v[i + h];
          v[i] = sum;
          v[i + h] = difference;
        }
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const float y = v[k] * w.scale;
      w.out[begin + k * w.inner] = canonical(w.inverse && (flips >> k & 1u) != 0 ? -y : y);
    }
  }
}

}  // namespace

void rotate(Stream stream, const RotateArgs& args) {
  check_rotate(stream, args);
  Work w{};
  w.in = args.in.raw();
  w.in_type = args.in.dtype();
  w.out = static_cast<float*>(written(args.out));
  const int64_t n = args.in.numel();
  if (n == 0) return;
  w.axis = args.in.size(args.axis);
  w.inner = 1;
  for (int i = args.axis + 1; i < args.in.rank(); ++i) w.inner *= args.in.size(i);
  w.groups = (w.axis + args.size - 1) / args.size;
  w.tail = w.axis % args.size;
  w.count = n / w.axis * w.groups;
  w.random = rotation_source(args.seed);
  w.scale = pow2(args.exponent);
  w.inverse = args.inverse;
  launch("rotate", stream, blocks_for(w.count, kThreads), kThreads,
         args.size == 16 ? rotate_kernel<16> : rotate_kernel<32>, w);
}

}  // namespace ulp::cuda
