#include "nn/conv.h"

#include <functional>
#include <numeric>

#include "autograd/misfit.h"

namespace ulp::nn {
namespace {

std::string text(ops::Pair p) {
  return p.h == p.w ? std::to_string(p.h) : std::to_string(p.h) + " × " + std::to_string(p.w);
}

/// ", name value", or nothing for the default.
std::string part(const char* name, ops::Pair value, ops::Pair usual) {
  return value == usual ? "" : ", " + std::string(name) + " " + text(value);
}

/// Of windows along an axis of an image; as ops::conv2d.
int64_t places(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t left = size + 2 * padding - dilation * (kernel - 1) - 1;
  return left < 0 ? 0 : left / stride + 1;
}

Shape weight_shape(int64_t in, int64_t out, const std::vector<int64_t>& kernel, int64_t groups) {
  std::vector<int64_t> extents{out};
  extents.insert(extents.end(), kernel.begin(), kernel.end());
  extents.push_back(in / groups);
  return Shape(extents);
}

}  // namespace

Convolution::Convolution(const char* name, int64_t in, int64_t out,
                         const std::vector<int64_t>& kernel, int64_t groups, OpFormats formats,
                         Bias bias)
    : formats_(std::move(formats)), kernel_(kernel), name_(name), in_(in), out_(out) {
  ULP_CHECK(in >= 1 && out >= 1, "{}: channels must be at least 1, got {} → {}", name, in, out);
  for (const int64_t size : kernel)
    ULP_CHECK(size >= 1, "{}: kernels have at least one element along each axis, got {}", name,
              size);
  ULP_CHECK(groups >= 1 && in % groups == 0 && out % groups == 0,
            "{}: both channels must be multiples of groups, got {} → {} in {} groups", name, in,
            out, groups);
  const Shape shape = weight_shape(in, out, kernel, groups);
  fan_in_ = shape.numel() / out;
  weight_ = &add_parameter("weight", shape, Initialiser::kaiming_uniform(fan_in_));
  if (bias == Bias::Yes) bias_ = &add_parameter("bias", {out}, Initialiser::zeros());
}

Var Convolution::forward(Tape& tape, const Var& x) {
  const Var bias = bias_ == nullptr ? Var{} : tape.watch(*bias_);
  const bool known = unit_ && x.value.defined() && x.shape().rank() >= 3;
  return apply(tape, x, tape.watch(*weight_), bias, known ? factors_of(x.shape()) : factors_);
}

bool Convolution::unit_scale(const UnitPlace& place) {
  Shape pixel =
      kernel_.size() == 1 ? Shape{1, kernel_[0], in_} : Shape{1, kernel_[0], kernel_[1], in_};
  if (!steps(pixel)) return false;
  set_initialiser(*weight_, unit_weights());
  unit_ = place.edge;
  set_scaled(unit_text(factors_of(pixel)));
  return true;
}

/// A sum of y has KH·KW·In/groups terms, one of dx KH·KW·Out/groups in every `pixels`-th place, one of dw as many as windows.
ProductFactors Convolution::factors_of(const Shape& x) const {
  const int64_t taps = std::accumulate(kernel_.begin(), kernel_.end(), int64_t{1},
                                       std::multiplies<int64_t>()),
                groups = windows().groups;
  const Steps found = *steps(x);
  return unit_factors(static_cast<double>(taps * in_ / groups),
                      static_cast<double>(taps * out_ / groups) / static_cast<double>(found.pixels),
                      found.windows, *unit_);
}

void Convolution::set_weight(const Initialiser& init, const ProductFactors& factors) {
  set_initialiser(*weight_, init);
  factors_ = factors;
}

std::string Convolution::describe() const {
  std::string sizes;
  for (const int64_t size : kernel_) sizes += (sizes.empty() ? "" : " × ") + std::to_string(size);
  return name_ + " " + std::to_string(in_) + " → " + std::to_string(out_) + ", " + sizes +
         options_text() + (bias_ == nullptr ? ", no bias" : "");
}

std::vector<const char*> Convolution::roles() const {
  return {"input",      "weight",         "output",   "grad_output_dx", "weight_dx",
          "grad_input", "grad_output_dw", "input_dw", "grad_weight"};
}

std::string Convolution::misfit(const Role& role, const Quantizer& q) const {
  const std::string_view name = role.name;
  const bool operand = name != "output" && name != "grad_input" && name != "grad_weight";
  return !operand || windows().is_image() ? "" : ops::windows_misfit(q);
}

Conv2d::Conv2d(int64_t in_channels, int64_t out_channels, ops::Pair kernel,
               ops::ConvOptions options, OpFormats formats, Bias bias)
    : Convolution("Conv2d", in_channels, out_channels, {kernel.h, kernel.w}, options.groups,
                  std::move(formats), bias),
      options_(options) {}

Var Conv2d::apply(Tape& tape, const Var& x, const Var& w, const Var& b,
                  const ProductFactors& factors) {
  return ops::conv2d(tape, x, w, b, options_, formats_, site(), factors);
}

std::optional<Convolution::Steps> Conv2d::steps(const Shape& x) const {
  const ops::ConvOptions& o = options_;
  return Steps{o.stride.h * o.stride.w,
               x[0] * places(x[1], kernel_[0], o.stride.h, o.padding.h, o.dilation.h) *
                   places(x[2], kernel_[1], o.stride.w, o.padding.w, o.dilation.w)};
}

Windows Conv2d::windows() const {
  return {1,
          options_.groups,
          1,
          {1, 1, kernel_[0], options_.stride.h, 1, -options_.padding.h, 1},
          {1, 1, kernel_[1], options_.stride.w, 1, -options_.padding.w, 1}};
}

std::string Conv2d::options_text() const {
  return part("stride", options_.stride, 1) + part("padding", options_.padding, 0) +
         part("dilation", options_.dilation, 1) + part("groups", options_.groups, 1);
}

ConvTranspose2d::ConvTranspose2d(int64_t in_channels, int64_t out_channels, ops::Pair kernel,
                                 ops::ConvTransposeOptions options, OpFormats formats, Bias bias)
    : Convolution("ConvTranspose2d", in_channels, out_channels, {kernel.h, kernel.w},
                  options.groups, std::move(formats), bias),
      options_(options) {}

Var ConvTranspose2d::apply(Tape& tape, const Var& x, const Var& w, const Var& b,
                           const ProductFactors& factors) {
  return ops::conv_transpose2d(tape, x, w, b, options_, formats_, site(), factors);
}

Windows ConvTranspose2d::windows() const {
  const auto axis = [](int64_t taps, int64_t stride, int64_t padding, int64_t more) {
    return WindowAxis{1, 1 + more, taps, 1, stride, padding, 1};
  };
  const ops::ConvTransposeOptions& o = options_;
  return {1, o.groups, 1, axis(kernel_[0], o.stride.h, o.padding.h, o.output_padding.h),
          axis(kernel_[1], o.stride.w, o.padding.w, o.output_padding.w)};
}

std::string ConvTranspose2d::options_text() const {
  return part("stride", options_.stride, 1) + part("padding", options_.padding, 0) +
         part("output padding", options_.output_padding, 0) +
         part("dilation", options_.dilation, 1) + part("groups", options_.groups, 1);
}

Conv1d::Conv1d(int64_t in_channels, int64_t out_channels, int64_t kernel,
               ops::Conv1dOptions options, OpFormats formats, Bias bias)
    : Convolution("Conv1d", in_channels, out_channels, {kernel}, options.groups, std::move(formats),
                  bias),
      options_(options) {}

Var Conv1d::apply(Tape& tape, const Var& x, const Var& w, const Var& b,
                  const ProductFactors& factors) {
  return ops::conv1d(tape, x, w, b, options_, formats_, site(), factors);
}

std::optional<Convolution::Steps> Conv1d::steps(const Shape& x) const {
  const ops::Conv1dOptions& o = options_;
  return Steps{o.stride, x[0] * places(x[1], kernel_[0], o.stride, o.padding, o.dilation)};
}

Windows Conv1d::windows() const {
  return {1, options_.groups, 1, {}, {1, 1, kernel_[0], options_.stride, 1, -options_.padding, 1}};
}

std::string Conv1d::options_text() const {
  return part("stride", options_.stride, 1) + part("padding", options_.padding, 0) +
         part("dilation", options_.dilation, 1) + part("groups", options_.groups, 1);
}

}  // namespace ulp::nn
