// Masked softmax, one warp a row, which it holds where that is short enough (held_rows.cuh).

#include <type_traits>

#include "core/scalar_math.h"
#include "kernels/attention.h"
#include "kernels/cuda/held_rows.cuh"
#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/rows.cuh"

namespace ulp::cuda {
namespace {

struct Masked {
  Source scores;
  Visible visible;
  int64_t rows;  // B·T
  float scale, factor;
  Rounder score;
  InteriorRounder interior[3];
  bool rounds_interior;
  Sink out;
  Rounder output;
  Source grad;  // of the backward pass
  Rounder gradient;
  Sink kept;  // there, of p; no data: it is not wanted
  Rounder kept_output;
};

/// The backward pass makes again what the forward pass noted.
template <bool kBackward>
using Interior = std::conditional_t<kBackward, Rounder, InteriorRounder>;

/// p of the first n of `keys` elements, 0 for the others. keys is a multiple of four.
template <bool kBackward, int kQuads>
__device__ __forceinline__ void probabilities(const Masked& w, const RandomSource& score_random,
                                              const RandomSource (&random)[3], int64_t row, int n,
                                              int keys, float (&p)[kQuads][kQuad]) {
  const int64_t begin = row * keys;
  float most = -float_of(kInfinityBits);
  load_row(w.scores, begin, n, p);
  if (w.score.how != Rounder::How::Copy) round_row(w.score, score_random, begin, n, p);
  for_row_quads<kQuads>(n, [&](int q, int at) {
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
    for_row_quads<kQuads>(n, [&](int q, int at) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        if (at + k < n && p[q][k] == 0 && at + k < first) first = at + k, bits = bits_of(p[q][k]);
    });
    const int winner = __reduce_min_sync(kFullWarp, first);
    const unsigned owner = __ballot_sync(kFullWarp, first == winner);
    most = float_of(__shfl_sync(kFullWarp, bits, __ffs(static_cast<int>(owner)) - 1));
  }
  for_row_quads<kQuads>(n, [&](int q, int at) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) p[q][k] = at + k < n ? canonical(p[q][k] - most) : 0.0f;
  });
  if (w.rounds_interior) {
    if constexpr (!kBackward) note_row(w.interior[0], begin, n, keys, p);
    round_row(w.interior[0], random[0], begin, n, p);
  }
  for_row_quads<kQuads>(n, [&](int q, int at) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) p[q][k] = at + k < n ? exp_of(p[q][k]) : 0.0f;
  });
  if (w.rounds_interior) {
    if constexpr (!kBackward) note_row(w.interior[1], begin, n, keys, p);
    round_row(w.interior[1], random[1], begin, n, p);
  }
  for_row_quads<kQuads>(keys, [&](int q, int at) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      if (at + k >= n) p[q][k] = 0.0f;
  });
  float sum = row_sum(n, p);
  if (w.rounds_interior) {
    if constexpr (!kBackward) {
      if (n > 0)
        w.interior[2].note(row, sum);
      else
        w.interior[2].note_gap(row);
    }
    sum = round_one(w.interior[2], random[2], row, sum);
  }
  for_row_quads<kQuads>(n, [&](int q, int at) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      if (at + k < n) p[q][k] = canonical(p[q][k] / sum);
  });
}

/// A row's first n values times a factor.
template <int kQuads>
__device__ __forceinline__ void scale_row(float factor, int n, float (&x)[kQuads][kQuad]) {
  if (factor == 1) return;
  for_row_quads<kQuads>(n, [&](int q, int at) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      if (at + k < n) x[q][k] = canonical(x[q][k] * factor);
  });
}

