#include "core/scalar_math.h"
#include "kernels/cuda/rounder.cuh"
#include "kernels/cuda/sum.cuh"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

// Rows of (N, C), one warp each.

struct Rows {
  int64_t rows, columns;
};

/// Calls body(row) for this warp's rows, with all its lanes.
template <class Body>
__device__ __forceinline__ void for_rows(const Rows& shape, const Body& body) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  for (int64_t row = first; row < shape.rows; row += warps) body(row);
}

int64_t row_blocks(const Rows& shape) {
  return shape.columns == 0 ? 0 : blocks_for(shape.rows, kThreads / kWarp);
}

struct Largest {
  float value;
  uint32_t index;
  bool nan;  // somewhere in the row
};

/// Numbers in the order of their floats, −0 and +0 alike.
__device__ __forceinline__ uint32_t ordered(float x) {
  const uint32_t bits = bits_of(x + 0.0f);
  return bits ^ ((bits & kSignBit) != 0 ? 0xFFFFFFFFu : kSignBit);
}

/// Of each lane's first largest element that of the row; every lane gets it. Of +0 and −0 the first one counts. Element i is
/// lane i % 32's; lanes without an element have no part in it.
__device__ __forceinline__ Largest largest_of(float value, uint32_t index, bool nan, bool any) {
  const uint32_t key = any ? ordered(value) : 0u;
  const uint32_t most = __reduce_max_sync(kFullWarp, key);
  Largest best;
  best.index = __reduce_min_sync(kFullWarp, any && key == most ? index : 0xFFFFFFFFu);
  best.value = __shfl_sync(kFullWarp, value, static_cast<int>(best.index % kWarp));
  best.nan = __any_sync(kFullWarp, nan);
  return best;
}

/// The first largest element of a row with C ≥ 1. Its index means nothing where there is a NaN.
__device__ __forceinline__ Largest first_largest(const float* row, int64_t columns) {
  const uint32_t lane = threadIdx.x % kWarp;
  const auto count = static_cast<uint32_t>(columns);
  float value = lane < count ? row[lane] : 0.0f;
  uint32_t index = lane;
  bool nan = value != value;
  for (uint32_t j = lane + kWarp; j < count; j += kWarp) {
    const float x = row[j];
    nan = nan || x != x;
    if (x > value) value = x, index = j;
  }
  return largest_of(value, index, nan, lane < count);
}

struct LogSoftmax {
  const float* in;
  float* out;
  Rows shape;
  Rounder interior[4];    // of the difference, its exp, the sum, the logarithm
  const int32_t* labels;  // null: no losses are wanted
  float* losses;
};

__device__ __noinline__ float round_out_of_line(const Rounder& rounder, const RandomSource& random,
                                                int64_t i, float value) {
  return round_one(rounder, random, i, value);
}

/// An intermediate; mostly there is nothing to do.
__device__ __forceinline__ float round_interior(const Rounder& rounder, const RandomSource& random,
                                                int64_t i, float value) {
  if (rounder.how == Rounder::How::Copy) return canonical(value);
  return round_out_of_line(rounder, random, i, value);
}

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
    for (int64_t j = threadIdx.x % kWarp; j < columns; j += kWarp) {
      const float y = canonical(difference(j) - log);
      w.out[begin + j] = y;
      if (j == label) w.losses[row] = canonical(-y);
    }
  });
}

