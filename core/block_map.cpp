#include "core/block_map.h"

#include <algorithm>

#include "core/error.h"

namespace ulp {
namespace {

int64_t up(int64_t n, int64_t size) { return (n + size - 1) / size; }

/// Tiles over the last two axes.
BlockMap map_tiles(const Block& block, const Shape& shape) {
  BlockMap map;
  const int rank = shape.rank();
  map.inner = rank == 0 ? 1 : shape[rank - 1];
  map.axis = rank < 2 ? 1 : shape[rank - 2];
  for (int i = 0; i + 2 < rank; ++i) map.outer *= shape[i];
  map.group = block.rows;
  map.columns = block.columns;
  map.inner_step = 1;
  map.group_step = up(map.inner, map.columns);
  map.outer_step = up(map.axis, map.group) * map.group_step;
  map.blocks = map.outer * map.outer_step;
  return map;
}

BlockMap map_along(const Shape& shape, int axis) {
  BlockMap map;
  for (int i = 0; i < axis; ++i) map.outer *= shape[i];
  for (int i = axis + 1; i < shape.rank(); ++i) map.inner *= shape[i];
  map.axis = shape[axis];
  return map;
}

}  // namespace

BlockMap make_block_map(const Quantizer& q, const Shape& shape, int group_axis) {
  const Block& block = q.block;
  BlockMap map;
  switch (block.kind) {
    case Block::Kind::None:
    case Block::Kind::Tensor: map.inner = shape.numel(); return map;
    case Block::Kind::Tile: return map_tiles(block, shape);
    default: break;
  }
  const int axis = block.kind == Block::Kind::Axis ? block.axis : group_axis;
  ULP_CHECK(axis >= 0 && axis < shape.rank(),
            "quantise: {} needs axis {}, but the tensor has shape {}", q, axis, shape);
  map = map_along(shape, axis);
  if (block.kind == Block::Kind::Axis) {
    map.group_step = 1;
    map.blocks = map.axis;
    return map;
  }
  map.group = block.kind == Block::Kind::Row ? std::max<int64_t>(1, map.axis) : block.columns;
  map.inner_step = 1;
  map.group_step = map.inner;
  map.outer_step = up(map.axis, map.group) * map.inner;
  map.blocks = map.outer * map.outer_step;
  return map;
}

BlockExtent block_extent(const Quantizer& q, const Shape& matrix, int group_axis) {
  const int64_t rows = std::max<int64_t>(1, matrix[0]), columns = std::max<int64_t>(1, matrix[1]);
  const auto along = [&](int64_t n, int64_t all) {
    return group_axis == 0 ? BlockExtent{std::min(n, all), 1} : BlockExtent{1, std::min(n, all)};
  };
  const int64_t reduction = group_axis == 0 ? rows : columns;
  switch (q.block.kind) {
    case Block::Kind::Axis:
      return q.block.axis == 0 ? BlockExtent{1, columns} : BlockExtent{rows, 1};
    case Block::Kind::Group: return along(q.block.columns, reduction);
    case Block::Kind::Row: return along(reduction, reduction);
    case Block::Kind::Tile:
      return {std::min<int64_t>(q.block.rows, rows), std::min<int64_t>(q.block.columns, columns)};
    default: return {rows, columns};
  }
}

}  // namespace ulp
