#include "nn/data/cifar.h"

#include <cstring>
#include <vector>

#include "core/error.h"
#include "nn/data/read_file.h"

namespace ulp::nn {
namespace {

constexpr uint64_t kSide = 32, kChannels = 3;
constexpr uint64_t kPlane = kSide * kSide, kPixels = kChannels * kPlane;

/// What labels of a kind are like.
struct LabelKind {
  const char* name;
  uint64_t bytes, at;  // of a record
  int32_t classes;
};

LabelKind kind_of(CifarLabels labels) {
  switch (labels) {
    case CifarLabels::Ten: return {"CIFAR-10", 1, 0, 10};
    case CifarLabels::Coarse: return {"CIFAR-100", 2, 0, 20};
    case CifarLabels::Fine: break;
  }
  return {"CIFAR-100", 2, 1, 100};
}

bool starts_as_gzip(const std::vector<uint8_t>& bytes) {
  return bytes.size() >= 3 && bytes[0] == 0x1f && bytes[1] == 0x8b && bytes[2] == 8;
}

}  // namespace

Split read_cifar(const std::filesystem::path& path, CifarLabels labels) {
  const LabelKind kind = kind_of(labels);
  const uint64_t record = kind.bytes + kPixels;
  const std::string& name = path.native();
  const std::vector<uint8_t> bytes = read_file(path);
  const bool whole = !bytes.empty() && bytes.size() % record == 0;
  ULP_CHECK(whole || !starts_as_gzip(bytes), "{}: gzip data; unpack it first", name);
  ULP_CHECK(whole,
            "{}: {} bytes are no whole number of {} records of {} bytes ({} of labels and {} of "
            "pixels); it is truncated or no file of {}'s binary version",
            name, bytes.size(), kind.name, record, kind.bytes, kPixels, kind.name);
  const uint64_t n = bytes.size() / record;
  Split split{
      Tensor::empty({static_cast<int64_t>(n), static_cast<int64_t>(kPixels)}, DType::U8, kCpu),
      Tensor::empty({static_cast<int64_t>(n)}, DType::I32, kCpu)};
  uint8_t* to = split.images.mutable_data<uint8_t>();
  int32_t* to_labels = split.labels.mutable_data<int32_t>();
  for (uint64_t i = 0; i < n; ++i) {
    const uint8_t* from = bytes.data() + i * record;
    to_labels[i] = from[kind.at];
    ULP_CHECK(to_labels[i] < kind.classes,
              "{}: label {} of record {} is not in 0 … {}; it is no file of {}'s binary version",
              name, to_labels[i], i, kind.classes - 1, kind.name);
    const uint8_t* planes = from + kind.bytes;
    for (uint64_t pixel = 0; pixel < kPlane; ++pixel)
      for (uint64_t c = 0; c < kChannels; ++c)
        to[i * kPixels + pixel * kChannels + c] = planes[c * kPlane + pixel];
  }
  return split;
}

Split concatenated(const std::vector<Split>& parts) {
  ULP_ASSERT(!parts.empty());
  int64_t n = 0;
  for (const Split& part : parts) n += part.labels.numel();
  const Tensor& first = parts[0].images;
  Split all{Tensor::empty({n, first.size(1)}, first.dtype(), kCpu),
            Tensor::empty({n}, DType::I32, kCpu)};
  auto* images = static_cast<uint8_t*>(all.images.mutable_raw());
  auto* labels = static_cast<uint8_t*>(all.labels.mutable_raw());
  for (const Split& part : parts) {
    std::memcpy(images, part.images.raw(), static_cast<size_t>(part.images.bytes()));
    std::memcpy(labels, part.labels.raw(), static_cast<size_t>(part.labels.bytes()));
    images += part.images.bytes();
    labels += part.labels.bytes();
  }
  return all;
}

}  // namespace ulp::nn
