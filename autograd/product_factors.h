#pragma once

namespace ulp {

/// What multiplies the results of an op that is a product, for methods whose weights are larger or smaller than the layer's
/// output allows:
///   y = forward · (x wᵀ) + b,  dx = dx · (g w),  dw = dw · (gᵀ x),  db = db · Σ g
/// In fp32, once, on complete sums (MatmulArgs says how): before the bias, which is not multiplied, and before any result is
/// rounded. A power of two is exact, 1 changes nothing. Where forward, dx and dw differ the gradients are not those of y: that
/// is up to the caller.
struct ProductFactors {
  double forward = 1, dx = 1, dw = 1, db = 1;
  bool operator==(const ProductFactors&) const = default;
};

}  // namespace ulp
