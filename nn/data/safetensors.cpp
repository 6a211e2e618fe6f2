#include "nn/data/safetensors.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <functional>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/memory_error.h"
#include "core/tensor_limit.h"
#include "nn/data/atomic_file.h"
#include "nn/data/checksum.h"
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
constexpr size_t kMaxEntries = 100'000;  // bounds the memory for names, shapes and handles
constexpr const char* kChecksum = "ulp_checksum";
constexpr std::string_view kChecksumPlace = "\"ulp_checksum\":\"";  // as make_header writes it
constexpr size_t kChecksumDigits = 8;
constexpr std::array kDTypes = {DType::F32,    DType::F64, DType::BF16, DType::F16, DType::F8E4M3,
                                DType::F8E5M2, DType::I32, DType::I8,   DType::U8};

// A name as one short line of ASCII, whatever it holds.
std::string quoted(const std::string& name) {
  constexpr size_t kMost = 80;
  std::string text =
      json(name.substr(0, kMost)).dump(-1, ' ', true, json::error_handler_t::replace);
  return name.size() <= kMost ? text : text + "...";
}

std::string checksum_text(uint32_t checksum) { return fmt::format("{:08x}", checksum); }

std::array<uint8_t, kLengthBytes> length_bytes(const std::string& header) {
  return std::bit_cast<std::array<uint8_t, kLengthBytes>>(uint64_t{header.size()});
}

/// With zeros in place of the checksum's digits.
uint32_t checksum_of_header(const std::string& header) {
  return checksum(checksum(0, length_bytes(header)),
                  {reinterpret_cast<const uint8_t*>(header.data()), header.size()});
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
  DType dtype{};
  Shape shape;
  uint64_t begin = 0, end = 0;  // bytes, counted from the end of the header
};

/// Throws Damaged naming the file unless a condition holds.
class Checker {
 public:
  explicit Checker(std::string name) : name_(std::move(name)) {}

  template <class... A>
  void operator()(bool condition, std::string_view format, const A&... args) const {
    if (!condition) fail(format, args...);
  }
  template <class... A>
  [[noreturn]] void fail(std::string_view format, const A&... args) const {
    throw Damaged(name_ + ": " + format_message(format, {ErrorArg(args)...}));
  }

 private:
  std::string name_;
};

/// Takes the header apart as it is read, so that nothing is kept that the layout never holds: deep nesting, long lists,
/// more entries than are allowed.
class HeaderParser : public json::json_sax_t {
 public:
  HeaderParser(const Checker& check, uint64_t data_bytes)
      : check_(check), data_bytes_(data_bytes) {}

  void parse(const std::string& text) { json::sax_parse(text, this); }

  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;

  bool start_object(size_t) override {
    if (depth_ > 1) wrong_form();
    if (++depth_ == 2) {
      entry_.name = std::move(name_);
      has_dtype_ = has_shape_ = has_offsets_ = false;
    }
    return true;
  }
  bool key(std::string& text) override {
    if (depth_ == 1) {
      in_metadata_ = text == kMetadata;
      if (in_metadata_ && std::exchange(has_metadata_, true)) twice(text);
      name_ = std::move(text);
      return true;
    }
    if (in_metadata_) {
      check_(metadata.size() < kMaxEntries, "more than {} texts in {}", kMaxEntries, kMetadata);
      const auto [at, added] = metadata.emplace(std::move(text), "");
      if (!added) twice(at->first);
      text_ = at;
      return true;
    }
    field_ = text == "dtype"          ? Field::DType
             : text == "shape"        ? Field::Shape
             : text == "data_offsets" ? Field::Offsets
                                      : Field::Other;
    if (field_ == Field::Other) wrong_fields(entry_.name);
    if (std::exchange(has(field_), true)) twice(text);
    return true;
  }
  bool end_object() override {
    if (--depth_ == 1 && !in_metadata_) end_entry();
    return true;
  }
  bool start_array(size_t) override {
    if (depth_ != 2) wrong_form();
    if (in_metadata_) no_text();
    if (field_ == Field::DType) unknown_dtype("a list");
    ++depth_;
    list_.clear();
    is_list_of_integers_ = true;
    return true;
  }
  bool end_array() override {
    --depth_;
    if (field_ == Field::Shape)
      end_shape();
    else
      end_offsets();
    return true;
  }

