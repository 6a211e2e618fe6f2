#include "nn/data/dataset.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "core/error.h"
#include "nn/data/cifar.h"
#include "nn/data/idx.h"
#include "nn/data/npy_split.h"
#include "nn/data/read_file.h"

extern const unsigned char ulp_digits[];
extern const unsigned long ulp_digits_size;

namespace ulp::nn {
namespace fs = std::filesystem;
namespace {

constexpr const char* kFashionMnist = "/usr/share/datasets/fashion-mnist";
constexpr std::string_view kTextPrefix = "text:";
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

// ---- directories ------------------------------------------------------------------------------------------------------
/// A split with the files it came from, for messages.
struct FileSplit {
  fs::path image_file, label_file;
  Split split;
  Shape sample_shape;  // (H, W, C)
};

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

fs::path find_file(const fs::path& directory, const std::string& name) {
  const fs::path plain = directory / name;
  const fs::path compressed = directory / (name + ".gz");
  if (is_there(plain)) return plain;
  ULP_CHECK(is_there(compressed), "{}: holds neither {} nor {}.gz", directory.native(), name, name);
  return compressed;
}

FileSplit read_idx_split(const fs::path& directory, const std::string& prefix) {
  FileSplit result;
  result.image_file = find_file(directory, prefix + "-images-idx3-ubyte");
  result.label_file = find_file(directory, prefix + "-labels-idx1-ubyte");
  const Tensor images = read_idx(result.image_file, 3), labels = read_idx(result.label_file, 1);
  const int64_t n = images.size(0);
  ULP_CHECK(n == labels.size(0), "{}: {} images, but {} holds {} labels; the numbers must be equal",
            result.image_file.native(), n, result.label_file.native(), labels.size(0));
  const uint8_t* bytes = labels.data<uint8_t>();
  result.sample_shape = {images.size(1), images.size(2), 1};
  result.split = {images.reshape({n, result.sample_shape.numel()}),
                  Tensor::from(std::vector<int32_t>(bytes, bytes + n), {n})};
  return result;
}

FileSplit read_npy_files(const fs::path& directory, const std::string& prefix) {
  FileSplit result;
  result.image_file = directory / (prefix + "_x.npy");
  result.label_file = directory / (prefix + "_y.npy");
  for (const fs::path& file : {result.image_file, result.label_file})
    ULP_CHECK(is_there(file), "{}: holds no {}", directory.native(), file.filename().native());
  NpySplit read = read_npy_split(result.image_file, result.label_file);
  result.split = read.split;
  result.sample_shape = read.sample_shape;
  return result;
}

/// Whether label i occurs.
std::vector<bool> labels_seen(const Tensor& labels) {
  std::vector<bool> seen;
  for (const int32_t label :
       std::span(labels.data<int32_t>(), static_cast<size_t>(labels.numel()))) {
    const auto at = static_cast<size_t>(label);
    if (at >= seen.size()) seen.resize(at + 1);
    seen[at] = true;
  }
  return seen;
}

// A label that only tests have could never be answered rightly.
void check_test_labels(const FileSplit& test, const std::vector<bool>& trained,
                       const fs::path& train_file) {
  const int32_t* labels = test.split.labels.data<int32_t>();
  for (int64_t i = 0; i < test.split.labels.numel(); ++i) {
    const auto at = static_cast<size_t>(labels[i]);
    ULP_CHECK(at < trained.size() && trained[at],
              "{}: label {} at index {} is out of range: it is none of {}'s",
              test.label_file.native(), labels[i], i, train_file.native());
  }
}

/// Throws if one label is all there is.
void check_variety(const std::vector<bool>& seen, const Split& split, const std::string& name) {
  ULP_CHECK(std::ranges::count(seen, true) >= 2,
            "{}: every label is {}; at least two different labels are needed", name,
            split.labels.data<int32_t>()[0]);
}

std::string size_text(const Shape& shape) {
  const std::string text = std::to_string(shape[0]) + " x " + std::to_string(shape[1]);
  return shape[2] == 1 ? text : text + " x " + std::to_string(shape[2]);
}

/// A data set whose classes are those of its training labels.
Dataset assemble(const std::string& name, const FileSplit& train, const FileSplit& test) {
  ULP_CHECK(test.sample_shape == train.sample_shape,
            "{}: images of {} pixels, but {} has {}; the sizes must be equal",
            test.image_file.native(), size_text(test.sample_shape), train.image_file.native(),
            size_text(train.sample_shape));
  const DType dtype = train.split.images.dtype();
  ULP_CHECK(test.split.images.dtype() == dtype, "{}: values of {}, but {} has {}",
            test.image_file.native(), test.split.images.dtype(), train.image_file.native(), dtype);
  const std::vector<bool> trained = labels_seen(train.split.labels);
  check_variety(trained, train.split, train.label_file.native());
  check_test_labels(test, trained, train.label_file);
  return {name,
          train.split,
          test.split,
          train.sample_shape,
          static_cast<int64_t>(trained.size()),
          dtype == DType::U8 ? 1.0f / 255 : 1.0f};
}

Dataset load_idx_directory(const std::string& name, const fs::path& directory) {
  const FileSplit train = read_idx_split(directory, "train");
  return assemble(name, train, read_idx_split(directory, "t10k"));
}

Dataset load_npy_directory(const std::string& name, const fs::path& directory) {
  const FileSplit train = read_npy_files(directory, "train");
  return assemble(name, train, read_npy_files(directory, "test"));
}

Split read_cifar_files(const fs::path& directory, const std::vector<std::string>& files,
                       CifarLabels labels) {
  std::vector<Split> parts;
  for (const std::string& file : files) {
    ULP_CHECK(is_there(directory / file), "{}: holds no {}", directory.native(), file);
    parts.push_back(read_cifar(directory / file, labels));
  }
  return concatenated(parts);
}

Dataset load_cifar_directory(const std::string& name, const fs::path& directory,
                             CifarLabels labels) {
  const bool ten = labels == CifarLabels::Ten;
  const std::vector<std::string> train_files =
      ten ? std::vector<std::string>{"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                     "data_batch_4.bin", "data_batch_5.bin"}
          : std::vector<std::string>{"train.bin"};
  const int64_t classes = ten ? 10 : labels == CifarLabels::Fine ? 100 : 20;
  const Split train = read_cifar_files(directory, train_files, labels);
  check_variety(labels_seen(train.labels), train, directory.native());
  const Split test = read_cifar_files(directory, {ten ? "test_batch.bin" : "test.bin"}, labels);
  return {name, train, test, {32, 32, 3}, classes, 1.0f / 255};
}

/// What a directory may be: its name, the files of which one tells it, and where below the directory they may lie.
struct Kind {
  std::string_view name;
  std::vector<std::string_view> files;
  std::string_view below;
  Dataset (*load)(const std::string& name, const fs::path& directory);
  bool told = true;  // by its files
};

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all = {
      {"idx",
       {"train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte",
        "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte", "t10k-labels-idx1-ubyte.gz"},
       "",
       load_idx_directory},
      {"cifar10",
       {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin",
        "data_batch_5.bin", "test_batch.bin"},
       "cifar-10-batches-bin",
       [](const std::string& name, const fs::path& directory) {
         return load_cifar_directory(name, directory, CifarLabels::Ten);
       }},
      {"cifar100",
       {"train.bin", "test.bin"},
       "cifar-100-binary",
       [](const std::string& name, const fs::path& directory) {
         return load_cifar_directory(name, directory, CifarLabels::Fine);
       }},
      {"cifar100-coarse",
       {"train.bin", "test.bin"},
       "cifar-100-binary",
       [](const std::string& name, const fs::path& directory) {
         return load_cifar_directory(name, directory, CifarLabels::Coarse);
       },
       false},
      {"npy", {"train_x.npy", "train_y.npy", "test_x.npy", "test_y.npy"}, "", load_npy_directory}};
  return all;
}

/// Where a kind's files lie: the directory, or the one below it that is named as the archive names it; none: nowhere.
std::optional<fs::path> place_of(const Kind& kind, const fs::path& directory) {
  for (const fs::path& at : {directory, directory / kind.below}) {
    if (at != directory && kind.below.empty()) continue;
    for (const std::string_view file : kind.files)
      if (is_there(at / file)) return at;
  }
  return {};
}

/// "cifar10:DIRECTORY" cut in two; no kind: it is told by the files.
std::pair<const Kind*, std::string> split_kind(const std::string& text) {
  for (const Kind& kind : kinds()) {
    const std::string prefix = std::string(kind.name) + ":";
    if (text.starts_with(prefix)) return {&kind, text.substr(prefix.size())};
  }
  return {nullptr, text};
}

const Kind& kind_told_by_files(const fs::path& directory) {
  const Kind* found = nullptr;
  for (const Kind& kind : kinds()) {
    if (!kind.told || !place_of(kind, directory)) continue;
    ULP_CHECK(found == nullptr, "{}: holds files of {} and of {}; write {}:{} or {}:{}",
              directory.native(), found->name, kind.name, found->name, directory.native(),
              kind.name, directory.native());
    found = &kind;
  }
  const bool python = is_there(directory / "data_batch_1") || is_there(directory / "batches.meta");
  ULP_CHECK(found != nullptr || !python,
            "{}: CIFAR's Python version; only its binary version (data_batch_1.bin …) is read",
            directory.native());
  ULP_CHECK(found != nullptr,
            "{}: holds no data set: neither train-images-idx3-ubyte nor "
            "train-images-idx3-ubyte.gz (idx), data_batch_1.bin (cifar10), train.bin (cifar100) "
            "or train_x.npy (npy)",
            directory.native());
  return *found;
}

Dataset load_directory(const std::string& text) {
  const auto [given, path] = split_kind(text);
  std::error_code ignored;
  ULP_CHECK(fs::is_directory(path, ignored),
            "data '{}': neither a known data set nor a directory; allowed are digits, "
            "fashion-mnist and a directory with IDX, CIFAR or .npy files, also as {}:DIRECTORY",
            text, given != nullptr ? given->name : "cifar10");
  const Kind* const kind = given != nullptr ? given : &kind_told_by_files(path);
  return kind->load(text, place_of(*kind, path).value_or(path));
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
  return load_directory(name_or_directory);
}

bool is_text_name(std::string_view name) { return name.starts_with(kTextPrefix); }

Dataset load_text_dataset(const std::string& name, const TextOptions& options) {
  ULP_CHECK(is_text_name(name) && name.size() > kTextPrefix.size(),
            "--data {}: a text is text:FILE", name);
  const Text text = load_text(name.substr(kTextPrefix.size()), options);
  Dataset data;
  data.name = name;
  data.train.images = text.train;
  data.test.images = text.validation;
  data.sample_shape = {options.context};
  data.classes = text.vocabulary.size();
  data.vocabulary = text.vocabulary;
  return data;
}

Dataset with_context(const Dataset& text, int64_t context) {
  check_context(text.name, text.vocabulary.kind(), text.train.images.numel(),
                text.test.images.numel(), context);
  Dataset data = text;
  data.sample_shape = {context};
  return data;
}

std::string lasting_dataset_name(const std::string& text) {
  if (is_text_name(text))
    return std::string(kTextPrefix) + fs::absolute(text.substr(kTextPrefix.size())).string();
  if (text == "digits" || text == "fashion-mnist") return text;
  const auto [kind, path] = split_kind(text);
  const std::string absolute = fs::absolute(path).string();
  return kind == nullptr ? absolute : std::string(kind->name) + ":" + absolute;
}

}  // namespace ulp::nn
