#include <doctest/doctest.h>
#include <zlib.h>

#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "core/error.h"
#include "nn/data/dataset.h"
#include "nn/data/idx.h"
#include "nn/data/read_file.h"
#include "tests/files.h"
#include "tests/paths.h"

using namespace ulp;
using namespace ulp::nn;
using namespace ulp::tests;
namespace fs = std::filesystem;

namespace {

std::string gzip(const std::string& content) {
  z_stream stream{};
  REQUIRE(deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string out(deflateBound(&stream, content.size()), '\0');
  std::string in = content;
  stream.next_in = reinterpret_cast<Bytef*>(in.data());
  stream.avail_in = static_cast<uInt>(in.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  REQUIRE(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string big_endian(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16),
          static_cast<char>(value >> 8), static_cast<char>(value)};
}

std::string idx_images(uint32_t n, uint32_t height, uint32_t width, const std::string& pixels) {
  return big_endian(0x803) + big_endian(n) + big_endian(height) + big_endian(width) + pixels;
}

std::string idx_labels(const std::vector<uint8_t>& labels) {
  return big_endian(0x801) + big_endian(static_cast<uint32_t>(labels.size())) +
         std::string(labels.begin(), labels.end());
}

// Three training images of 2 × 3 pixels with labels 2, 0, 1 and two test images with labels 1, 2.
std::string pixels(size_t count, int first) {
  std::string bytes;
  for (size_t i = 0; i < count; ++i) bytes += static_cast<char>(first + static_cast<int>(i));
  return bytes;
}
const std::map<std::string, std::string>& good_files() {
  static const std::map<std::string, std::string> files = {
      {"train-images-idx3-ubyte", idx_images(3, 2, 3, pixels(18, 238))},
      {"train-labels-idx1-ubyte", idx_labels({2, 0, 1})},
      {"t10k-images-idx3-ubyte", idx_images(2, 2, 3, pixels(12, 10))},
      {"t10k-labels-idx1-ubyte", idx_labels({1, 2})}};
  return files;
}

// What load_dataset says when one of the good files is replaced by `bytes`.
std::string message_with(const std::string& name, const std::string& bytes) {
  const TemporaryFolder folder;
  for (const auto& [good, content] : good_files()) put(folder / good, content);
  put(folder / name, bytes);
  const std::string message = message_of([&] { load_dataset(folder.path()); });
  CHECK_MESSAGE(message.starts_with((folder / name).native() + ": "), message);
  return message;
}

void check_small_dataset(const Dataset& data) {
  CHECK(data.train.images.shape() == Shape{3, 6});
  CHECK(data.train.images.dtype() == DType::U8);
  CHECK(data.train.labels.shape() == Shape{3});
  CHECK(data.train.labels.dtype() == DType::I32);
  CHECK(data.test.images.shape() == Shape{2, 6});
  CHECK(data.sample_shape == Shape{2, 3, 1});
  CHECK(data.classes == 3);
  CHECK(data.scale * 255 == 1.0f);
  CHECK(data.train.images.to_floats().front() == 238);
  CHECK(data.train.images.to_floats().back() == 255);
  CHECK(data.train.labels.to_floats() == std::vector<float>{2, 0, 1});
  CHECK(data.test.images.to_floats()[11] == 21);
  CHECK(data.test.labels.to_floats() == std::vector<float>{1, 2});
}

}  // namespace

TEST_SUITE("data") {
  TEST_CASE("digits") {
    const Dataset data = load_dataset("digits");
    CHECK(data.name == "digits");
    CHECK(data.train.images.shape() == Shape{1437, 64});
    CHECK(data.train.labels.shape() == Shape{1437});
    CHECK(data.test.images.shape() == Shape{360, 64});
    CHECK(data.test.labels.shape() == Shape{360});
    CHECK(data.sample_shape == Shape{8, 8, 1});
    CHECK(data.classes == 10);
    CHECK(data.scale == 0.0625f);
    CHECK(data.train.images.device() == kCpu);

    // Counted from the CSV file with awk.
    const std::array<int, 10> train{143, 146, 142, 146, 144, 145, 144, 143, 141, 143};
    const std::array<int, 10> test{35, 36, 35, 37, 37, 37, 37, 36, 33, 37};
    const auto histogram = [](const Split& split) {
      std::array<int, 10> count{};
      for (const float label : split.labels.to_floats()) ++count.at(static_cast<size_t>(label));
      return count;
    };
    CHECK(histogram(data.train) == train);
    CHECK(histogram(data.test) == test);

    const std::vector<float> values = data.train.images.to_floats();
    CHECK(*std::ranges::max_element(values) == 16);
    CHECK(std::vector<float>(values.begin() + 2, values.begin() + 6) ==
          std::vector<float>{5, 13, 9, 1});
    const std::vector<float> last = data.test.images.slice(0, 359, 360).to_floats();
    CHECK(std::vector<float>(last.end() - 8, last.end()) ==
          std::vector<float>{0, 1, 8, 12, 14, 12, 1, 0});
    CHECK(data.test.labels.to_floats().back() == 8);
  }

  TEST_CASE("digits: rows that are wrong are named") {
    std::string row;
    for (int i = 0; i < 64; ++i) row += std::to_string(i % 17) + ",";
    const std::string good = row + "9";
    const Split split = parse_digits(good + "\n" + good, "d.csv");
    CHECK(split.images.shape() == Shape{2, 64});
    CHECK(split.images.to_floats()[64 + 16] == 16);
    CHECK(split.labels.to_floats() == std::vector<float>{9, 9});
    CHECK(parse_digits(good + "\n", "d.csv").labels.numel() == 1);

    const auto message = [&](const std::string& second) {
      return message_of([&] { parse_digits(good + "\n" + second, "d.csv"); });
    };
    CHECK(message("17" + good.substr(1)) ==
          "d.csv: row 2, column 1: '17' is not a whole number from 0 to 16");
    CHECK(message(row + "10") == "d.csv: row 2, column 65: '10' is not a whole number from 0 to 9");
    CHECK(message("-1" + good.substr(1)) == Contains("row 2, column 1: '-1'"));
    CHECK(message("1.5" + good.substr(1)) == Contains("row 2, column 1: '1.5'"));
    CHECK(message("99999999999999999999" + good.substr(1)) == Contains("row 2, column 1"));
    CHECK(message(good.substr(1)) == Contains("row 2, column 1: ''"));
    CHECK(message(row) == Contains("row 2, column 65: ''"));
    CHECK(message(good + ",1") == "d.csv: row 2 has 66 columns; 64 pixels and a label are 65");
    CHECK(message(good.substr(2)) == Contains("row 2 has 64 columns"));
    CHECK(message("\n" + good) == Contains("row 2 has 1 columns"));
    CHECK(message_of([] { parse_digits("", "d.csv"); }) == Contains("no rows"));
  }

  TEST_CASE("fashion-mnist, or the name of its package") {
    if (!fs::is_directory("/usr/share/datasets/fashion-mnist")) {
      CHECK(message_of([] { load_dataset("fashion-mnist"); }) ==
            Contains("install the Debian package dataset-fashion-mnist"));
      return;
    }
    const Dataset data = load_dataset("fashion-mnist");
    CHECK(data.name == "fashion-mnist");
    CHECK(data.train.images.shape() == Shape{60000, 784});
    CHECK(data.test.images.shape() == Shape{10000, 784});
    CHECK(data.sample_shape == Shape{28, 28, 1});
    CHECK(data.classes == 10);
    for (const auto& [split, each] : {std::pair(data.train, 6000), std::pair(data.test, 1000)}) {
      std::array<int, 10> count{};
      for (const float label : split.labels.to_floats()) ++count.at(static_cast<size_t>(label));
      CHECK(std::ranges::count(count, each) == 10);
    }
  }

  TEST_CASE("a name that is nothing") {
    const std::string message = message_of([] { load_dataset("mnits"); });
    CHECK(message == Contains("'mnits'"));
    for (const char* allowed : {"digits", "fashion-mnist", "directory"})
      CHECK(message == Contains(allowed));
    const TemporaryFolder folder;
    put(folder / "file", "no directory");
    CHECK(message_of([&] { load_dataset(folder / "file"); }) == Contains("nor a directory"));
    CHECK(message_of([&] { load_dataset(folder.path()); }) ==
          Contains(folder.path().native() +
                   ": holds no data set: neither train-images-idx3-ubyte nor "
                   "train-images-idx3-ubyte.gz"));
  }

  TEST_CASE("idx directories: plain, gzip, both") {
    const TemporaryFolder folder;
    for (const auto& [name, bytes] : good_files()) put(folder / name, bytes);
    check_small_dataset(load_dataset(folder.path()));
    CHECK(load_dataset(folder.path()).name == folder.path().native());

    for (const auto& [name, bytes] : good_files()) put(folder / (name + ".gz"), "plain wins");
    check_small_dataset(load_dataset(folder.path()));

    for (const auto& [name, bytes] : good_files()) {
      fs::remove(folder / name);
      // Two gzip members in a row are one content.
      put(folder / (name + ".gz"), gzip(bytes.substr(0, 9)) + gzip(bytes.substr(9)));
    }
    check_small_dataset(load_dataset(folder.path()));

    fs::remove(folder / "t10k-labels-idx1-ubyte.gz");
    CHECK(message_of([&] { load_dataset(folder.path()); }) ==
          Contains("holds neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz"));
    fs::create_directory(folder / "t10k-labels-idx1-ubyte");
    CHECK(message_of([&] { load_dataset(folder.path()); }) == Contains("not a regular file"));
  }

  TEST_CASE("idx: malformed files") {
    const char* images = "train-images-idx3-ubyte";
    const char* labels = "train-labels-idx1-ubyte";
    const std::string good = good_files().at(images);

    CHECK(message_with(images, "") == Contains("truncated, 0 bytes; an IDX header has 16"));
    CHECK(message_with(images, good.substr(0, 15)) == Contains("truncated, 15 bytes"));
    CHECK(message_with(images, good.substr(0, good.size() - 1)) ==
          Contains("truncated, its header claims (3, 2, 3) and the file has 17 bytes"));
    CHECK(message_with(images, good + "x") ==
          Contains("trailing bytes after the 18 of its header's (3, 2, 3)"));
    CHECK(message_with(images, good_files().at(labels)) ==
          Contains("starts with 0x00000801; IDX images start with 0x00000803"));
    CHECK(message_with(labels, good) ==
          Contains("starts with 0x00000803; IDX labels start with 0x00000801"));
    CHECK(message_with(labels, "\x01\x08" + good.substr(2)) == Contains("starts with 0x01080803"));
    CHECK(message_with(images, idx_images(0, 2, 3, "")) == Contains("holds zero images"));
    CHECK(message_with(labels, idx_labels({})) == Contains("holds zero labels"));
    CHECK(message_with(images, idx_images(3, 0, 3, "")) == Contains("images of 0 x 3 pixels"));
    CHECK(message_with(images, idx_images(3, 2, 0, "")) == Contains("images of 2 x 0 pixels"));
  }

  TEST_CASE("idx: a header's claim takes no memory") {
    const int64_t before = memory_use(kCpu).peak;
    const char* images = "t10k-images-idx3-ubyte";
    const uint32_t all = 0xffffffffu;
    for (const std::string& bytes :
         {idx_images(1u << 31, 28, 28, "few"), idx_images(all, all, all, "few"),
          idx_images(1u << 31, 1u << 31, 4, "few")}) {
      CHECK(message_with(images, bytes) == Contains("and the file has 3 bytes"));
      CHECK(message_with(images, gzip(bytes)) == Contains("and the file has at most"));
    }
    // Zeros shrink by nearly the greatest factor: the claim is possible until the end is reached.
    const std::string zeros(1'000'000, '\0');
    CHECK(message_with(images, gzip(idx_images(1001, 1000, 1, zeros))) ==
          Contains("claims (1001, 1000, 1) = 1001000 bytes and 1000000 follow"));
    CHECK(memory_use(kCpu).peak - before < 1000);
  }

  TEST_CASE("idx: damaged gzip data") {
    const char* images = "t10k-images-idx3-ubyte";
    const std::string content = idx_images(2, 50, 60, pixels(6000, 0));
    const std::string good = gzip(content);
    {
      const TemporaryFolder folder;
      put(folder / "good", good);
      CHECK(read_idx(folder / "good", 3).shape() == Shape{2, 50, 60});
    }
    for (const size_t length : {size_t{2}, size_t{9}, size_t{20}, good.size() / 2, good.size() - 1})
      CHECK(message_with(images, good.substr(0, length)) == Contains("truncated"));
    std::string bad = good;
    bad[good.size() - 6] = static_cast<char>(bad[good.size() - 6] ^ 1);  // the check sum
    CHECK(message_with(images, bad) == Contains("corrupt gzip data"));
    bad = good;
    bad[2] = 7;  // compression method
    CHECK(message_with(images, bad) == Contains("corrupt gzip data"));
    CHECK(message_with(images, good + "garbage") == Contains("7 bytes after the end"));
    CHECK(message_with(images, gzip(content + "x")) == Contains("trailing bytes"));
    // Whatever byte is damaged, there is one clear line or, where gzip does not care, the same data.
    for (size_t at = 0; at < good.size(); ++at) {
      const TemporaryFolder folder;
      bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 0x55);
      put(folder / "bad", bad);
      Tensor read;
      const std::string message = message_of([&] { read = read_idx(folder / "bad", 3); });
      if (read.defined()) CHECK(read.to_floats()[5999] == static_cast<uint8_t>(5999));
      if (!read.defined()) CHECK(message.starts_with((folder / "bad").native() + ": "));
    }
  }

  TEST_CASE("idx: files that do not belong together") {
    CHECK(message_with("train-images-idx3-ubyte", idx_images(2, 2, 3, pixels(12, 0))) ==
          Contains("holds 3 labels; the numbers must be equal"));
    CHECK(message_with("t10k-images-idx3-ubyte", idx_images(3, 2, 3, pixels(18, 0))) ==
          Contains("3 images, but"));
    const std::string sizes =
        message_with("t10k-images-idx3-ubyte", idx_images(2, 3, 2, pixels(12, 0)));
    CHECK(sizes == Contains("images of 3 x 2 pixels, but"));
    CHECK(sizes == Contains("has 2 x 3; the sizes must be equal"));
    CHECK(message_with("t10k-labels-idx1-ubyte", idx_labels({1, 3})) ==
          Contains("label 3 at index 1 is out of range"));
    CHECK(message_with("train-labels-idx1-ubyte", idx_labels({4, 4, 4})) ==
          Contains("every label is 4; at least two"));

    const TemporaryFolder folder;
    for (const auto& [name, bytes] : good_files()) put(folder / name, bytes);
    put(folder / "train-labels-idx1-ubyte", idx_labels({2, 255, 1}));
    CHECK(load_dataset(folder.path()).classes == 256);
    put(folder / "train-labels-idx1-ubyte", idx_labels({2, 4, 1}));
    put(folder / "t10k-labels-idx1-ubyte", idx_labels({1, 3}));  // below classes, never trained
    CHECK(message_of([&] { load_dataset(folder.path()); }) == Contains("label 3 at index 1"));
  }
}
