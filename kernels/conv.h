#pragma once

// Kernels of convolutions: products of which one operand is the windows of an image (kernels/windows.h). kernel.h says what
// a row means.

#include "kernels/kernels.h"
#include "kernels/windows.h"

namespace ulp {

/// out (N, OH, OW, G·O) = windows(image) · weight + bias (G·O, optional), then `output` (element-wise only) rounds each
/// element. image (N, H, W, G·C): any float; weight (G, KH·KW, C, O): any float, any strides. Group g reads the image's
/// channels from g·C on and makes those of out from g·O on.
/// Sums over (kh, kw, c) are those of matmul with the windows' matrix, padding taken as +0: in strict math, and of simulated
/// accumulators, the same bits, group g being matrix number g.
/// image_factor, weight_factor (F32, one number, optional), factor: as a_factor, b_factor and factor of MatmulArgs.
struct ConvArgs {
  Tensor image, weight, bias, out;
  Windows windows;
  Quantizer output;
  RandomKey key;
  Sums sums;
  Math math = Math::Strict;
  bool fits_tf32 = false;
  Tensor image_factor{}, weight_factor{};
  double factor = 1;
};

/// out (G·O, KH·KW·C) = gradᵀ · windows(image), rounded by `output`: the gradient of a weight (O rows a group). grad
/// (N, OH, OW, G·O), image (N, H, W, G·C): any float. Sums over the rows (n, oh, ow) are those of matmul.
struct ConvWeightArgs {
  Tensor grad, image, out;
  Windows windows;
  Quantizer output;
  RandomKey key;
  Sums sums;
  Math math = Math::Strict;
  bool fits_tf32 = false;
  Tensor grad_factor{}, image_factor{};
  double factor = 1;
};

// clang-format off
/// X(name, arguments): see kernels.h.
#define ULP_CONV_KERNELS(X)           \
  X(conv, ConvArgs)                   \
  X(conv_weight, ConvWeightArgs)
// clang-format on

ULP_CONV_KERNELS(ULP_DECLARE_KERNEL)

/// Throw unless the arguments of a row are as it says.
void check_conv(Stream stream, const ConvArgs& args);
void check_conv_weight(Stream stream, const ConvWeightArgs& args);

/// Groups of so few channels and outputs that a product for each would be all overhead: direct kernels sum them.
inline bool is_narrow(const Windows& windows, int64_t outputs) {
  return windows.groups > 1 && windows.channels * outputs <= 16;
}

}  // namespace ulp