  bool null() override { return other("null"); }
  bool boolean(bool value) override { return other(value ? "true" : "false"); }
  bool number_integer(int64_t value) override { return other(std::to_string(value)); }
  bool number_float(double, const std::string& text) override { return other(text); }
  bool binary(json::binary_t&) override { return other("binary"); }  // JSON has none
  bool number_unsigned(uint64_t value) override {
    if (depth_ != 3) return other(std::to_string(value));
    add_to_list(value);
    return true;
  }
  bool string(std::string& text) override {
    if (depth_ == 2 && in_metadata_)
      text_->second = std::move(text);
    else if (depth_ == 2 && field_ == Field::DType)
      end_dtype(text);
    else
      return other(text);
    return true;
  }
  bool parse_error(size_t position, const std::string&, const json::exception& error) override {
    if (dynamic_cast<const json::parse_error*>(&error) == nullptr)
      check_.fail("its header is not valid JSON: a number is too large");
    check_.fail("its header is not valid JSON at byte {}", position);
  }

 private:
  enum class Field : uint8_t { DType, Shape, Offsets, Other };

  bool& has(Field field) {
    return field == Field::DType ? has_dtype_ : field == Field::Shape ? has_shape_ : has_offsets_;
  }

  [[noreturn]] void wrong_form() const {
    check_.fail("its header is not of the form {}", R"({"name": {"field": [numbers]}})");
  }
  [[noreturn]] void wrong_fields(const std::string& name) const {
    check_.fail("tensor {} must have dtype, shape and data_offsets, and nothing else",
                quoted(name));
  }
  [[noreturn]] void twice(const std::string& name) const {
    check_.fail("{} occurs twice in its header", quoted(name));
  }
  [[noreturn]] void no_text() const {
    check_.fail("{}: {} must be a string", kMetadata, quoted(text_->first));
  }
  std::string tensor() const { return "tensor " + quoted(entry_.name); }
  [[noreturn]] void unknown_dtype(const std::string& name) const {
    std::string allowed;
    for (const DType dtype : kDTypes)
      allowed += (allowed.empty() ? "" : ", ") + std::string(to_string(dtype));
    check_.fail("{}: unknown dtype {}; allowed are {}", tensor(), quoted(name), allowed);
  }

  // A value that stands where it says nothing.
  bool other(const std::string& shown) {
    if (depth_ == 1 && in_metadata_) check_.fail("{} must be an object of strings", kMetadata);
    if (depth_ == 1) wrong_fields(name_);
    if (in_metadata_) no_text();
    is_list_of_integers_ = false;
    if (depth_ == 3) {
      add_to_list(0);
    } else if (field_ == Field::DType) {
      unknown_dtype(shown);
    } else if (field_ == Field::Shape) {
      end_shape();
    } else {
      end_offsets();
    }
    return true;
  }

  void add_to_list(uint64_t value) {
    check_(list_.size() < static_cast<size_t>(kMaxRank),
           "a list of more than {} numbers in its header", kMaxRank);
    list_.push_back(value);
  }

  void end_dtype(const std::string& name) {
    for (const DType dtype : kDTypes)
      if (name == to_string(dtype)) {
        entry_.dtype = dtype;
        return;
      }
    unknown_dtype(name);
  }

  void end_shape() {
    check_(is_list_of_integers_, "{}: shape must be a list of whole numbers from 0 on", tensor());
    std::vector<int64_t> extents;
    std::string shown;
    for (const uint64_t n : list_) shown += (shown.empty() ? "" : ",") + std::to_string(n);
    for (const uint64_t n : list_)  // one more than is allowed stands for all that are
      extents.push_back(static_cast<int64_t>(std::min<uint64_t>(n, kMaxElements + 1)));
    entry_.shape = Shape(std::span<const int64_t>(extents));
    check_(is_within_limit(entry_.shape), "{}: shape [{}] has too many elements", tensor(), shown);
  }

  void end_offsets() {
    check_(is_list_of_integers_ && list_.size() == 2,
           "{}: data_offsets must be two whole numbers from 0 on", tensor());
    entry_.begin = list_[0];
    entry_.end = list_[1];
    check_(entry_.begin <= entry_.end && entry_.end <= data_bytes_,
           "{}: bytes {} to {} are out of range; the file has {} bytes of data", tensor(),
           std::to_string(entry_.begin), std::to_string(entry_.end), data_bytes_);
  }

