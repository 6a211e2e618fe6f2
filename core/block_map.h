#pragma once

#include "core/macros.h"
#include "core/quantizer.h"
#include "core/shape.h"

namespace ulp {

/// Where a quantizer's blocks lie in a tensor seen as (outer, axis, inner): element (o, a, r) belongs to block
/// o·outer_step + (a / group)·group_step + (r / columns)·inner_step. Blocks are numbered in row-major order; tails are short.
struct BlockMap {
  int64_t outer = 1, axis = 1, inner = 1;
  int64_t group = 1, columns = 1;
  int64_t outer_step = 0, group_step = 0, inner_step = 0;
  int64_t blocks = 1;

  ULP_HD int64_t block_of(int64_t o, int64_t a, int64_t r) const {
    return o * outer_step + a / group * group_step + (inner_step == 0 ? 0 : r / columns);
  }
  ULP_HD int64_t block_of(int64_t element) const {
    return block_of(element / inner / axis, element / inner % axis, element % inner);
  }
};

/// Groups, rows and rotations run along `group_axis`. Throws ulp::Error if the quantizer needs an axis that the shape has
/// not. For a quantizer without blocks, and for one block of a whole tensor, `inner` is all of it.
BlockMap make_block_map(const Quantizer& quantizer, const Shape& shape, int group_axis);

/// How much of a matrix one block covers.
struct BlockExtent {
  int64_t rows, columns;
};
BlockExtent block_extent(const Quantizer& quantizer, const Shape& matrix, int group_axis);

}  // namespace ulp
