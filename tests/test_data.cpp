#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <ostream>
#include <string>
#include <vector>

#include "core/error.h"
#include "nn/data/atomic_file.h"
#include "nn/data/dataset.h"
#include "nn/data/idx.h"
#include "nn/data/read_file.h"
#include "nn/data/safetensors.h"
#include "tests/paths.h"

using namespace ulp;
using namespace ulp::nn;
namespace fs = std::filesystem;

namespace {

// A folder of its own for each test case, gone at its end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "ulp test XXXXXX").native();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  fs::path operator/(const std::string& name) const { return path_ / name; }
  const fs::path& path() const { return path_; }
  std::vector<std::string> entries() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(path_))
      names.push_back(entry.path().filename());
    std::ranges::sort(names);
    return names;
  }

 private:
  fs::path path_;
};

void put(const fs::path& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  REQUIRE(file.good());
}

std::string get(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file.good());
  return {std::istreambuf_iterator<char>(file), {}};
}

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

// message == Contains("text"): some part of the message is the text.
struct Contains {
  std::string text;
  friend bool operator==(const std::string& message, const Contains& part) {
    return message.find(part.text) != std::string::npos;
  }
  friend std::ostream& operator<<(std::ostream& out, const Contains& part) {
    return out << "... " << part.text << " ...";
  }
};

