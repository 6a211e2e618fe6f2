#pragma once

#include <string>

#include "core/quantizer.h"

namespace ulp::ops {

/// Why an operand of a convolution whose windows are more than single pixels (Windows::is_image() is false) cannot have a
/// format; empty if it can. Windows mix pixels: one row of them has no factor of its own, and no axis to rotate.
std::string windows_misfit(const Quantizer& quantizer);

/// Why the operands of a product cannot be rotated (+rhtN) in groups of these sizes, 0: not at all; empty if they can.
std::string rotations_misfit(int a, int b);

/// Why a clamp mask (OpFormats::clamp_mask) cannot be made of values in a format; empty if it can. It is of the values as they
/// are, and a format without bounds (fixedW.F-noclamp, or -wrap, which goes on at the other end) holds none back; fp32 rounds nothing.
std::string mask_misfit(const Quantizer& quantizer);

/// Why the intermediates of norms and softmax cannot have a format; empty if they can.
std::string interior_misfit(const Quantizer& quantizer);

}  // namespace ulp::ops
