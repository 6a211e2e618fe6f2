#include "nn/models/builder.h"

#include "nn/activations.h"
#include "nn/conv.h"
#include "nn/dropout.h"
#include "nn/linear.h"
#include "nn/norm.h"
#include "nn/pool.h"
#include "nn/shape_layers.h"

namespace ulp::nn {

Builder::Builder(std::string model, Sequential& net, const Shape& image, OpFormats formats)
    : model_(std::move(model)), net_(&net), formats_(std::move(formats)) {
  ULP_CHECK(image.rank() == 3 && image[0] >= 1 && image[1] >= 1 && image[2] >= 1,
            "{}: it is for images (H, W, C), got samples of shape {}", model_, image);
  height_ = image[0];
  width_ = image[1];
  channels_ = image[2];
}

void Builder::image() { net_->add<Reshape>("image", Shape{height_, width_, channels_}); }

void Builder::conv(const std::string& name, int64_t out, int64_t kernel, int64_t padding,
                   int64_t stride, Bias bias) {
  const auto shrunk = [&](int64_t size) { return (size + 2 * padding - kernel) / stride + 1; };
  ULP_CHECK(height_ + 2 * padding >= kernel && width_ + 2 * padding >= kernel,
            "{}: {}: images of {} x {} pixels are too small for a kernel of {} x {}; take larger "
            "images or another model",
            model_, path(name), height_, width_, kernel, kernel);
  ops::ConvOptions options;
  options.stride = stride;
  options.padding = padding;
  net_->add<Conv2d>(name, channels_, out, kernel, options, formats_,
                    bias == Bias::Yes ? Linear::Bias::Yes : Linear::Bias::No);
  height_ = shrunk(height_);
  width_ = shrunk(width_);
  channels_ = out;
}

void Builder::batch_norm(const std::string& name) { net_->add<BatchNorm>(name, channels_); }

void Builder::relu(const std::string& name) { net_->add<ReLU>(name); }

void Builder::max_pool(const std::string& name) {
  ULP_CHECK(height_ >= 2 && width_ >= 2,
            "{}: {}: images of {} x {} pixels cannot be halved; take larger images or another "
            "model",
            model_, path(name), height_, width_);
  net_->add<MaxPool2d>(name, 2);
  height_ /= 2;
  width_ /= 2;
}

void Builder::average(const std::string& name) {
  net_->add<GlobalAvgPool>(name);
  height_ = width_ = 1;
}

void Builder::flatten(const std::string& name) {
  net_->add<Flatten>(name);
  channels_ *= height_ * width_;
  height_ = width_ = 1;
}

void Builder::linear(const std::string& name, int64_t out, Bias bias) {
  ULP_ASSERT(height_ == 1 && width_ == 1);
  net_->add<Linear>(name, channels_, out, formats_,
                    bias == Bias::Yes ? Linear::Bias::Yes : Linear::Bias::No);
  channels_ = out;
}

void Builder::dropout(const std::string& name, double share) { net_->add<Dropout>(name, share); }

Builder Builder::part_of(Sequential& net, const std::string& name) const {
  Builder part = *this;
  part.net_ = &net;
  part.path_ = path(name);
  return part;
}

void Builder::nest(const std::string& name, const Part& part) {
  auto net = std::make_unique<Sequential>();
  Builder inner = part_of(*net, name);
  part(inner);
  net_->append(name, std::move(net));
  height_ = inner.height_;
  width_ = inner.width_;
  channels_ = inner.channels_;
}

void Builder::residual(const std::string& name, const Part& body, const Part& shortcut) {
  auto main = std::make_unique<Sequential>();
  Builder inner = part_of(*main, name + ".body");
  body(inner);
  std::unique_ptr<Sequential> other;
  if (shortcut) {
    other = std::make_unique<Sequential>();
    Builder side = part_of(*other, name + ".shortcut");
    shortcut(side);
    ULP_ASSERT(side.height_ == inner.height_ && side.width_ == inner.width_ &&
               side.channels_ == inner.channels_);
  }
  net_->add<Residual>(name, std::move(main), std::move(other));
  height_ = inner.height_;
  width_ = inner.width_;
  channels_ = inner.channels_;
}

}  // namespace ulp::nn
