#include "nn/weight_scheme.h"

#include "core/error.h"
#include "nn/unit_scaling.h"

namespace ulp::nn {

const char* to_string(WeightScheme scheme) {
  return scheme == WeightScheme::Standard ? "standard" : "unit";
}

WeightScheme parse_weight_scheme(std::string_view text) {
  for (const WeightScheme scheme : {WeightScheme::Standard, WeightScheme::Unit})
    if (text == to_string(scheme)) return scheme;
  throw_error("'{}' is no way to begin; there are standard and unit", text);
}

void apply_weight_scheme(Module& model, WeightScheme scheme) {
  if (scheme == WeightScheme::Unit) unit_scale(model);
}

}  // namespace ulp::nn