template <int kQuads, bool kBackward>
__global__ void __launch_bounds__(kThreads) held_kernel(const __grid_constant__ Masked w) {
  const RandomSource score = w.score.random(), output = w.output.random(),
                     gradient = w.gradient.random(), kept = w.kept_output.random();
  RandomSource random[3];
  if (w.rounds_interior)
    for (int k = 0; k < 3; ++k) random[k] = w.interior[k].random();
  const int keys = static_cast<int>(w.visible.keys);
  for_rows({w.rows, keys}, [&](int64_t row) {
    const int n = static_cast<int>(w.visible(row));
    const int64_t begin = row * keys;
    float p[kQuads][kQuad];
    probabilities<kBackward>(w, score, random, row, n, keys, p);
    if constexpr (kBackward) {
      float g[kQuads][kQuad], products[kQuads][kQuad];
      load_row(w.grad, begin, n, g);
      if (w.gradient.how != Rounder::How::Copy) round_row(w.gradient, gradient, begin, n, g);
      for_row_quads<kQuads>(keys, [&](int q, int at) {
#pragma unroll
        for (int k = 0; k < kQuad; ++k) products[q][k] = at + k < n ? g[q][k] * p[q][k] : 0.0f;
      });
      const float sum = row_sum(n, products);
      for_row_quads<kQuads>(keys, [&](int q, int at) {
#pragma unroll
        for (int k = 0; k < kQuad; ++k)
          g[q][k] = at + k < n ? canonical(p[q][k] * (g[q][k] - sum) * w.scale) : 0.0f;
      });
      scale_row(w.factor, n, g);
      round_row(w.output, output, begin, keys, g);
      store_row(w.out, begin, keys, g);
      if (w.kept.data == nullptr) return;
      scale_row(w.factor, n, p);
      round_row(w.kept_output, kept, begin, keys, p);
      store_row(w.kept, begin, keys, p);
    } else {
      scale_row(w.factor, n, p);
      round_row(w.output, output, begin, keys, p);
      store_row(w.out, begin, keys, p);
    }
  });
}

/// Rows of any length, read again for each step.
template <bool kBackward>
__global__ void __launch_bounds__(kThreads) masked_kernel(const __grid_constant__ Masked w) {
  const RandomSource score_random = w.score.random(), output = w.output.random(),
                     gradient = w.gradient.random(), kept = w.kept_output.random();
  const RandomSource random[3] = {w.interior[0].random(), w.interior[1].random(),
                                  w.interior[2].random()};
  const Interior<kBackward>&difference = w.interior[0], &power = w.interior[1],
        &total_of = w.interior[2];
  const int64_t keys = w.visible.keys;
  for_rows({w.rows, keys}, [&](int64_t row) {
    const int64_t n = w.visible(row), begin = row * keys;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const auto z = [&](int64_t j) {
      return round_interior(w.score, score_random, begin + j,
                            load_one(w.scores.data, w.scores.dtype, begin + j)) *
             w.scale;
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
      const float d = round_interior(difference, random[0], begin + j, z(j) - most);
      return round_interior(power, random[1], begin + j, exp_of(d));
    };
    if (n > 0) {
      sum = warp_sum(n, e);
      sum = round_interior(total_of, random[2], row, sum);
    } else if constexpr (!kBackward) {
      total_of.note_gap(row);
    }
    const auto p = [&](int64_t j) { return canonical(e(j) / sum); };
    const auto g = [&](int64_t j) {
      return round_interior(w.gradient, gradient, begin + j,
                            load_one(w.grad.data, w.grad.dtype, begin + j));
    };
    float total = 0;
    if constexpr (kBackward)
      if (n > 0) total = warp_sum(n, [&](int64_t j) { return g(j) * p(j); });
    for (int64_t j = lane; j < keys; j += kWarp) {
      const auto times = [&](float x) { return w.factor == 1 ? x : canonical(x * w.factor); };
      float y = 0;
      if (j < n)
        y = p(j);
      else if constexpr (!kBackward)
        difference.note_gap(begin + j), power.note_gap(begin + j);
      if constexpr (kBackward) {
        if (w.kept.data != nullptr)
          store_one(w.kept.data, w.kept.dtype, begin + j,
                    round_interior(w.kept_output, kept, begin + j, times(y)));
        if (j < n) y = canonical(y * (g(j) - total) * w.scale);
      }
      y = times(y);
      store_one(w.out.data, w.out.dtype, begin + j, round_interior(w.output, output, begin + j, y));
    }
  });
}

__global__ void __launch_bounds__(kThreads)
    mask_kernel(Sink scores, const __grid_constant__ Visible visible, int64_t rows) {
  const int64_t keys = visible.keys;
  for_rows({rows, keys}, [&](int64_t row) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int64_t j = visible(row) + lane; j < keys; j += kWarp)
      store_one(scores.data, scores.dtype, row * keys + j, 0.0f);
  });
}

