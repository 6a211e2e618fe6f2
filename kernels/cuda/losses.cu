#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/loss_functors.h"
#include "kernels/losses.h"

namespace ulp::cuda {
namespace {

struct LabelRows {
  const float* in;
  const int32_t* labels;
  const float* grad;  // backward: one value
  float* out;
  Rows shape;
  LabelLoss loss;
  float on, off, alpha;
};

/// A warp a row.
__global__ void __launch_bounds__(kThreads) label_loss_kernel(const __grid_constant__ LabelRows w) {
  using functors::label_loss_of;
  using functors::label_term;
  const bool one_term = w.loss != LabelLoss::Squares && w.off == 0.0f;
  for_rows(w.shape, [&](int64_t row) {
    const int64_t columns = w.shape.columns, label = w.labels[row];
    const float* y = w.in + row * columns;
    float loss = float_of(kNanBits);      // there is no such class
    if (label >= 0 && label < columns) {  // the same for all lanes
      const float sum =
          one_term ? label_term(w.loss, y[label], w.on) : warp_sum(columns, [&](int64_t j) {
            return label_term(w.loss, y[j], j == label ? w.on : w.off);
          });
      loss = canonical(label_loss_of(w.loss, sum));
    }
    if (threadIdx.x % kWarp == 0) w.out[row] = loss;
  });
}

__global__ void __launch_bounds__(kThreads)
    label_loss_backward_kernel(const __grid_constant__ LabelRows w) {
  const float factor = w.grad[0] * w.alpha;
  for_rows(w.shape, [&](int64_t row) {
    const int64_t columns = w.shape.columns, begin = row * columns, label = w.labels[row];
    for (int64_t j = threadIdx.x % kWarp; j < columns; j += kWarp)
      w.out[begin + j] = canonical(
          functors::label_gradient(w.loss, w.in[begin + j], j == label ? w.on : w.off, factor));
  });
}

struct LogSums {
  const float* in;
  const int32_t* labels;
  const float* grad;  // backward: one value
  float *losses, *sums, *out;
  Rows shape;
  float alpha;
};

/// A warp a row, which is read for the largest element and for the sum.
__global__ void __launch_bounds__(kThreads) log_sum_kernel(const __grid_constant__ LogSums w) {
  for_rows(w.shape, [&](int64_t row) {
    const int64_t columns = w.shape.columns, label = w.labels[row];
    const float* x = w.in + row * columns;
    const Largest largest = first_largest(x, columns);
    const float most = largest.nan ? float_of(kNanBits) : canonical(largest.value);
    const float sum = warp_sum(columns, [&](int64_t j) { return exp_of(canonical(x[j] - most)); });
    const float log = canonical(log_of(sum));
    if (threadIdx.x % kWarp != 0) return;
    w.sums[2 * row] = most;
    w.sums[2 * row + 1] = log;
    w.losses[row] = label < 0 || label >= columns
                        ? float_of(kNanBits)
                        : canonical(-functors::log_probability(x[label], most, log));
  });
}

__global__ void __launch_bounds__(kThreads)
    log_sum_backward_kernel(const __grid_constant__ LogSums w) {
  constexpr int kAtOnce = 8;  // loads that wait together
  const float factor = w.grad[0] * w.alpha;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for_rows(w.shape, [&](int64_t row) {
    const int64_t begin = row * w.shape.columns, label = w.labels[row];
    const float most = w.sums[2 * row], log = w.sums[2 * row + 1];
    for (int64_t first = lane; first < w.shape.columns; first += kAtOnce * kWarp) {
      float x[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        x[j] = first + j * kWarp < w.shape.columns ? w.in[begin + first + j * kWarp] : 0.0f;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int64_t at = first + j * kWarp;
        if (at >= w.shape.columns) break;
        const float p = exp_of(functors::log_probability(x[j], most, log));
        w.out[begin + at] = canonical((p - (at == label ? 1.0f : 0.0f)) * factor);
      }
    }
  });
}

LabelRows rows_of(const char* kernel, Stream stream, const Tensor& in, const Tensor& labels,
                  LabelLoss loss, const LabelWeights& weights) {
  LabelRows w{};
  w.shape = check_matrix(kernel, stream, in);
  check_row_length(kernel, w.shape);
  w.in = in.data<float>();
  w.labels = labels.data<int32_t>();
  w.loss = loss;
  w.on = static_cast<float>(weights.on);
  w.off = static_cast<float>(weights.off);
  return w;
}

}  // namespace

void label_loss(Stream stream, const LabelLossArgs& args) {
  check_label_loss(stream, args);
  LabelRows w = rows_of("label_loss", stream, args.in, args.labels, args.loss, args.weights);
  w.out = static_cast<float*>(written(args.losses));
  launch("label_loss", stream, row_blocks(w.shape), kThreads, label_loss_kernel, w);
}

void label_loss_backward(Stream stream, const LabelLossBackwardArgs& args) {
  check_label_loss_backward(stream, args);
  LabelRows w =
      rows_of("label_loss_backward", stream, args.in, args.labels, args.loss, args.weights);
  w.grad = args.grad.data<float>();
  w.alpha = static_cast<float>(args.alpha);
  w.out = static_cast<float*>(written(args.out));
  launch("label_loss_backward", stream, row_blocks(w.shape), kThreads, label_loss_backward_kernel,
         w);
}

void log_sum(Stream stream, const LogSumArgs& args) {
  check_log_sum(stream, args);
  LogSums w{};
  w.shape = check_matrix("log_sum", stream, args.in);
  check_row_length("log_sum", w.shape);
  w.in = args.in.data<float>();
  w.labels = args.labels.data<int32_t>();
  w.losses = static_cast<float*>(written(args.losses));
  w.sums = static_cast<float*>(written(args.sums));
  launch("log_sum", stream, row_blocks(w.shape), kThreads, log_sum_kernel, w);
}

void log_sum_backward(Stream stream, const LogSumBackwardArgs& args) {
  check_log_sum_backward(stream, args);
  LogSums w{};
  w.shape = check_matrix("log_sum_backward", stream, args.in);
  w.in = args.in.data<float>();
  w.labels = args.labels.data<int32_t>();
  w.sums = const_cast<float*>(args.sums.data<float>());
  w.grad = args.grad.data<float>();
  w.alpha = static_cast<float>(args.alpha);
  w.out = static_cast<float*>(written(args.out));
  launch("log_sum_backward", stream, row_blocks(w.shape), kThreads, log_sum_backward_kernel, w);
}

ULP_ELEMENTWISE_LOSS_KERNELS(ULP_DEFINE_ELEMENTWISE)

}  // namespace ulp::cuda
