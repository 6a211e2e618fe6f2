#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/error.h"
#include "nn/data/cifar.h"
#include "nn/data/dataset.h"
#include "nn/data/npy.h"

using namespace ulp;
namespace fs = std::filesystem;

namespace {

class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "ulp images XXXXXX").native();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  std::string path() const { return path_.native(); }
  void put(const std::string& name, const std::string& bytes) const {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << bytes;
  }
  void remove(const std::string& name) const { fs::remove_all(path_ / name); }

 private:
  fs::path path_;
};

using Files = std::map<std::string, std::string>;

void put_all(const Folder& folder, const Files& files) {
  for (const auto& [name, bytes] : files) folder.put(name, bytes);
}

/// The one-line message of what is thrown, which must name `place`.
std::string message_of(const std::function<void()>& action, const std::string& place) {
  try {
    action();
  } catch (const Error& error) {
    const std::string message = error.what();
    CHECK(message.find('\n') == std::string::npos);
    CAPTURE(message);
    CHECK(message.find(place) != std::string::npos);
    return message;
  }
  return "(nothing was thrown)";
}

void check_has(const std::string& message, const std::string& words) {
  CAPTURE(message);
  CHECK(message.find(words) != std::string::npos);
}

uint8_t pixel(int seed, int c, int y, int x) {
  return static_cast<uint8_t>(seed * 31 + c * 97 + y * 7 + x * 3);
}

/// A record as CIFAR has it: labels, then the red plane, the green, the blue.
std::string record(const std::vector<int>& labels, int seed) {
  std::string bytes;
  for (const int label : labels) bytes += static_cast<char>(label);
  for (int c = 0; c < 3; ++c)
    for (int y = 0; y < 32; ++y)
      for (int x = 0; x < 32; ++x) bytes += static_cast<char>(pixel(seed, c, y, x));
  return bytes;
}

Files cifar10_files() {
  Files files;
  for (int i = 1; i <= 5; ++i)
    files["data_batch_" + std::to_string(i) + ".bin"] = record({i}, i) + record({9 - i}, 10 + i);
  files["test_batch.bin"] = record({0}, 50) + record({9}, 51) + record({3}, 52);
  return files;
}

Files cifar100_files() {
  return {{"train.bin", record({19, 99}, 1) + record({0, 0}, 2)}, {"test.bin", record({7, 42}, 3)}};
}

bool is_image(const Tensor& images, int64_t row, int seed) {
  const uint8_t* at = images.data<uint8_t>() + row * 3072;
  for (int y = 0; y < 32; ++y)
    for (int x = 0; x < 32; ++x)
      for (int c = 0; c < 3; ++c)
        if (*at++ != pixel(seed, c, y, x)) return false;
  return true;
}

std::string npy(const std::string& type, const std::string& shape, const std::string& data) {
  std::string header =
      "{'descr': '" + type + "', 'fortran_order': False, 'shape': " + shape + ", }\n";
  std::string start("\x93NUMPY\x01\x00", 8);
  start += static_cast<char>(header.size() & 255);
  start += static_cast<char>(header.size() >> 8);
  return start + header + data;
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

Files npy_files() {
  std::vector<uint8_t> train, test;
  for (int i = 0; i < 3 * 2 * 4 * 3; ++i) train.push_back(static_cast<uint8_t>(i));
  for (int i = 0; i < 2 * 2 * 4 * 3; ++i) test.push_back(static_cast<uint8_t>(200 - i));
  return {{"train_x.npy", npy("|u1", "(3, 2, 4, 3)", bytes_of(train))},
          {"train_y.npy", npy("<i8", "(3,)", bytes_of<int64_t>({2, 0, 5}))},
          {"test_x.npy", npy("|u1", "(2, 2, 4, 3)", bytes_of(test))},
          {"test_y.npy", npy("<i8", "(2,)", bytes_of<int64_t>({5, 2}))}};
}

}  // namespace

