#include "kernels/cuda/quads.cuh"
#include "kernels/functors.h"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

using kernels::Reach;
constexpr int kMostInputs = 3;

struct Work {
  Source in[kMostInputs];
  Reach reach[kMostInputs];
  int64_t columns;  // of rows
  Sink out;
  Rounder rounder;
  float alpha;
  int64_t n;
};

template <class Functor, int kInputs>
__device__ __forceinline__ float call(float a, float b, float c, float alpha) {
  if constexpr (kInputs == 1)
    return Functor{}(a, alpha);
  else if constexpr (kInputs == 2)
    return Functor{}(a, b, alpha);
  else
    return Functor{}(a, b, c, alpha);
}

/// Element i + k of rows that are all the same; loaded out of line unless quads lie in rows.
__device__ __forceinline__ void load_row(const Source& row, int64_t columns, int64_t i, int count,
                                         float (&values)[kQuad]) {
  const int64_t at = i <= UINT32_MAX && columns <= UINT32_MAX
                         ? static_cast<uint32_t>(i) % static_cast<uint32_t>(columns)
                         : i % columns;
  if (columns % kQuad == 0) return load_quad(row, at, count, values);
#pragma unroll
  for (int k = 0; k < kQuad; ++k)
    values[k] = k < count ? load_one(row.data, row.dtype, (at + k) % columns) : 0.0f;
}

__device__ __forceinline__ void load_input(const Source& in, Reach reach, int64_t columns,
                                           int64_t i, int count, float (&values)[kQuad]) {
  if (reach == Reach::All) return load_quad(in, i, count, values);
  if (reach == Reach::Row) return load_row(in, columns, i, count, values);
  const float value = load_one(in.data, in.dtype, 0);
#pragma unroll
  for (int k = 0; k < kQuad; ++k) values[k] = value;
}

template <class Functor, int kInputs>
__global__ void __launch_bounds__(kThreads) elementwise_kernel(const __grid_constant__ Work w) {
  const RandomSource random = w.rounder.random();
  for_quads(w.n, [&](int64_t i, int count) {
    float x[kMostInputs][kQuad] = {};
#pragma unroll
    for (int k = 0; k < kInputs; ++k) load_input(w.in[k], w.reach[k], w.columns, i, count, x[k]);
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      x[0][k] = call<Functor, kInputs>(x[0][k], x[1][k], x[2][k], w.alpha);
    round_quad(w.rounder, random, i, x[0]);
    store_quad(w.out, i, count, x[0]);
  });
}

template <class Functor, int kInputs>
void run(const char* name, Stream stream, const ElementwiseArgs& args) {
  check_kernel_tensor(name, stream, args.out, args.out.shape());
  check_output(name, args.out, args.output);
  Work w{};
  w.n = args.out.numel();
  w.alpha = static_cast<float>(args.alpha);
  w.rounder = make_elementwise_rounder(name, stream.device, args.output, args.key);
  for (size_t k = 0; k < kInputs; ++k) {
    const Tensor& in = args.in[k];
    ULP_CHECK(in.defined(), "{}: input {} is missing", name, k);
    w.reach[k] = kernels::reach_of(name, stream, in, args.out);
    if (w.reach[k] == Reach::Row) w.columns = in.numel();
    check_no_f64(name, in);
    w.in[k] = source_of(in);
  }
  w.out = sink_of(args.out);
  launch(name, stream, quad_blocks(w.n), kThreads, elementwise_kernel<Functor, kInputs>, w);
}

}  // namespace

#define ULP_DEFINE(name, Functor, inputs)                 \
  void name(Stream stream, const ElementwiseArgs& args) { \
    run<functors::Functor, inputs>(#name, stream, args);  \
  }
ULP_ELEMENTWISE_KERNELS(ULP_DEFINE)

}  // namespace ulp::cuda