/// Rows of at most 32·kHeld elements: each is read once and kept, element j·32 + t by thread t, which is the order of
/// warp_sum_chunk too.
template <int kHeld>
__global__ void __launch_bounds__(kThreads)
    log_softmax_held_kernel(const __grid_constant__ LogSoftmax w) {
  const RandomSource random[4] = {w.interior[0].random(), w.interior[1].random(),
                                  w.interior[2].random(), w.interior[3].random()};
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            columns = static_cast<int>(w.shape.columns);
  for_rows(w.shape, [&](int64_t row) {
    const int64_t begin = row * columns;
    const int label = w.labels == nullptr ? -1 : w.labels[row];
    float x[kHeld];
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int at = j * kWarp + lane;
      x[j] = at < columns ? w.in[begin + at] : 0.0f;
    }
    float value = x[0];
    uint32_t index = static_cast<uint32_t>(lane);
    bool nan = value != value;
#pragma unroll
    for (int j = 1; j < kHeld; ++j) {
      const int at = j * kWarp + lane;
      nan = nan || x[j] != x[j];
      if (at < columns && x[j] > value) value = x[j], index = static_cast<uint32_t>(at);
    }
    const Largest largest = largest_of(value, index, nan, lane < columns);
    const float most = largest.nan ? float_of(kNanBits) : largest.value;
    float sums[2] = {};  // of lanes t and t + 32
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int at = j * kWarp + lane;
      if (at >= columns) continue;
      x[j] = round_interior(w.interior[0], random[0], begin + at, x[j] - most);
      sums[j % 2] += round_interior(w.interior[1], random[1], begin + at, exp_of(x[j]));
    }
    const float sum =
        round_interior(w.interior[2], random[2], row, warp_sum_lanes(sums[0], sums[1]));
    const float log = round_interior(w.interior[3], random[3], row, log_of(sum));
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int at = j * kWarp + lane;
      if (at >= columns) continue;
      const float y = canonical(x[j] - log);
      w.out[begin + at] = y;
      if (at == label) w.losses[row] = canonical(-y);
    }
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

__global__ void __launch_bounds__(kThreads)
    cross_entropy_backward_kernel(const float* log_probs, const int32_t* labels, const float* grad,
                                  float alpha, float* out, Rows shape) {
  const float factor = grad[0] * alpha;
  for_rows(shape, [&](int64_t row) {
    const int64_t begin = row * shape.columns, label = labels[row];
    for (int64_t j = threadIdx.x % kWarp; j < shape.columns; j += kWarp)
      out[begin + j] =
          canonical((exp_of(log_probs[begin + j]) - (j == label ? 1.0f : 0.0f)) * factor);
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

/// An F32 matrix on the stream's device; its extents.
Rows check_matrix(const char* kernel, Stream stream, const Tensor& matrix) {
  check_kernel_tensor(kernel, stream, matrix, matrix.shape());
  ULP_CHECK(matrix.rank() == 2 && (matrix.size(1) > 0 || matrix.size(0) == 0),
            "{}: wanted (N, C) with C >= 1, got {}", kernel, matrix.shape());
  check_type(kernel, matrix, DType::F32);
  return {matrix.size(0), matrix.size(1)};
}

void check_like(const char* kernel, Stream stream, const Tensor& tensor, const Shape& shape,
                DType dtype = DType::F32) {
  check_kernel_tensor(kernel, stream, tensor, shape);
  check_type(kernel, tensor, dtype);
}

void check_row_length(const char* kernel, const Rows& shape) {
  ULP_CHECK(shape.columns <= kWarpSumLimit, "{}: rows of at most {} elements, got {}", kernel,
            kWarpSumLimit, shape.columns);
}

}  // namespace

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
  RandomKey key = args.key;
  for (Rounder& rounder : w.interior) {
    rounder = make_elementwise_rounder("log_softmax", stream.device, args.interior, key);
    ++key.ordinal;
  }
  auto* kernel = w.shape.columns <= kWarp        ? log_softmax_held_kernel<1>
                 : w.shape.columns <= 4 * kWarp  ? log_softmax_held_kernel<4>
                 : w.shape.columns <= 32 * kWarp ? log_softmax_held_kernel<32>
                                                 : log_softmax_kernel;
  launch("log_softmax", stream, row_blocks(w.shape), kThreads, kernel, w);
}

void log_softmax_backward(Stream stream, const LogSoftmaxBackwardArgs& args) {
  const Rows shape = check_matrix("log_softmax_backward", stream, args.y);
  check_like("log_softmax_backward", stream, args.grad, args.y.shape());
  check_like("log_softmax_backward", stream, args.out, args.y.shape());
  check_row_length("log_softmax_backward", shape);
  launch("log_softmax_backward", stream, row_blocks(shape), kThreads, log_softmax_backward_kernel,
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
