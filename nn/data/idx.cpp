#include "nn/data/idx.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "core/error.h"
#include "nn/data/read_file.h"

namespace ulp::nn {
namespace {

uint32_t big_endian(const uint8_t* bytes) {
  return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 |
         uint32_t{bytes[3]};
}

// Product of the extents, or the largest integer if that is less.
uint64_t saturating_numel(const Shape& shape) {
  uint64_t n = 1;
  for (int axis = 0; axis < shape.rank(); ++axis)
    if (__builtin_mul_overflow(n, static_cast<uint64_t>(shape[axis]), &n))
      return std::numeric_limits<uint64_t>::max();
  return n;
}

Shape read_header(const std::vector<uint8_t>& bytes, int axes, const std::string& name) {
  const size_t size = 4 + 4 * static_cast<size_t>(axes);
  const uint32_t wanted = 0x800u + static_cast<uint32_t>(axes);
  ULP_CHECK(bytes.size() >= 4, "{}: truncated, {} bytes; an IDX header has {}", name, bytes.size(),
            size);
  ULP_CHECK(big_endian(bytes.data()) == wanted,
            "{}: starts with {:#010x}; IDX {} start with {:#010x}, gzip with 0x1f8b", name,
            big_endian(bytes.data()), axes == 3 ? "images" : "labels", wanted);
  ULP_CHECK(bytes.size() >= size, "{}: truncated, {} bytes; an IDX header has {}", name,
            bytes.size(), size);
  std::vector<int64_t> extents;
  for (size_t at = 4; at < size; at += 4) extents.push_back(big_endian(bytes.data() + at));
  const Shape shape{std::span<const int64_t>(extents)};
  ULP_CHECK(shape[0] > 0, "{}: holds zero {}; at least one is needed", name,
            axes == 3 ? "images" : "labels");
  ULP_CHECK(saturating_numel(shape) > 0, "{}: images of {} x {} pixels; both must be above zero",
            name, shape[1], shape[2]);
  return shape;
}

}  // namespace

Tensor read_idx(const std::filesystem::path& path, int axes) {
  ULP_CHECK(axes == 1 || axes == 3, "read_idx: 1 axis (labels) or 3 (images), got {}", axes);
  const std::string name = path.native();
  const size_t header = 4 + 4 * static_cast<size_t>(axes);
  std::vector<uint8_t> bytes = read_file(path);
  const bool compressed = bytes.size() >= 2 && bytes[0] == 0x1f && bytes[1] == 0x8b;

  const Shape shape = read_header(compressed ? gunzip(bytes, header, name) : bytes, axes, name);
  const uint64_t claimed = saturating_numel(shape);
  const uint64_t most = compressed ? bytes.size() * kMaxGzipRatio : bytes.size() - header;
  ULP_CHECK(claimed <= most, "{}: truncated, its header claims {} and the file has {}{} bytes",
            name, shape, compressed ? "at most " : "", most);
  if (compressed) bytes = gunzip(bytes, header + claimed + 1, name);

  const uint64_t found = bytes.size() - header;
  ULP_CHECK(found >= claimed, "{}: truncated, its header claims {} = {} bytes and {} follow", name,
            shape, claimed, found);
  ULP_CHECK(found == claimed, "{}: trailing bytes after the {} of its header's {}", name, claimed,
            shape);
  return Tensor::from(std::span<const uint8_t>(bytes).subspan(header), shape, kCpu);
}

}  // namespace ulp::nn
