#pragma once

#include "autograd/product_factors.h"
#include "nn/init.h"

namespace ulp::nn {

/// What a layer implements beside Module if its op is one product with a weight, so that a method of training can give it
/// other first weights and multiply its results (nn/wage.h).
class ProductLayer {
 public:
  virtual ~ProductLayer() = default;
  /// Terms of the sum of one output.
  virtual int64_t fan_in() const = 0;
  /// Before the model is initialised.
  virtual void set_weight(const Initialiser& init, const ProductFactors& factors) = 0;
};

}  // namespace ulp::nn
