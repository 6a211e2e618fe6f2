#include "kernels/cuda/quads.cuh"
#include "kernels/functors.h"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

/// One weight, and the blocks that work on it: from first_block to the next weight's.
struct Weight {
  Source weight;
  Sink average;
  int64_t n;
  uint32_t stream;  // with its ordinal
  int32_t first_block;
};

/// As many as fit a launch's 4 KB of arguments beside the rest.
constexpr int kMost = 64;

struct Work {
  Weight weights[kMost];
  int32_t count, blocks;
  Rounder format;  // its stream apart
  const AverageState* state;
};
static_assert(sizeof(Work) <= 4096);

__global__ void begin_average_kernel(AverageState* average, const StepState* state,
                                     AverageRule rule) {
  begin_average(*average, *state, rule);
}

__global__ void __launch_bounds__(kThreads) average_kernel(const __grid_constant__ Work w) {
  if (w.state->gate.found_inf != 0) return;
  const float factor = w.state->factor;
  const int32_t block = static_cast<int32_t>(blockIdx.x);
  int which = 0;
  while (which + 1 < w.count && w.weights[which + 1].first_block <= block) ++which;
  const Weight& p = w.weights[which];
  const int32_t end = which + 1 < w.count ? w.weights[which + 1].first_block : w.blocks;
  const int64_t step = static_cast<int64_t>(end - p.first_block) * kThreads * kQuad;
  RandomSource random = w.format.random();
  random.stream = p.stream;
  for (int64_t i = (static_cast<int64_t>(block - p.first_block) * kThreads + threadIdx.x) * kQuad;
       i < p.n; i += step) {
    const int count = quad_count(i, p.n);
    float x[kQuad], y[kQuad];
    load_quad(p.weight, i, count, x);
    load_quad(p.average.source(), i, count, y);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) y[k] = functors::average_of(y[k], x[k], factor);
    round_quad(w.format, random, i, y);
    store_quad(p.average, i, count, y);
  }
}

}  // namespace

void begin_average(Stream stream, const BeginAverageArgs& args) {
  ULP_CHECK(args.average != nullptr && args.state != nullptr && args.rule.every > 0,
            "begin_average: its states are missing, or every is 0");
  launch("begin_average", stream, 1, 1, begin_average_kernel, args.average, args.state, args.rule);
}

void average(Stream stream, const AverageArgs& args) {
  check_average(stream, args);
  if (args.weights.empty()) return;
  Work w{};
  w.format =
      make_elementwise_rounder("average", stream.device, args.format, args.weights.front().key);
  w.state = args.state;
  const auto flush = [&] {
    launch("average", stream, w.blocks, kThreads, average_kernel, w);
    w.count = w.blocks = 0;
  };
  for (const AveragedWeight& from : args.weights) {
    check_output("average", from.average, args.format);
    if (from.weight.numel() == 0) continue;
    w.weights[w.count++] = {source_of(from.weight), sink_of(from.average), from.weight.numel(),
                            from.key.counted_stream(), w.blocks};
    w.blocks += static_cast<int32_t>(quad_blocks(from.weight.numel()));
    if (w.count == kMost) flush();
  }
  flush();
}

}  // namespace ulp::cuda
