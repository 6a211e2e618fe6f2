// Masked softmax, one warp a row. Lane t keeps elements 4t … 4t + 3 of every 128, so that a row is read and written in quads and
// each draw of Philox serves one; the 64 lanes of core/sum.h are the quads of 16 threads.

#include "core/scalar_math.h"
#include "kernels/attention.h"
#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/quads.cuh"
#include "kernels/cuda/rows.cuh"

namespace ulp::cuda {
namespace {

constexpr int kRowStep = kWarp * kQuad;  // elements that a warp takes at once

struct Masked {
  const float* scores;
  Visible visible;
  int64_t rows;  // B·T
  float scale, factor;
  Rounder score, interior[3];
  bool rounds_interior;
  Sink out;
  Rounder output;
  const float* grad;  // of the backward pass
  Rounder gradient;
};

/// body(q, at): quad q of this lane begins with element `at` of the row.
template <int kQuads, class Body>
__device__ __forceinline__ void for_row_quads(int keys, const Body& body) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int q = 0; q < kQuads; ++q)
    if (q * kRowStep < keys) body(q, q * kRowStep + lane * kQuad);
}

/// The sum of a row's first n elements in the order of core/sum.h; those from n on must be +0. At most one chunk.
template <int kQuads>
__device__ __forceinline__ float row_sum(int n, const float (&x)[kQuads][kQuad]) {
  float sum[kQuad] = {};  // of threads 0 … 15: lanes 4t … 4t + 3
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    if (q * kRowStep >= n) break;
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      sum[k] += x[q][k];
      sum[k] += __shfl_down_sync(kFullWarp, x[q][k], 16);
    }
  }
#pragma unroll
  for (int step = 8; step > 0; step /= 2)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) sum[k] += __shfl_down_sync(kFullWarp, sum[k], step);
  return __shfl_sync(kFullWarp, (sum[0] + sum[2]) + (sum[1] + sum[3]), 0);
}

/// p of the first n of `keys` elements, 0 for the others. keys is a multiple of four.
template <int kQuads>
__device__ __forceinline__ void probabilities(const Masked& w, const RandomSource& score_random,
                                              const RandomSource (&random)[3], int64_t row, int n,
                                              int keys, float (&p)[kQuads][kQuad]) {
  const int64_t begin = row * keys;
  float most = -float_of(kInfinityBits);
#pragma unroll
  for (int q = 0; q < kQuads; ++q)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) p[q][k] = 0.0f;
  for_row_quads<kQuads>(keys, [&](int q, int at) {
    if (at >= n) return;
    const float4 in = *reinterpret_cast<const float4*>(w.scores + begin + at);
    p[q][0] = in.x, p[q][1] = in.y, p[q][2] = in.z, p[q][3] = in.w;
    if (w.score.how != Rounder::How::Copy) round_quad(w.score, score_random, begin + at, p[q]);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      p[q][k] = p[q][k] * w.scale;
      if (at + k < n) most = larger(most, p[q][k]);
    }
  });
#pragma unroll
  for (int lanes = 1; lanes < kWarp; lanes *= 2)
    most = larger(most, __shfl_xor_sync(kFullWarp, most, lanes));
  most = canonical(most);
  if (w.rounds_interior && most == 0) {  // the first zero's sign decides that of the differences
    int first = INT32_MAX;
    uint32_t bits = 0;
    for_row_quads<kQuads>(keys, [&](int q, int at) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        if (at + k < n && p[q][k] == 0 && at + k < first) first = at + k, bits = bits_of(p[q][k]);
    });
    const int winner = __reduce_min_sync(kFullWarp, first);
    const unsigned owner = __ballot_sync(kFullWarp, first == winner);
    most = float_of(__shfl_sync(kFullWarp, bits, __ffs(static_cast<int>(owner)) - 1));
  }
  for_row_quads<kQuads>(keys, [&](int q, int at) {
    if (at >= n) return;
#pragma unroll
    for (int k = 0; k < kQuad; ++k) p[q][k] = canonical(p[q][k] - most);
    if (w.rounds_interior) round_quad(w.interior[0], random[0], begin + at, p[q]);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) p[q][k] = exp_of(p[q][k]);
    if (w.rounds_interior) round_quad(w.interior[1], random[1], begin + at, p[q]);
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      if (at + k >= n) p[q][k] = 0.0f;
  });
  float sum = row_sum(n, p);
  if (w.rounds_interior) sum = round_one(w.interior[2], random[2], row, sum);
  for_row_quads<kQuads>(keys, [&](int q, int at) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      if (at + k < n) p[q][k] = canonical(p[q][k] / sum);
  });
}

