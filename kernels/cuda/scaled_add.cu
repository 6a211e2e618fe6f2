#include "kernels/cuda/rounder.cuh"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

/// One number for each row of the operand, at the current k.
struct FactorColumn {
  const float* values;
  int64_t rows, stride;
  __device__ float at(int64_t row) const {
    return values == nullptr ? 1.0f : values[row / rows * stride];
  }
};

FactorColumn column_of(const Factors& f, int64_t k, int64_t depth) {
  if (!f.values.defined()) return {nullptr, 1, 0};
  return {f.values.data<float>() + k / f.columns, f.rows, (depth + f.columns - 1) / f.columns};
}

struct Work {
  Source sums, bias;
  Sink out;
  FactorColumn a, b;
  int64_t n, columns;
  bool first;
  float factor;
  Rounder rounder;
};

__global__ void __launch_bounds__(kThreads) scaled_add_kernel(Work w) {
  const RandomSource random = w.rounder.random();
  for_packs(w.n, [&](int64_t i, int count) {
    float sums[kPack], values[kPack] = {};
    load_pack(w.sums, i, count, sums);
    if (!w.first) load_pack(w.out.source(), i, count, values);
    for (int k = 0; k < count; ++k) {
      const int64_t row = (i + k) / w.columns, column = (i + k) % w.columns;
      values[k] = canonical(__fmaf_rn(sums[k], w.a.at(row) * w.b.at(column) * w.factor, values[k]));
      if (w.bias.data != nullptr)
        values[k] = canonical(values[k] + load_as_float(w.bias.data, w.bias.dtype, column));
    }
    round_pack(w.rounder, random, i, values);
    store_pack(w.out, i, count, values);
  });
}

}  // namespace

void scaled_add(Stream stream, const ScaledAddArgs& args) {
  check_scaled_add(stream, args);
  Work w{};
  w.sums = source_of(args.sums);
  w.out = sink_of(args.out);
  w.a = column_of(args.a_factors, args.k, args.depth);
  w.b = column_of(args.b_factors, args.k, args.depth);
  w.columns = args.out.size(1);
  w.n = args.out.numel();
  w.first = args.first;
  w.factor = static_cast<float>(args.factor);
  if (args.last && args.bias.defined()) w.bias = source_of(args.bias);
  if (args.last)
    w.rounder = make_elementwise_rounder("scaled_add", stream.device, args.output, args.key);
  launch("scaled_add", stream, pack_blocks(w.n), kThreads, scaled_add_kernel, w);
}

}  // namespace ulp::cuda
