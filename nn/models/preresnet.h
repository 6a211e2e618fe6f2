#pragma once

#include <memory>

#include "nn/sequential.h"

namespace ulp::nn {

/// The residual network with pre-activation for small images: a 3 × 3 convolution to 16 channels, three stages of (depth − 2) / 6
/// blocks of 16, 32 and 64 channels, the last two halving the image, then batch normalisation, ReLU, the average over the image, a
/// linear layer. A block is x + conv2(relu(bn2(conv1(relu(bn1(x)))))); where the channels change, x goes through a 1 × 1 convolution of
/// stride 2 without normalisation (a projection, option B, as in SWALP's preresnet; the papers' CIFAR networks have option A, no
/// parameters). Convolutions have no biases.
/// Layers: image, conv1, layer1.block1.… … layer3.blockN.…, bn, relu, average, fc. With ten classes and three channels 272,282
/// parameters for depth 20, 855,578 for 56 and 1,730,522 for 110.
/// Source: He, Zhang, Ren, Sun, Identity mappings in deep residual networks, arXiv 1603.05027.
/// image: (H, W, C), any size. Throws unless depth is 6 n + 2 with n ≥ 1.
std::unique_ptr<Sequential> preresnet(int depth, const Shape& image, int64_t classes,
                                      const OpFormats& formats = {});

}  // namespace ulp::nn
