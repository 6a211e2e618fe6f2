#pragma once

#include "nn/module.h"

namespace ulp::nn {

/// The least bound of a uniform weight that WAGE rounds to the two bits −½, 0, ½: 1.5 of the step ½.
inline constexpr double kWageLeastBound = 0.75;
/// max(√(3/n), kWageLeastBound): below it most weights would round to 0.  Throws unless n ≥ 1.
double wage_bound(int64_t fan_in);
/// α = max(2^round(log2(kWageLeastBound / √(3/n))), 1), what such weights are too large by.
double wage_scale(int64_t fan_in);

/// Linear layers and convolutions below `model` (ProductLayer) begin with weights uniform within ±wage_bound and have
/// y = (x wᵀ)/α + b and dx = (g w)/α, while dw = gᵀ x is not divided: it is that of w/α, handed on to w as it is. Before
/// the model is initialised.
/// Source: Wu et al., Training and inference with integers in deep neural networks, arXiv 1802.04680, section 3.2 (eq. 8, 9),
/// and the authors' code, where the weight is divided behind its rounding and the gradient passes straight through both, and
/// which has √(3/n) where the paper has √(6/n): with that activations grow from layer to layer and vgg7 does not learn.
void wage_weights(Module& model);

}  // namespace ulp::nn
