#pragma once

#include "core/quantizer.h"
#include "core/tensor.h"

namespace ulp {

/// For kernels that round what they make of `in`. Throws unless both are floats, F64 going with F64 and unrounded, and `out` holds
/// the element-wise quantizer's values.
void check_rounded_result(const char* kernel, const Tensor& in, const Tensor& out,
                          const Quantizer& output);

}  // namespace ulp
