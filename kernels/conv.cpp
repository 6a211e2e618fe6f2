#include "kernels/conv.h"

#include <algorithm>

namespace ulp {
namespace {

void check_axis(const char* kernel, const char* name, const WindowAxis& a) {
  constexpr int64_t kMost = int64_t{1} << 31;
  const auto small = [](int64_t x) { return x > -kMost && x < kMost; };
  ULP_CHECK(a.in >= 0 && a.out >= 0 && a.taps >= 1 && a.step >= 1 && a.up >= 1 && small(a.in) &&
                small(a.out) && small(a.taps) && small(a.step) && small(a.up) && small(a.start) &&
                small(a.dilation),
            "{}: the {} axis needs sizes ≥ 0, taps, step and up ≥ 1, all below 2^31; got in {}, "
            "out {}, taps {}, step {}, up {}, start {}, dilation {}",
            kernel, name, a.in, a.out, a.taps, a.step, a.up, a.start, a.dilation);
  // Every position that a tap may have: kernels count them in 32 bits.
  const int64_t last = std::max<int64_t>(0, a.out - 1) * a.step;
  const int64_t reach = (a.taps - 1) * a.dilation;
  ULP_CHECK(last < kMost && small(reach) && small(a.start + last + std::max<int64_t>(0, reach)) &&
                small(a.start + std::min<int64_t>(0, reach)),
            "{}: the {} axis reaches beyond 2^31: {} places {} apart from {} on, {} taps {} apart",
            kernel, name, a.out, a.step, a.start, a.taps, a.dilation);
}

/// The parts that both kernels have. `pixels` lies where the windows are, `image` where they read.
void check_common(const char* kernel, Stream stream, const Windows& w, const Tensor& image,
                  const Tensor& pixels, int64_t outputs, const Tensor& out, const Quantizer& output,
                  const Sums& sums, Math math) {
  check_axis(kernel, "height", w.h);
  check_axis(kernel, "width", w.w);
  ULP_CHECK(w.images >= 0 && w.groups >= 1 && w.channels >= 1 && outputs >= 1,
            "{}: groups, channels and outputs must be at least 1, got {}, {} and {}", kernel,
            w.groups, w.channels, outputs);
  ULP_CHECK(w.rows() <= INT32_MAX && w.columns() <= INT32_MAX && w.pixel() <= INT32_MAX,
            "{}: at most 2^31 − 1 windows of as many elements, got {} of {}; use smaller batches",
            kernel, w.rows(), w.columns());
  check_kernel_tensor(kernel, stream, image, {w.images, w.h.in, w.w.in, w.pixel()});
  check_kernel_tensor(kernel, stream, pixels, {w.images, w.h.out, w.w.out, w.groups * outputs});
  const bool doubles = image.dtype() == DType::F64;
  ULP_CHECK(out.dtype() == (doubles ? DType::F64 : DType::F32), "{}: out must be {}, got {}",
            kernel, doubles ? DType::F64 : DType::F32, out);
  ULP_CHECK(output.is_elementwise() && output.format.kind != FormatKind::BlockFloat,
            "{}: its output can be rounded element by element only, not to {}; quantise the "
            "result instead",
            kernel, output);
  ULP_CHECK(!doubles || output.is_identity(), "{}: F64 results are not rounded, got output {}",
            kernel, output);
  check_sums(kernel, sums, image.dtype());
  ULP_CHECK(math == Math::Strict || stream.device.type == DeviceType::Cuda,
            "{}: fast math needs CUDA; on the CPU ask for strict math", kernel);
}

void check_operand(const char* kernel, const Tensor& image, const Tensor& t) {
  ULP_CHECK(image.dtype() == DType::F64 ? t.dtype() == DType::F64 : is_float_up_to_32(t.dtype()),
            "{}: operands must be F32, BF16, F16, F8_E4M3 or F8_E5M2, or all F64; got {} and {}",
            kernel, image.dtype(), t.dtype());
}

void check_factor(const char* kernel, Stream stream, const Tensor& image, const Tensor& factor) {
  if (!factor.defined()) return;
  check_kernel_tensor(kernel, stream, factor, {1});
  ULP_CHECK(factor.dtype() == DType::F32 && image.dtype() != DType::F64,
            "{}: factors are F32 and not for F64 operands, got {}", kernel, factor);
}

}  // namespace

void check_conv(Stream stream, const ConvArgs& args) {
  const Windows& w = args.windows;
  ULP_CHECK(args.weight.defined() && args.weight.rank() == 4 && args.weight.size(0) == w.groups &&
                args.weight.size(1) == w.taps() && args.weight.size(2) == w.channels,
            "conv: weight must be ({}, {}, {}, O), got {}", w.groups, w.taps(), w.channels,
            args.weight);
  ULP_CHECK(args.weight.device() == stream.device, "conv: weight must be on {}, got {}",
            stream.device, args.weight);
  check_common("conv", stream, w, args.image, args.out, args.weight.size(3), args.out, args.output,
               args.sums, args.math);
  check_operand("conv", args.image, args.image);
  check_operand("conv", args.image, args.weight);
  if (args.bias.defined()) {
    check_kernel_tensor("conv", stream, args.bias, {w.groups * args.weight.size(3)});
    check_operand("conv", args.image, args.bias);
  }
  check_factor("conv", stream, args.image, args.image_factor);
  check_factor("conv", stream, args.image, args.weight_factor);
}

void check_conv_weight(Stream stream, const ConvWeightArgs& args) {
  const Windows& w = args.windows;
  ULP_CHECK(args.grad.defined() && args.grad.rank() == 4 && w.groups >= 1 &&
                args.grad.size(3) % w.groups == 0,
            "conv_weight: grad must be (N, OH, OW, a multiple of {}), got {}", w.groups, args.grad);
  ULP_CHECK(args.out.defined(), "conv_weight: out must be ({}, {})", args.grad.size(3),
            w.columns());
  check_common("conv_weight", stream, w, args.image, args.grad, args.grad.size(3) / w.groups,
               args.out, args.output, args.sums, args.math);
  check_kernel_tensor("conv_weight", stream, args.out, {args.grad.size(3), w.columns()});
  check_operand("conv_weight", args.image, args.image);
  check_operand("conv_weight", args.image, args.grad);
  check_factor("conv_weight", stream, args.image, args.grad_factor);
  check_factor("conv_weight", stream, args.image, args.image_factor);
}

}  // namespace ulp
