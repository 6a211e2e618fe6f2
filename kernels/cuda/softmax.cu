#include <array>

#include "core/divisor.h"
#include "core/scalar_math.h"
#include "kernels/activations.h"
#include "kernels/cuda/rows.cuh"

namespace ulp::cuda {
namespace {

/// A softmax of rows, or its logarithm.
struct Softmax {
  const float* in;
  float* out;
  Rows shape;
  InteriorRounder interior[4];  // of the difference, its exp, the sum, its logarithm
  const int32_t* labels;        // null: no losses are wanted, as of a softmax
  float* losses;
};

/// The draws of an interior. kRound: there is a format.
template <bool kRound>
struct Draws {
  const Softmax& w;
  RandomSource random[4];

  __device__ explicit Draws(const Softmax& of) : w(of) {
    if (kRound)
      for (int k = 0; k < 4; ++k) random[k] = w.interior[k].random();
  }
  __device__ __forceinline__ float round(int which, int64_t i, float value) const {
    return kRound ? round_interior(w.interior[which], random[which], i, value) : value;
  }
};

/// The label of a row, −1 without one. One of no class counts as none and makes the loss NaN.
__device__ __forceinline__ int label_of(const Softmax& w, int64_t row) {
  if (w.labels == nullptr) return -1;
  const int label = w.labels[row];
  if (label >= 0 && label < w.shape.columns) return label;
  w.losses[row] = float_of(kNanBits);
  return -1;
}

/// Rows of any length, read again for each step.
template <bool kLog>
__global__ void __launch_bounds__(kThreads) softmax_kernel(const __grid_constant__ Softmax w) {
  const Draws<true> draws(w);
  for_rows(w.shape, [&](int64_t row) {
    const int64_t columns = w.shape.columns, begin = row * columns;
    const float* x = w.in + begin;
    const Largest largest = first_largest(x, columns);
    const float most = largest.nan ? float_of(kNanBits) : largest.value;
    const auto difference = [&](int64_t j) { return draws.round(0, begin + j, x[j] - most); };
    const auto exp = [&](int64_t j) { return draws.round(1, begin + j, exp_of(difference(j))); };
    const float sum = draws.round(2, row, warp_sum(columns, exp));
    const float log = kLog ? draws.round(3, row, log_of(sum)) : 0.0f;
    const int label = kLog ? label_of(w, row) : -1;
    for (int64_t j = threadIdx.x % kWarp; j < columns; j += kWarp) {
      const float y = canonical(kLog ? difference(j) - log : exp(j) / sum);
      w.out[begin + j] = y;
      if (kLog && j == label) w.losses[row] = canonical(-y);
    }
  });
}

// Rows of at most 32·kHeld elements, which a warp reads once and holds: element j·32 + t is number j of thread t.

/// Calls body(j, at, there) for this thread's elements of a row: at = j·32 + lane.
template <int kHeld, class Body>
__device__ __forceinline__ void for_held(int columns, const Body& body) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) body(j, j * kWarp + lane, j * kWarp + lane < columns);
}

/// own: the row's element of this lane's number. `none` stands where there are no more.
template <int kHeld>
__device__ __forceinline__ void load_held(const float* own, int columns, float none,
                                          float (&x)[kHeld]) {
  for_held<kHeld>(columns, [&](int j, int, bool there) { x[j] = there ? own[j * kWarp] : none; });
}

/// The largest element, canonical; −Inf stands where there are no more. Of +0 and −0 the first one counts if kFirstZero, else
/// either may come. That does not matter without an interior format: where a row holds both, its sum of exps is at least 2 and
/// no logarithm a zero.
template <bool kFirstZero, int kHeld>
__device__ __forceinline__ float largest_held(int columns, const float (&x)[kHeld]) {
  float most = -float_of(kInfinityBits);
#pragma unroll
  for (int j = 0; j < kHeld; ++j) most = larger(most, x[j]);
#pragma unroll
  for (int lanes = 1; lanes < kWarp; lanes *= 2)
    most = larger(most, __shfl_xor_sync(kFullWarp, most, lanes));
  most = canonical(most);
  if (kFirstZero && most == 0) {
    int first = kHeld * kWarp;
    for_held<kHeld>(columns, [&](int j, int at, bool there) {
      if (there && x[j] == 0 && first > at) first = at, most = x[j];
    });
    const auto of_all = __reduce_min_sync(kFullWarp, static_cast<uint32_t>(first));
    most = __shfl_sync(kFullWarp, most, static_cast<int>(of_all % kWarp));
  }
  return most;
}

