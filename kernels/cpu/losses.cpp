#include "kernels/losses.h"

#include <vector>

#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/strict_sum.h"
#include "kernels/loss_functors.h"

namespace ulp::cpu {
namespace {

using functors::label_gradient;
using functors::label_loss_of;
using functors::label_term;

template <class T>
void label_loss_of_rows(const LabelLossArgs& args) {
  const int64_t rows = args.in.size(0), columns = args.in.size(1);
  const T* in = args.in.data<T>();
  const int32_t* labels = args.labels.data<int32_t>();
  Tensor losses_tensor = args.losses;
  T* losses = losses_tensor.mutable_data<T>();
  const LabelLoss loss = args.loss;
  const T on = static_cast<T>(args.weights.on), off = static_cast<T>(args.weights.off);
  const bool one_term = loss != LabelLoss::Squares && off == T(0);
  for_rows(rows, columns, [&](int64_t n) {
    const int64_t label = labels[n];
    const T* y = in + n * columns;
    if (label < 0 || label >= columns) {
      losses[n] = static_cast<T>(float_of(kNanBits));
      return;
    }
    if (one_term) {
      losses[n] = canonical(label_loss_of(loss, label_term(loss, y[label], on)));
      return;
    }
    std::vector<T> terms(static_cast<size_t>(columns));
    T* to = terms.data();
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < columns; ++j) to[j] = label_term(loss, y[j], j == label ? on : off);
    });
    losses[n] = canonical(label_loss_of(loss, strict_sum(to, columns)));
  });
}

template <class T>
void label_gradient_of_rows(const LabelLossBackwardArgs& args) {
  const int64_t rows = args.in.size(0), columns = args.in.size(1);
  const T* in = args.in.data<T>();
  const int32_t* labels = args.labels.data<int32_t>();
  Tensor out_tensor = args.out;
  T* out = out_tensor.mutable_data<T>();
  const LabelLoss loss = args.loss;
  const T on = static_cast<T>(args.weights.on), off = static_cast<T>(args.weights.off);
  const T factor = args.grad.data<T>()[0] * static_cast<T>(args.alpha);
  for_rows(rows, columns, [&](int64_t n) {
    const int64_t label = labels[n];
    const T* y = in + n * columns;
    T* to = out + n * columns;
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < columns; ++j)
        to[j] = canonical(label_gradient(loss, y[j], j == label ? on : off, factor));
    });
  });
}

template <class T>
void log_sum_of(const LogSumArgs& args) {
  const int64_t rows = args.in.size(0), columns = args.in.size(1);
  const T* in = args.in.data<T>();
  const int32_t* labels = args.labels.data<int32_t>();
  Tensor losses_tensor = args.losses, sums_tensor = args.sums;
  T *losses = losses_tensor.mutable_data<T>(), *sums = sums_tensor.mutable_data<T>();
  for_rows(rows, columns, [&](int64_t n) {
    const T* x = in + n * columns;
    const T most = canonical(largest_of(x, columns));
    std::vector<T> exps(static_cast<size_t>(columns));
    T* to = exps.data();
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < columns; ++j) to[j] = exp_of(canonical(x[j] - most));
    });
    const T log = canonical(log_of(strict_sum(to, columns)));
    sums[2 * n] = most;
    sums[2 * n + 1] = log;
    const int64_t label = labels[n];
    losses[n] = label < 0 || label >= columns
                    ? static_cast<T>(float_of(kNanBits))
                    : canonical(-functors::log_probability(x[label], most, log));
  });
}

template <class T>
void log_sum_backward_of(const LogSumBackwardArgs& args) {
  const int64_t rows = args.in.size(0), columns = args.in.size(1);
  const T *in = args.in.data<T>(), *sums = args.sums.data<T>();
  const int32_t* labels = args.labels.data<int32_t>();
  Tensor out_tensor = args.out;
  T* out = out_tensor.mutable_data<T>();
  const T factor = args.grad.data<T>()[0] * static_cast<T>(args.alpha);
  for_rows(rows, columns, [&](int64_t n) {
    const int64_t label = labels[n];
    const T* x = in + n * columns;
    const T most = sums[2 * n], log = sums[2 * n + 1];
    T* to = out + n * columns;
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < columns; ++j)
        to[j] = canonical(
            (exp_of(functors::log_probability(x[j], most, log)) - (j == label ? T(1) : T(0))) *
            factor);
    });
  });
}

}  // namespace

void log_sum(Stream stream, const LogSumArgs& args) {
  check_log_sum(stream, args);
  args.in.dtype() == DType::F64 ? log_sum_of<double>(args) : log_sum_of<float>(args);
}

void log_sum_backward(Stream stream, const LogSumBackwardArgs& args) {
  check_log_sum_backward(stream, args);
  args.in.dtype() == DType::F64 ? log_sum_backward_of<double>(args)
                                : log_sum_backward_of<float>(args);
}

void label_loss(Stream stream, const LabelLossArgs& args) {
  check_label_loss(stream, args);
  if (args.in.dtype() == DType::F64)
    label_loss_of_rows<double>(args);
  else
    label_loss_of_rows<float>(args);
}

void label_loss_backward(Stream stream, const LabelLossBackwardArgs& args) {
  check_label_loss_backward(stream, args);
  if (args.in.dtype() == DType::F64)
    label_gradient_of_rows<double>(args);
  else
    label_gradient_of_rows<float>(args);
}

ULP_ELEMENTWISE_LOSS_KERNELS(ULP_DEFINE_ELEMENTWISE)

}  // namespace ulp::cpu
