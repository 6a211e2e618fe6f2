#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/quads.cuh"
#include "kernels/norm_math.h"

// Norms element by element, whose statistics are there.
namespace ulp::cuda {
namespace {

struct ApplyWork : NormInput, NormOutput {
  Statistics statistics;
  const float *sum_grad, *sum_product;  // null: the statistics do not depend on x
  bool sums_aligned;
  float share;  // 1 / R
  InteriorRounder normal;
  int64_t n;
};

/// p's numbers of four neighbours' channels.
__device__ __forceinline__ void load_channels(const Channels& p, Place place, uint32_t channels,
                                              float (&v)[kQuad]) {
  if (p.source.data != nullptr && p.source.aligned && channels % kQuad == 0)
    return load_quad(p.source, place.channel, v);
#pragma unroll
  for (int k = 0; k < kQuad; ++k, place.next(channels)) v[k] = p.at(place.channel);
}

__device__ __forceinline__ void load_statistics(const Statistics& s, Place place,
                                                float (&mean)[kQuad], float (&inverse)[kQuad]) {
  const Layout& layout = s.layout;
  if (layout.per_channel && s.aligned && layout.channels % kQuad == 0) {
    const float4 m =
        s.mean == nullptr ? float4{} : *reinterpret_cast<const float4*>(s.mean + place.channel);
    const float4 r = *reinterpret_cast<const float4*>(s.inverse + place.channel);
    mean[0] = m.x, mean[1] = m.y, mean[2] = m.z, mean[3] = m.w;
    inverse[0] = r.x, inverse[1] = r.y, inverse[2] = r.z, inverse[3] = r.w;
    return;
  }
  if (!layout.per_channel && layout.width % kQuad == 0) {  // a quad lies in one group
    const int64_t at = layout.statistic(place.row, place.channel);
    const float m = s.mean_of(at), r = s.inverse[at];
#pragma unroll
    for (int k = 0; k < kQuad; ++k) mean[k] = m, inverse[k] = r;
    return;
  }
#pragma unroll
  for (int k = 0; k < kQuad; ++k, place.next(layout.channels)) {
    const bool there = place.row < layout.rows;  // quads may reach beyond the last row
    const int64_t at = there ? layout.statistic(place.row, place.channel) : 0;
    mean[k] = s.mean_of(at), inverse[k] = s.inverse[at];
  }
}

/// x̂ of a quad, of which there are `count` elements.
__device__ __forceinline__ void normalise_quad(const ApplyWork& w, const RandomSource& random,
                                               int64_t i, int count, const float (&mean)[kQuad],
                                               const float (&inverse)[kQuad], float (&x)[kQuad]) {
#pragma unroll
  for (int k = 0; k < kQuad; ++k) x[k] = norms::normalised(x[k], mean[k], inverse[k]);
  if (w.normal.how == Rounder::How::Copy) return;
  if (w.normal.met != nullptr)
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      if (k < count) w.normal.note(i + k, x[k]);
  round_quad(w.normal, random, i, x);
}

__global__ void __launch_bounds__(kThreads) apply_kernel(const __grid_constant__ ApplyWork w) {
  const RandomSource random = w.output.random(), random_normal = w.normal.random();
  const uint32_t channels = w.statistics.layout.channels;
  for_quads(w.n, [&](int64_t i, int count) {
    float x[kQuad], mean[kQuad], inverse[kQuad];
    load_quad(w.x, i, count, x);
    const Place place = place_of(i, channels);
    load_statistics(w.statistics, place, mean, inverse);
    normalise_quad(w, random_normal, i, count, mean, inverse, x);
    if (w.affine) {
      float weight[kQuad], bias[kQuad];
      load_channels(w.weight, place, channels, weight);
      load_channels(w.bias, place, channels, bias);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) x[k] = norms::scaled(x[k], weight[k], bias[k]);
    }
    round_quad(w.output, random, i, x);
    store_quad(w.out, i, count, x);
  });
}

__device__ __forceinline__ void load_sums(const float* sums, bool aligned, Place place,
                                          uint32_t channels, float (&v)[kQuad]) {
  if (aligned && channels % kQuad == 0) {
    const float4 four = *reinterpret_cast<const float4*>(sums + place.channel);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    return;
  }
#pragma unroll
  for (int k = 0; k < kQuad; ++k, place.next(channels)) v[k] = sums[place.channel];
}

__global__ void __launch_bounds__(kThreads)
    batch_norm_backward_kernel(const __grid_constant__ ApplyWork w) {
  const RandomSource random = w.output.random(), random_normal = w.normal.random();
  const uint32_t channels = w.statistics.layout.channels;
  for_quads(w.n, [&](int64_t i, int count) {
    float x[kQuad] = {}, g[kQuad], mean[kQuad], inverse[kQuad], factor[kQuad];
    load_quad(w.grad, i, count, g);
    if (w.sum_grad != nullptr) load_quad(w.x, i, count, x);
    const Place place = place_of(i, channels);
    load_statistics(w.statistics, place, mean, inverse);
    load_channels(w.weight, place, channels, factor);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) factor[k] = factor[k] * inverse[k];
    if (w.sum_grad != nullptr) {
      float mean_g[kQuad], mean_gx[kQuad];
      load_sums(w.sum_grad, w.sums_aligned, place, channels, mean_g);
      load_sums(w.sum_product, w.sums_aligned, place, channels, mean_gx);
      normalise_quad(w, random_normal, i, count, mean, inverse, x);
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        g[k] =
            norms::input_gradient(g[k], x[k], mean_g[k] * w.share, mean_gx[k] * w.share, factor[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) g[k] = g[k] * factor[k];
    }
    round_quad(w.output, random, i, g);
    store_quad(w.out, i, count, g);
  });
}

template <class Args>
ApplyWork apply_work(const char* kernel, Stream stream, const Args& args,
                     const NormLayout& layout) {
  auto w = norm_work<ApplyWork>(kernel, stream, args);
  w.statistics = statistics_of(kernel, args.mean, args.inverse_deviation, layout);
  w.normal = interior_of(kernel, stream, args.interior).at[3];
  w.n = args.x.numel();
  return w;
}

}  // namespace

void norm_apply(Stream stream, const NormApplyArgs& args) {
  constexpr const char* kName = "norm_apply";
  check_norm_apply(stream, args);
  const ApplyWork w = apply_work(kName, stream, args, args.layout);
  launch(kName, stream, quad_blocks(w.n), kThreads, apply_kernel, w);
}

void batch_norm_backward(Stream stream, const BatchNormBackwardArgs& args) {
  constexpr const char* kName = "batch_norm_backward";
  check_batch_norm_backward(stream, args);
  ApplyWork w = apply_work(kName, stream, args, batch_layout(args.x));
  w.sum_grad = floats_of(args.sum_grad);
  w.sum_product = floats_of(args.sum_product);
  w.sums_aligned = aligned_floats(args.sum_grad) && aligned_floats(args.sum_product);
  w.share = static_cast<float>(1.0 / static_cast<double>(std::max<int64_t>(1, args.x.size(0))));
  launch(kName, stream, quad_blocks(w.n), kThreads, batch_norm_backward_kernel, w);
}

}  // namespace ulp::cuda
