#include "kernels/norm.h"

namespace ulp {
namespace {

void check_layout(const char* kernel, const Tensor& x, const NormLayout& l) {
  ULP_CHECK(x.defined() && x.rank() == 2 && x.size(1) > 0,
            "{}: x must be (rows, C), C >= 1, got {}", kernel, x);
  ULP_CHECK(l.rows == x.size(0) && l.channels == x.size(1) && l.groups >= 1 && l.span >= 0 &&
                l.channels % l.groups == 0 &&
                (l.rows == 0 || (l.span >= 1 && l.rows % l.span == 0)),
            "{}: {} rows of {} channels, statistics over {} rows in {} groups do not describe x of "
            "shape {}",
            kernel, l.rows, l.channels, l.span, l.groups, x.shape());
}

void check_value_type(const char* kernel, const Tensor& x, const NormInterior& interior,
                      const Quantizer& output) {
  const bool wide = x.dtype() == DType::F64;
  ULP_CHECK(wide || is_float_up_to_32(x.dtype()), "{}: x must be a float, got {}", kernel, x);
  ULP_CHECK(!wide || (interior.format.is_identity() && output.is_identity()),
            "{}: F64 values are not quantised", kernel);
  for (const Quantizer& q : {interior.format, output})
    ULP_CHECK(q.is_elementwise(), "{}: {}: block formats cannot be applied inside this kernel",
              kernel, q);
}

void check_trace(const char* kernel, Stream stream, const Tensor& x, const NormLayout& layout,
                 const NormInterior& interior) {
  const Shape each{layout.statistics()};
  const Shape met[] = {each, each, each, x.shape()};
  check_interior_trace(kernel, stream, interior.trace, met);
}

/// An array beside x: F64 where x is, else of `type`.
void check_array(const char* kernel, Stream stream, const Tensor& t, const Shape& shape,
                 const Tensor& x, DType type = DType::F32) {
  check_kernel_tensor(kernel, stream, t, shape);
  const DType wanted = x.dtype() == DType::F64 ? DType::F64 : type;
  ULP_CHECK(t.dtype() == wanted, "{}: wanted {} beside x of {}, got {}", kernel, wanted, x.dtype(),
            t);
}

/// x, its like, or parameters: F64 where x is, else any float.
void check_float_like(const char* kernel, Stream stream, const Tensor& t, const Shape& shape,
                      const Tensor& x) {
  check_kernel_tensor(kernel, stream, t, shape);
  ULP_CHECK(x.dtype() == DType::F64 ? t.dtype() == DType::F64 : is_float_up_to_32(t.dtype()),
            "{}: {} does not go with x of {}", kernel, t, x.dtype());
}

void check_optional(const char* kernel, Stream stream, const Tensor& t, const Tensor& x) {
  if (t.defined()) check_float_like(kernel, stream, t, {x.size(1)}, x);
}

void check_statistics(const char* kernel, Stream stream, const Tensor& mean, const Tensor& inverse,
                      const Tensor& x, const NormLayout& layout) {
  if (mean.defined()) check_array(kernel, stream, mean, {layout.statistics()}, x);
  check_array(kernel, stream, inverse, {layout.statistics()}, x);
}

void check_result(const char* kernel, Stream stream, const Tensor& out, const Tensor& x,
                  const Quantizer& output) {
  check_float_like(kernel, stream, out, x.shape(), x);
  ULP_CHECK(x.dtype() == DType::F64 || fits(output, out.dtype()),
            "{}: {} values do not fit the output's {}", kernel, output, out.dtype());
}

/// What norm_apply and group_norm share: x, its statistics, weight, bias and result.
template <class Args>
void check_applied(const char* kernel, Stream stream, const Args& args) {
  check_kernel_tensor(kernel, stream, args.x, args.x.shape());
  check_layout(kernel, args.x, args.layout);
  check_value_type(kernel, args.x, args.interior, args.output);
  check_trace(kernel, stream, args.x, args.layout, args.interior);
  check_statistics(kernel, stream, args.mean, args.inverse_deviation, args.x, args.layout);
  check_optional(kernel, stream, args.weight, args.x);
  check_optional(kernel, stream, args.bias, args.x);
  check_result(kernel, stream, args.out, args.x, args.output);
}

}  // namespace

void check_batch_statistics(Stream stream, const BatchStatisticsArgs& args) {
  constexpr const char* kName = "batch_statistics";
  check_kernel_tensor(kName, stream, args.x, args.x.shape());
  const NormLayout layout = batch_layout(args.x);
  check_layout(kName, args.x, layout);
  check_value_type(kName, args.x, args.interior, {});
  check_trace(kName, stream, args.x, layout, args.interior);
  const Shape channels{layout.channels};
  check_array(kName, stream, args.mean, channels, args.x);
  check_array(kName, stream, args.inverse_deviation, channels, args.x);
  ULP_CHECK(args.running_mean.defined() == args.running_variance.defined(),
            "{}: a running mean goes with a running variance", kName);
  if (args.running_mean.defined())
    for (const Tensor& t : {args.running_mean, args.running_variance}) {
      check_kernel_tensor(kName, stream, t, channels);
      ULP_CHECK(t.dtype() == DType::F32, "{}: running statistics must be F32, got {}", kName, t);
    }
  ULP_CHECK(args.evaluate ? args.running_mean.defined() : layout.rows >= 2, "{}: {}", kName,
            args.evaluate ? "there are no running statistics"
                          : "the variance of a channel wants at least 2 rows");
}

void check_norm_apply(Stream stream, const NormApplyArgs& args) {
  check_applied("norm_apply", stream, args);
}

void check_group_norm(Stream stream, const GroupNormArgs& args) {
  check_applied("group_norm", stream, args);
}

void check_norm_sums(Stream stream, const NormSumsArgs& args) {
  constexpr const char* kName = "norm_sums";
  check_kernel_tensor(kName, stream, args.x, args.x.shape());
  check_layout(kName, args.x, args.layout);
  check_value_type(kName, args.x, args.interior, {});
  check_float_like(kName, stream, args.grad, args.x.shape(), args.x);
  check_statistics(kName, stream, args.mean, args.inverse_deviation, args.x, args.layout);
  for (const Tensor& t : {args.sum_grad, args.sum_product})
    check_array(kName, stream, t, {args.layout.channels}, args.x);
}

void check_batch_norm_backward(Stream stream, const BatchNormBackwardArgs& args) {
  constexpr const char* kName = "batch_norm_backward";
  check_kernel_tensor(kName, stream, args.x, args.x.shape());
  const NormLayout layout = batch_layout(args.x);
  check_layout(kName, args.x, layout);
  check_value_type(kName, args.x, args.interior, args.output);
  check_float_like(kName, stream, args.grad, args.x.shape(), args.x);
  const Shape channels{layout.channels};
  check_array(kName, stream, args.mean, channels, args.x);
  check_array(kName, stream, args.inverse_deviation, channels, args.x);
  check_optional(kName, stream, args.weight, args.x);
  ULP_CHECK(args.sum_grad.defined() == args.sum_product.defined(),
            "{}: both sums are wanted or none", kName);
  if (args.sum_grad.defined())
    for (const Tensor& t : {args.sum_grad, args.sum_product})
      check_array(kName, stream, t, channels, args.x);
  check_result(kName, stream, args.out, args.x, args.output);
}

void check_group_norm_backward(Stream stream, const GroupNormBackwardArgs& args) {
  constexpr const char* kName = "group_norm_backward";
  check_kernel_tensor(kName, stream, args.x, args.x.shape());
  check_layout(kName, args.x, args.layout);
  check_value_type(kName, args.x, args.interior, args.output);
  check_float_like(kName, stream, args.grad, args.x.shape(), args.x);
  check_statistics(kName, stream, args.mean, args.inverse_deviation, args.x, args.layout);
  check_optional(kName, stream, args.weight, args.x);
  check_result(kName, stream, args.out, args.x, args.output);
}

}  // namespace ulp
