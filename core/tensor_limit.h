#pragma once

#include <cstdint>

#include "core/shape.h"

namespace ulp {

inline constexpr int64_t kMaxElements = int64_t{1} << 59;  // the widest type's bytes fit 63 bits

/// Can there be a tensor of this shape? Empty axes count as 1, so that strides fit too.
inline bool is_within_limit(const Shape& shape) {
  int64_t elements = 1;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    const int64_t extent = shape[axis] < 1 ? 1 : shape[axis];
    if (extent > kMaxElements / elements) return false;
    elements *= extent;
  }
  return true;
}

}  // namespace ulp
