#include "nn/data/dataset.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <vector>

#include "core/error.h"
#include "nn/data/idx.h"
#include "nn/data/read_file.h"

extern const unsigned char ulp_digits[];
extern const unsigned long ulp_digits_size;

namespace ulp::nn {
namespace fs = std::filesystem;
namespace {

constexpr const char* kFashionMnist = "/usr/share/datasets/fashion-mnist";
constexpr int64_t kDigitsRows = 1797;
constexpr int64_t kDigitsTest = 360;
constexpr size_t kDigitsPixels = 64;

// ---- digits ---------------------------------------------------------------------------------------------------------
int parse_value(std::string_view text, int most, const std::string& name, size_t row,
                size_t column) {
  int value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  ULP_CHECK(whole && 0 <= value && value <= most,
            "{}: row {}, column {}: '{}' is not a whole number from 0 to {}", name, row, column,
            text.substr(0, 20), most);
  return value;
}

Split rows_of(const Split& all, int64_t begin, int64_t end) {
  return {all.images.slice(0, begin, end), all.labels.slice(0, begin, end)};
}

Dataset load_digits() {
  constexpr size_t kMostBytes = size_t{1} << 20;
  const std::vector<uint8_t> csv = gunzip({ulp_digits, ulp_digits_size}, kMostBytes, "digits");
  const Split all = parse_digits({reinterpret_cast<const char*>(csv.data()), csv.size()}, "digits");
  ULP_ASSERT(all.labels.numel() == kDigitsRows);
  constexpr int64_t kTrain = kDigitsRows - kDigitsTest;
  return {"digits", rows_of(all, 0, kTrain), rows_of(all, kTrain, kDigitsRows), {8, 8, 1}, 10,
          1.0f / 16};
}

// ---- IDX directories ------------------------------------------------------------------------------------------------
struct IdxSplit {
  fs::path image_file, label_file;
  Tensor images;  // U8 (N, H, W)
  Tensor labels;  // U8 (N)
};

fs::path find_file(const fs::path& directory, const std::string& name) {
  const fs::path plain = directory / name;
  const fs::path compressed = directory / (name + ".gz");
  std::error_code ignored;
  if (fs::exists(plain, ignored)) return plain;
  ULP_CHECK(fs::exists(compressed, ignored), "{}: holds neither {} nor {}.gz", directory.native(),
            name, name);
  return compressed;
}

IdxSplit read_split(const fs::path& directory, const std::string& prefix) {
  IdxSplit split;
  split.image_file = find_file(directory, prefix + "-images-idx3-ubyte");
  split.label_file = find_file(directory, prefix + "-labels-idx1-ubyte");
  split.images = read_idx(split.image_file, 3);
  split.labels = read_idx(split.label_file, 1);
  ULP_CHECK(split.images.size(0) == split.labels.size(0),
            "{}: {} images, but {} holds {} labels; the numbers must be equal",
            split.image_file.native(), split.images.size(0), split.label_file.native(),
            split.labels.size(0));
  return split;
}

std::array<bool, 256> labels_seen(const Tensor& labels) {
  std::array<bool, 256> seen{};
  for (const uint8_t label : std::span(labels.data<uint8_t>(), static_cast<size_t>(labels.numel())))
    seen[label] = true;
  return seen;
}

// A label that only tests have could never be answered rightly.
void check_test_labels(const IdxSplit& test, const std::array<bool, 256>& trained,
                       const fs::path& train_file) {
  const uint8_t* labels = test.labels.data<uint8_t>();
  for (int64_t i = 0; i < test.labels.numel(); ++i)
    ULP_CHECK(trained[labels[i]], "{}: label {} at index {} is out of range: it is none of {}'s",
              test.label_file.native(), labels[i], i, train_file.native());
}

Split flatten(const IdxSplit& split) {
  const int64_t n = split.images.size(0);
  const uint8_t* labels = split.labels.data<uint8_t>();
  return {split.images.reshape({n, split.images.size(1) * split.images.size(2)}),
          Tensor::from(std::vector<int32_t>(labels, labels + n), {n})};
}

Dataset load_idx_directory(const std::string& name, const fs::path& directory) {
  const IdxSplit train = read_split(directory, "train");
  const IdxSplit test = read_split(directory, "t10k");
  const int64_t height = train.images.size(1), width = train.images.size(2);
  ULP_CHECK(test.images.size(1) == height && test.images.size(2) == width,
            "{}: images of {} x {} pixels, but {} has {} x {}; the sizes must be equal",
            test.image_file.native(), test.images.size(1), test.images.size(2),
            train.image_file.native(), height, width);
  const std::array<bool, 256> trained = labels_seen(train.labels);
  ULP_CHECK(std::ranges::count(trained, true) >= 2,
            "{}: every label is {}; at least two different labels are needed",
            train.label_file.native(), train.labels.data<uint8_t>()[0]);
  check_test_labels(test, trained, train.label_file);
  const auto greatest = std::find(trained.rbegin(), trained.rend(), true);
  return {name,      flatten(train), flatten(test), {height, width, 1}, trained.rend() - greatest,
          1.0f / 255};
}

}  // namespace

Split parse_digits(std::string_view csv, const std::string& name) {
  std::vector<uint8_t> images;
  std::vector<int32_t> labels;
  while (!csv.empty()) {
    const size_t row = labels.size() + 1;
    std::string_view line = csv.substr(0, csv.find('\n'));
    csv.remove_prefix(std::min(csv.size(), line.size() + 1));
    const auto columns = static_cast<size_t>(std::ranges::count(line, ',')) + 1;
    ULP_CHECK(columns == kDigitsPixels + 1,
              "{}: row {} has {} columns; {} pixels and a label are {}", name, row, columns,
              kDigitsPixels, kDigitsPixels + 1);
    for (size_t column = 1; column <= columns; ++column) {
      const std::string_view text = line.substr(0, line.find(','));
      line.remove_prefix(std::min(line.size(), text.size() + 1));
      if (column <= kDigitsPixels)
        images.push_back(static_cast<uint8_t>(parse_value(text, 16, name, row, column)));
      else
        labels.push_back(parse_value(text, 9, name, row, column));
    }
  }
  ULP_CHECK(!labels.empty(), "{}: no rows; at least one is needed", name);
  const auto n = static_cast<int64_t>(labels.size());
  return {Tensor::from(images, {n, static_cast<int64_t>(kDigitsPixels)}),
          Tensor::from(labels, {n})};
}

Dataset load_dataset(const std::string& name_or_directory) {
  if (name_or_directory == "digits") return load_digits();
  std::error_code ignored;
  if (name_or_directory == "fashion-mnist") {
    ULP_CHECK(fs::is_directory(kFashionMnist, ignored),
              "fashion-mnist: there is no {}; install the Debian package dataset-fashion-mnist",
              kFashionMnist);
    return load_idx_directory("fashion-mnist", kFashionMnist);
  }
  ULP_CHECK(fs::is_directory(name_or_directory, ignored),
            "data '{}': neither a known data set nor a directory; allowed are digits, "
            "fashion-mnist and a directory with MNIST's IDX files",
            name_or_directory);
  return load_idx_directory(name_or_directory, name_or_directory);
}

}  // namespace ulp::nn
