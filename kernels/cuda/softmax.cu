#include "core/scalar_math.h"
#include "kernels/activations.h"
#include "kernels/cuda/rows.cuh"

namespace ulp::cuda {
namespace {

struct Softmax {
  const float* in;
  float* out;
  Rows shape;
  InteriorRounder interior[3];  // of the difference, its exp, the sum
};

/// The parts of a row's softmax before the quotient, made again each time they are wanted.
struct SoftmaxRow {
  const Softmax& w;
  const RandomSource (&random)[3];
  int64_t begin;
  float most;

  __device__ __forceinline__ float exp_at(int64_t j) const {
    const int64_t i = begin + j;
    const float d = round_interior(w.interior[0], random[0], i, w.in[i] - most);
    return round_interior(w.interior[1], random[1], i, exp_of(d));
  }
};

/// Rows of any length, read again for each step.
__global__ void __launch_bounds__(kThreads) softmax_kernel(const __grid_constant__ Softmax w) {
  const RandomSource random[3] = {w.interior[0].random(), w.interior[1].random(),
                                  w.interior[2].random()};
  for_rows(w.shape, [&](int64_t row) {
    const int64_t columns = w.shape.columns, begin = row * columns;
    const Largest largest = first_largest(w.in + begin, columns);
    const SoftmaxRow x{w, random, begin, largest.nan ? float_of(kNanBits) : largest.value};
    float sum = warp_sum(columns, [&](int64_t j) { return x.exp_at(j); });
    sum = round_interior(w.interior[2], random[2], row, sum);
    for (int64_t j = threadIdx.x % kWarp; j < columns; j += kWarp)
      w.out[begin + j] = canonical(x.exp_at(j) / sum);
  });
}

__global__ void __launch_bounds__(kThreads)
    softmax_backward_kernel(const float* grad, const float* y, float* out, Rows shape) {
  for_rows(shape, [&](int64_t row) {
    const int64_t begin = row * shape.columns;
    const float sum =
        warp_sum(shape.columns, [&](int64_t j) { return grad[begin + j] * y[begin + j]; });
    for (int64_t j = begin + threadIdx.x % kWarp; j < begin + shape.columns; j += kWarp)
      out[j] = canonical(y[j] * (grad[j] - sum));
  });
}

struct LogSoftmax {
  const float* in;
  float* out;
  Rows shape;
  InteriorRounder interior[4];  // of the difference, its exp, the sum, the logarithm
  const int32_t* labels;        // null: no losses are wanted
  float* losses;
};

/// Rows of any length, read again for each step.
__global__ void __launch_bounds__(kThreads)
    log_softmax_kernel(const __grid_constant__ LogSoftmax w) {
  const RandomSource random[4] = {w.interior[0].random(), w.interior[1].random(),
                                  w.interior[2].random(), w.interior[3].random()};
  for_rows(w.shape, [&](int64_t row) {
    const int64_t columns = w.shape.columns, begin = row * columns;
    const float* x = w.in + begin;
    const Largest largest = first_largest(x, columns);
    const float most = largest.nan ? float_of(kNanBits) : largest.value;
    const auto difference = [&](int64_t j) {
      return round_interior(w.interior[0], random[0], begin + j, x[j] - most);
    };
    float sum = warp_sum(columns, [&](int64_t j) {
      return round_interior(w.interior[1], random[1], begin + j, exp_of(difference(j)));
    });
    sum = round_interior(w.interior[2], random[2], row, sum);
    const float log = round_interior(w.interior[3], random[3], row, log_of(sum));
    const int64_t label = w.labels == nullptr ? -1 : w.labels[row];
    if (w.labels != nullptr && (label < 0 || label >= columns))
      w.losses[row] = float_of(kNanBits);  // there is no such class
    for (int64_t j = threadIdx.x % kWarp; j < columns; j += kWarp) {
      const float y = canonical(difference(j) - log);
      w.out[begin + j] = y;
      if (j == label) w.losses[row] = canonical(-y);
    }
  });
}

/// Calls body(j, at, there) for this thread's elements of a row of at most 32·kHeld: at = j·32 + lane.
template <int kHeld, class Body>
__device__ __forceinline__ void for_held(int columns, const Body& body) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) body(j, j * kWarp + lane, j * kWarp + lane < columns);
}

