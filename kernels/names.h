#pragma once

#include <span>

namespace ulp::kernels {

/// The names of all kernels, family by family.
std::span<const char* const> all_names();

}  // namespace ulp::kernels