// The message of the ulp::Error that `action` throws; it must be one line.
template <class F>
std::string message_of(F action) {
  try {
    action();
  } catch (const Error& error) {
    const std::string message = error.what();
    CHECK(message.find('\n') == std::string::npos);
    return message;
  }
  return "(nothing was thrown)";
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

std::string little_endian(uint64_t value) {
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(value >> (8 * i));
  return bytes;
}

std::string safetensors(const std::string& header, const std::string& data) {
  return little_endian(header.size()) + header + data;
}

std::string message_of_safetensors(const std::string& bytes) {
  const TemporaryFolder folder;
  const fs::path path = folder / "bad.safetensors";
  put(path, bytes);
  const std::string message = message_of([&] { load_safetensors(path); });
  CHECK_MESSAGE(message.starts_with(path.native() + ": "), message);
  return message;
}

// A file of one F32 tensor (2, 2) whose header reads {"w":{`fields`}}.
std::string message_of_entry(const std::string& fields) {
  return message_of_safetensors(safetensors("{\"w\":{" + fields + "}}", std::string(16, '\1')));
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

  TEST_CASE("atomic files") {
    const TemporaryFolder folder;
    const fs::path path = folder / "out.jsonl";
    const int descriptor = ::open(folder.path().c_str(), O_TMPFILE | O_WRONLY, 0600);
    const bool unnamed = descriptor >= 0;  // the file system has files without a name
    if (unnamed) ::close(descriptor);
    write_file_atomically(path, "first\n");
    CHECK(get(path) == "first\n");
    {
      AtomicFile file(path);
      file.write("half of the sec");
      CHECK(get(path) == "first\n");
      if (unnamed) CHECK(folder.entries() == std::vector<std::string>{"out.jsonl"});
    }
    CHECK(get(path) == "first\n");
    CHECK(folder.entries() == std::vector<std::string>{"out.jsonl"});
    write_file_atomically(path, std::string("\0binary\n", 8));
    CHECK(get(path) == std::string("\0binary\n", 8));
    write_file_atomically(folder / std::string(255, 'n'), "the longest name");
    CHECK(get(folder / std::string(255, 'n')) == "the longest name");
    CHECK(folder.entries().size() == 2);

    AtomicFile twice(path);
    twice.commit();
    CHECK(message_of([&] { twice.commit(); }) == Contains("twice"));
    CHECK(message_of([&] { twice.write("more"); }) == Contains("committed"));
  }

  TEST_CASE("atomic files: a link is replaced, by a file with the permissions of any new one") {
    const TemporaryFolder folder;
    put(folder / "other", "kept");
    fs::create_symlink(folder / "other", folder / "link");
    const mode_t old_mask = ::umask(027);
    write_file_atomically(folder / "link", "new");
    ::umask(old_mask);
    CHECK(get(folder / "other") == "kept");
    CHECK(get(folder / "link") == "new");
    CHECK(fs::symlink_status(folder / "link").type() == fs::file_type::regular);
    CHECK(fs::status(folder / "link").permissions() ==
          (fs::perms::owner_read | fs::perms::owner_write | fs::perms::group_read));
  }

  TEST_CASE("atomic files: a file keeps its permissions when it is replaced") {
    const TemporaryFolder folder;
    put(folder / "private", "old");
    const fs::perms owner_only = fs::perms::owner_read | fs::perms::owner_write;
    fs::permissions(folder / "private", owner_only);
    write_file_atomically(folder / "private", "new");
    CHECK(get(folder / "private") == "new");
    CHECK(fs::status(folder / "private").permissions() == owner_only);
  }

  TEST_CASE("atomic files: temporary files of killed programs, and nothing else, can be removed") {
    const TemporaryFolder folder;
    for (const char* name : {".ulp-1-0.tmp", ".ulp-4194304-123.tmp"}) put(folder / name, "half");
    const std::vector<std::string> others = {".ulp--0.tmp",    ".ulp-1-.tmp", ".ulp-1-2-3.tmp",
                                             ".ulp-1-2.tmp.x", ".ulp-1.tmp",  ".ulp-x-1.tmp",
                                             "notes"};
    for (const std::string& name : others) put(folder / name, "mine");
    remove_temporary_files(folder.path());
    CHECK(folder.entries() == others);
    fs::create_directory(folder / ".ulp-1-0.tmp");
    fs::create_symlink(folder / "notes", folder / ".ulp-1-1.tmp");
    remove_temporary_files(folder.path());
    CHECK(folder.entries().size() == others.size() + 2);
    CHECK(message_of([&] { remove_temporary_files(folder / "none"); }) ==
          Contains("No such file or directory"));
  }

  TEST_CASE("atomic files: what cannot be written leaves nothing behind") {
    const TemporaryFolder folder;
    const auto message = [](const fs::path& path) {
      return message_of([&] { write_file_atomically(path, "x"); });
    };
    const fs::path lost = folder / "no such folder" / "out";
    CHECK(message(lost) == lost.native() + ": cannot be written: No such file or directory");
    CHECK(message(folder.path()) == Contains("is not a regular file"));
    CHECK(message("/dev/null") == Contains("is not a regular file"));
    CHECK(message(folder / "") == Contains("names no file"));
    CHECK(message(folder / std::string(256, 'n')) == Contains("File name too long"));
    if (::geteuid() != 0) {  // root may write anywhere
      fs::permissions(folder.path(), fs::perms::owner_read | fs::perms::owner_exec);
      CHECK(message(folder / "out") == Contains("Permission denied"));
      fs::permissions(folder.path(), fs::perms::owner_all);
    }
    CHECK(folder.entries().empty());

    // A limit on file sizes fails a write half way, as a full disk does.
    put(folder / "out", "old");
    rlimit old_limit{};
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &old_limit) == 0);
    const rlimit small{4096, old_limit.rlim_max};
    const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
    const std::string full =
        message_of([&] { write_file_atomically(folder / "out", std::string(100'000, 'x')); });
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &old_limit) == 0);
    ::signal(SIGXFSZ, old_handler);
    CHECK(full == (folder / "out").native() + ": cannot be written: File too large");
    CHECK(get(folder / "out") == "old");
    CHECK(folder.entries() == std::vector<std::string>{"out"});
  }

  TEST_CASE("safetensors: the bytes of a small file") {
    const TemporaryFolder folder;
    const fs::path path = folder / "small.safetensors";
    const std::map<std::string, Tensor> tensors = {
        {"w", Tensor::from(std::vector<float>{1, -2}, {1, 2})},
        {"a", Tensor::from(std::vector<int8_t>{-1, 2, 3}, {3})},
        {"b\"", Tensor::from(std::vector<int32_t>{258}, {})},
        {"z", Tensor::from(std::vector<float>{}, {0, 4})}};
    save_safetensors(path, tensors, {{"step", "7"}, {"format", "ulp"}});
    // Widest elements first, then by name.
    const std::string header = R"({"__metadata__":{"format":"ulp","step":"7"},)"
                               R"("b\"":{"dtype":"I32","shape":[],"data_offsets":[0,4]},)"
                               R"("w":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12]},)"
                               R"("z":{"dtype":"F32","shape":[0,4],"data_offsets":[12,12]},)"
                               R"("a":{"dtype":"I8","shape":[3],"data_offsets":[12,15]}})";
    const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
    CHECK(padded.size() % 8 == 0);
    const std::string data(
        "\x02\x01\0\0"
        "\0\0\x80\x3f"
        "\0\0\0\xc0"
        "\xff\x02\x03",
        15);
    CHECK(get(path) == little_endian(padded.size()) + padded + data);

    save_safetensors(folder / "again", tensors, {{"format", "ulp"}, {"step", "7"}});
    CHECK(get(folder / "again") == get(path));
    const SafetensorsFile file = load_safetensors(path);
    CHECK(file.metadata == std::map<std::string, std::string>{{"format", "ulp"}, {"step", "7"}});
    CHECK(file.tensors.size() == 4);
    CHECK(file.tensors.at("b\"").item() == 258);
    CHECK(file.tensors.at("z").shape() == Shape{0, 4});

    save_safetensors(folder / "empty", {}, {});
    CHECK(get(folder / "empty") == little_endian(8) + "{}      ");
    CHECK(load_safetensors(folder / "empty").tensors.empty());
  }

  TEST_CASE("safetensors: every dtype comes back bit by bit") {
    const TemporaryFolder folder;
    std::map<std::string, Tensor> tensors;
    uint32_t random = 12345;
    for (const DType dtype : {DType::F32, DType::F64, DType::BF16, DType::F16, DType::F8E4M3,
                              DType::F8E5M2, DType::I32, DType::I8, DType::U8}) {
      Tensor t = Tensor::empty({3, 5, 7}, dtype, kCpu);  // an odd number of bytes for some
      auto* bytes = static_cast<uint8_t*>(t.mutable_raw());
      for (int64_t i = 0; i < t.bytes(); ++i)
        bytes[i] = static_cast<uint8_t>((random = random * 1664525u + 1013904223u) >> 24);
      tensors[std::string("layer.ü.") + std::string(to_string(dtype))] = t;
    }
    // Views are stored as what they show.
    const Tensor whole = Tensor::from(std::vector<float>{0, 1, 2, 3, 4, 5}, {2, 3});
    tensors["view"] = whole.transpose(0, 1).slice(0, 1, 3);
    save_safetensors(folder / "all", tensors, {{"text", "line\nbreak, \"quotes\", ü"}});

    const SafetensorsFile file = load_safetensors(folder / "all");
    CHECK(file.metadata.at("text") == "line\nbreak, \"quotes\", ü");
    REQUIRE(file.tensors.size() == tensors.size());
    for (const auto& [name, tensor] : tensors) {
      INFO(name);
      const Tensor& back = file.tensors.at(name);
      CHECK(back.dtype() == tensor.dtype());
      REQUIRE(back.shape() == tensor.shape());
      CHECK(std::memcmp(back.raw(), tensor.to_cpu_contiguous().raw(),
                        static_cast<size_t>(back.bytes())) == 0);
    }
    CHECK(file.tensors.at("view").to_floats() == std::vector<float>{1, 4, 2, 5});
    save_safetensors(folder / "copy", file.tensors, file.metadata);
    CHECK(get(folder / "copy") == get(folder / "all"));
  }

  TEST_CASE("safetensors: what cannot be saved") {
    const TemporaryFolder folder;
    const Tensor one = Tensor::from(std::vector<float>{1}, {1});
    const auto message = [&](const std::map<std::string, Tensor>& tensors,
                             const std::map<std::string, std::string>& metadata) {
      return message_of([&] { save_safetensors(folder / "out", tensors, metadata); });
    };
    CHECK(message({{"w", Tensor()}}, {}) == Contains("\"w\" holds no tensor"));
    CHECK(message({{"__metadata__", one}}, {}) == Contains("cannot be named __metadata__"));
    CHECK(message({{"\xff", one}}, {}) == Contains("not UTF-8"));
    CHECK(message({{"w", one}}, {{"k", "\xff"}}) == Contains("not UTF-8"));
    CHECK(message_of([&] { save_safetensors(folder / "a" / "b", {}, {}); }) ==
          Contains("No such file or directory"));
    CHECK(folder.entries().empty());
  }

  TEST_CASE("safetensors: malformed files") {
    CHECK(message_of([] { load_safetensors("/no/such/file"); }) ==
          "/no/such/file: cannot be read: No such file or directory");
    CHECK(message_of([] { load_safetensors("/dev/zero"); }) == Contains("not a regular file"));

    const auto message = message_of_safetensors;
    const std::string header = R"({"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})";
    const std::string data(16, '\1');
    {
      const TemporaryFolder folder;
      put(folder / "good", safetensors(header, data));
      CHECK(load_safetensors(folder / "good").tensors.at("w").shape() == Shape{2, 2});
      put(folder / "good", safetensors(header + "  \n ", data));
      CHECK(load_safetensors(folder / "good").tensors.size() == 1);
    }
    const std::string good = safetensors(header, data);
    for (size_t length = 0; length < good.size(); ++length)
      CHECK(message(good.substr(0, length)) != Contains("nothing was thrown"));
    CHECK(message("") == Contains("truncated, 0 bytes"));
    CHECK(message(good.substr(0, 20)) == Contains("is announced and 12 follow"));
    CHECK(message(good.substr(0, good.size() - 1)) == Contains("the file has 15 bytes of data"));
    CHECK(message(good + "x") == Contains("trailing bytes: its tensors end at byte 16 of 17"));
    CHECK(message(little_endian(100'000'001) + header) ==
          Contains("at most 100000000 are allowed"));
    CHECK(message(little_endian(~uint64_t{0}) + header) == Contains("18446744073709551615"));
    CHECK(message(little_endian(99'999'999) + header) ==
          Contains("truncated, a header of 99999999"));

    for (const char* text : {"", "x", " {}", "[]", "\"w\"", "null"})
      CHECK(message(safetensors(text, "")) == Contains("does not start with {"));
    for (const char* text : {"{", "{}}", "{\"w\"}", "{\"__metadata__\":{},}", "{\"\xff\":1}",
                             "{\"w\":{\"shape\":[01]}}", "{\"__metadata__\":{}} {}"})
      CHECK(message(safetensors(text, "")) == Contains("not valid JSON"));
    CHECK(message(safetensors(R"({"w":{"shape":[1e999]}})", "")) ==
          Contains("a number is too large"));
    CHECK(message(safetensors('{' + std::string(5000, '['), "")) == Contains("not valid JSON"));
    for (const std::string& text :
         {std::string(R"({"w":)").append(100'000, '['), std::string(R"({"w":{"shape":[[1]]}})"),
          std::string(R"({"w":{"shape":{"a":1}}})"), std::string(R"({"w":[0,1]})")})
      CHECK(message(safetensors(text, "")) == Contains("not of the form"));
    CHECK(message(safetensors(R"({"w":{"shape":[0,0,0,0,0,0,0,0,0]}})", "")) ==
          Contains("more than 8 numbers"));

    const std::string entry = header.substr(1, header.size() - 2);
    CHECK(message(safetensors("{" + entry + "," + entry + "}", data)) ==
          Contains("\"w\" occurs twice"));
    CHECK(message(safetensors(R"({"w":{"dtype":"F32","dtype":"F32"}})", "")) ==
          Contains("\"dtype\" occurs twice"));
    CHECK(message(safetensors(R"({"__metadata__":{"a":"1","a":"2"}})", "")) ==
          Contains("\"a\" occurs twice"));
    CHECK(message(safetensors(R"({"__metadata__":{"a":1}})", "")) == Contains("must be a string"));
    CHECK(message(safetensors(R"({"__metadata__":"a"})", "")) == Contains("object of strings"));
    CHECK(message(safetensors(R"({"w":1})", "")) == Contains("must have dtype, shape"));

    const auto two = [&](const char* first, const char* second) {
      const auto one = [](const std::string& name, const std::string& offsets) {
        return '"' + name + R"(":{"dtype":"F32","shape":[2],"data_offsets":)" + offsets + '}';
      };
      return message(safetensors('{' + one("a", first) + ',' + one("b", second) + '}', data));
    };
    CHECK(two("[0,8]", "[4,12]") ==
          Contains("\"b\" begins at byte 4 inside another that ends at 8"));
    CHECK(two("[8,16]", "[8,16]") == Contains("bytes 0 to 8 before tensor \"a\" belong to no"));
    CHECK(two("[0,8]", "[0,8]") == Contains("inside another"));
    CHECK(two("[0,8]", "[8,12]") == Contains("are 4; F32 of shape (2) needs another number"));

    // A line stays a line, and short, whatever the names hold.
    const std::string name(100'000, 'n');
    CHECK(message(safetensors("{\"" + name + "\":1}", "")).size() < 300);
    CHECK(message(safetensors(R"({"a\nb":1})", "")) == Contains("\"a\\nb\""));
  }

  TEST_CASE("safetensors: malformed entries") {
    const auto message = message_of_entry;
    const std::string type = R"("dtype":"F32",)", shape = R"("shape":[2,2],)";
    CHECK(message(type + shape + R"("data_offsets":[0,16],"more":1)") == Contains("nothing else"));
    CHECK(message(type + R"("data_offsets":[0,16])") == Contains("must have dtype, shape"));
    for (const char* dtype : {"\"F31\"", "\"f32\"", "\"BOOL\"", "\"\"", "4", "null"}) {
      INFO(dtype);
      CHECK(message(R"("dtype":)" + std::string(dtype) + "," + shape +
                    R"("data_offsets":[0,16])") == Contains("unknown dtype"));
    }
    CHECK(message(R"("dtype":"Q4",)" + shape + R"("data_offsets":[0,16])") ==
          Contains("allowed are F32, F64, BF16, F16, F8_E4M3, F8_E5M2, I32, I8, U8"));

    const auto with_offsets = [&](const char* offsets) {
      return message(type + shape + "\"data_offsets\":" + offsets);
    };
    for (const char* bad : {"16", "[16]", "[0,8,16]", "[0,16.0]", "[-16,0]", "[\"0\",\"16\"]", "[]",
                            "[0,36893488147419103232]", "[null,16]", "true"}) {
      INFO(bad);
      CHECK(with_offsets(bad) == Contains("two whole numbers"));
    }
    for (const char* bad : {"[0,17]", "[16,32]", "[16,0]", "[0,18446744073709551615]",
                            "[18446744073709551600,18446744073709551615]"}) {
      INFO(bad);
      CHECK(with_offsets(bad) == Contains("out of range; the file has 16 bytes"));
    }
    CHECK(with_offsets("[1,16]") == Contains("begins at byte 1, which is no multiple of F32's 4"));
    CHECK(with_offsets("[0,12]") == Contains("F32 of shape (2, 2) needs another number"));
    CHECK(with_offsets("[4,16]") == Contains("bytes 4 to 16 are 12"));

    const auto with_shape = [&](const char* extents) {
      return message(type + "\"shape\":" + extents + R"(,"data_offsets":[0,16])");
    };
    for (const char* bad : {"[2.0,2]", "[-2,-2]", "4", "[\"4\"]", "[null]", "\"4\""}) {
      INFO(bad);
      CHECK(with_shape(bad) == Contains("list of whole numbers"));
    }
    for (const char* bad :
         {"[4294967296,4294967296,4294967296]", "[9223372036854775808]", "[18446744073709551615]",
          "[0,9223372036854775807,2]", "[4294967298,4294967296]", "[0,4611686018427387904]",
          "[4611686018427387904]", "[9223372036854775807]"}) {
      INFO(bad);
      CHECK(with_shape(bad) == Contains("has too many elements"));
    }
    for (const char* bad : {"[]", "[3]", "[0]", "[576460752303423488]"}) {
      INFO(bad);
      CHECK(with_shape(bad) == Contains("needs another number"));
    }
  }

  TEST_CASE("safetensors: no damaged byte does harm") {
    const TemporaryFolder folder;
    const fs::path path = folder / "damaged";
    const std::string good = safetensors(R"({"a":{"dtype":"F16","shape":[3],"data_offsets":[0,6]},)"
                                         R"("b":{"dtype":"U8","shape":[2],"data_offsets":[6,8]}})",
                                         "12345678");
    for (size_t at = 0; at < good.size(); ++at)
      for (const int flip : {0x01, 0x10, 0x80, 0xff}) {
        std::string bad = good;
        bad[at] = static_cast<char>(bad[at] ^ flip);
        put(path, bad);
        SafetensorsFile file;
        const std::string message = message_of([&] { file = load_safetensors(path); });
        int64_t bytes = 0;
        for (const auto& [name, tensor] : file.tensors) bytes += tensor.bytes();
        const bool read = bytes == 8 && file.tensors.size() == 2;
        const bool refused = file.tensors.empty() && message.starts_with(path.native() + ": ");
        CHECK_MESSAGE((read || refused), message);
      }
  }

  TEST_CASE("safetensors: a file that Python's package wrote") {
    // tests/data/make_safetensors.py
    const SafetensorsFile file =
        load_safetensors(std::string(paths::kTestData) + "/python.safetensors");
    CHECK(!file.has_checksum);
    CHECK(file.metadata ==
          std::map<std::string, std::string>{{"made by", "safetensors ü"}, {"empty", ""}});
    REQUIRE(file.tensors.size() == 9);
    const auto is = [&](const char* name, DType dtype, const Shape& shape,
                        std::vector<double> values) {
      INFO(std::string(name));
      const Tensor& t = file.tensors.at(name);
      CHECK(t.dtype() == dtype);
      CHECK(t.shape() == shape);
      CHECK(t.to_doubles() == values);
    };
    const double inf = std::numeric_limits<double>::infinity();
    is("f32", DType::F32, {2, 3}, {1.5, -0.0, inf, 0x1p-149, double{3.4028235e38f}, double{0.1f}});
    is("f64", DType::F64, {2}, {3.141592653589793, -1e300});
    is("f16", DType::F16, {3}, {1, 65504, 0x1p-24});
    CHECK(file.tensors.at("i32").shape() == Shape{2, 1});
    CHECK(file.tensors.at("i32").data<int32_t>()[0] == INT32_MIN);
    CHECK(file.tensors.at("i32").data<int32_t>()[1] == INT32_MAX);
    is("i8", DType::I8, {3}, {-128, 127, 0});
    is("u8", DType::U8, {7}, {0, 1, 2, 3, 4, 5, 6});
    is("nothing", DType::F32, {0, 4}, {});
    is("scalar", DType::I32, {}, {42});
    is("name \" ü \\", DType::U8, {1}, {7});
  }

  TEST_CASE("safetensors: a checksum") {
    const TemporaryFolder folder;
    const std::map<std::string, Tensor> tensors{{"w", Tensor::from(std::vector<float>{1, 2}, {2})}};
    save_safetensors(folder / "f", tensors, {{"a", "\"ulp_checksum\":\""}}, Checksum::Yes);
    const SafetensorsFile file = load_safetensors(folder / "f");
    CHECK(file.has_checksum);
    CHECK(file.metadata == std::map<std::string, std::string>{{"a", "\"ulp_checksum\":\""}});
    const std::string good = get(folder / "f");
    const std::string place = "\"ulp_checksum\":\"";
    const size_t at = good.find(place) + place.size();
    std::string zeros = good;
    zeros.replace(at, 8, "00000000");
    const uLong sum = crc32_z(0, reinterpret_cast<const Bytef*>(zeros.data()), zeros.size());
    CHECK(std::stoul(good.substr(at, 8), nullptr, 16) == sum);
    for (const char* bad :
         {"0000000", "000000000", "0000000g", "+0000000", "        ", "ABCDEF01"}) {
      std::string text = good;
      text.replace(at, 8, bad);
      put(folder / "f", safetensors(text.substr(8, text.find("}}") - 6), std::string(8, '\0')));
      CHECK(message_of([&] { load_safetensors(folder / "f"); }) == Contains("damaged"));
    }
    CHECK(message_of([&] {
            save_safetensors(folder / "g", tensors, {{"ulp_checksum", ""}});
          }) == Contains("cannot be named ulp_checksum"));
    // Longer than one piece of the checksum, and not a multiple of it.
    save_safetensors(folder / "h", {{"w", Tensor::zeros({3'000'001}, DType::U8, kCpu)}}, {},
                     Checksum::Yes);
    CHECK(load_safetensors(folder / "h").has_checksum);
    std::string bytes = get(folder / "h");
    bytes[bytes.size() - 2'000'000] = 1;
    put(folder / "h", bytes);
    CHECK(message_of([&] { load_safetensors(folder / "h"); }) ==
          Contains("damaged: its checksum is"));
  }

  TEST_CASE("safetensors: memory for a malformed file is about the file's size") {
    const TemporaryFolder folder;
    const std::string entry = R"(:{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
    const auto list = [](int64_t count, const std::string& before, auto item,
                         const std::string& after) {
      std::string text = before;
      for (int64_t i = 0; i < count; ++i) text.append(i == 0 ? "" : ",").append(item(i));
      return text + after;
    };
    const auto number = [](int64_t i) { return '"' + std::to_string(i) + '"'; };
    const auto named = [&](int64_t i) { return number(i) + entry; };
    struct Bad {
      std::string header, words;
    };
    const std::vector<Bad> all = {
        {list(1'000'000, "{", named, "}"), "more than 100000 tensors"},
        {list(100'000, "{", named, ",\"0\"" + entry + "}"), "more than 100000 tensors"},
        {list(99'999, "{", named, ",\"0\"" + entry + "}"), "\"0\" occurs twice"},
        {list(
             1'000'000, R"({"__metadata__":{)", [&](int64_t i) { return number(i) + ":\"\""; },
             "}}"),
         "more than 100000 texts"},
        {list(
             2'000'000, R"({"w":{"shape":[)", [](int64_t) { return "0"; }, "]}}"),
         "more than 8 numbers"},
        {R"({"w":)" + std::string(20'000'000, '['), "not of the form"},
        {R"({"w":)" + list(
                          1'000'000, "", [](int64_t) { return "{\"a\":"; }, ""),
         "must have dtype"},
        {R"({")" + std::string(20'000'000, 'x') + R"(":1})", "must have dtype"},
        {R"({"w":{"dtype":")" + std::string(20'000'000, 'x') + R"("}})", "unknown dtype"},
        {R"({"w":{"dtype":)" + std::string(20'000'000, '1') + R"(}})", "too large"},
    };
    for (const Bad& bad : all) {
      CAPTURE(bad.words);
      put(folder / "f", safetensors(bad.header, ""));
      const auto size = static_cast<int64_t>(fs::file_size(folder / "f"));
      const fs::path out = folder / "out";
      // In a process of its own, whose peak is that of the file.
      const pid_t child = ::fork();
      if (child == 0) {
        rusage before{}, after{};
        ::getrusage(RUSAGE_SELF, &before);
        std::string message = "nothing was thrown";
        try {
          load_safetensors(folder / "f");
        } catch (const Error& error) {
          message = error.what();
        }
        ::getrusage(RUSAGE_SELF, &after);
        std::ofstream(out) << (after.ru_maxrss - before.ru_maxrss) * 1024 << ' ' << message;
        ::_exit(0);
      }
      REQUIRE(child > 0);
      int status = 0;
      REQUIRE(::waitpid(child, &status, 0) == child);
      CHECK(status == 0);
      std::ifstream in(out);
      int64_t peak = 0;
      std::string message;
      in >> peak;
      std::getline(in, message);
      CHECK(message == Contains(bad.words));
      CHECK(message.size() < 400);
#if defined(__SANITIZE_ADDRESS__)
      MESSAGE("SKIPPED: peak memory under AddressSanitizer");
#else
      CHECK(peak <= 8 * size + (int64_t{16} << 20));
#endif
    }
  }
}
