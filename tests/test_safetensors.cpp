#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "core/error.h"
#include "nn/data/read_file.h"
#include "nn/data/safetensors.h"
#include "tests/files.h"
#include "tests/paths.h"

using namespace ulp;
using namespace ulp::nn;
using namespace ulp::tests;
namespace fs = std::filesystem;

namespace {

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

TEST_SUITE("safetensors") {
  TEST_CASE("the bytes of a small file") {
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

  TEST_CASE("every dtype comes back bit by bit") {
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

  TEST_CASE("what cannot be saved") {
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

  TEST_CASE("malformed files") {
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

  TEST_CASE("malformed entries") {
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

  TEST_CASE("no damaged byte does harm") {
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

  TEST_CASE("a file that Python's package wrote") {
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

  TEST_CASE("a checksum") {
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

  TEST_CASE("memory for a malformed file is about the file's size") {
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
