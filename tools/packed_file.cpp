#include "tools/packed_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.h"
#include "kernels/pack.h"
#include "nn/data/safetensors.h"

namespace ulp::tools {
namespace {

using nlohmann::json;

constexpr const char *kCodes = "codes", *kScales = "scales";
constexpr const char *kFormat = "format", *kShape = "shape", *kGroupAxis = "group_axis",
                     *kFactor = "factor";

std::string shape_text(const Shape& shape) {
  std::vector<int64_t> extents;
  for (int i = 0; i < shape.rank(); ++i) extents.push_back(shape[i]);
  return json(extents).dump();
}

Quantizer without_rounding(Quantizer q) {
  q.rounding = Rounding::NearestEven;
  q.bits = RandomBits{};
  return q;
}

/// The factor of the whole tensor, where the format alone decides it.
float usual_factor(const Quantizer& q) {
  return packed_scale(q) == PackedScale::PowerOfTwo
             ? block_scale(make_block_rule(q, DType::F32), 0, 1.0f).factor
             : 1.0f;
}

/// Makes a tensor of what a file holds.
class PackedReader {
 public:
  explicit PackedReader(const std::filesystem::path& path)
      : path_(path.native()), file_(nn::load_safetensors(path)) {
    for (const char* key : {kFormat, kShape, kGroupAxis, kFactor})
      check(file_.metadata.contains(key),
            "no packed tensor: its metadata has no '{}'; ulp quantize --packed writes such files",
            key);
    for (const auto& [name, tensor] : file_.tensors)
      check(name == kCodes || name == kScales, "holds a tensor '{}'; wanted {} and {} only",
            name.substr(0, 40), kCodes, kScales);
  }

  UnpackedFile read(const std::optional<Quantizer>& how) const {
    PackedTensor packed;
    packed.how = read_format(how);
    packed.codes = tensor(kCodes);
    packed.shape = read_shape(packed.codes.numel());
    packed.group_axis = read_axis();
    packed.factor = read_factor(packed.how);
    const bool has_scales = packed_scale(packed.how) != PackedScale::None;
    check(has_scales || !file_.tensors.contains(kScales), "holds {}; {} has none", kScales,
          packed.how);
    if (has_scales) packed.scales = tensor(kScales);
    try {
      return {packed, unpack(packed)};
    } catch (const Error& error) {
      throw_error("{}: {}", path_, error.what());
    }
  }

 private:
  template <class... A>
  void check(bool condition, std::string_view format, const A&... args) const {
    if (!condition) throw_error("{}: {}", path_, format_message(format, {ErrorArg(args)...}));
  }

  const std::string& text(const char* key) const { return file_.metadata.at(key); }

  Tensor tensor(const char* name) const {
    const auto found = file_.tensors.find(name);
    check(found != file_.tensors.end(), "holds no tensor '{}'", name);
    return found->second;
  }

  Quantizer read_format(const std::optional<Quantizer>& how) const {
    const std::string& name = text(kFormat);
    check(how.has_value() || !name.starts_with("table="),
          "its format is {}; give --format to say which file has that table", name);
    Quantizer own;
    try {
      own = how && name.starts_with("table=") ? *how : Quantizer::parse(name);
    } catch (const Error& error) {
      check(false, "its format: {}", error.what());
    }
    check(!how || without_rounding(*how) == without_rounding(own),
          "its format is {}; leave --format out", own);
    check_packable(own, path_.c_str());
    return own;
  }

  /// Believable beside that many bytes of codes, so that no product of extents overflows.
  Shape read_shape(int64_t bytes) const {
    const json list = json::parse(text(kShape), nullptr, false);
    check(list.is_array() && list.size() <= size_t{kMaxRank} &&
              std::ranges::all_of(list, [](const json& n) { return n.is_number_unsigned(); }),
          "its shape is '{}'; wanted a list of at most {} whole numbers from 0 on", text(kShape),
          kMaxRank);
    std::vector<int64_t> extents;
    int64_t most = 1, elements = 1;
    for (const json& n : list) {
      const auto extent = n.get<uint64_t>();
      check(!__builtin_mul_overflow(most, std::max<uint64_t>(extent, 1), &most),
            "its shape {} has too many elements", text(kShape));
      extents.push_back(static_cast<int64_t>(extent));
      elements *= extents.back();
    }
    check(elements / 8 <= bytes, "its shape is {}, and there are {} bytes of codes", text(kShape),
          bytes);
    return Shape(std::span<const int64_t>(extents));
  }

  template <class T>
  T number(const char* key) const {
    T value{};
    const char* const end = text(key).data() + text(key).size();
    const auto [stop, error] = std::from_chars(text(key).data(), end, value);
    check(error == std::errc() && stop == end, "its {} is '{}', which is no number", key,
          text(key));
    return value;
  }

  int read_axis() const {
    const int axis = number<int>(kGroupAxis);
    check(axis >= 0 && axis < kMaxRank, "its {} is {}; wanted 0 to {}", kGroupAxis, axis,
          kMaxRank - 1);
    return axis;
  }

  float read_factor(const Quantizer& q) const {
    const float factor = number<float>(kFactor);
    if (q.scale.kind == Scale::Kind::E4M3Tensor)
      check(!std::isinf(factor) && !(factor <= 0), "its factor is {}; wanted a number above 0",
            text(kFactor));
    else
      check(factor == usual_factor(q), "its factor is {}; that of {} is {}", text(kFactor), q,
            fmt::format("{}", usual_factor(q)));
    return canonical(factor);
  }

  std::string path_;
  nn::SafetensorsFile file_;
};

}  // namespace

void save_packed(const std::filesystem::path& path, const PackedTensor& packed) {
  std::map<std::string, Tensor> tensors{{kCodes, packed.codes}};
  if (packed.scales.defined()) tensors[kScales] = packed.scales;
  nn::save_safetensors(path, tensors,
                       {{kFormat, to_string(packed.how)},
                        {kShape, shape_text(packed.shape)},
                        {kGroupAxis, std::to_string(packed.group_axis)},
                        {kFactor, fmt::format("{}", packed.factor)}});
}

UnpackedFile load_packed(const std::filesystem::path& path, const std::optional<Quantizer>& how) {
  return PackedReader(path).read(how);
}

}  // namespace ulp::tools