Masked masked_of(const char* kernel, Stream stream, const MaskedRows& r, const Tensor& out,
                 const Quantizer& output, const RandomKey& key, double factor,
                 const InteriorTrace& trace = {}) {
  check_float(kernel, r.scores);
  Masked w{};
  w.scores = source_of(r.scores);
  w.visible = Visible(r);
  w.rows = r.scores.size(0) * r.scores.size(1);
  w.scale = static_cast<float>(r.scale);
  w.factor = static_cast<float>(factor);
  w.score = make_elementwise_rounder(kernel, stream.device, r.score, r.score_key);
  make_interior(kernel, stream, r.interior, r.interior_key, trace, w.interior);
  w.rounds_interior = !r.interior.is_identity();
  w.out = sink_of(out);
  w.output = make_elementwise_rounder(kernel, stream.device, output, key);
  ULP_CHECK(w.visible.keys <= kWarpSumLimit, "{}: rows of at most {} elements, got {}", kernel,
            kWarpSumLimit, w.visible.keys);
  return w;
}

template <bool kBackward>
void launch_masked(const char* kernel, Stream stream, const Masked& w) {
  if (w.visible.keys == 0) return;
  constexpr int kFew = 2, kMany = 8;
  auto* function = masked_kernel<kBackward>;
  if (w.visible.keys % kQuad == 0 && w.scores.aligned && (!kBackward || w.grad.aligned)) {
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
  check_float(kName, args.rows.scores);
  if (args.rows.scores.numel() == 0) return;
  const Visible visible(args.rows);
  const Rows shape{args.rows.scores.size(0) * args.rows.scores.size(1), visible.keys};
  launch(kName, stream, row_blocks(shape), kThreads, mask_kernel, sink_of(args.rows.scores),
         visible, shape.rows);
}

void masked_softmax(Stream stream, const MaskedSoftmaxArgs& args) {
  check_masked_softmax(stream, args);
  launch_masked<false>("masked_softmax", stream,
                       masked_of("masked_softmax", stream, args.rows, args.out, args.output,
                                 args.key, args.factor, args.trace));
}

void masked_softmax_backward(Stream stream, const MaskedSoftmaxBackwardArgs& args) {
  constexpr const char* kName = "masked_softmax_backward";
  check_masked_softmax_backward(stream, args);
  Masked w = masked_of(kName, stream, args.rows, args.out, args.output, args.key, args.factor);
  w.grad = source_of(args.grad);
  if (args.p.defined()) {
    w.kept = sink_of(args.p);
    w.kept_output = make_elementwise_rounder(kName, stream.device, args.p_output, args.p_key);
  }
  w.gradient = make_elementwise_rounder(kName, stream.device, args.gradient, args.gradient_key);
  launch_masked<true>(kName, stream, w);
}

void batched_matmul(Stream stream, const BatchedMatmulArgs& args) {
  const BatchedExtents e = check_batched_matmul(stream, args);
  check_float("batched_matmul", args.a);
  if (args.out.numel() == 0) return;
  const auto view = [](const Tensor& t, bool turned, int64_t b) {
    const Tensor one = t.slice(0, b, b + 1).reshape({t.size(1), t.size(2)});
    return turned ? one.transpose(0, 1) : one;
  };
  MatmulArgs first;
  first.a = view(args.a, args.turn_a, 0);
  first.b = view(args.b, args.turn_b, 0);
  first.math = batched_math(args.math);
  first.fits_tf32 = args.fits_tf32;
  first.sums = args.sums;
  const UnitChoice choice = matrix_unit(first);
  const Outcome outcome{{}, {}, {}, args.out, args.output, {}, e.n, args.factor};
  const bool fast = is_fast(choice.unit) && e.k > 0;
  if (fast && fast_finishes(outcome, choice.unit) &&
      batched_fast(stream, args, choice, {written(args.out), args.out.dtype()}))
    return;
  const bool into_out = args.out.dtype() == DType::F32;
  const Tensor scratch =
      into_out ? args.out : Tensor::empty(args.out.shape(), DType::F32, stream.device);
  auto* const sums = static_cast<float*>(written(scratch));
  BatchedMatmulArgs plain = args;
  plain.factor = 1;
  if (!fast || !batched_fast(stream, plain, choice, {sums})) {
    for (int64_t b = 0; b < e.count; ++b) {
      MatmulArgs one;
      one.a = view(args.a, args.turn_a, b);
      one.b = view(args.b, args.turn_b, b);
      one.sums = args.sums;
      one.sums.matrix += b;
      const auto sum = one.sums.how.is_simulated() ? matmul_simulated : matmul_strict;
      sum(stream, one, sums + b * e.m * e.n);
    }
  }
  finish_product("batched_matmul", stream, outcome, sums);
}

}  // namespace ulp::cuda
