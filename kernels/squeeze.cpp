#include "kernels/squeeze.h"

namespace ulp {
namespace {

constexpr auto kTotals = static_cast<int64_t>(sizeof(SqueezeTotals));

void check_totals(const char* kernel, Stream stream, const Tensor& totals) {
  check_kernel_tensor(kernel, stream, totals, {kTotals});
  ULP_CHECK(totals.dtype() == DType::U8, "{}: totals are bytes (U8), got {}", kernel,
            totals.dtype());
}

void check_elements(const char* kernel, Stream stream, const Tensor& in, const Tensor& out) {
  check_kernel_tensor(kernel, stream, in, out.shape());
  check_kernel_tensor(kernel, stream, out, in.shape());
  ULP_CHECK(is_float_up_to_32(in.dtype()) && out.dtype() == DType::F32,
            "{}: wanted a float of up to 32 bits and an F32 output, got {} and {}", kernel,
            in.dtype(), out.dtype());
}

}  // namespace

void check_squeeze_logs(Stream stream, const SqueezeLogsArgs& args) {
  check_elements("squeeze_logs", stream, args.in, args.logs);
  check_totals("squeeze_logs", stream, args.totals);
}

void check_squeeze(Stream stream, const SqueezeArgs& args) {
  check_elements("squeeze", stream, args.in, args.out);
  check_totals("squeeze", stream, args.totals);
  check_kernel_tensor("squeeze", stream, args.logs, {1});
  ULP_CHECK(args.logs.dtype() == DType::F32, "squeeze: the sum of the logs is F32, got {}",
            args.logs.dtype());
}

Tensor empty_squeeze_totals(Device device) { return Tensor::empty({kTotals}, DType::U8, device); }

}  // namespace ulp
