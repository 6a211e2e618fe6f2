#include "kernels/pool.h"

#include "kernels/dropout.h"
#include "kernels/rounded_result.h"

namespace ulp {
namespace {

/// One axis: the last window begins before the end of the input, and every window sees an input.
void check_axis(const char* kernel, int64_t in, int64_t out, int64_t size, int64_t stride,
                int64_t padding) {
  constexpr int64_t kMost = int64_t{1} << 30;  // sums of them are of 32 bits
  ULP_CHECK(size >= 1 && stride >= 1 && padding >= 0 && 2 * padding <= size && size < kMost &&
                stride < kMost && in < kMost && out < kMost,
            "{}: a window of {}, stride {} and padding {} (at most half of it) over {} is none",
            kernel, size, stride, padding, in);
  ULP_CHECK(out == 0 || ((out - 1) * stride < in + padding && in > 0 && (out - 1) * stride < kMost),
            "{}: {} windows of {} with stride {} reach beyond {} with padding {}", kernel, out,
            size, stride, in, padding);
}

void check_images(const char* kernel, Stream stream, const Tensor& in, const Tensor& out,
                  const PoolWindow& w) {
  for (const Tensor& t : {in, out}) {
    check_kernel_tensor(kernel, stream, t, t.shape());
    ULP_CHECK(t.rank() == 4, "{}: wanted images (N, H, W, C), got {}", kernel, t);
  }
  ULP_CHECK(in.size(0) == out.size(0) && in.size(3) == out.size(3),
            "{}: images and channels of {} and {} differ", kernel, in.shape(), out.shape());
  check_axis(kernel, in.size(1), out.size(1), w.kernel_h, w.stride_h, w.padding_h);
  check_axis(kernel, in.size(2), out.size(2), w.kernel_w, w.stride_w, w.padding_w);
}

void check_index(const char* kernel, Stream stream, const Tensor& index, const Shape& shape,
                 const PoolWindow& w) {
  check_kernel_tensor(kernel, stream, index, shape);
  const DType wanted = w.size() <= kMostByteIndices ? DType::U8 : DType::I32;
  ULP_CHECK(index.dtype() == wanted && w.size() <= INT32_MAX,
            "{}: places in a window of {} elements are {}, got {}", kernel, w.size(), wanted,
            index);
}

}  // namespace

void check_max_pool(Stream stream, const MaxPoolArgs& args) {
  check_images("max_pool", stream, args.in, args.out, args.window);
  check_rounded_result("max_pool", args.in, args.out, args.output);
  if (args.index.defined())
    check_index("max_pool", stream, args.index, args.out.shape(), args.window);
}

void check_max_pool_backward(Stream stream, const MaxPoolBackwardArgs& args) {
  check_images("max_pool_backward", stream, args.out, args.grad, args.window);
  check_rounded_result("max_pool_backward", args.grad, args.out, args.output);
  check_index("max_pool_backward", stream, args.index, args.grad.shape(), args.window);
}

void check_average_pool(Stream stream, const AveragePoolArgs& args) {
  check_images("average_pool", stream, args.in, args.out, args.window);
  check_rounded_result("average_pool", args.in, args.out, args.output);
}

void check_average_pool_backward(Stream stream, const AveragePoolBackwardArgs& args) {
  check_images("average_pool_backward", stream, args.out, args.grad, args.window);
  check_rounded_result("average_pool_backward", args.grad, args.out, args.output);
}

void check_spread(Stream stream, const SpreadArgs& args) {
  check_kernel_tensor("spread", stream, args.grad, args.grad.shape());
  check_kernel_tensor("spread", stream, args.out, args.out.shape());
  ULP_CHECK(args.grad.rank() == 2 && args.out.rank() == 3 &&
                args.grad.size(0) == args.out.size(0) && args.grad.size(1) == args.out.size(2),
            "spread: wanted (N, C) to (N, S, C), got {} and {}", args.grad, args.out);
  check_rounded_result("spread", args.grad, args.out, args.output);
}

void check_dropout(Stream stream, const DropoutArgs& args) {
  check_kernel_tensor("dropout", stream, args.in, args.in.shape());
  check_kernel_tensor("dropout", stream, args.out, args.in.shape());
  check_rounded_result("dropout", args.in, args.out, args.output);
}

}  // namespace ulp