template <int kQuads, bool kBackward>
__global__ void __launch_bounds__(kThreads) held_kernel(const __grid_constant__ Masked w) {
  const RandomSource score = w.score.random(), output = w.output.random(),
                     gradient = w.gradient.random();
  RandomSource random[3];
  if (w.rounds_interior)
    for (int k = 0; k < 3; ++k) random[k] = w.interior[k].random();
  const int keys = static_cast<int>(w.visible.keys);
  for_rows({w.rows, keys}, [&](int64_t row) {
    const int n = static_cast<int>(w.visible(row));
    const int64_t begin = row * keys;
    float p[kQuads][kQuad];
    probabilities(w, score, random, row, n, keys, p);
    if constexpr (kBackward) {
      float g[kQuads][kQuad] = {}, products[kQuads][kQuad] = {};
      for_row_quads<kQuads>(keys, [&](int q, int at) {
        if (at >= n) return;
        const float4 in = *reinterpret_cast<const float4*>(w.grad + begin + at);
        g[q][0] = in.x, g[q][1] = in.y, g[q][2] = in.z, g[q][3] = in.w;
        if (w.gradient.how != Rounder::How::Copy)
          round_quad(w.gradient, gradient, begin + at, g[q]);
#pragma unroll
        for (int k = 0; k < kQuad; ++k) products[q][k] = at + k < n ? g[q][k] * p[q][k] : 0.0f;
      });
      const float sum = row_sum(n, products);
      for_row_quads<kQuads>(keys, [&](int q, int at) {
#pragma unroll
        for (int k = 0; k < kQuad; ++k)
          if (at + k < n) p[q][k] = canonical(p[q][k] * (g[q][k] - sum) * w.scale);
      });
    }
    for_row_quads<kQuads>(keys, [&](int q, int at) {
      if (at >= keys) return;
      if (w.factor != 1) {
#pragma unroll
        for (int k = 0; k < kQuad; ++k)
          if (at + k < n) p[q][k] = canonical(p[q][k] * w.factor);
      }
      round_quad(w.output, output, begin + at, p[q]);
      store_quad(w.out, begin + at, kQuad, p[q]);
    });
  });
}

/// Rows of any length, read again for each step.
template <bool kBackward>
__global__ void __launch_bounds__(kThreads) masked_kernel(const __grid_constant__ Masked w) {
  const RandomSource score_random = w.score.random(), output = w.output.random(),
                     gradient = w.gradient.random();
  const RandomSource random[3] = {w.interior[0].random(), w.interior[1].random(),
                                  w.interior[2].random()};
  const int64_t keys = w.visible.keys;
  for_rows({w.rows, keys}, [&](int64_t row) {
    const int64_t n = w.visible(row), begin = row * keys;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const auto z = [&](int64_t j) {
      return round_interior(w.score, score_random, begin + j, w.scores[begin + j]) * w.scale;
    };
    float most = 0, sum = 0;
    if (n > 0) {
      float value = lane < n ? z(lane) : 0.0f;
      uint32_t index = static_cast<uint32_t>(lane);
      bool nan = value != value;
      for (int64_t j = lane + kWarp; j < n; j += kWarp) {
        const float x = z(j);
        nan = nan || x != x;
        if (x > value) value = x, index = static_cast<uint32_t>(j);
      }
      const Largest largest = largest_of(value, index, nan, lane < n);
      most = largest.nan ? float_of(kNanBits) : largest.value;
    }
    const auto e = [&](int64_t j) {
      const float d = round_interior(w.interior[0], random[0], begin + j, z(j) - most);
      return round_interior(w.interior[1], random[1], begin + j, exp_of(d));
    };
    if (n > 0) {
      sum = warp_sum(n, e);
      sum = round_interior(w.interior[2], random[2], row, sum);
    }
    const auto p = [&](int64_t j) { return canonical(e(j) / sum); };
    const auto g = [&](int64_t j) {
      return round_interior(w.gradient, gradient, begin + j, w.grad[begin + j]);
    };
    float total = 0;
    if constexpr (kBackward)
      if (n > 0) total = warp_sum(n, [&](int64_t j) { return g(j) * p(j); });
    for (int64_t j = lane; j < keys; j += kWarp) {
      float y = 0;
      if (j < n) {
        y = p(j);
        if constexpr (kBackward) y = canonical(y * (g(j) - total) * w.scale);
        if (w.factor != 1) y = canonical(y * w.factor);
      }
      store_one(w.out.data, w.out.dtype, begin + j, round_interior(w.output, output, begin + j, y));
    }
  });
}

__global__ void __launch_bounds__(kThreads)
    mask_kernel(float* __restrict__ scores, const __grid_constant__ Visible visible, int64_t rows) {
  const int64_t keys = visible.keys;
  for_rows({rows, keys}, [&](int64_t row) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int64_t j = visible(row) + lane; j < keys; j += kWarp) scores[row * keys + j] = 0.0f;
  });
}

