#include "kernels/losses.h"

namespace ulp {
namespace {

void check_rows(const char* kernel, Stream stream, const Tensor& in, const Tensor& labels) {
  ULP_CHECK(in.defined() && in.rank() == 2 && (in.size(1) > 0 || in.size(0) == 0),
            "{}: wanted (N, C) with C >= 1, got {}", kernel, in);
  check_kernel_tensor(kernel, stream, in, in.shape());
  ULP_CHECK(in.dtype() == DType::F32 || in.dtype() == DType::F64, "{}: wanted F32, got {}", kernel,
            in);
  check_kernel_tensor(kernel, stream, labels, Shape{in.size(0)});
  ULP_CHECK(labels.dtype() == DType::I32, "{}: labels must be I32, got {}", kernel, labels.dtype());
}

void check_result(const char* kernel, Stream stream, const Tensor& out, const Shape& shape,
                  DType dtype) {
  check_kernel_tensor(kernel, stream, out, shape);
  ULP_CHECK(out.dtype() == dtype, "{}: wanted a result of {}, got {}", kernel, dtype, out);
}

}  // namespace

void check_label_loss(Stream stream, const LabelLossArgs& args) {
  check_rows("label_loss", stream, args.in, args.labels);
  check_result("label_loss", stream, args.losses, {args.in.size(0)}, args.in.dtype());
}

void check_label_loss_backward(Stream stream, const LabelLossBackwardArgs& args) {
  check_rows("label_loss_backward", stream, args.in, args.labels);
  check_result("label_loss_backward", stream, args.out, args.in.shape(), args.in.dtype());
  ULP_CHECK(args.grad.defined() && args.grad.numel() == 1 && args.grad.dtype() == args.in.dtype(),
            "label_loss_backward: the loss gradient must be one value of {}, got {}",
            args.in.dtype(), args.grad);
  check_kernel_tensor("label_loss_backward", stream, args.grad, args.grad.shape());
}

void check_log_sum(Stream stream, const LogSumArgs& args) {
  check_rows("log_sum", stream, args.in, args.labels);
  check_result("log_sum", stream, args.losses, {args.in.size(0)}, args.in.dtype());
  check_result("log_sum", stream, args.sums, {args.in.size(0), 2}, args.in.dtype());
}

void check_log_sum_backward(Stream stream, const LogSumBackwardArgs& args) {
  check_rows("log_sum_backward", stream, args.in, args.labels);
  check_result("log_sum_backward", stream, args.sums, {args.in.size(0), 2}, args.in.dtype());
  check_result("log_sum_backward", stream, args.out, args.in.shape(), args.in.dtype());
  ULP_CHECK(args.grad.defined() && args.grad.numel() == 1 && args.grad.dtype() == args.in.dtype(),
            "log_sum_backward: the loss gradient must be one value of {}, got {}", args.in.dtype(),
            args.grad);
  check_kernel_tensor("log_sum_backward", stream, args.grad, args.grad.shape());
}

}  // namespace ulp
