#pragma once

#include <filesystem>

#include "nn/data/dataset.h"

namespace ulp::nn {

/// Images (N, H, W) or (N, H, W, C) of bytes ('|u1') or fp32 ('<f4'), all finite → Split::images (N, H·W·C); and labels (N) of
/// any integer type from 0 to 999,999. sample_shape: (H, W, C). Throws ulp::Error, one line with the file's name.
struct NpySplit {
  Split split;
  Shape sample_shape;
};
NpySplit read_npy_split(const std::filesystem::path& images, const std::filesystem::path& labels);

}  // namespace ulp::nn
