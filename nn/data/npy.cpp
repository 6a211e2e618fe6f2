#include "nn/data/npy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"
#include "nn/data/atomic_file.h"
#include "nn/data/read_file.h"

namespace ulp::nn {
namespace fs = std::filesystem;
namespace {

static_assert(std::endian::native == std::endian::little,
              "elements are stored as they lie in memory");

constexpr std::string_view kMagic{"\x93NUMPY", 6};
constexpr std::string_view kType = "<f4";
constexpr std::string_view kWanted = "little-endian fp32 ('<f4')";
constexpr size_t kAlignment = 64;
constexpr uint32_t kMaxHeader = 65535;  // what version 1.0 can say

/// A short piece of a file as one line of ASCII.
std::string shown(std::string_view text) {
  constexpr size_t kMost = 40;
  std::string line = "'";
  for (const char c : text.substr(0, kMost)) line += c >= ' ' && c <= '~' ? c : '?';
  return line + (text.size() > kMost ? "'..." : "'");
}

struct Header {
  std::optional<std::string> type;
  std::optional<bool> fortran_order;
  std::optional<std::vector<int64_t>> shape;
};

/// The header's text, a Python dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }.
class HeaderReader {
 public:
  HeaderReader(std::string_view text, const std::string& path, std::string_view wanted)
      : rest_(text), path_(path), wanted_(wanted) {}

  Header read() {
    check(rest_.ends_with('\n'), "its header does not end with a line feed");
    check(take('{'), "its header is no Python dictionary");
    while (!take('}')) {
      read_entry();
      if (take(',')) continue;
      check(take('}'), "its header has neither , nor {} at {}", "}", shown(rest_));
      break;
    }
    skip_blanks();
    check(rest_.empty(), "its header goes on after the dictionary with {}", shown(rest_));
    check(header_.type.has_value(), "its header has no 'descr'");
    check(header_.fortran_order.has_value(), "its header has no 'fortran_order'");
    check(header_.shape.has_value(), "its header has no 'shape'");
    return header_;
  }

 private:
  template <class... A>
  void check(bool condition, std::string_view format, const A&... args) const {
    if (!condition) throw Error(path_ + ": " + format_message(format, {ErrorArg(args)...}));
  }

  void skip_blanks() {
    rest_.remove_prefix(std::min(rest_.find_first_not_of(" \t\r\n"), rest_.size()));
  }

  bool take(char c) {
    skip_blanks();
    if (!rest_.starts_with(c)) return false;
    rest_.remove_prefix(1);
    return true;
  }

  std::string string() {
    skip_blanks();
    check(rest_.starts_with('\'') || rest_.starts_with('"'), "its header has no string at {}",
          shown(rest_));
    const size_t end = rest_.find(rest_[0], 1);
    check(end != rest_.npos, "its header has a string without an end");
    std::string text(rest_.substr(1, end - 1));
    rest_.remove_prefix(end + 1);
    return text;
  }

  bool boolean() {
    skip_blanks();
    for (const bool value : {true, false}) {
      const std::string_view name = value ? "True" : "False";
      if (!rest_.starts_with(name)) continue;
      rest_.remove_prefix(name.size());
      return value;
    }
    check(false, "its 'fortran_order' must be True or False, got {}", shown(rest_));
    return false;
  }

  std::vector<int64_t> tuple() {
    std::vector<int64_t> extents;
    bool comma = true;
    check(take('('), "its 'shape' must be a tuple, got {}", shown(rest_));
    while (!take(')')) {
      check(comma && extents.size() < kMaxRank,
            comma ? "its 'shape' has more than {} axes" : "its 'shape' is no tuple of integers",
            kMaxRank);
      int64_t extent = 0;
      const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), extent);
      check(error != std::errc::result_out_of_range, "its 'shape' has an extent beyond 2^63, {}",
            shown(rest_));
      check(error == std::errc() && extent >= 0, "its 'shape' must hold integers from 0 on, got {}",
            shown(rest_));
      rest_.remove_prefix(static_cast<size_t>(end - rest_.data()));
      extents.push_back(extent);
      comma = take(',');
    }
    check(comma || extents.size() != 1, "its 'shape' must be a tuple such as (3,), got a number");
    return extents;
  }

