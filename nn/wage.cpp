#include "nn/wage.h"

#include <algorithm>
#include <cmath>

#include "nn/product_layer.h"

namespace ulp::nn {
namespace {

/// Of a uniform weight whose products have the variance of their inputs.
double usual_bound(int64_t fan_in) {
  return Initialiser::kaiming_uniform(fan_in).bound / std::sqrt(2.0);
}

}  // namespace

double wage_bound(int64_t fan_in) { return std::max(usual_bound(fan_in), kWageLeastBound); }

double wage_scale(int64_t fan_in) {
  const double ratio = kWageLeastBound / usual_bound(fan_in);
  return std::max(std::exp2(std::round(std::log2(ratio))), 1.0);
}

void wage_weights(Module& model) {
  for (Module* module : model.modules()) {
    auto* const layer = dynamic_cast<ProductLayer*>(module);
    if (layer == nullptr) continue;
    const int64_t n = layer->fan_in();
    const double inverse = 1 / wage_scale(n);
    layer->set_weight(Initialiser::uniform(wage_bound(n)), {.forward = inverse, .dx = inverse});
  }
}

}  // namespace ulp::nn