/// The sum of value(j, there) over a row in the order of warp_sum_chunk; +0 where there are no more, which changes no sum.
template <int kHeld, class Value>
__device__ __forceinline__ float sum_held(int columns, const Value& value) {
  float sums[2] = {};  // of lanes t and t + 32
  for_held<kHeld>(columns, [&](int j, int, bool there) { sums[j % 2] += value(j, there); });
  return warp_sum_lanes(sums[0], sums[1]);
}

template <bool kLog, int kHeld, bool kRound>
__global__ void __launch_bounds__(kThreads, kRound ? 1 : 3)
    softmax_held_kernel(const __grid_constant__ Softmax w) {
  const Draws<kRound> draws(w);
  const int columns = static_cast<int>(w.shape.columns);
  for_rows(w.shape, [&](int64_t row) {
    const int64_t own = row * columns + threadIdx.x % kWarp;
    float* out = w.out + own;
    const int label = kLog ? label_of(w, row) : -1;
    float x[kHeld];
    load_held(w.in + own, columns, -float_of(kInfinityBits), x);
    const float most = largest_held<kRound>(columns, x);
    uint32_t least = UINT32_MAX;  // of the exps that are not 0; their bits less 1
    float sum = sum_held<kHeld>(columns, [&](int j, bool there) {
      if (kRound && !there) return 0.0f;
      const int64_t i = own + j * kWarp;
      const float difference = draws.round(0, i, x[j] - most);
      const float exp = draws.round(1, i, exp_of(difference));  // of −Inf 0
      if (!kLog && !kRound) least = min(least, bits_of(exp) - 1);
      x[j] = kLog ? difference : exp;
      return exp;
    });
    sum = draws.round(2, row, sum);
    if (!kLog && !kRound &&
        __all_sync(kFullWarp, sum >= 1 && least >= bits_of(kLeastDividend) - 1)) {  // no NaN
      const Divisor divisor(sum);
      for_held<kHeld>(columns, [&](int j, int, bool there) {
        if (there) out[j * kWarp] = divisor.quotient_of(x[j]);
      });
      return;
    }
    if (!kLog && !kRound) {
      const WideDivisor divisor(sum);
      for_held<kHeld>(columns, [&](int j, int, bool there) {
        if (there) out[j * kWarp] = canonical(divisor.quotient_of(x[j]));
      });
      return;
    }
    const float log = kLog ? draws.round(3, row, log_of(sum)) : 0.0f;
    for_held<kHeld>(columns, [&](int j, int at, bool there) {
      const float y = canonical(kLog ? x[j] - log : x[j] / sum);
      if (there) out[j * kWarp] = y;
      if (kLog && at == label) w.losses[row] = canonical(-y);
    });
  });
}

/// Rows of any length, read twice.
template <bool kLog>
__global__ void __launch_bounds__(kThreads)
    softmax_backward_kernel(const float* grad, const float* y, float* out, Rows shape) {
  for_rows(shape, [&](int64_t row) {
    const int64_t begin = row * shape.columns;
    const float sum = warp_sum(shape.columns, [&](int64_t j) {
      return kLog ? grad[begin + j] : grad[begin + j] * y[begin + j];
    });
    for (int64_t j = begin + threadIdx.x % kWarp; j < begin + shape.columns; j += kWarp)
      out[j] = canonical(kLog ? grad[j] - exp_of(y[j]) * sum : y[j] * (grad[j] - sum));
  });
}

template <int kHeld>
__global__ void __launch_bounds__(kThreads, 2)
    softmax_backward_held_kernel(const float* grad, const float* y, float* out, Rows shape) {
  const int columns = static_cast<int>(shape.columns);
  for_rows(shape, [&](int64_t row) {
    const int64_t own = row * columns + threadIdx.x % kWarp;
    float g[kHeld], p[kHeld];
    load_held(grad + own, columns, 0.0f, g);
    load_held(y + own, columns, 0.0f, p);
    const float sum = sum_held<kHeld>(columns, [&](int j, bool) { return g[j] * p[j]; });
    for_held<kHeld>(columns, [&](int j, int, bool there) {
      if (there) (out + own)[j * kWarp] = canonical(p[j] * (g[j] - sum));
    });
  });
}

