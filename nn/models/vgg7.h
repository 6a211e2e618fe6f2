#pragma once

#include <memory>

#include "nn/sequential.h"

namespace ulp::nn {

/// The VGG-like network of WAGE: 2 × 128C3, MP2, 2 × 256C3, MP2, 2 × 512C3, MP2, 1024FC, `classes`; ReLU behind all but the last; no
/// biases, no normalisation. Layers: image, features.block1.{conv1, relu1, conv2, relu2, pool} … block3, flatten, classifier.{fc1,
/// relu1, fc2}. 12,973,440 parameters for 32 × 32 × 3 and ten classes.
/// There is no normalisation, and the default rate (0.1) ends in NaN within some steps. What trains: --lr 0.02 --clip-norm 1
/// --lr-schedule warmup:0.2+cosine --normalize data (batches of 32, tried on textures of 16 × 16 × 3 in fp32).
/// Source: Wu, Li, Chen, Shi, Training and inference with integers in deep neural networks, arXiv 1802.04680, §4.1.
/// image: (H, W, C). Throws, naming the layer, where a side is below 8.
std::unique_ptr<Sequential> vgg7(const Shape& image, int64_t classes,
                                 const OpFormats& formats = {});

}  // namespace ulp::nn
