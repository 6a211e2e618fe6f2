#include "kernels/cuda/quads.cuh"
#include "kernels/dropout.h"

namespace ulp::cuda {
namespace {

struct Work {
  Source in;
  Sink out;
  RandomKey mask;
  uint32_t threshold;
  float scale;
  Rounder output;
  int64_t n;
};

__global__ void __launch_bounds__(kThreads) dropout_kernel(const __grid_constant__ Work w) {
  const RandomSource random = w.output.random(), mask(w.mask);
  for_quads(w.n, [&](int64_t i, int count) {
    float x[kQuad];
    load_quad(w.in, i, count, x);
    const PhiloxWords words = mask.words(static_cast<uint64_t>(i) / kQuad);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[k] = drop::dropped(x[k], words.word[k], w.threshold, w.scale);
    round_quad(w.output, random, i, x);
    store_quad(w.out, i, count, x);
  });
}

}  // namespace

void dropout(Stream stream, const DropoutArgs& args) {
  check_dropout(stream, args);
  check_float("dropout", args.in);
  Work w{};
  w.in = source_of(args.in);
  w.out = sink_of(args.out);
  w.mask = args.mask;
  w.threshold = args.threshold;
  w.scale = static_cast<float>(args.scale);
  w.output = make_elementwise_rounder("dropout", stream.device, args.output, args.key);
  w.n = args.in.numel();
  launch("dropout", stream, quad_blocks(w.n), kThreads, dropout_kernel, w);
}

}  // namespace ulp::cuda
