#include "nn/weight_scheme.h"

#include "core/error.h"
#include "nn/unit_scaling.h"
#include "nn/wage.h"

namespace ulp::nn {

const char* to_string(WeightScheme scheme) {
  switch (scheme) {
    case WeightScheme::Standard: return "standard";
    case WeightScheme::Unit: return "unit";
    case WeightScheme::Wage: return "wage";
  }
  return "?";
}

WeightScheme parse_weight_scheme(std::string_view text) {
  for (const WeightScheme scheme : {WeightScheme::Standard, WeightScheme::Unit, WeightScheme::Wage})
    if (text == to_string(scheme)) return scheme;
  throw_error("'{}' is no way to begin; there are standard, unit and wage", text);
}

void apply_weight_scheme(Module& model, WeightScheme scheme) {
  if (scheme == WeightScheme::Unit) unit_scale(model);
  if (scheme == WeightScheme::Wage) wage_weights(model);
}

}  // namespace ulp::nn