  void end_entry() {
    if (!has_dtype_ || !has_shape_ || !has_offsets_) wrong_fields(entry_.name);
    const uint64_t width = size_of(entry_.dtype);
    check_(entry_.begin % width == 0, "{}: begins at byte {}, which is no multiple of {}'s {}",
           tensor(), entry_.begin, entry_.dtype, width);
    uint64_t bytes = 0;
    const bool overflow =
        __builtin_mul_overflow(static_cast<uint64_t>(entry_.shape.numel()), width, &bytes);
    check_(!overflow && bytes == entry_.end - entry_.begin,
           "{}: bytes {} to {} are {}; {} of shape {} needs another number", tensor(), entry_.begin,
           entry_.end, entry_.end - entry_.begin, entry_.dtype, entry_.shape);
    check_(entries.size() < kMaxEntries, "more than {} tensors", kMaxEntries);
    entries.push_back(std::move(entry_));
  }

  const Checker& check_;
  uint64_t data_bytes_;
  int depth_ = 0;     // objects and lists that are open
  std::string name_;  // the last one at depth 1
  bool in_metadata_ = false, has_metadata_ = false;
  std::map<std::string, std::string>::iterator text_;  // the last one of the metadata
  Entry entry_;
  Field field_ = Field::Other;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  std::vector<uint64_t> list_;
  bool is_list_of_integers_ = false;
};

/// Where the bytes come from.
struct Source {
  std::string name;
  uint64_t size;
  std::function<void(uint64_t offset, std::span<uint8_t> to)> read;
};

class Reader {
 public:
  explicit Reader(const Source& source) : source_(source), check_(source.name) {}

  SafetensorsFile read() {
    std::string header = read_header();
    HeaderParser parser(check_, data_bytes_);
    parser.parse(header);
    check_names(parser.entries);
    check_layout(parser.entries);
    SafetensorsFile result;
    result.metadata = std::move(parser.metadata);
    const std::optional<uint32_t> wanted = take_checksum(result.metadata, header);
    uint32_t found = checksum_of_header(header);
    header = {};
    for (const Entry& entry : parser.entries) {
      const Tensor tensor = read_tensor(entry);
      if (wanted) found = checksum(found, bytes_of(tensor));
      result.tensors.emplace(entry.name, tensor);
    }
    check_(!wanted || found == *wanted, "damaged: its checksum is {} and that of its bytes is {}",
           checksum_text(wanted.value_or(0)), checksum_text(found));
    result.has_checksum = wanted.has_value();
    return result;
  }

 private:
  std::string read_header() {
    check_(source_.size >= kLengthBytes, "truncated, {} bytes; a safetensors file has at least {}",
           source_.size, kLengthBytes);
    std::array<uint8_t, kLengthBytes> length_bytes;
    source_.read(0, length_bytes);
    const auto length = std::bit_cast<uint64_t>(length_bytes);
    const uint64_t rest = source_.size - kLengthBytes;
    check_(length <= kMaxHeader, "a header of {} bytes; at most {} are allowed",
           std::to_string(length), kMaxHeader);
    check_(length <= rest, "truncated, a header of {} bytes is announced and {} follow", length,
           rest);
    data_begin_ = kLengthBytes + length;
    data_bytes_ = rest - length;
    std::string text(length, '\0');
    source_.read(kLengthBytes, {reinterpret_cast<uint8_t*>(text.data()), text.size()});
    check_(text.starts_with('{'), "not a safetensors file: its header does not start with {}", "{");
    return text;
  }

  /// Takes the checksum out of the metadata, and out of the header what it does not count.
  std::optional<uint32_t> take_checksum(std::map<std::string, std::string>& metadata,
                                        std::string& header) const {
    const auto at = metadata.find(kChecksum);
    if (at == metadata.end()) return {};
    uint32_t value = 0;
    const std::string& text = at->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
    const size_t place = header.find(kChecksumPlace);
    check_(error == std::errc() && checksum_text(value) == text && place != std::string::npos,
           "damaged: its {} {} is not one", kChecksum, quoted(text));
    header.replace(place + kChecksumPlace.size(), kChecksumDigits, kChecksumDigits, '0');
    metadata.erase(at);
    return value;
  }

  void check_names(std::vector<Entry>& entries) const {
    std::ranges::sort(entries, {}, &Entry::name);
    const auto twice = std::ranges::adjacent_find(entries, {}, &Entry::name);
    if (twice != entries.end())
      check_.fail("{} occurs twice in its header", nn::quoted(twice->name));
  }

