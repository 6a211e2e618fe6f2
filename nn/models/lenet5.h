#pragma once

#include <memory>

#include "nn/sequential.h"

namespace ulp::nn {

/// LeNet-5 with ReLU and max pooling: 5 × 5 convolutions to 6 and 16 channels, each with a 2 × 2 pool behind it, then linear layers
/// of 120, 84 and `classes`. Images of less than 32 × 32 pixels are padded by 2 (those of MNIST to 32 × 32).
/// Layers: image, conv1, relu1, pool1, conv2, relu2, pool2, flatten, fc1, relu3, fc2, relu4, fc3. 61,706 parameters for
/// 28 × 28 × 1 and ten classes.   Source: LeCun et al., Gradient-based learning applied to document recognition, 1998.
/// image: (H, W, C). Throws, naming the layer, where images are too small (at least 12 × 12).
std::unique_ptr<Sequential> lenet5(const Shape& image, int64_t classes,
                                   const OpFormats& formats = {});

}  // namespace ulp::nn
