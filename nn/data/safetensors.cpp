#include "nn/data/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <vector>

#include "core/error.h"
#include "nn/data/atomic_file.h"
#include "nn/data/read_file.h"

namespace ulp::nn {
namespace fs = std::filesystem;
using nlohmann::json;
namespace {

static_assert(std::endian::native == std::endian::little,
              "elements are stored as they lie in memory");

constexpr const char* kMetadata = "__metadata__";
constexpr uint64_t kMaxHeader = 100'000'000;
constexpr size_t kLengthBytes = 8;
constexpr size_t kAlignment = 8;
constexpr std::array kDTypes = {DType::F32,    DType::F64, DType::BF16, DType::F16, DType::F8E4M3,
                                DType::F8E5M2, DType::I32, DType::I8,   DType::U8};

// A name as one short line of ASCII, whatever it holds.
std::string quoted(const std::string& name) {
  constexpr size_t kMost = 80;
  std::string text =
      json(name.substr(0, kMost)).dump(-1, ' ', true, json::error_handler_t::replace);
  return name.size() <= kMost ? text : text + "...";
}

// ---- writing --------------------------------------------------------------------------------------------------------
using NamedTensor = std::pair<std::string, Tensor>;

std::vector<NamedTensor> in_file_order(const std::map<std::string, Tensor>& tensors) {
  std::vector<NamedTensor> order(tensors.begin(), tensors.end());
  std::ranges::stable_sort(order, std::ranges::greater(),
                           [](const NamedTensor& named) { return size_of(named.second.dtype()); });
  return order;
}

std::string make_header(const std::vector<NamedTensor>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  int64_t end = 0;
  for (const auto& [name, tensor] : tensors) {
    std::vector<int64_t> extents;
    for (int axis = 0; axis < tensor.rank(); ++axis) extents.push_back(tensor.size(axis));
    const int64_t begin = end;
    end += tensor.bytes();
    nlohmann::ordered_json& entry = header[name];
    entry["dtype"] = std::string(to_string(tensor.dtype()));
    entry["shape"] = extents;
    entry["data_offsets"] = {begin, end};
  }
  std::string text = header.dump();
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  return text;
}

// ---- reading --------------------------------------------------------------------------------------------------------
struct Entry {
  std::string name;
  DType dtype;
  Shape shape;
  uint64_t begin, end;  // bytes, counted from the end of the header
};

class Reader {
 public:
  explicit Reader(const fs::path& path) : file_(path), path_(path.native()) {}

  SafetensorsFile read() {
    const json header = parse_header(read_header());
    SafetensorsFile result;
    std::vector<Entry> entries;
    for (const auto& [name, value] : header.items()) {
      if (name == kMetadata)
        result.metadata = parse_metadata(value);
      else
        entries.push_back(parse_entry(name, value));
    }
    check_layout(entries);
    for (const Entry& entry : entries) result.tensors.emplace(entry.name, read_tensor(entry));
    return result;
  }

 private:
  template <class... A>
  void check(bool condition, std::string_view format, const A&... args) const {
    if (!condition) throw Error(path_ + ": " + format_message(format, {ErrorArg(args)...}));
  }

  std::string read_header() {
    check(file_.size() >= kLengthBytes, "truncated, {} bytes; a safetensors file has at least {}",
          file_.size(), kLengthBytes);
    std::array<uint8_t, kLengthBytes> length_bytes;
    file_.read(0, length_bytes);
    const auto length = std::bit_cast<uint64_t>(length_bytes);
    const uint64_t rest = file_.size() - kLengthBytes;
    check(length <= kMaxHeader, "a header of {} bytes; at most {} are allowed",
          std::to_string(length), kMaxHeader);
    check(length <= rest, "truncated, a header of {} bytes is announced and {} follow", length,
          rest);
    data_begin_ = kLengthBytes + length;
    data_bytes_ = rest - length;
    std::string text(length, '\0');
    file_.read(kLengthBytes, {reinterpret_cast<uint8_t*>(text.data()), text.size()});
    check(text.starts_with('{'), "not a safetensors file: its header does not start with {}", "{");
    return text;
  }

  // Refuses while parsing what the layout never holds: a name twice, deep nesting, long lists.
  json parse_header(const std::string& text) const {
    std::array<std::set<std::string>, 2> names;  // of the objects that are open, by depth
    int list_length = 0;
    const auto look = [&](int depth, json::parse_event_t event, json& value) {
      using Event = json::parse_event_t;
      const bool object = event == Event::object_start, list = event == Event::array_start;
      check(!(object && depth > 1) && !(list && depth != 2), "its header is not of the form {}",
            R"({"name": {"field": [numbers]}})");
      if (object) names[static_cast<size_t>(depth)].clear();
      if (list) list_length = 0;
      if (event == Event::key) {
        const auto& name = value.get_ref<const std::string&>();
        check(names[static_cast<size_t>(depth - 1)].insert(name).second,
              "{} occurs twice in its header", quoted(name));
      }
      if (event == Event::value && depth == 3)
        check(++list_length <= kMaxRank, "a list of more than {} numbers in its header", kMaxRank);
      return true;
    };
    try {
      return json::parse(text, look);
    } catch (const json::parse_error& error) {
      check(false, "its header is not valid JSON at byte {}", error.byte);
    } catch (const json::exception&) {
      check(false, "its header is not valid JSON: a number is too large");
    }
    return {};
  }

  std::map<std::string, std::string> parse_metadata(const json& value) const {
    check(value.is_object(), "{} must be an object of strings", kMetadata);
    std::map<std::string, std::string> metadata;
    for (const auto& [key, text] : value.items()) {
      check(text.is_string(), "{}: {} must be a string", kMetadata, quoted(key));
      metadata.emplace(key, text.get<std::string>());
    }
    return metadata;
  }

