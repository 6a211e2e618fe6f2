#include <vector>

#include "core/scalar_math.h"
#include "kernels/activations.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/strict_sum.h"

namespace ulp::cpu {
namespace {

template <class T>
void log_softmax_row(const T* x, T* y, int64_t columns, int64_t row, const Interior& interior) {
  std::vector<T> e(static_cast<size_t>(columns));
  const T most = largest_of(x, columns);
  T* d = y;
  T* exps = e.data();
  with_isa([=]() ULP_INLINE {
    for (int64_t j = 0; j < columns; ++j) d[j] = canonical(x[j] - most);
  });
  interior.apply(0, d, columns, row * columns);
  with_isa([=]() ULP_INLINE {
    for (int64_t j = 0; j < columns; ++j) exps[j] = exp_of(d[j]);
  });
  interior.apply(1, exps, columns, row * columns);
  T sum = strict_sum(exps, columns);
  interior.apply(2, &sum, 1, row);
  T log = log_of(sum);
  interior.apply(3, &log, 1, row);
  with_isa([=]() ULP_INLINE {
    for (int64_t j = 0; j < columns; ++j) y[j] = canonical(d[j] - log);
  });
}

template <class T>
void softmax_row(const T* x, T* y, int64_t columns, int64_t row, const Interior& interior) {
  const T most = largest_of(x, columns);
  with_isa([=]() ULP_INLINE {
    for (int64_t j = 0; j < columns; ++j) y[j] = canonical(x[j] - most);
  });
  interior.apply(0, y, columns, row * columns);
  with_isa([=]() ULP_INLINE {
    for (int64_t j = 0; j < columns; ++j) y[j] = exp_of(y[j]);
  });
  interior.apply(1, y, columns, row * columns);
  T sum = strict_sum(y, columns);
  interior.apply(2, &sum, 1, row);
  with_isa([=]() ULP_INLINE {
    for (int64_t j = 0; j < columns; ++j) y[j] = canonical(y[j] / sum);
  });
}

template <class T>
void softmax_of(const SoftmaxArgs& args) {
  const int64_t rows = args.in.size(0), columns = args.in.size(1);
  const T* x = args.in.data<T>();
  Tensor out = args.out;
  T* y = out.mutable_data<T>();
  const Interior interior(args.interior, args.key, args.trace);
  for_rows(rows, columns,
           [&](int64_t n) { softmax_row(x + n * columns, y + n * columns, columns, n, interior); });
}

template <class T>
void softmax_backward_of(const SoftmaxBackwardArgs& args) {
  const int64_t rows = args.y.size(0), columns = args.y.size(1);
  const T* g = args.grad.data<T>();
  const T* y = args.y.data<T>();
  Tensor out_tensor = args.out;
  T* out = out_tensor.mutable_data<T>();
  for_rows(rows, columns, [&](int64_t n) {
    const T* gn = g + n * columns;
    const T* yn = y + n * columns;
    T* to = out + n * columns;
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < columns; ++j) to[j] = gn[j] * yn[j];
    });
    const T sum = strict_sum(to, columns);
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < columns; ++j) to[j] = canonical(yn[j] * (gn[j] - sum));
    });
  });
}

template <class T>
void log_softmax_of(const LogSoftmaxArgs& args) {
  const int64_t rows = args.in.size(0), columns = args.in.size(1);
  const T* x = args.in.data<T>();
  Tensor out = args.out;
  T* y = out.mutable_data<T>();
  const Interior interior(args.interior, args.key, args.trace);
  Tensor losses = args.losses;
  T* loss = losses.defined() ? losses.mutable_data<T>() : nullptr;
  const int32_t* labels = args.labels.defined() ? args.labels.data<int32_t>() : nullptr;
  for_rows(rows, columns, [&](int64_t n) {
    T* const row = y + n * columns;
    log_softmax_row(x + n * columns, row, columns, n, interior);
    if (loss != nullptr) loss[n] = canonical(-row[labels[n]]);
  });
}

template <class T>
void log_softmax_backward_of(const LogSoftmaxBackwardArgs& args) {
  const int64_t rows = args.y.size(0), columns = args.y.size(1);
  const T* g = args.grad.data<T>();
  const T* y = args.y.data<T>();
  Tensor out_tensor = args.out;
  T* out = out_tensor.mutable_data<T>();
  for_rows(rows, columns, [&](int64_t n) {
    const T sum = strict_sum(g + n * columns, columns);
    const T* gn = g + n * columns;
    const T* yn = y + n * columns;
    T* to = out + n * columns;
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < columns; ++j) to[j] = canonical(gn[j] - exp_of(yn[j]) * sum);
    });
  });
}