  // Together the tensors are the data, each byte once.
  void check_layout(std::vector<Entry>& entries) const {
    std::ranges::stable_sort(entries, {}, [](const Entry& e) { return std::pair(e.begin, e.end); });
    uint64_t end = 0;
    for (const Entry& entry : entries) {
      check_(entry.begin >= end, "tensor {} begins at byte {} inside another that ends at {}",
             quoted(entry.name), entry.begin, end);
      check_(entry.begin == end, "bytes {} to {} before tensor {} belong to no tensor", end,
             entry.begin, quoted(entry.name));
      end = entry.end;
    }
    check_(end == data_bytes_, "trailing bytes: its tensors end at byte {} of {} bytes of data",
           end, data_bytes_);
  }

  std::string refusal(const Entry& entry, const Error& error) const {
    return fmt::format("{}: tensor {} cannot be read: {}", source_.name, quoted(entry.name),
                       error.what());
  }

  Tensor make_tensor(const Entry& entry) const {
    try {
      return Tensor::empty(entry.shape, entry.dtype, kCpu);
    } catch (const MemoryError& error) {
      throw MemoryError(refusal(entry, error));
    } catch (const Error& error) {
      throw Error(refusal(entry, error));
    }
  }

  Tensor read_tensor(const Entry& entry) const {
    Tensor tensor = make_tensor(entry);
    source_.read(data_begin_ + entry.begin, {static_cast<uint8_t*>(tensor.mutable_raw()),
                                             static_cast<size_t>(tensor.bytes())});
    return tensor;
  }

  const Source& source_;
  Checker check_;
  uint64_t data_begin_ = 0;
  uint64_t data_bytes_ = 0;
};

}  // namespace

void save_safetensors(const fs::path& path, const std::map<std::string, Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata, Checksum with_checksum) {
  for (const auto& [name, tensor] : tensors) {
    ULP_CHECK(name != kMetadata, "{}: a tensor cannot be named {}", path.native(), kMetadata);
    ULP_CHECK(tensor.defined(), "{}: {} holds no tensor", path.native(), quoted(name));
  }
  ULP_CHECK(!metadata.contains(kChecksum), "{}: a text of the metadata cannot be named {}",
            path.native(), kChecksum);
  ULP_CHECK(tensors.size() <= kMaxEntries && metadata.size() < kMaxEntries,
            "{}: {} tensors and {} texts; at most {} are allowed", path.native(), tensors.size(),
            metadata.size(), kMaxEntries);
  const bool checked = with_checksum == Checksum::Yes;
  std::map<std::string, std::string> texts = metadata;
  if (checked) texts[kChecksum] = std::string(kChecksumDigits, '0');
  const std::vector<NamedTensor> order = in_file_order(tensors);
  std::string header;
  try {
    header = make_header(order, texts);
  } catch (const json::exception&) {
    throw_error("{}: a name or metadata text is not UTF-8", path.native());
  }
  ULP_CHECK(header.size() <= kMaxHeader, "{}: a header of {} bytes; at most {} are allowed",
            path.native(), header.size(), kMaxHeader);
  AtomicFile file(path);
  file.write(length_bytes(header));
  file.write(header);
  uint32_t sum = checksum_of_header(header);
  for (const auto& [name, tensor] : order) {
    const Tensor host = tensor.to_cpu_contiguous();
    file.write(bytes_of(host));
    if (checked) sum = checksum(sum, bytes_of(host));
  }
  if (checked)
    file.write_at(kLengthBytes + header.find(kChecksumPlace) + kChecksumPlace.size(),
                  checksum_text(sum));
  file.commit();
}

SafetensorsFile load_safetensors(const fs::path& path) {
  const InputFile file(path);
  try {
    return Reader({path.native(), file.size(),
                   [&file](uint64_t offset, std::span<uint8_t> to) { file.read(offset, to); }})
        .read();
  } catch (const std::bad_alloc& error) {
    throw MemoryError(path.native() + ": cannot be read: " + out_of_memory_text(error));
  }
}

SafetensorsFile parse_safetensors(std::span<const uint8_t> bytes, const std::string& name) {
  const auto read = [bytes, &name](uint64_t offset, std::span<uint8_t> to) {
    ULP_CHECK(offset <= bytes.size() && to.size() <= bytes.size() - offset,
              "{}: ends at byte {}, {} from byte {} on were expected", name, bytes.size(),
              to.size(), offset);
    std::ranges::copy(bytes.subspan(offset, to.size()), to.begin());
  };
  return Reader({name, bytes.size(), read}).read();
}

}  // namespace ulp::nn