/// Holds the gradients; y is read when their sum is known.
template <int kHeld>
__global__ void __launch_bounds__(kThreads, 4)
    log_softmax_backward_held_kernel(const float* grad, const float* y, float* out, Rows shape) {
  const int columns = static_cast<int>(shape.columns);
  for_rows(shape, [&](int64_t row) {
    const int64_t own = row * columns + threadIdx.x % kWarp;
    float g[kHeld];
    load_held(grad + own, columns, 0.0f, g);
    const float sum = sum_held<kHeld>(columns, [&](int j, bool) { return g[j]; });
    constexpr int kAtOnce = kHeld < 8 ? kHeld : 8;  // loads that wait together
#pragma unroll
    for (int first = 0; first < kHeld; first += kAtOnce) {
      const int left = columns - static_cast<int>(threadIdx.x) % kWarp - first * kWarp;
      float p[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        p[j] = j * kWarp < left ? (y + own)[(first + j) * kWarp] : 0.0f;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float dx = canonical(g[first + j] - exp_of(p[j]) * sum);
        if (j * kWarp < left) (out + own)[(first + j) * kWarp] = dx;
      }
    }
  });
}

__global__ void __launch_bounds__(kThreads)
    cross_entropy_backward_kernel(const float* log_probs, const int32_t* labels, const float* grad,
                                  float alpha, float* out, Rows shape) {
  constexpr int kAtOnce = 8;  // loads that wait together
  const float factor = grad[0] * alpha;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for_rows(shape, [&](int64_t row) {
    const int64_t begin = row * shape.columns, label = labels[row];
    for (int64_t first = lane; first < shape.columns; first += kAtOnce * kWarp) {
      float y[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (first + j * kWarp < shape.columns) y[j] = log_probs[begin + first + j * kWarp];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int64_t at = first + j * kWarp;
        if (at >= shape.columns) break;
        out[begin + at] = canonical((exp_of(y[j]) - (at == label ? 1.0f : 0.0f)) * factor);
      }
    }
  });
}

/// `correct` grows by atomic additions of integers, everything else is one thread's.
__global__ void __launch_bounds__(kThreads)
    tally_kernel(const float* loss, const float* logits, const int32_t* labels, ScoreTotals* totals,
                 Rows shape) {
  uint32_t correct = 0;
  for_rows(shape, [&](int64_t row) {
    const int32_t label = labels[row];
    const Largest largest = first_largest(logits + row * shape.columns, shape.columns);
    correct += !largest.nan && largest.index == static_cast<uint32_t>(label) ? 1u : 0u;
  });
  if (threadIdx.x % kWarp == 0 && correct != 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(&totals->correct), correct);
  if (blockIdx.x == 0 && threadIdx.x == 0) add_batch(*totals, *loss, shape.rows);
}

}  // namespace

namespace {

/// Rows of up to 32, 128 and, if nothing rounds, 1024 elements are held.
template <bool kLog>
void launch_softmax(const char* name, Stream stream, const Softmax& w, bool rounds) {
  auto* kernel = softmax_kernel<kLog>;
  if (w.shape.columns <= kWarp)
    kernel = rounds ? softmax_held_kernel<kLog, 1, true> : softmax_held_kernel<kLog, 1, false>;
  else if (w.shape.columns <= 4 * kWarp)
    kernel = rounds ? softmax_held_kernel<kLog, 4, true> : softmax_held_kernel<kLog, 4, false>;
  else if (w.shape.columns <= 32 * kWarp && !rounds)
    kernel = softmax_held_kernel<kLog, 32, false>;
  launch(name, stream, row_blocks(w.shape), kThreads, kernel, w);
}

/// What both have of Args; its draws are so many.
template <class Args>
Softmax check_softmax(const char* name, Stream stream, const Args& args, size_t draws) {
  Softmax w{};
  w.shape = check_matrix(name, stream, args.in);
  check_like(name, stream, args.out, args.in.shape());
  check_row_length(name, w.shape);
  w.in = args.in.template data<float>();
  w.out = static_cast<float*>(written(args.out));
  check_softmax_trace(name, stream, args.trace, args.in, draws);
  make_interior(name, stream, args.interior, args.key, args.trace, w.interior);
  return w;
}

/// kernels: for rows of up to 32, 128, 1024 elements and any.
template <class Args, class Kernel>
void launch_backward(const char* name, Stream stream, const Args& args,
                     const std::array<Kernel*, 4>& kernels) {
  const Rows shape = check_matrix(name, stream, args.y);
  check_like(name, stream, args.grad, args.y.shape());
  check_like(name, stream, args.out, args.y.shape());
  check_row_length(name, shape);
  const size_t which = shape.columns <= kWarp        ? 0
                       : shape.columns <= 4 * kWarp  ? 1
                       : shape.columns <= 32 * kWarp ? 2
                                                     : 3;
  launch(name, stream, row_blocks(shape), kThreads, kernels[which],
         args.grad.template data<float>(), args.y.template data<float>(),
         static_cast<float*>(written(args.out)), shape);
}

}  // namespace

