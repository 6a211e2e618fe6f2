#pragma once

#include <filesystem>

#include "core/tensor.h"

namespace ulp::nn {

/// Reads an IDX file of unsigned bytes, the layout of MNIST: magic 0x0000080R with R the number of axes, R big-endian
/// 32-bit extents, the values in row-major order. Plain, or gzip of that (told by its first two bytes).
///   axes = 3  images  →  U8 (N, H, W)         axes = 1  labels  →  U8 (N)
/// Throws ulp::Error, naming the file, for another magic, an extent of zero, missing or trailing bytes and corrupt
/// gzip data. Memory follows the data that is there, whatever the header claims.
/// Source: http://yann.lecun.com/exdb/mnist, "file formats".
Tensor read_idx(const std::filesystem::path& path, int axes);

}  // namespace ulp::nn