/// Of +0 and −0 either may come. Without an interior format that does not matter: where a row holds both, its sum of exps is
/// at least 2 and no result a zero.
__device__ __forceinline__ float largest_of_warp(float own) {
#pragma unroll
  for (int lanes = 1; lanes < kWarp; lanes *= 2)
    own = larger(own, __shfl_xor_sync(kFullWarp, own, lanes));
  return own;
}

/// Rows of at most 32·kHeld elements: each is read once and kept, element j·32 + t by thread t, which is the order of
/// warp_sum_chunk too. kRound: there is an interior format.
template <int kHeld, bool kRound>
__global__ void __launch_bounds__(kThreads, kRound ? 1 : 3)
    log_softmax_held_kernel(const __grid_constant__ LogSoftmax w) {
  RandomSource random[4];
  if (kRound)
    for (int k = 0; k < 4; ++k) random[k] = w.interior[k].random();
  const auto round = [&](int which, int64_t i, float value) {
    return kRound ? round_interior(w.interior[which], random[which], i, value) : value;
  };
  const int columns = static_cast<int>(w.shape.columns);
  for_rows(w.shape, [&](int64_t row) {
    const int64_t own = row * columns + threadIdx.x % kWarp;
    const float* in = w.in + own;
    float* out = w.out + own;
    const int label = w.labels == nullptr ? -1 : w.labels[row];
    float x[kHeld], most = -float_of(kInfinityBits);
    for_held<kHeld>(columns, [&](int j, int, bool there) {
      x[j] = there ? in[j * kWarp] : -float_of(kInfinityBits);
    });
#pragma unroll
    for (int j = 0; j < kHeld; ++j) most = larger(most, x[j]);
    most = canonical(largest_of_warp(most));
    if (kRound && most == 0) {  // the first zero's sign
      int first = kHeld * kWarp;
      for_held<kHeld>(columns, [&](int j, int at, bool there) {
        if (there && x[j] == 0 && first > at) first = at, most = x[j];
      });
      const auto of_all = __reduce_min_sync(kFullWarp, static_cast<uint32_t>(first));
      most = __shfl_sync(kFullWarp, most, static_cast<int>(of_all % kWarp));
    }
    float sums[2] = {};  // of lanes t and t + 32
    for_held<kHeld>(columns, [&](int j, int, bool there) {
      const int64_t i = own + j * kWarp;
      x[j] = there ? round(0, i, x[j] - most) : 0.0f;
      const float e = exp_of(x[j]);
      if (there) sums[j % 2] += round(1, i, e);
    });
    const float sum = round(2, row, warp_sum_lanes(sums[0], sums[1]));
    const float log = round(3, row, log_of(sum));
    if (w.labels != nullptr && (label < 0 || label >= columns))
      w.losses[row] = float_of(kNanBits);  // there is no such class
    for_held<kHeld>(columns, [&](int j, int at, bool there) {
      const float y = canonical(x[j] - log);
      if (there) out[j * kWarp] = y;
      if (at == label) w.losses[row] = canonical(-y);
    });
  });
}

__global__ void __launch_bounds__(kThreads)
    log_softmax_backward_kernel(const float* grad, const float* y, float* out, Rows shape) {
  for_rows(shape, [&](int64_t row) {
    const int64_t begin = row * shape.columns;
    const float sum = warp_sum(shape.columns, [&](int64_t j) { return grad[begin + j]; });
    for (int64_t j = begin + threadIdx.x % kWarp; j < begin + shape.columns; j += kWarp)
      out[j] = canonical(grad[j] - exp_of(y[j]) * sum);
  });
}

