#include "nn/data/checksum.h"

#include <zlib.h>

#include <algorithm>
#include <vector>

namespace ulp::nn {

std::span<const uint8_t> bytes_of(const Tensor& tensor) {
  return {static_cast<const uint8_t*>(tensor.raw()), static_cast<size_t>(tensor.bytes())};
}

uint32_t checksum(uint32_t before, std::span<const uint8_t> bytes) {
  constexpr size_t kChunk = size_t{1} << 20;
  const auto chunks = static_cast<int64_t>((bytes.size() + kChunk - 1) / kChunk);
  std::vector<uint32_t> of_chunk(static_cast<size_t>(chunks));
  const auto chunk = [&](int64_t i) {
    const size_t begin = static_cast<size_t>(i) * kChunk;
    return bytes.subspan(begin, std::min(kChunk, bytes.size() - begin));
  };
#pragma omp parallel for if (chunks > 1)
  for (int64_t i = 0; i < chunks; ++i)
    of_chunk[static_cast<size_t>(i)] =
        static_cast<uint32_t>(crc32_z(0, chunk(i).data(), chunk(i).size()));
  uLong all = before;
  for (int64_t i = 0; i < chunks; ++i)
    all =
        crc32_combine(all, of_chunk[static_cast<size_t>(i)], static_cast<z_off_t>(chunk(i).size()));
  return static_cast<uint32_t>(all);
}

}  // namespace ulp::nn
