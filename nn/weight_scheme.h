#pragma once

#include <string_view>

#include "nn/module.h"

namespace ulp::nn {

/// How first weights are drawn, and what the layers multiply because of it. Standard: as each layer has it. Unit:
/// nn/unit_scaling.h. Wage: nn/wage.h.
enum class WeightScheme : uint8_t { Standard, Unit, Wage };
/// "standard", "unit", "wage".
const char* to_string(WeightScheme scheme);
/// Throws ulp::Error with the names there are.
WeightScheme parse_weight_scheme(std::string_view text);

/// Before the model is initialised. Standard changes nothing. Throws as unit_scale does.
void apply_weight_scheme(Module& model, WeightScheme scheme);

}  // namespace ulp::nn
