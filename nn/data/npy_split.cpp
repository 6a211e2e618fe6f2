#include "nn/data/npy_split.h"

#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "nn/data/npy.h"

namespace ulp::nn {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kMostLabel = 999999;
constexpr std::array<std::string_view, 2> kImageTypes{"|u1", "<f4"};
constexpr std::array<std::string_view, 8> kLabelTypes{"|u1", "|i1", "<u2", "<i2",
                                                      "<u4", "<i4", "<u8", "<i8"};

template <class T>
T read_as(const std::vector<uint8_t>& bytes, int64_t i) {
  T value;
  std::memcpy(&value, bytes.data() + static_cast<size_t>(i) * sizeof(T), sizeof(T));
  return value;
}

/// Element i of an array of integers; those beyond int64_t become −1, which is no label either.
int64_t integer_at(const NpyArray& array, int64_t i) {
  const std::string& type = array.type;
  if (type == "|u1") return read_as<uint8_t>(array.bytes, i);
  if (type == "|i1") return read_as<int8_t>(array.bytes, i);
  if (type == "<u2") return read_as<uint16_t>(array.bytes, i);
  if (type == "<i2") return read_as<int16_t>(array.bytes, i);
  if (type == "<u4") return read_as<uint32_t>(array.bytes, i);
  if (type == "<i4") return read_as<int32_t>(array.bytes, i);
  const auto wide = read_as<int64_t>(array.bytes, i);
  return type == "<u8" && wide < 0 ? -1 : wide;
}

Tensor labels_of(const NpyArray& array, const std::string& name) {
  const int64_t n = array.shape[0];
  Tensor labels = Tensor::empty({n}, DType::I32, kCpu);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t label = integer_at(array, i);
    ULP_CHECK(label >= 0 && label <= kMostLabel, "{}: label {} at index {} is not in 0 … {}", name,
              label, i, kMostLabel);
    labels.mutable_data<int32_t>()[i] = static_cast<int32_t>(label);
  }
  return labels;
}

void check_finite(const Tensor& images, const std::string& name) {
  const float* values = images.data<float>();
  const int64_t width = images.size(1);
  for (int64_t i = 0; i < images.numel(); ++i)
    ULP_CHECK(std::isfinite(values[i]), "{}: image {} holds {}; all values must be finite", name,
              i / width, values[i]);
}

}  // namespace

NpySplit read_npy_split(const fs::path& image_file, const fs::path& label_file) {
  const NpyArray images =
      load_npy_array(image_file, kImageTypes, "bytes ('|u1') and little-endian fp32 ('<f4')");
  const std::string& name = image_file.native();
  const Shape& shape = images.shape;
  ULP_CHECK(shape.rank() == 3 || shape.rank() == 4,
            "{}: an array of shape {}; images are (N, H, W) or (N, H, W, C)", name, shape);
  const auto is_channels = [](int64_t extent) { return extent == 1 || extent == 3 || extent == 4; };
  ULP_CHECK(shape.rank() == 3 || is_channels(shape[3]) || !is_channels(shape[1]),
            "{}: an array of shape {} looks like (N, C, H, W); images are (N, H, W, C): "
            "x.transpose(0, 2, 3, 1) makes them so",
            name, shape);
  ULP_CHECK(shape.numel() > 0, "{}: an array of shape {} holds nothing", name, shape);
  const NpyArray labels = load_npy_array(label_file, kLabelTypes, "little-endian integers");
  ULP_CHECK(labels.shape.rank() == 1, "{}: an array of shape {}; labels are (N)",
            label_file.native(), labels.shape);
  ULP_CHECK(labels.shape[0] == shape[0],
            "{}: {} images, but {} holds {} labels; the numbers must be equal", name, shape[0],
            label_file.native(), labels.shape[0]);
  NpySplit result;
  result.sample_shape = {shape[1], shape[2], shape.rank() == 4 ? shape[3] : 1};
  const DType dtype = images.type == "<f4" ? DType::F32 : DType::U8;
  Tensor pixels = Tensor::empty({shape[0], result.sample_shape.numel()}, dtype, kCpu);
  std::memcpy(pixels.mutable_raw(), images.bytes.data(), images.bytes.size());
  if (dtype == DType::F32) check_finite(pixels, name);
  result.split = {pixels, labels_of(labels, label_file.native())};
  return result;
}

}  // namespace ulp::nn
