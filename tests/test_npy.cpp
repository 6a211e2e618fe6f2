#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "core/bits.h"
#include "core/error.h"
#include "nn/data/npy.h"

using namespace ulp;
using namespace std::string_literals;
namespace fs = std::filesystem;

namespace {

struct Folder {
  fs::path path;
  Folder() {
    std::string name = (fs::temp_directory_path() / "ulp-npy-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { fs::remove_all(path); }
};

std::string slurp(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

void write(const fs::path& file, const std::string& bytes) {
  fs::remove(file);  // some file systems wait for the disk when a file is overwritten
  std::ofstream(file, std::ios::binary) << bytes;
}

const std::string kMagic = "\x93NUMPY";
// 1, -2, 0.5, +Inf, a NaN with a payload, -0
const std::string kSix =
    "\x00\x00\x80\x3f\x00\x00\x00\xc0\x00\x00\x00\x3f\x00\x00\x80\x7f\x01\x00\xc0\x7f\x00\x00\x00\x80"s;

std::string file_of(const std::string& header, const std::string& data) {
  return kMagic + "\x01\x00"s + static_cast<char>(header.size() & 255) +
         static_cast<char>(header.size() >> 8) + header + data;
}

std::string dictionary(const std::string& shape, const std::string& type = "<f4") {
  return "{'descr': '" + type + "', 'fortran_order': False, 'shape': " + shape + ", }\n";
}

std::vector<uint32_t> bits_in(const Tensor& tensor) {
  std::vector<uint32_t> bits;
  for (int64_t i = 0; i < tensor.numel(); ++i) bits.push_back(bits_of(tensor.data<float>()[i]));
  return bits;
}

const std::vector<uint32_t> kSixBits = {0x3F800000, 0xC0000000, 0x3F000000,
                                        0x7F800000, 0x7FC00001, 0x80000000};

}  // namespace

TEST_SUITE("npy") {
  TEST_CASE("all three versions and every spelling of the header that means the same") {
    const Folder folder;
    const fs::path file = folder.path / "a.npy";
    const std::string six = dictionary("(2, 3)");
    const std::string length = {static_cast<char>(six.size()), 0};
    const std::vector<std::string> same = {
        file_of(six, kSix),
        kMagic + "\x02\x00"s + length + "\0\0"s + six + kSix,
        kMagic + "\x03\x00"s + length + "\0\0"s + six + kSix,
        file_of("{'shape':(2,3,),'fortran_order':False,\"descr\":\"<f4\"}\n", kSix),
        file_of("{ 'descr' : '<f4' , 'fortran_order' : False , 'shape' : ( 2 , 3 ) }    \n", kSix),
    };
    for (size_t i = 0; i < same.size(); ++i) {
      CAPTURE(i);
      write(file, same[i]);
      const Tensor t = nn::load_npy(file);
      CHECK(t.shape() == Shape{2, 3});
      CHECK(t.dtype() == DType::F32);
      CHECK(bits_in(t) == kSixBits);
    }
  }

  TEST_CASE("shapes: scalars, one axis, eight axes, nothing in them") {
    const Folder folder;
    const fs::path file = folder.path / "a.npy";
    const auto shape = [&](const std::string& text, const std::string& data) {
      write(file, file_of(dictionary(text), data));
      return nn::load_npy(file).shape();
    };
    CHECK(shape("()", kSix.substr(0, 4)) == Shape{});
    CHECK(shape("(6,)", kSix) == Shape{6});
    CHECK(shape("(1, 1, 1, 2, 1, 3, 1, 1)", kSix) == Shape{1, 1, 1, 2, 1, 3, 1, 1});
    CHECK(shape("(0,)", "") == Shape{0});
    CHECK(shape("(3, 0, 5)", "") == Shape{3, 0, 5});
  }

  TEST_CASE("what is written: version 1.0, data from byte 128 on, the same bits when read") {
    const Folder folder;
    const fs::path file = folder.path / "a.npy";
    std::vector<float> values;
    for (const uint32_t bits : kSixBits) values.push_back(float_of(bits));
    nn::save_npy(file, Tensor::from(values, {2, 3}));
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
    header.resize(117, ' ');
    CHECK(slurp(file) == kMagic + "\x01\x00\x76\x00"s + header + "\n" + kSix);
    for (const Shape& shape :
         {Shape{}, Shape{1}, Shape{0}, Shape{4, 0, 2}, Shape{7}, Shape{1, 2, 1, 3, 1, 1, 1, 2}}) {
      CAPTURE(to_string(shape));
      std::vector<float> some(static_cast<size_t>(shape.numel()));
      for (size_t i = 0; i < some.size(); ++i) some[i] = static_cast<float>(i) - 1.5f;
      nn::save_npy(file, Tensor::from(some, shape));
      const Tensor back = nn::load_npy(file);
      CHECK(back.shape() == shape);
      CHECK(back.to_floats() == some);
      CHECK(slurp(file).size() % 64 == some.size() * 4 % 64);
    }
    CHECK_THROWS_AS(nn::save_npy(file, Tensor::from(std::vector<double>{1}, {1})), Error);
    CHECK_THROWS_AS(
        nn::save_npy(file, Tensor::from(std::vector<float>{1, 2, 3, 4}, {2, 2}).transpose(0, 1)),
        Error);
  }

  TEST_CASE("raw floats") {
    const Folder folder;
    const fs::path file = folder.path / "a.f32";
    write(file, kSix);
    const Tensor t = nn::load_f32(file);
    CHECK(t.shape() == Shape{6});
    CHECK(bits_in(t) == kSixBits);
    nn::save_f32(folder.path / "b.f32", t.reshape({2, 3}));
    CHECK(slurp(folder.path / "b.f32") == kSix);
    write(file, "");
    CHECK(nn::load_f32(file).shape() == Shape{0});
    nn::save_f32(folder.path / "b.f32", nn::load_f32(file));
    CHECK(slurp(folder.path / "b.f32").empty());
    write(file, kSix.substr(0, 7));
    CHECK_THROWS_WITH_AS(nn::load_f32(file), doctest::Contains("7 bytes are no whole number"),
                         Error);
    CHECK_THROWS_WITH_AS(nn::load_f32(folder.path / "none.f32"), doctest::Contains("none.f32"),
                         Error);
  }

  TEST_CASE("every bad file is one line that names it and says what is wrong") {
    const Folder folder;
    const fs::path file = folder.path / "bad.npy";
    const std::string good = file_of(dictionary("(2, 3)"), kSix);
    const auto entry = [](const std::string& text) { return file_of(text + "\n", kSix); };
    struct Bad {
      std::string bytes, says;
    };
    const std::vector<Bad> all = {
        {"", "truncated, 0 bytes"},
        {kMagic, "truncated, 6 bytes"},
        {"\x93NUM", "truncated, 4 bytes"},
        {"PK\x03\x04", "does not start with"},
        {"\x93NUMPz" + good.substr(6), "does not start with"},
        {kMagic + "\x04\x00"s + good.substr(8), "version 4.0"},
        {kMagic + "\x00\x00"s + good.substr(8), "version 0.0"},
        {kMagic + "\x01\x01"s + good.substr(8), "version 1.1"},
        {kMagic + "\x02\x00\x10"s, "truncated"},
        {kMagic + "\x02\x00\xff\xff\xff\xff"s + dictionary("(2, 3)"), "header of 4294967295 bytes"},
        {kMagic + "\x01\x00\xff\xff"s + dictionary("(2, 3)"), "65535 bytes is announced"},
        {good.substr(0, 40), "is announced"},
        {good.substr(0, good.size() - 1), "takes 24 bytes and 23 follow"},
        {good + "x", "1 bytes too many"},
        {file_of(dictionary("(2, 3)").substr(0, 59), kSix), "line feed"},
        {file_of(dictionary("(2, 4)"), kSix), "takes 32 bytes"},
        {file_of(dictionary("(1, 3)"), kSix), "12 bytes too many"},
        {file_of(dictionary("()"), kSix), "20 bytes too many"},
        {file_of(dictionary("(0, 3)"), kSix), "24 bytes too many"},
        {file_of(dictionary("(2, 3)", "<f8"), kSix), "'<f8'"},
        {file_of(dictionary("(2, 3)", ">f4"), kSix), "'>f4'"},
        {file_of(dictionary("(2, 3)", "<i4"), kSix), "'<i4'"},
        {file_of(dictionary("(2, 3)", "|O"), kSix), "'|O'"},
        {file_of(dictionary("(2, 3)", "\n\x01"), kSix),
         "'?"
         "?'"},
        {entry("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6,)}"), "records"},
        {entry("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }"), "Fortran order"},
        {entry("{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3), }"), "True or False"},
        {entry("{'descr': '<f4', 'fortran_order': False, }"), "no 'shape'"},
        {entry("{'descr': '<f4', 'shape': (2, 3), }"), "no 'fortran_order'"},
        {entry("{'fortran_order': False, 'shape': (2, 3), }"), "no 'descr'"},
        {entry("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}"),
         "'descr' twice"},
        {entry("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'shape': (6,)}"),
         "'shape' twice"},
        {entry("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'order': 'C'}"),
         "'order'"},
        {entry("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), } + 1"), "goes on"},
        {entry("{'descr': '<f4' 'fortran_order': False, 'shape': (2, 3)}"), "neither , nor }"},
        {entry("{'descr' '<f4', 'fortran_order': False, 'shape': (2, 3)}"), "no : after 'descr'"},
        {entry("{'descr': '<f4, }"), "without an end"},
        {entry("{descr: '<f4'}"), "no string"},
        {entry("['descr']"), "no Python dictionary"},
        {entry("{"), "no string"},
        {entry(""), "no Python dictionary"},
        {file_of(dictionary("(6)"), kSix), "tuple such as (3,)"},
        {file_of(dictionary("[2, 3]"), kSix), "must be a tuple"},
        {file_of(dictionary("(2, 3"), kSix), "'shape'"},
        {file_of(dictionary("(2 3)"), kSix), "no tuple"},
        {file_of(dictionary("(,)"), kSix), "integers from 0"},
        {file_of(dictionary("(-2, -3)"), kSix), "integers from 0"},
        {file_of(dictionary("(2.0, 3)"), kSix), "no tuple"},
        {file_of(dictionary("(True, 6)"), kSix), "integers from 0"},
        {file_of(dictionary("(6, 1, 1, 1, 1, 1, 1, 1, 1)"), kSix), "more than 8 axes"},
        {file_of(dictionary("(9223372036854775808,)"), kSix), "beyond 2^63"},
        {file_of(dictionary("(9223372036854775807,)"), kSix), "more elements than"},
        {file_of(dictionary("(4294967296, 4294967296)"), kSix), "more elements than"},
        {file_of(dictionary("(0, 4294967296, 4294967296)"), ""), "more elements than"},
        {file_of(dictionary("(1000000000000,)"), kSix), "takes 4000000000000 bytes and 24 follow"},
    };
    for (const Bad& bad : all) {
      CAPTURE(bad.says);
      write(file, bad.bytes);
      try {
        nn::load_npy(file);
        FAIL_CHECK("it was read");
      } catch (const Error& error) {
        const std::string text = error.what();
        CAPTURE(text);
        CHECK(text.find(bad.says) != std::string::npos);
        CHECK(text.starts_with(file.string() + ": "));
        CHECK(text.find('\n') == std::string::npos);
      }
    }
    for (size_t size = 0; size < good.size(); ++size) {  // cut anywhere
      write(file, good.substr(0, size));
      CAPTURE(size);
      CHECK_THROWS_AS(nn::load_npy(file), Error);
    }
    CHECK_THROWS_WITH_AS(nn::load_npy(folder.path), doctest::Contains("not a regular file"), Error);
    CHECK_THROWS_AS(nn::load_npy(folder.path / "none.npy"), Error);
  }

  TEST_CASE("any one byte of the header changed gives an error or the same kind of array") {
    const Folder folder;
    const fs::path file = folder.path / "a.npy";
    const std::string good = file_of(dictionary("(2, 3)"), kSix);
    for (size_t at = 0; at + kSix.size() < good.size(); ++at)
      for (int bit = 0; bit < 8; ++bit) {
        std::string bytes = good;
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << bit));
        write(file, bytes);
        int64_t elements = 6;
        try {
          elements = nn::load_npy(file).numel();
        } catch (const Error&) {
        }
        CHECK(elements == 6);
      }
  }
}