  Entry parse_entry(const std::string& name, const json& value) const {
    const std::string tensor = "tensor " + quoted(name);
    check(value.is_object() && value.size() == 3 && value.contains("dtype") &&
              value.contains("shape") && value.contains("data_offsets"),
          "{} must have dtype, shape and data_offsets, and nothing else", tensor);
    const json& offsets = value["data_offsets"];
    check(is_list_of_integers(offsets) && offsets.size() == 2,
          "{}: data_offsets must be two whole numbers from 0 on", tensor);
    const Entry entry{name, parse_dtype(value["dtype"], tensor),
                      parse_shape(value["shape"], tensor), offsets[0].get<uint64_t>(),
                      offsets[1].get<uint64_t>()};
    check(entry.begin <= entry.end && entry.end <= data_bytes_,
          "{}: bytes {} to {} are out of range; the file has {} bytes of data", tensor,
          std::to_string(entry.begin), std::to_string(entry.end), data_bytes_);
    const uint64_t width = size_of(entry.dtype);
    check(entry.begin % width == 0, "{}: begins at byte {}, which is no multiple of {}'s {}",
          tensor, entry.begin, entry.dtype, width);
    uint64_t bytes = 0;
    const bool overflow =
        __builtin_mul_overflow(static_cast<uint64_t>(entry.shape.numel()), width, &bytes);
    check(!overflow && bytes == entry.end - entry.begin,
          "{}: bytes {} to {} are {}; {} of shape {} needs another number", tensor, entry.begin,
          entry.end, entry.end - entry.begin, entry.dtype, entry.shape);
    return entry;
  }

  static bool is_list_of_integers(const json& value) {
    return value.is_array() &&
           std::ranges::all_of(value, [](const json& v) { return v.is_number_unsigned(); });
  }

  DType parse_dtype(const json& value, const std::string& tensor) const {
    const std::string name = value.is_string() ? value.get<std::string>() : value.dump();
    std::string allowed;
    for (const DType dtype : kDTypes) {
      if (value.is_string() && name == to_string(dtype)) return dtype;
      allowed += (allowed.empty() ? "" : ", ") + std::string(to_string(dtype));
    }
    check(false, "{}: unknown dtype {}; allowed are {}", tensor, quoted(name), allowed);
    return {};
  }

  // Zero extents count as one in the overflow check, so that strides fit too.
  Shape parse_shape(const json& value, const std::string& tensor) const {
    check(is_list_of_integers(value), "{}: shape must be a list of whole numbers from 0 on",
          tensor);
    std::vector<int64_t> extents;
    int64_t numel = 1;
    for (const json& extent : value) {
      const auto n = extent.get<uint64_t>();
      check(!__builtin_mul_overflow(numel, std::max<uint64_t>(n, 1), &numel),
            "{}: shape {} has too many elements", tensor, value.dump());
      extents.push_back(static_cast<int64_t>(n));
    }
    return Shape(std::span<const int64_t>(extents));
  }

  // Together the tensors are the data, each byte once.
  void check_layout(std::vector<Entry>& entries) const {
    std::ranges::sort(entries, {}, [](const Entry& e) { return std::pair(e.begin, e.end); });
    uint64_t end = 0;
    for (const Entry& entry : entries) {
      check(entry.begin >= end, "tensor {} begins at byte {} inside another that ends at {}",
            quoted(entry.name), entry.begin, end);
      check(entry.begin == end, "bytes {} to {} before tensor {} belong to no tensor", end,
            entry.begin, quoted(entry.name));
      end = entry.end;
    }
    check(end == data_bytes_, "trailing bytes: its tensors end at byte {} of {} bytes of data", end,
          data_bytes_);
  }

  Tensor read_tensor(const Entry& entry) const {
    Tensor tensor = Tensor::empty(entry.shape, entry.dtype, kCpu);
    file_.read(data_begin_ + entry.begin,
               {static_cast<uint8_t*>(tensor.mutable_raw()), static_cast<size_t>(tensor.bytes())});
    return tensor;
  }

  InputFile file_;
  std::string path_;
  uint64_t data_begin_ = 0;
  uint64_t data_bytes_ = 0;
};

}  // namespace

void save_safetensors(const fs::path& path, const std::map<std::string, Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  for (const auto& [name, tensor] : tensors) {
    ULP_CHECK(name != kMetadata, "{}: a tensor cannot be named {}", path.native(), kMetadata);
    ULP_CHECK(tensor.defined(), "{}: {} holds no tensor", path.native(), quoted(name));
  }
  const std::vector<NamedTensor> order = in_file_order(tensors);
  std::string header;
  try {
    header = make_header(order, metadata);
  } catch (const json::exception&) {
    throw_error("{}: a name or metadata text is not UTF-8", path.native());
  }
  ULP_CHECK(header.size() <= kMaxHeader, "{}: a header of {} bytes; at most {} are allowed",
            path.native(), header.size(), kMaxHeader);
  AtomicFile file(path);
  const auto length = std::bit_cast<std::array<uint8_t, kLengthBytes>>(uint64_t{header.size()});
  file.write(length);
  file.write(header);
  for (const auto& [name, tensor] : order) {
    const Tensor host = tensor.to_cpu_contiguous();
    file.write({static_cast<const uint8_t*>(host.raw()), static_cast<size_t>(host.bytes())});
  }
  file.commit();
}

SafetensorsFile load_safetensors(const fs::path& path) { return Reader(path).read(); }

}  // namespace ulp::nn
