#include "nn/wage.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "nn/product_layer.h"

namespace ulp::nn {
namespace {

/// The bound that keeps the variance through ReLU layers.
double usual_bound(int64_t fan_in) { return Initialiser::kaiming_uniform(fan_in).bound; }

}  // namespace

const char* to_string(WeightScheme scheme) {
  return scheme == WeightScheme::Wage ? "wage" : "standard";
}

WeightScheme parse_weight_scheme(std::string_view text) {
  for (const WeightScheme scheme : {WeightScheme::Standard, WeightScheme::Wage})
    if (text == to_string(scheme)) return scheme;
  throw_error("'{}' is no way to begin weights; there are standard and wage", text);
}

double wage_bound(int64_t fan_in) { return std::max(usual_bound(fan_in), kWageLeastBound); }

double wage_scale(int64_t fan_in) {
  const double ratio = kWageLeastBound / usual_bound(fan_in);
  return std::max(std::exp2(std::round(std::log2(ratio))), 1.0);
}

void apply_weight_scheme(Module& model, WeightScheme scheme) {
  if (scheme == WeightScheme::Standard) return;
  for (Module* module : model.modules()) {
    auto* const layer = dynamic_cast<ProductLayer*>(module);
    if (layer == nullptr) continue;
    const int64_t n = layer->fan_in();
    const double inverse = 1 / wage_scale(n);
    layer->set_weight(Initialiser::uniform(wage_bound(n)), {.forward = inverse, .dx = inverse});
  }
}

}  // namespace ulp::nn