Masked masked_of(const char* kernel, Stream stream, const MaskedRows& r, const Tensor& out,
                 const Quantizer& output, const RandomKey& key, double factor) {
  check_type(kernel, r.scores, DType::F32);
  Masked w{};
  w.scores = r.scores.data<float>();
  w.visible = Visible(r);
  w.rows = r.scores.size(0) * r.scores.size(1);
  w.scale = static_cast<float>(r.scale);
  w.factor = static_cast<float>(factor);
  w.score = make_elementwise_rounder(kernel, stream.device, r.score, r.score_key);
  RandomKey interior = r.interior_key;
  for (Rounder& rounder : w.interior) {
    rounder = make_elementwise_rounder(kernel, stream.device, r.interior, interior);
    ++interior.ordinal;
  }
  w.rounds_interior = !r.interior.is_identity();
  w.out = sink_of(out);
  w.output = make_elementwise_rounder(kernel, stream.device, output, key);
  ULP_CHECK(w.visible.keys <= kWarpSumLimit, "{}: rows of at most {} elements, got {}", kernel,
            kWarpSumLimit, w.visible.keys);
  return w;
}

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

template <bool kBackward>
void launch_masked(const char* kernel, Stream stream, const Masked& w) {
  if (w.visible.keys == 0) return;
  constexpr int kFew = 2, kMany = 8;
  auto* function = masked_kernel<kBackward>;
  if (w.visible.keys % kQuad == 0 && aligned(w.scores) && (!kBackward || aligned(w.grad))) {
    if (w.visible.keys <= kFew * kRowStep)
      function = held_kernel<kFew, kBackward>;
    else if (w.visible.keys <= kMany * kRowStep)
      function = held_kernel<kMany, kBackward>;
  }
  launch(kernel, stream, row_blocks({w.rows, w.visible.keys}), kThreads, function, w);
}

}  // namespace

void mask_scores(Stream stream, const MaskScoresArgs& args) {
  constexpr const char* kName = "mask_scores";
  check_mask_scores(stream, args);
  check_type(kName, args.rows.scores, DType::F32);
  if (args.rows.scores.numel() == 0) return;
  const Visible visible(args.rows);
  const Rows shape{args.rows.scores.size(0) * args.rows.scores.size(1), visible.keys};
  launch(kName, stream, row_blocks(shape), kThreads, mask_kernel,
         static_cast<float*>(written(args.rows.scores)), visible, shape.rows);
}

void masked_softmax(Stream stream, const MaskedSoftmaxArgs& args) {
  check_masked_softmax(stream, args);
  launch_masked<false>(
      "masked_softmax", stream,
      masked_of("masked_softmax", stream, args.rows, args.out, args.output, args.key, args.factor));
}

void masked_softmax_backward(Stream stream, const MaskedSoftmaxBackwardArgs& args) {
  constexpr const char* kName = "masked_softmax_backward";
  check_masked_softmax_backward(stream, args);
  Masked w = masked_of(kName, stream, args.rows, args.out, args.output, args.key, args.factor);
  w.grad = args.grad.data<float>();
  w.gradient = make_elementwise_rounder(kName, stream.device, args.gradient, args.gradient_key);
  launch_masked<true>(kName, stream, w);
}

void batched_matmul(Stream stream, const BatchedMatmulArgs& args) {
  const BatchedExtents e = check_batched_matmul(stream, args);
  check_float("batched_matmul", args.a);
  if (args.out.numel() == 0) return;
  auto* const sums = static_cast<float*>(written(args.out));
  const auto view = [](const Tensor& t, bool turned, int64_t b) {
    const Tensor one = t.slice(0, b, b + 1).reshape({t.size(1), t.size(2)});
    return turned ? one.transpose(0, 1) : one;
  };
  MatmulArgs first;
  first.a = view(args.a, args.turn_a, 0);
  first.b = view(args.b, args.turn_b, 0);
  first.math = args.math == Math::Fp8 ? Math::Fast : args.math;
  first.fits_tf32 = args.fits_tf32;
  const UnitChoice choice = matrix_unit(first);
  if (choice.unit != MatrixUnit::Strict && e.k > 0 && batched_fast(stream, args, choice, sums))
    return;
  for (int64_t b = 0; b < e.count; ++b) {
    MatmulArgs one;
    one.a = view(args.a, args.turn_a, b);
    one.b = view(args.b, args.turn_b, b);
    matmul_strict(stream, one, sums + b * e.m * e.n);
  }
  finish_product("batched_matmul", stream, {{}, {}, {}, args.out, {}, {}, e.n, args.factor}, sums);
}

}  // namespace ulp::cuda
