#pragma once

#include <memory>

#include "nn/sequential.h"

namespace ulp::nn {

/// ResNet-18 with the stem for small images: a 3 × 3 convolution to 64 channels (no pool), four stages of two blocks of 64, 128, 256
/// and 512 channels, the last three halving the image, the average over the image, a linear layer. A block is
/// relu(x + bn2(conv2(relu(bn1(conv1(x)))))); where the channels change, x goes through a 1 × 1 convolution of stride 2 and batch
/// normalisation (option B). Convolutions have no biases.
/// Layers: image, conv1, bn1, relu1, layer1.block1.… … layer4.block2.…, average, fc. 11,173,962 parameters for three channels and ten
/// classes.   Source: He, Zhang, Ren, Sun, Deep residual learning for image recognition, arXiv 1512.03385.
/// image: (H, W, C), any size.
std::unique_ptr<Sequential> resnet18(const Shape& image, int64_t classes,
                                     const OpFormats& formats = {});

}  // namespace ulp::nn