  void read_entry() {
    const std::string key = string();
    check(take(':'), "its header has no : after {}", shown(key));
    skip_blanks();
    if (key == "descr") {
      check(!header_.type, "its header has 'descr' twice");
      check(!rest_.starts_with('['), "it holds records; only {} are read", wanted_);
      header_.type = string();
    } else if (key == "fortran_order") {
      check(!header_.fortran_order, "its header has 'fortran_order' twice");
      header_.fortran_order = boolean();
    } else if (key == "shape") {
      check(!header_.shape, "its header has 'shape' twice");
      header_.shape = tuple();
    } else {
      check(false, "its header has an unknown key {}", shown(key));
    }
  }

  std::string_view rest_;
  const std::string& path_;
  std::string_view wanted_;
  Header header_;
};

/// The bytes of an array; nullopt beyond 2^63. Empty arrays too must not overflow: strides are products as well.
std::optional<uint64_t> bytes_of(const std::vector<int64_t>& shape, int64_t element) {
  int64_t strides = element, bytes = element;
  for (const int64_t extent : shape) {
    if (__builtin_mul_overflow(strides, std::max<int64_t>(extent, 1), &strides)) return {};
    bytes *= extent;  // ≤ strides
  }
  return static_cast<uint64_t>(bytes);
}

std::span<uint8_t> bytes_in(Tensor& tensor) {
  return {static_cast<uint8_t*>(tensor.mutable_raw()), static_cast<size_t>(tensor.bytes())};
}

std::string_view bytes_in(const Tensor& tensor) {
  return {static_cast<const char*>(tensor.raw()), static_cast<size_t>(tensor.bytes())};
}

void check_savable(const fs::path& path, const Tensor& tensor) {
  ULP_CHECK(tensor.defined() && tensor.dtype() == DType::F32 && tensor.device() == kCpu &&
                tensor.is_contiguous(),
            "{}: only contiguous F32 tensors on the CPU are written", path.native());
}

/// An array's place in its file.
struct Found {
  std::string type;
  Shape shape;
  uint64_t begin, bytes;
};

/// Reads and believes the header of an array of one of these types, and that the file ends with it.
Found find_array(const InputFile& file, const std::string& name,
                 std::span<const std::string_view> types, std::string_view wanted) {
  std::array<uint8_t, 12> start{};
  const size_t begin = std::min<uint64_t>(file.size(), start.size());
  file.read(0, std::span(start).first(begin));
  ULP_CHECK(
      std::equal(kMagic.begin(),
                 kMagic.begin() + static_cast<std::ptrdiff_t>(std::min(begin, kMagic.size())),
                 start.begin(), [](char a, uint8_t b) { return static_cast<uint8_t>(a) == b; }),
      "{}: not a .npy file: it does not start with \\x93NUMPY", name);
  ULP_CHECK(begin >= 10, "{}: truncated, {} bytes; a .npy file has more than 10", name, begin);
  const int major = start[6], minor = start[7];
  ULP_CHECK(major >= 1 && major <= 3 && minor == 0,
            "{}: version {}.{} of .npy; versions 1.0, 2.0 and 3.0 are read", name, major, minor);
  const uint64_t prefix = major == 1 ? 10 : 12;
  ULP_CHECK(begin >= prefix, "{}: truncated, {} bytes; a .npy file has more than {}", name, begin,
            prefix);
  uint32_t length = start[8] | static_cast<uint32_t>(start[9]) << 8;
  if (major > 1)
    length |= static_cast<uint32_t>(start[10]) << 16 | static_cast<uint32_t>(start[11]) << 24;
  ULP_CHECK(length <= kMaxHeader, "{}: a header of {} bytes; at most {} are allowed", name, length,
            kMaxHeader);
  ULP_CHECK(length <= file.size() - prefix,
            "{}: truncated, a header of {} bytes is announced and {} follow", name, length,
            file.size() - prefix);
  std::string text(length, '\0');
  file.read(prefix, {reinterpret_cast<uint8_t*>(text.data()), text.size()});
  const Header header = HeaderReader(text, name, wanted).read();
  ULP_CHECK(std::ranges::find(types, std::string_view(*header.type)) != types.end(),
            "{}: its elements are {}; only {} {} read", name, shown(*header.type), wanted,
            types.size() == 1 ? "is" : "are");
  ULP_CHECK(!*header.fortran_order, "{}: its elements are in Fortran order; only C order is read",
            name);
  const std::optional<uint64_t> bytes = bytes_of(*header.shape, header.type->back() - '0');
  ULP_CHECK(bytes.has_value(), "{}: its shape has more elements than any file can hold", name);
  const uint64_t rest = file.size() - prefix - length;
  const Shape shape{std::span<const int64_t>(*header.shape)};
  ULP_CHECK(rest >= *bytes, "{}: truncated, shape {} takes {} bytes and {} follow the header", name,
            shape, *bytes, rest);
  ULP_CHECK(rest == *bytes, "{}: {} bytes too many after its {} elements", name, rest - *bytes,
            shape.numel());
  return {*header.type, shape, prefix + length, *bytes};
}

}  // namespace

