#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"

namespace ulp::nn {

/// zlib's CRC-32 of the bytes that `before` is that of (0: of none) followed by these. On all threads.
uint32_t checksum(uint32_t before, std::span<const uint8_t> bytes);

/// Those of a contiguous tensor on the CPU.
std::span<const uint8_t> bytes_of(const Tensor& tensor);

}  // namespace ulp::nn
