#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "nn/sequential.h"

namespace ulp::nn {

/// Appends the layers of an image network to a Sequential and keeps the size of the images between them. A network that is too
/// deep for its images is refused when it is made, naming the layer. Convolutions and linear layers have the given formats, other
/// layers none (policies give them).
class Builder {
 public:
  /// image: (H, W, C) of the samples. model: for messages.
  Builder(std::string model, Sequential& net, const Shape& image, OpFormats formats);

  /// Makes images (N, H, W, C) of the rows (N, H·W·C) of a batch: the layer "image".
  void image();
  enum class Bias : uint8_t { Yes, No };
  void conv(const std::string& name, int64_t out, int64_t kernel, int64_t padding,
            int64_t stride = 1, Bias bias = Bias::Yes);
  void batch_norm(const std::string& name);
  void relu(const std::string& name);
  /// 2 × 2, stride 2.
  void max_pool(const std::string& name);
  /// (N, H, W, C) → (N, C).
  void average(const std::string& name);
  /// (N, H, W, C) → (N, H·W·C).
  void flatten(const std::string& name);
  /// From all values of an image.
  void linear(const std::string& name, int64_t out, Bias bias = Bias::Yes);
  void dropout(const std::string& name, double share);

  using Part = std::function<void(Builder&)>;
  /// A Sequential of its own with these layers.
  void nest(const std::string& name, const Part& part);
  /// x + body(x), or shortcut(x) + body(x): both make images of one size. Children: body, shortcut.
  void residual(const std::string& name, const Part& body, const Part& shortcut = {});

  int64_t channels() const { return channels_; }

 private:
  std::string path(const std::string& name) const { return join_path(path_, name); }
  /// A builder of a part that begins where this one is.
  Builder part_of(Sequential& net, const std::string& name) const;

  std::string model_;
  Sequential* net_;
  std::string path_;
  int64_t height_, width_, channels_;
  OpFormats formats_;
};

}  // namespace ulp::nn
