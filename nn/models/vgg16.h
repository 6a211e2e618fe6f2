#pragma once

#include <memory>

#include "nn/sequential.h"

namespace ulp::nn {

enum class VggNorm : uint8_t { None, Batch };

/// VGG-16 for small images: 3 × 3 convolutions to 2 × 64, 2 × 128, 3 × 256, 3 × 512 and 3 × 512 channels, ReLU behind each (batch
/// normalisation before it, if asked for) and a 2 × 2 max pool behind each block; then dropout (½), 512, dropout, 512, `classes`.
/// Layers: image, features.block1.{conv1, bn1, relu1, conv2, …, pool} … block5, flatten, classifier.{drop1, fc1, relu1, drop2, fc2,
/// relu2, fc3}. For 32 × 32 × 3 and ten classes 15,245,130 parameters, 15,253,578 with batch normalisation.
/// Source: Simonyan, Zisserman, arXiv 1409.1556, configuration D; the classifier of Yang et al., arXiv 1904.11943 (SWALP).
/// image: (H, W, C). Throws, naming the layer, where a side is below 32.
std::unique_ptr<Sequential> vgg16(const Shape& image, int64_t classes, VggNorm norm,
                                  const OpFormats& formats = {});

}  // namespace ulp::nn