Tensor load_npy(const fs::path& path) {
  const InputFile file(path);
  const Found found = find_array(file, path.native(), std::span(&kType, 1), kWanted);
  Tensor tensor = Tensor::empty(found.shape, DType::F32, kCpu);
  if (found.bytes > 0) file.read(found.begin, bytes_in(tensor));
  return tensor;
}

NpyArray load_npy_array(const fs::path& path, std::span<const std::string_view> types,
                        std::string_view wanted) {
  const InputFile file(path);
  const Found found = find_array(file, path.native(), types, wanted);
  NpyArray array{found.type, found.shape, std::vector<uint8_t>(found.bytes)};
  if (found.bytes > 0) file.read(found.begin, array.bytes);
  return array;
}

void save_npy(const fs::path& path, const Tensor& tensor) {
  check_savable(path, tensor);
  std::string shape;
  for (int axis = 0; axis < tensor.rank(); ++axis)
    shape += (axis > 0 ? " " : "") + std::to_string(tensor.size(axis)) + ",";
  if (tensor.rank() > 1) shape.pop_back();
  std::string header =
      "{'descr': '" + std::string(kType) + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  const size_t prefix = kMagic.size() + 4;
  header.resize(
      (prefix + header.size() + 1 + kAlignment - 1) / kAlignment * kAlignment - prefix - 1, ' ');
  header += '\n';
  std::string start(kMagic);
  start += {1, 0, static_cast<char>(header.size() & 255), static_cast<char>(header.size() >> 8)};
  AtomicFile file(path);
  file.write(start + header);
  if (tensor.bytes() > 0) file.write(bytes_in(tensor));
  file.commit();
}

Tensor load_f32(const fs::path& path) {
  const InputFile file(path);
  ULP_CHECK(file.size() % sizeof(float) == 0,
            "{}: {} bytes are no whole number of fp32 elements (4 bytes each)", path.native(),
            file.size());
  Tensor tensor =
      Tensor::empty({static_cast<int64_t>(file.size() / sizeof(float))}, DType::F32, kCpu);
  if (file.size() > 0) file.read(0, bytes_in(tensor));
  return tensor;
}

void save_f32(const fs::path& path, const Tensor& tensor) {
  check_savable(path, tensor);
  AtomicFile file(path);
  if (tensor.bytes() > 0) file.write(bytes_in(tensor));
  file.commit();
}

}  // namespace ulp::nn
