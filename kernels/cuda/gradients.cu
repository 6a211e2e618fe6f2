#include "core/convert.h"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/sum.cuh"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

// Sums of squares go through four levels, each in the order of core/sum.h: chunks of a gradient, chunks of a gradient's
// chunk sums, their sums, and the gradients. A level of one value leaves it as it is.

struct Gradient {
  const void* data;
  int64_t n, first_chunk, first_group;
  DType dtype;
};

/// As many gradients as fit a launch's 4 KB of arguments beside the rest.
constexpr int kMost = 90;
constexpr int kSettleThreads = 1024;

struct Work {
  Gradient gradients[kMost];
  int32_t count;
  int64_t chunk_count, group_count;
  double *chunks, *groups;  // sums
  double* sums;             // of all gradients, also those of other launches
  int64_t first_sum;
  __device__ int64_t chunks_before(int k) const {
    return k < count ? gradients[k].first_chunk : chunk_count;
  }
  __device__ int64_t groups_before(int k) const {
    return k < count ? gradients[k].first_group : group_count;
  }
};
static_assert(sizeof(Work) + sizeof(GradPolicy) + 16 <= 4096);

__device__ __forceinline__ double squared(float x) {
  const auto value = static_cast<double>(x);
  return value * value;
}

/// A warp for each chunk.
__global__ void __launch_bounds__(kThreads) square_chunks_kernel(const __grid_constant__ Work w) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  int which = 0;
  for (int64_t chunk = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
       chunk < w.chunk_count; chunk += warps) {
    while (w.chunks_before(which + 1) <= chunk) ++which;
    const Gradient& g = w.gradients[which];
    const int64_t begin = (chunk - g.first_chunk) * kSumChunk;
    const int64_t n = g.n - begin < kSumChunk ? g.n - begin : kSumChunk;
    double sum;
    if (g.dtype == DType::F32) {
      const float* x = static_cast<const float*>(g.data) + begin;
      sum = warp_sum_chunk<double>(n, [=](int64_t i) { return squared(x[i]); });
    } else {
      sum = warp_sum_chunk<double>(
          n, [&](int64_t i) { return squared(load_as_float(g.data, g.dtype, begin + i)); });
    }
    if (threadIdx.x % kWarp == 0) w.chunks[chunk] = sum;
  }
}

/// One block: sums of this launch's gradients; with a state, of all `total` of them, which settles the step.
__global__ void __launch_bounds__(kSettleThreads)
    settle_gradients_kernel(const __grid_constant__ Work w, int64_t total,
                            const __grid_constant__ GradPolicy policy, StepState* state) {
  const int64_t warp = threadIdx.x / kWarp, warps = kSettleThreads / kWarp;
  const bool leads = threadIdx.x % kWarp == 0;
  int which = 0;
  for (int64_t group = warp; group < w.group_count; group += warps) {
    while (w.groups_before(which + 1) <= group) ++which;
    const Gradient& g = w.gradients[which];
    const int64_t begin = g.first_chunk + (group - g.first_group) * kSumChunk;
    const int64_t left = w.chunks_before(which + 1) - begin;
    const double* chunks = w.chunks + begin;
    const double sum = warp_sum_chunk<double>(left < kSumChunk ? left : kSumChunk,
                                              [=](int64_t i) { return chunks[i]; });
    if (leads) w.groups[group] = sum;
  }
  __syncthreads();
  for (int64_t k = warp; k < w.count; k += warps) {
    const int64_t begin = w.groups_before(static_cast<int>(k));
    const double* groups = w.groups + begin;
    const double sum = warp_sum<double>(w.groups_before(static_cast<int>(k) + 1) - begin,
                                        [=](int64_t i) { return groups[i]; });
    if (leads) w.sums[w.first_sum + k] = sum;
  }
  if (state == nullptr) return;
  __syncthreads();
  if (warp != 0) return;
  const double* sums = w.sums;
  const double sum = warp_sum<double>(total, [=](int64_t i) { return sums[i]; });
  if (leads) settle_gradients(*state, sum, policy);
}

struct ScalingPair {
  float *now, *kept;
  int32_t n;
};

/// As many as fit a launch's arguments.
constexpr int kMostScalings = 128;

struct ScalingPairs {
  ScalingPair pairs[kMostScalings];
  int32_t count;
  const StepState* state;
};
static_assert(sizeof(ScalingPairs) <= 4096);

/// A block for each.
__global__ void settle_scalings_kernel(const __grid_constant__ ScalingPairs w) {
  const ScalingPair& p = w.pairs[blockIdx.x];
  const bool skipped = w.state->found_inf != 0;
  const float* from = skipped ? p.kept : p.now;
  float* to = skipped ? p.now : p.kept;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.n; i += kWarp) to[i] = from[i];
}

int64_t parts(int64_t n) { return (n + kSumChunk - 1) / kSumChunk; }

}  // namespace

void check_gradients(Stream stream, const CheckGradientsArgs& args) {
  check_check_gradients(stream, args);
  int64_t chunks = 0, groups = 0;
  for (const Tensor& gradient : args.gradients) {
    chunks += parts(gradient.numel());
    groups += parts(parts(gradient.numel()));
  }
  const auto total = static_cast<int64_t>(args.gradients.size());
  Tensor memory = Tensor::empty({chunks + groups + total}, DType::F64, stream.device);
  Work w{};
  w.chunks = static_cast<double*>(memory.mutable_raw());
  w.groups = w.chunks + chunks;
  w.sums = w.groups + groups;
  const auto flush = [&](StepState* state) {
    launch("check_gradients", stream, blocks_for(w.chunk_count, kThreads / kWarp), kThreads,
           square_chunks_kernel, w);
    launch("check_gradients", stream, 1, kSettleThreads, settle_gradients_kernel, w, total,
           args.policy, state);
    w.first_sum += w.count;
    w.count = 0;
    w.chunk_count = w.group_count = 0;
  };
  for (const Tensor& gradient : args.gradients) {
    if (w.count == kMost) flush(nullptr);
    w.gradients[w.count++] = {gradient.raw(), gradient.numel(), w.chunk_count, w.group_count,
                              gradient.dtype()};
    w.chunk_count += parts(gradient.numel());
    w.group_count += parts(parts(gradient.numel()));
  }
  flush(args.state);
}

void settle_scalings(Stream stream, const SettleScalingsArgs& args) {
  check_settle_scalings(stream, args);
  ScalingPairs w{};
  w.state = args.state;
  const auto flush = [&] {
    launch("settle_scalings", stream, w.count, kWarp, settle_scalings_kernel, w);
    w.count = 0;
  };
  for (const KeptScaling& s : args.scalings) {
    if (w.count == kMostScalings) flush();
    w.pairs[w.count++] = {static_cast<float*>(written(s.now)), static_cast<float*>(written(s.kept)),
                          static_cast<int32_t>(s.now.numel())};
  }
  flush();
}

}  // namespace ulp::cuda
