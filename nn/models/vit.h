#pragma once

#include <memory>

#include "nn/sequential.h"

namespace ulp::nn {

/// A transformer for images (H, W, C): patches of 4 × 4 pixels (2 × 2 of images below 16 pixels) by a convolution, learned
/// positions, 12 blocks of width 192 with 3 heads, norm, the mean over the patches, head. Layers: image, patches, sequence,
/// positions, block1 … block12, norm, pool, head. Throws unless the patches divide the image.
/// Source: Dosovitskiy et al., arXiv 2010.11929; sizes of ViT-Ti of Touvron et al., arXiv 2012.12877.
std::unique_ptr<Sequential> vit_tiny(const Shape& image, int64_t classes,
                                     const OpFormats& formats = {});

}  // namespace ulp::nn
