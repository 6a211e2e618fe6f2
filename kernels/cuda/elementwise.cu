#include "kernels/cuda/quads.cuh"
#include "kernels/functors.h"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

struct Work {
  Source in[2];
  bool single[2];  // a one-element input serves every element
  Sink out;
  Rounder rounder;
  float alpha;
  int64_t n;
};

template <class Functor, int kInputs>
__device__ __forceinline__ float call(float a, float b, float alpha) {
  if constexpr (kInputs == 1)
    return Functor{}(a, alpha);
  else
    return Functor{}(a, b, alpha);
}

__device__ __forceinline__ void load_input(const Source& in, bool single, int64_t i, int count,
                                           float (&values)[kQuad]) {
  if (!single) return load_quad(in, i, count, values);
  const float value = load_one(in.data, in.dtype, 0);
#pragma unroll
  for (int k = 0; k < kQuad; ++k) values[k] = value;
}

template <class Functor, int kInputs>
__global__ void __launch_bounds__(kThreads) elementwise_kernel(const __grid_constant__ Work w) {
  const RandomSource random = w.rounder.random();
  for_quads(w.n, [&](int64_t i, int count) {
    float a[kQuad], b[kQuad] = {};
    load_input(w.in[0], w.single[0], i, count, a);
    if constexpr (kInputs == 2) load_input(w.in[1], w.single[1], i, count, b);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) a[k] = call<Functor, kInputs>(a[k], b[k], w.alpha);
    round_quad(w.rounder, random, i, a);
    store_quad(w.out, i, count, a);
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
    w.single[k] = in.numel() == 1;
    check_kernel_tensor(name, stream, in, w.single[k] ? in.shape() : args.out.shape());
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
