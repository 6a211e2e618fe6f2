#pragma once

#include <filesystem>
#include <vector>

#include "nn/data/dataset.h"

namespace ulp::nn {

enum class CifarLabels : uint8_t {
  Ten,     // CIFAR-10: one byte a record
  Coarse,  // CIFAR-100, which has two: the first, 0 … 19
  Fine,    // the second, 0 … 99
};

/// A file of the CIFAR binary version: records of one or two label bytes and 3072 bytes, 1024 red, 1024 green, 1024 blue, each
/// 32 rows of 32. Returns images U8 (N, 32 · 32 · 3), channels last, and labels. Throws ulp::Error, one line with the file's name,
/// where it is empty, no whole number of records, compressed, or has a label that there is not.
/// Source: www.cs.toronto.edu/~kriz/cifar.html, "binary version".
Split read_cifar(const std::filesystem::path& path, CifarLabels labels);

/// The samples of one split after those of another.
Split concatenated(const std::vector<Split>& parts);

}  // namespace ulp::nn
