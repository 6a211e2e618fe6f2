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

/// Where a thread's next quad lies in rows that are all the same. One division, then additions.
struct Column {
  int64_t at, step, columns;

  __device__ Column(int64_t row_length) : at(0), step(quad_step()), columns(row_length) {
    if (columns == 0) return;
    at = first_quad() % columns;
    step %= columns;
  }
  __device__ __forceinline__ void next() {
    at += step;
    if (at >= columns) at -= columns;
  }
};

__device__ __forceinline__ void load_input(const Source& in, Reach reach, const Column& column,
                                           int64_t i, int count, float (&values)[kQuad]) {
  if (reach == Reach::All) return load_quad(in, i, count, values);
  if (reach == Reach::Row && column.columns % kQuad == 0)
    return load_quad(in, column.at, count, values);
#pragma unroll
  for (int k = 0; k < kQuad; ++k)
    values[k] = reach == Reach::One ? load_one(in.data, in.dtype, 0)
                : k < count         ? load_one(in.data, in.dtype, (column.at + k) % column.columns)
                                    : 0.0f;
}

template <class Functor, int kInputs>
__global__ void __launch_bounds__(kThreads) elementwise_kernel(const __grid_constant__ Work w) {
  const RandomSource random = w.rounder.random();
  Column column(w.columns);
  float next[kInputs][kQuad];
  const auto load = [&](int64_t i) {
    const int count = quad_count(i, w.n);
    if (count == 0) return;
#pragma unroll
    for (int k = 0; k < kInputs; ++k) load_input(w.in[k], w.reach[k], column, i, count, next[k]);
    column.next();
  };
  load(first_quad());
  for_quads(w.n, [&](int64_t i, int count) {
    float x[kMostInputs][kQuad] = {};
#pragma unroll
    for (int k = 0; k < kInputs; ++k)
#pragma unroll
      for (int e = 0; e < kQuad; ++e) x[k][e] = next[k][e];
    load(i + quad_step());  // while this one is worked on
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