template <class T>
void cross_entropy_backward_of(const CrossEntropyBackwardArgs& args) {
  const int64_t rows = args.log_probs.size(0), columns = args.log_probs.size(1);
  const T* y = args.log_probs.data<T>();
  const int32_t* labels = args.labels.data<int32_t>();
  Tensor out_tensor = args.out;
  T* out = out_tensor.mutable_data<T>();
  const T factor = args.grad.data<T>()[0] * static_cast<T>(args.alpha);
  for_rows(rows, columns, [&](int64_t n) {
    const int64_t label = labels[n];
    const T* yn = y + n * columns;
    T* to = out + n * columns;
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < columns; ++j)
        to[j] = canonical((exp_of(yn[j]) - (j == label ? T(1) : T(0))) * factor);
    });
  });
}

void check_matrix(const char* kernel, Stream stream, const Tensor& t) {
  check_kernel_tensor(kernel, stream, t, t.shape());
  ULP_CHECK(t.rank() == 2 && (t.size(1) > 0 || t.size(0) == 0),
            "{}: wanted (N, C) with C >= 1, got {}", kernel, t.shape());
}

/// out of y and its gradient.
template <class Args>
void check_backward(const char* kernel, Stream stream, const Args& args) {
  check_matrix(kernel, stream, args.y);
  check_kernel_tensor(kernel, stream, args.grad, args.y.shape());
  check_kernel_tensor(kernel, stream, args.out, args.y.shape());
}

void check_labels(const char* kernel, Stream stream, const Tensor& labels, const Tensor& rows) {
  check_kernel_tensor(kernel, stream, labels, Shape{rows.size(0)});
  ULP_CHECK(labels.dtype() == DType::I32, "{}: labels must be I32, got {}", kernel, labels.dtype());
}

}  // namespace

void softmax(Stream stream, const SoftmaxArgs& args) {
  check_matrix("softmax", stream, args.in);
  check_kernel_tensor("softmax", stream, args.out, args.in.shape());
  check_softmax_trace("softmax", stream, args.trace, args.in, 3);
  if (args.in.dtype() != DType::F64) return softmax_of<float>(args);
  ULP_CHECK(args.interior.is_identity(), "softmax: F64 values are not quantised");
  softmax_of<double>(args);
}

void softmax_backward(Stream stream, const SoftmaxBackwardArgs& args) {
  check_backward("softmax_backward", stream, args);
  if (args.y.dtype() == DType::F64)
    softmax_backward_of<double>(args);
  else
    softmax_backward_of<float>(args);
}

void log_softmax(Stream stream, const LogSoftmaxArgs& args) {
  check_matrix("log_softmax", stream, args.in);
  check_kernel_tensor("log_softmax", stream, args.out, args.in.shape());
  check_softmax_trace("log_softmax", stream, args.trace, args.in, 4);
  if (args.losses.defined()) {
    check_labels("log_softmax", stream, args.labels, args.in);
    check_kernel_tensor("log_softmax", stream, args.losses, Shape{args.in.size(0)});
  }
  if (args.in.dtype() != DType::F64) return log_softmax_of<float>(args);
  ULP_CHECK(args.interior.is_identity(), "log_softmax: F64 values are not quantised");
  log_softmax_of<double>(args);
}

void log_softmax_backward(Stream stream, const LogSoftmaxBackwardArgs& args) {
  check_backward("log_softmax_backward", stream, args);
  if (args.y.dtype() == DType::F64)
    log_softmax_backward_of<double>(args);
  else
    log_softmax_backward_of<float>(args);
}

void cross_entropy_backward(Stream stream, const CrossEntropyBackwardArgs& args) {
  check_matrix("cross_entropy_backward", stream, args.log_probs);
  check_labels("cross_entropy_backward", stream, args.labels, args.log_probs);
  check_kernel_tensor("cross_entropy_backward", stream, args.out, args.log_probs.shape());
  ULP_CHECK(args.grad.defined() && args.grad.numel() == 1,
            "cross_entropy_backward: the loss gradient must be one value");
  if (args.log_probs.dtype() == DType::F64)
    cross_entropy_backward_of<double>(args);
  else
    cross_entropy_backward_of<float>(args);
}

void tally(Stream stream, const TallyArgs& args) {
  check_matrix("tally", stream, args.logits);
  check_labels("tally", stream, args.labels, args.logits);
  check_kernel_tensor("tally", stream, args.loss, args.loss.shape());
  check_kernel_tensor("tally", stream, args.totals, {static_cast<int64_t>(sizeof(ScoreTotals))});
  const int64_t rows = args.logits.size(0), columns = args.logits.size(1);
  const float* x = args.logits.data<float>();
  const int32_t* labels = args.labels.data<int32_t>();
  Tensor totals = args.totals;
  auto& sum = *static_cast<ScoreTotals*>(totals.mutable_raw());
  for (int64_t n = 0; n < rows; ++n) {
    const float* row = x + n * columns;
    int64_t best = 0;
    bool nan = false;
    for (int64_t j = 0; j < columns; ++j) {
      nan = nan || row[j] != row[j];
      if (row[j] > row[best]) best = j;
    }
    if (!nan && best == labels[n]) ++sum.correct;
  }
  add_batch(sum, args.loss.data<float>()[0], rows);
}

}  // namespace ulp::cpu