void softmax(Stream stream, const SoftmaxArgs& args) {
  launch_softmax<false>("softmax", stream, check_softmax("softmax", stream, args, 3),
                        !args.interior.is_identity());
}

void softmax_backward(Stream stream, const SoftmaxBackwardArgs& args) {
  launch_backward("softmax_backward", stream, args,
                  std::array{softmax_backward_held_kernel<1>, softmax_backward_held_kernel<4>,
                             softmax_backward_held_kernel<32>, softmax_backward_kernel<false>});
}

void log_softmax(Stream stream, const LogSoftmaxArgs& args) {
  Softmax w = check_softmax("log_softmax", stream, args, 4);
  if (args.losses.defined()) {
    check_like("log_softmax", stream, args.labels, {w.shape.rows}, DType::I32);
    check_like("log_softmax", stream, args.losses, {w.shape.rows});
    w.labels = args.labels.data<int32_t>();
    w.losses = static_cast<float*>(written(args.losses));
  }
  launch_softmax<true>("log_softmax", stream, w, !args.interior.is_identity());
}

void log_softmax_backward(Stream stream, const LogSoftmaxBackwardArgs& args) {
  launch_backward(
      "log_softmax_backward", stream, args,
      std::array{log_softmax_backward_held_kernel<1>, log_softmax_backward_held_kernel<4>,
                 log_softmax_backward_held_kernel<32>, softmax_backward_kernel<true>});
}

void cross_entropy_backward(Stream stream, const CrossEntropyBackwardArgs& args) {
  const Rows shape = check_matrix("cross_entropy_backward", stream, args.log_probs);
  check_like("cross_entropy_backward", stream, args.labels, {shape.rows}, DType::I32);
  check_like("cross_entropy_backward", stream, args.out, args.log_probs.shape());
  ULP_CHECK(args.grad.defined() && args.grad.numel() == 1,
            "cross_entropy_backward: the loss gradient must be one value");
  check_like("cross_entropy_backward", stream, args.grad, args.grad.shape());
  launch("cross_entropy_backward", stream, row_blocks(shape), kThreads,
         cross_entropy_backward_kernel, args.log_probs.data<float>(), args.labels.data<int32_t>(),
         args.grad.data<float>(), static_cast<float>(args.alpha),
         static_cast<float*>(written(args.out)), shape);
}

void tally(Stream stream, const TallyArgs& args) {
  const Rows shape = check_matrix("tally", stream, args.logits);
  check_like("tally", stream, args.labels, {shape.rows}, DType::I32);
  ULP_CHECK(args.loss.defined() && args.loss.numel() == 1, "tally: the loss must be one value");
  check_like("tally", stream, args.loss, args.loss.shape());
  check_like("tally", stream, args.totals, {static_cast<int64_t>(sizeof(ScoreTotals))}, DType::U8);
  check_row_length("tally", shape);
  constexpr int64_t kMostBlocks = 256;  // each warp adds to one number
  launch("tally", stream, std::clamp<int64_t>(row_blocks(shape), 1, kMostBlocks), kThreads,
         tally_kernel, args.loss.data<float>(), args.logits.data<float>(),
         args.labels.data<int32_t>(), static_cast<ScoreTotals*>(written(args.totals)), shape);
}

}  // namespace ulp::cuda
