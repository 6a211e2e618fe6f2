#pragma once

// What the files of conformance.h share.

#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "tests/conformance.h"

namespace ulp::conformance {

inline constexpr float kMost = std::numeric_limits<float>::max();
inline constexpr float kInf = std::numeric_limits<float>::infinity();

/// Posits and tables.
bool is_list(const Quantizer& quantizer);

/// A file of tests/data.
std::ifstream open_data(const char* name);
/// fp32 bits in hex; four digits are the upper half, the lower half being 0.
float number_of(const std::string& digits);
std::vector<float> numbers_of(const std::string& line);

/// The whole quantizer, or with `factors` the values that they are kept apart from. mask is optional.
Tensor quantise(const Quantizer& q, const TensorCase& tensor, DType out, const Tensor& factors,
                const Tensor& mask);

}  // namespace ulp::conformance
