#include "core/convert.h"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/sum.cuh"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

/// One level of a strict sum: out (outer, chunks, inner) = the chunk sums of in (outer, axis, inner).
struct Level {
  const void* in;
  DType dtype;
  float* out;
  int64_t outer, axis, inner, chunks;
  float factor;  // of the last level; 1 before

  __device__ void store(int64_t i, float sum) const {
    out[i] = canonical(factor == 1.0f ? sum : canonical(sum) * factor);
  }
};

/// inner = 1: a warp for each chunk.
__global__ void __launch_bounds__(kThreads) sum_rows_kernel(Level w) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  for (int64_t task = first; task < w.outer * w.chunks; task += warps) {
    const int64_t o = task / w.chunks, begin = task % w.chunks * kSumChunk;
    const int64_t n = w.axis - begin < kSumChunk ? w.axis - begin : kSumChunk;
    const int64_t at = o * w.axis + begin;
    float sum;
    if (w.dtype == DType::F32) {
      const float* in = static_cast<const float*>(w.in) + at;
      sum = warp_sum_chunk(n, [=](int64_t i) { return in[i]; });
    } else {
      sum = warp_sum_chunk(n, [&](int64_t i) { return load_as_float(w.in, w.dtype, at + i); });
    }
    if (threadIdx.x % kWarp == 0) w.store(task, sum);
  }
}

constexpr int kLaneRows = 16;  // threads along the axis; each keeps four of the 64 lanes

/// sum[q] += value(y + 16 q), value(y + 16 q + 64) …
template <class Value>
__device__ __forceinline__ void add_to_lanes(int64_t n, int64_t y, float (&sum)[4],
                                             const Value& value) {
  int64_t a = y;
#pragma unroll 4  // so many loads wait together
  for (; a + 3 * kLaneRows < n; a += kSumLanes)
#pragma unroll
    for (int q = 0; q < 4; ++q) sum[q] += value(a + q * kLaneRows);
#pragma unroll
  for (int q = 0; q < 4; ++q)
    if (a + q * kLaneRows < n) sum[q] += value(a + q * kLaneRows);
}

/// inner > 1: 32 columns of one chunk a block, thread (x, y) keeps lanes y, y + 16, y + 32, y + 48 of column x.
__global__ void __launch_bounds__(kWarp* kLaneRows) sum_columns_kernel(Level w, int64_t tasks) {
  __shared__ float lanes[kLaneRows][kWarp];
  const int64_t tiles = (w.inner + kWarp - 1) / kWarp;
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const int64_t column = task % tiles * kWarp + x;
    const int64_t chunk = task / tiles % w.chunks, o = task / tiles / w.chunks;
    const int64_t begin = chunk * kSumChunk;
    const int64_t n = w.axis - begin < kSumChunk ? w.axis - begin : kSumChunk;
    float sum[4] = {};
    if (column < w.inner) {
      const int64_t at = (o * w.axis + begin) * w.inner + column;
      const Source in{w.in, w.dtype, false};
      for_plain_type(w.dtype, [&]<DType kType>() {
        add_to_lanes(n, y, sum, [&](int64_t a) { return load_plain<kType>(in, at + a * w.inner); });
      });
    }
    lanes[y][x] = (sum[0] + sum[2]) + (sum[1] + sum[3]);  // widths 32 and 16
    __syncthreads();
#pragma unroll
    for (int width = kLaneRows / 2; width > 0; width /= 2) {
      if (y < width) lanes[y][x] += lanes[y + width][x];
      __syncthreads();
    }
    if (y == 0 && column < w.inner) w.store((o * w.chunks + chunk) * w.inner + column, lanes[0][x]);
    __syncthreads();
  }
}

void sum_level(Stream stream, const Level& w) {
  if (w.inner == 1) {
    const int64_t blocks = blocks_for(w.outer * w.chunks, kThreads / kWarp);
    return launch("sum", stream, blocks, kThreads, sum_rows_kernel, w);
  }
  const int64_t tasks = w.outer * w.chunks * ((w.inner + kWarp - 1) / kWarp);
  launch("sum", stream, blocks_for(tasks, 1), dim3(kWarp, kLaneRows), sum_columns_kernel, w, tasks);
}

/// Chunk sums, then their sum, until one value is left of each axis.
void sum_all(Stream stream, const void* in, DType dtype, const SumArgs& args, float* out) {
  const int64_t chunks = std::max<int64_t>(1, (args.axis + kSumChunk - 1) / kSumChunk);
  const float factor = static_cast<float>(args.factor);
  if (chunks == 1)
    return sum_level(stream, {in, dtype, out, args.outer, args.axis, args.inner, 1, factor});
  Tensor partial = Tensor::empty({args.outer, chunks, args.inner}, DType::F32, stream.device);
  float* sums = partial.mutable_data<float>();
  sum_level(stream, {in, dtype, sums, args.outer, args.axis, args.inner, chunks, 1.0f});
  SumArgs rest;
  rest.factor = args.factor;
  rest.outer = args.outer;
  rest.axis = chunks;
  rest.inner = args.inner;
  sum_all(stream, sums, DType::F32, rest, out);
}

}  // namespace

void sum(Stream stream, const SumArgs& args) {
  check_kernel_tensor("sum", stream, args.in, args.in.shape());
  check_kernel_tensor("sum", stream, args.out, args.out.shape());
  ULP_CHECK(args.outer >= 0 && args.axis >= 0 && args.inner >= 0 &&
                args.in.numel() == args.outer * args.axis * args.inner &&
                args.out.numel() == args.outer * args.inner,
            "sum: ({}, {}, {}) does not describe an input of shape {} and an output of shape {}",
            args.outer, args.axis, args.inner, args.in.shape(), args.out.shape());
  check_float("sum", args.in);
  check_type("sum", args.out, DType::F32);
  if (args.out.numel() == 0) return;
  sum_all(stream, args.in.raw(), args.in.dtype(), args, static_cast<float*>(written(args.out)));
}

}  // namespace ulp::cuda
