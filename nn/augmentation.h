#pragma once

#include <string>
#include <string_view>

#include "kernels/augment.h"

namespace ulp::nn {

/// "crop:4,flip,cutout:8": parts of an Augmentation in any order, each at most once; "none": nothing. Throws ulp::Error that
/// says what is allowed.
Augmentation parse_augmentation(std::string_view text);

/// The same text in the order crop, flip, cutout.
std::string to_string(const Augmentation& augmentation);

}  // namespace ulp::nn
