#pragma once

#include "kernels/conv.h"
#include "kernels/cpu/product.h"

namespace ulp::cpu {

/// Few outputs, where packing windows would cost more than their products: true if the functions below take them.
bool shifts_suit(const Windows& windows, int64_t outputs);
bool weight_shifts_suit(const Windows& windows, int64_t outputs);

/// The results of conv and conv_weight, bit for bit, without packing: in a padded copy of the image, each tap of all windows
/// is the image shifted.
void conv_shifted(const ConvArgs& args, float* out, const Finish& finish);
void weight_shifted(const ConvWeightArgs& args, float* out, const Finish& finish);

}  // namespace ulp::cpu