TEST_SUITE("image_files") {
  TEST_CASE("CIFAR-10: six files, planes become channels-last") {
    const Folder folder;
    put_all(folder, cifar10_files());
    for (const std::string& name : {folder.path(), "cifar10:" + folder.path()}) {
      const nn::Dataset data = nn::load_dataset(name);
      CHECK(data.name == name);
      CHECK(data.sample_shape == Shape{32, 32, 3});
      CHECK(data.classes == 10);
      CHECK(data.scale == 1.0f / 255);
      REQUIRE(data.train.images.shape() == Shape{10, 3072});
      REQUIRE(data.test.images.shape() == Shape{3, 3072});
      for (int i = 1; i <= 5; ++i) {
        CHECK(data.train.labels.data<int32_t>()[2 * i - 2] == i);
        CHECK(data.train.labels.data<int32_t>()[2 * i - 1] == 9 - i);
        CHECK(is_image(data.train.images, 2 * i - 2, i));
        CHECK(is_image(data.train.images, 2 * i - 1, 10 + i));
      }
      for (int i = 0; i < 3; ++i) CHECK(is_image(data.test.images, i, 50 + i));
      CHECK(data.test.labels.data<int32_t>()[1] == 9);
    }
  }

  TEST_CASE("CIFAR-100: fine labels, or the coarse ones by name") {
    const Folder folder;
    put_all(folder, cifar100_files());
    for (const std::string kind : {"", "cifar100:", "cifar100-coarse:"}) {
      const bool coarse = kind == "cifar100-coarse:";
      const nn::Dataset data = nn::load_dataset(kind + folder.path());
      CHECK(data.classes == (coarse ? 20 : 100));
      CHECK(data.train.labels.data<int32_t>()[0] == (coarse ? 19 : 99));
      CHECK(data.test.labels.data<int32_t>()[0] == (coarse ? 7 : 42));
      CHECK(is_image(data.train.images, 1, 2));
      CHECK(is_image(data.test.images, 0, 3));
    }
  }

  TEST_CASE("CIFAR: one label for all is refused as elsewhere") {
    const Folder folder;
    auto files = cifar10_files();
    for (auto& [name, bytes] : files)
      if (name.starts_with("data_batch"))
        for (size_t at = 0; at < bytes.size(); at += 3073) bytes[at] = 4;
    put_all(folder, files);
    check_has(message_of([&] { nn::load_dataset(folder.path()); }, folder.path()),
              "every label is 4; at least two different labels are needed");
  }

  TEST_CASE("as the archives unpack") {
    const Folder folder;
    for (const auto& [name, bytes] : cifar10_files())
      folder.put("cifar-10-batches-bin/" + name, bytes);
    CHECK(nn::load_dataset(folder.path()).classes == 10);
    for (const auto& [name, bytes] : cifar100_files())
      folder.put("cifar-100-binary/" + name, bytes);
    check_has(message_of([&] { nn::load_dataset(folder.path()); }, folder.path()),
              "holds files of cifar10 and of cifar100; write cifar10:" + folder.path());
    CHECK(nn::load_dataset("cifar10:" + folder.path()).classes == 10);
    CHECK(nn::load_dataset("cifar100-coarse:" + folder.path()).classes == 20);
  }

  TEST_CASE("CIFAR: files that are wrong are one line") {
    const Folder folder;
    const auto with = [&](const std::string& name, const std::string& bytes) {
      put_all(folder, cifar10_files());
      folder.put(name, bytes);
      return message_of([&] { nn::load_dataset(folder.path()); }, folder.path() + "/" + name);
    };
    const std::string good = cifar10_files().at("data_batch_3.bin");
    check_has(with("data_batch_3.bin", ""), "0 bytes are no whole number of CIFAR-10 records");
    check_has(with("data_batch_3.bin", good.substr(0, good.size() - 1)),
              "6145 bytes are no whole number of CIFAR-10 records of 3073 bytes (1 of labels and "
              "3072 of pixels); it is truncated or no file of CIFAR-10's binary version");
    check_has(with("data_batch_3.bin", good + "x"), "6147 bytes");
    check_has(with("test_batch.bin", record({10}, 1)),
              "label 10 of record 0 is not in 0 … 9; it is no file of CIFAR-10's binary version");
    check_has(with("data_batch_1.bin", record({0}, 1) + record({255}, 1)), "label 255 of record 1");
    check_has(with("data_batch_5.bin", "\x1f\x8b\x08" + std::string(50, 'x')), "gzip data; unpack");
    check_has(with("data_batch_2.bin", record({3, 4}, 1)), "3074 bytes");
    put_all(folder, cifar10_files());
    folder.remove("data_batch_4.bin");
    check_has(message_of([&] { nn::load_dataset(folder.path()); }, folder.path()),
              "holds no data_batch_4.bin");
    fs::create_directory(folder.path() + "/data_batch_4.bin");
    check_has(message_of([&] { nn::load_dataset(folder.path()); }, folder.path()),
              "data_batch_4.bin: cannot be read: it is not a regular file");

    const Folder hundred;
    put_all(hundred, cifar100_files());
    hundred.put("test.bin", record({7, 100}, 3));
    check_has(message_of([&] { nn::load_dataset(hundred.path()); }, "test.bin"),
              "label 100 of record 0 is not in 0 … 99");
    CHECK(nn::load_dataset("cifar100-coarse:" + hundred.path()).classes == 20);
    hundred.put("test.bin", record({20, 3}, 3));
    check_has(
        message_of([&] { nn::load_dataset("cifar100-coarse:" + hundred.path()); }, "test.bin"),
        "label 20 of record 0 is not in 0 … 19");
    hundred.put("train.bin", record({1}, 1));
    check_has(message_of([&] { nn::load_dataset(hundred.path()); }, "train.bin"),
              "no whole number of CIFAR-100 records of 3074 bytes (2 of labels");
  }

  TEST_CASE(".npy pairs: bytes and floats, with and without channels, labels of any integer type") {
    const Folder folder;
    put_all(folder, npy_files());
    nn::Dataset data = nn::load_dataset(folder.path());
    CHECK(data.sample_shape == Shape{2, 4, 3});
    CHECK(data.classes == 6);
    CHECK(data.scale == 1.0f / 255);
    REQUIRE(data.train.images.dtype() == DType::U8);
    REQUIRE(data.train.images.shape() == Shape{3, 24});
    for (int i = 0; i < 72; ++i) CHECK(data.train.images.data<uint8_t>()[i] == i);
    CHECK(data.test.images.data<uint8_t>()[47] == 200 - 47);
    CHECK(data.train.labels.data<int32_t>()[2] == 5);
    CHECK(data.test.labels.data<int32_t>()[1] == 2);

    const std::vector<float> train{0, -1.5f, 2, 3, 4, 5, 6, 7, 8, 9, 1e30f, 1e-40f};
    folder.put("train_x.npy", npy("<f4", "(3, 2, 2)", bytes_of(train)));
    folder.put("test_x.npy", npy("<f4", "(2, 2, 2)", bytes_of<float>({1, 2, 3, 4, 5, 6, 7, 8})));
    data = nn::load_dataset("npy:" + folder.path());
    CHECK(data.sample_shape == Shape{2, 2, 1});
    CHECK(data.scale == 1);
    CHECK(data.train.images.to_floats() == train);

    const auto labelled = [&](const std::string& type, const std::string& bytes) {
      CAPTURE(type);
      folder.put("train_y.npy", npy(type, "(3,)", bytes));
      const nn::Dataset d = nn::load_dataset(folder.path());
      const int32_t* labels = d.train.labels.data<int32_t>();
      CHECK((labels[0] == 2 && labels[1] == 0 && labels[2] == 5));
    };
    labelled("|u1", bytes_of<uint8_t>({2, 0, 5}));
    labelled("|i1", bytes_of<int8_t>({2, 0, 5}));
    labelled("<u2", bytes_of<uint16_t>({2, 0, 5}));
    labelled("<i2", bytes_of<int16_t>({2, 0, 5}));
    labelled("<u4", bytes_of<uint32_t>({2, 0, 5}));
    labelled("<i4", bytes_of<int32_t>({2, 0, 5}));
    labelled("<u8", bytes_of<uint64_t>({2, 0, 5}));
    labelled("<i8", bytes_of<int64_t>({2, 0, 5}));
  }

  TEST_CASE(".npy pairs: files that are wrong are one line") {
    const auto with = [&](const std::string& name, const std::string& bytes) {
      const Folder folder;
      put_all(folder, npy_files());
      folder.put(name, bytes);
      return message_of([&] { nn::load_dataset(folder.path()); }, folder.path() + "/" + name);
    };
    const std::string good = npy_files().at("train_x.npy");
    check_has(with("train_x.npy", ""), "truncated, 0 bytes");
    check_has(with("train_x.npy", good.substr(0, good.size() - 1)),
              "truncated, shape (3, 2, 4, 3)");
    check_has(with("train_x.npy", good + "x"), "1 bytes too many");
    check_has(with("train_x.npy", "PK\x03\x04 zipped"), "not a .npy file");
    check_has(with("train_x.npy", npy("<f8", "(3, 2, 2)", std::string(96, 'x'))),
              "its elements are '<f8'; only bytes ('|u1') and little-endian fp32 ('<f4') are read");
    check_has(with("train_x.npy", npy(">f4", "(3, 2, 2)", std::string(48, 'x'))), "'>f4'");
    check_has(with("train_x.npy", npy("|u1", "(3, 4)", std::string(12, 'x'))),
              "an array of shape (3, 4); images are (N, H, W) or (N, H, W, C)");
    check_has(with("train_x.npy", npy("|u1", "(3, 0, 4)", "")), "holds nothing");
    check_has(with("train_x.npy", npy("|u1", "(3, 3, 2, 2)", std::string(36, 'x'))),
              "an array of shape (3, 3, 2, 2) looks like (N, C, H, W); images are (N, H, W, C)");
    check_has(with("train_y.npy", npy(">i8", "(3,)", std::string(24, '\0'))),
              "its elements are '>i8'; only little-endian integers are read");
    check_has(with("train_x.npy", npy("|u1", "(2, 2, 4, 3)", std::string(48, 'x'))),
              "2 images, but");
    check_has(with("test_x.npy", npy("|u1", "(2, 4, 2, 3)", std::string(48, 'x'))),
              "images of 4 x 2 x 3 pixels, but");
    check_has(with("test_x.npy", npy("<f4", "(2, 2, 4, 3)", std::string(192, '\0'))),
              "values of F32, but");
    check_has(with("test_x.npy", npy("|u1", "(2, 2, 4)", std::string(16, 'x'))),
              "images of 2 x 4 pixels, but");
    check_has(with("train_y.npy", npy("<f4", "(3,)", std::string(12, '\0'))),
              "its elements are '<f4'; only little-endian integers are read");
    check_has(with("train_y.npy", npy("|b1", "(3,)", std::string(3, '\0'))), "'|b1'");
    check_has(with("train_y.npy", npy("<i8", "(3, 1)", std::string(24, '\0'))),
              "an array of shape (3, 1); labels are (N)");
    check_has(with("train_y.npy", npy("<i8", "(4,)", std::string(32, '\0'))), "");
    check_has(with("train_y.npy", npy("<i8", "(3,)", bytes_of<int64_t>({0, -1, 2}))),
              "label -1 at index 1 is not in 0 … 999999");
    check_has(with("train_y.npy", npy("<i8", "(3,)", bytes_of<int64_t>({0, 1, 1000000}))),
              "label 1000000 at index 2");
    check_has(with("train_y.npy", npy("<u8", "(3,)", bytes_of<uint64_t>({0, 1, UINT64_MAX}))),
              "label -1 at index 2");
    check_has(with("train_y.npy", npy("<i8", "(3,)", bytes_of<int64_t>({5, 5, 5}))),
              "every label is 5; at least two");
    check_has(with("test_y.npy", npy("<i8", "(2,)", bytes_of<int64_t>({5, 1}))),
              "label 1 at index 1 is out of range: it is none of");
    check_has(with("test_y.npy", npy("<i8", "(2,)", bytes_of<int64_t>({6, 5}))), "label 6");

    const Folder folder;
    put_all(folder, npy_files());
    const std::vector<float> nan{0, 1, 2, NAN, 4, 5};
    folder.put("train_x.npy", npy("<f4", "(3, 1, 2)", bytes_of(nan)));
    check_has(message_of([&] { nn::load_dataset(folder.path()); }, "train_x.npy"),
              "image 1 holds nan; all values must be finite");
    folder.remove("test_y.npy");
    folder.put("train_x.npy", npy_files().at("train_x.npy"));
    check_has(message_of([&] { nn::load_dataset(folder.path()); }, folder.path()),
              "holds no test_y.npy");
  }

  TEST_CASE("folders of nothing, of several kinds, and names that last") {
    const Folder folder;
    const std::string nothing = message_of([&] { nn::load_dataset(folder.path()); }, folder.path());
    for (const char* words :
         {"holds no data set", "train-images-idx3-ubyte.gz (idx)", "data_batch_1.bin (cifar10)",
          "train.bin (cifar100)", "train_x.npy (npy)"})
      check_has(nothing, words);
    folder.put("data_batch_1", "pickled");
    check_has(message_of([&] { nn::load_dataset(folder.path()); }, folder.path()),
              "CIFAR's Python version");
    check_has(message_of([&] { nn::load_dataset("cifar10:" + folder.path()); }, folder.path()),
              "holds no data_batch_1.bin");
    put_all(folder, cifar10_files());
    put_all(folder, npy_files());
    check_has(message_of([&] { nn::load_dataset(folder.path()); }, folder.path()),
              "holds files of cifar10 and of npy; write cifar10:" + folder.path() +
                  " or npy:" + folder.path());
    CHECK(nn::load_dataset("npy:" + folder.path()).classes == 6);
    check_has(message_of([] { nn::load_dataset("cifar10:/nowhere/at/all"); }, "/nowhere/at/all"),
              "neither a known data set nor a directory");
    check_has(message_of([] { nn::load_dataset("cifar10:"); }, "'cifar10:'"), "nor a directory");
    check_has(message_of([] { nn::load_dataset("svhn:/tmp"); }, "'svhn:/tmp'"), "nor a directory");

    CHECK(nn::lasting_dataset_name("digits") == "digits");
    CHECK(nn::lasting_dataset_name("fashion-mnist") == "fashion-mnist");
    CHECK(nn::lasting_dataset_name("/a/b") == "/a/b");
    CHECK(nn::lasting_dataset_name("npy:/a/b") == "npy:/a/b");
    CHECK(nn::lasting_dataset_name("npy:a") == "npy:" + (fs::current_path() / "a").string());
  }
}