/// The same for rows of at most 32·kHeld elements, read once.
template <int kHeld>
__global__ void __launch_bounds__(kThreads, 4)
    log_softmax_backward_held_kernel(const float* grad, const float* y, float* out, Rows shape) {
  const int columns = static_cast<int>(shape.columns);
  for_rows(shape, [&](int64_t row) {
    const int64_t own = row * columns + threadIdx.x % kWarp;
    float g[kHeld], sums[2] = {};
    for_held<kHeld>(columns,
                    [&](int j, int, bool there) { g[j] = there ? (grad + own)[j * kWarp] : 0.0f; });
    for_held<kHeld>(columns, [&](int j, int, bool there) {
      if (there) sums[j % 2] += g[j];
    });
    const float sum = warp_sum_lanes(sums[0], sums[1]);
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

void softmax(Stream stream, const SoftmaxArgs& args) {
  Softmax w{};
  w.shape = check_matrix("softmax", stream, args.in);
  check_like("softmax", stream, args.out, args.in.shape());
  check_row_length("softmax", w.shape);
  w.in = args.in.data<float>();
  w.out = static_cast<float*>(written(args.out));
  check_softmax_trace("softmax", stream, args.trace, args.in, 3);
  make_interior("softmax", stream, args.interior, args.key, args.trace, w.interior);
  launch("softmax", stream, row_blocks(w.shape), kThreads, softmax_kernel, w);
}

void softmax_backward(Stream stream, const SoftmaxBackwardArgs& args) {
  const Rows shape = check_matrix("softmax_backward", stream, args.y);
  check_like("softmax_backward", stream, args.grad, args.y.shape());
  check_like("softmax_backward", stream, args.out, args.y.shape());
  check_row_length("softmax_backward", shape);
  launch("softmax_backward", stream, row_blocks(shape), kThreads, softmax_backward_kernel,
         args.grad.data<float>(), args.y.data<float>(), static_cast<float*>(written(args.out)),
         shape);
}

void log_softmax(Stream stream, const LogSoftmaxArgs& args) {
  LogSoftmax w{};
  w.shape = check_matrix("log_softmax", stream, args.in);
  check_like("log_softmax", stream, args.out, args.in.shape());
  check_row_length("log_softmax", w.shape);
  w.in = args.in.data<float>();
  w.out = static_cast<float*>(written(args.out));
  if (args.losses.defined()) {
    check_like("log_softmax", stream, args.labels, {w.shape.rows}, DType::I32);
    check_like("log_softmax", stream, args.losses, {w.shape.rows});
    w.labels = args.labels.data<int32_t>();
    w.losses = static_cast<float*>(written(args.losses));
  }
  check_softmax_trace("log_softmax", stream, args.trace, args.in, 4);
  make_interior("log_softmax", stream, args.interior, args.key, args.trace, w.interior);
  const bool rounds = !args.interior.is_identity();
  auto* kernel = log_softmax_kernel;
  if (w.shape.columns <= kWarp)
    kernel = rounds ? log_softmax_held_kernel<1, true> : log_softmax_held_kernel<1, false>;
  else if (w.shape.columns <= 4 * kWarp)
    kernel = rounds ? log_softmax_held_kernel<4, true> : log_softmax_held_kernel<4, false>;
  else if (w.shape.columns <= 32 * kWarp && !rounds)
    kernel = log_softmax_held_kernel<32, false>;
  launch("log_softmax", stream, row_blocks(w.shape), kThreads, kernel, w);
}

void log_softmax_backward(Stream stream, const LogSoftmaxBackwardArgs& args) {
  const Rows shape = check_matrix("log_softmax_backward", stream, args.y);
  check_like("log_softmax_backward", stream, args.grad, args.y.shape());
  check_like("log_softmax_backward", stream, args.out, args.y.shape());
  check_row_length("log_softmax_backward", shape);
  auto* kernel = shape.columns <= kWarp        ? log_softmax_backward_held_kernel<1>
                 : shape.columns <= 32 * kWarp ? log_softmax_backward_held_kernel<32>
                                               : log_softmax_backward_kernel;
  launch("log_softmax_backward", stream, row_blocks(shape), kThreads, kernel,
         args.grad.data<float>(), args.y.data<float>(), static_cast<float*>(written(args.out)),
         shape);
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
