#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace ulp::nn {

/// NumPy's array file: little-endian fp32 in C order, at most eight axes; versions 1.0 to 3.0 are read. Believes nothing it
/// reads: no memory is taken before the file's size agrees. Throws ulp::Error, one line with the file, what it holds and
/// what is allowed.   Source: NEP 1 and numpy/lib/format.py.
Tensor load_npy(const std::filesystem::path& path);

/// An array of another type: its elements as they lie in the file.
struct NpyArray {
  std::string type;  // "|u1", "<i8", …
  Shape shape;
  std::vector<uint8_t> bytes;
};
/// The same for arrays of one of these types. `wanted`: how messages name them.
NpyArray load_npy_array(const std::filesystem::path& path, std::span<const std::string_view> types,
                        std::string_view wanted);

/// Version 1.0, written as a whole or not at all. F32 on the CPU, contiguous.
void save_npy(const std::filesystem::path& path, const Tensor& tensor);

/// A file of nothing but little-endian fp32: one axis.
Tensor load_f32(const std::filesystem::path& path);
/// The elements in row-major order; their shape is not kept.
void save_f32(const std::filesystem::path& path, const Tensor& tensor);

}  // namespace ulp::nn
