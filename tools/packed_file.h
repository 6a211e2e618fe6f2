#pragma once

#include <filesystem>
#include <optional>

#include "core/packed.h"

namespace ulp::tools {

// A packed tensor as a safetensors file (nn/data/safetensors.h). core/packed.h says what the bytes mean.
//  tensors   "codes"       U8 (bytes)
//            "scales"      U8 or F32 (blocks); absent for formats without blocks
//  metadata  "format"      the quantizer: "mxfp4:sr"
//            "shape"       of the tensor, a JSON list: "[2, 64]"
//            "group_axis"  along which groups and rows run: "1"
//            "factor"      what every value is multiplied by in the end, the shortest decimal that reads back: "1"

inline constexpr const char* kPackedExtension = ".safetensors";

/// Written as a whole or not at all.
void save_packed(const std::filesystem::path& path, const PackedTensor& packed);

struct UnpackedFile {
  PackedTensor packed;
  Tensor values;  // unpack(packed)
};

/// Believes nothing it reads. `how`: the format that the file must have, roundings apart; without it no table=FILE is taken,
/// for that would open whatever file the metadata names.
/// Throws ulp::Error, one line with the file, what it holds and what is wanted.
UnpackedFile load_packed(const std::filesystem::path& path,
                         const std::optional<Quantizer>& how = std::nullopt);

}  // namespace ulp::tools
