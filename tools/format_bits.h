#pragma once

#include <optional>

#include "core/quantizer.h"

namespace ulp::tools {

/// Of an element, without its block's scale.
int element_bits(const Format& format);
/// Of each block's scale: a power of two from 2^-127 on, an e4m3 number, or an fp32 number.
int scale_bits(const Quantizer& quantizer);
/// An element with its share of the scale; none if the tensor's shape decides that.
std::optional<double> bits_per_element(const Quantizer& quantizer);

}  // namespace ulp::tools
