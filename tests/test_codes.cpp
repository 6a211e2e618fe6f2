#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "core/codebook.h"
#include "core/codes.h"
#include "core/error.h"
#include "core/grid.h"
#include "reference.h"

namespace ulp {
namespace {

using reference::Mismatches;
using reference::Reference;
using reference::report;
using reference::same;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr const char* kRoundings[] = {"", ":rna", ":rnu", ":rtz", ":ru", ":rd", ":odd", ":sr"};

/// The float formats of up to `most_bits` bits: every size, set of specials and a few biases; those that exist.
std::vector<Format> floats(int most_bits) {
  std::vector<Format> formats;
  for (int e = 1; e <= 8; ++e)
    for (int m = 0; m <= 14 && 1 + e + m <= most_bits; ++m)
      for (const char* specials : {"-ieee", "-fn", "-fnuz", "-none"})
        for (const char* rest :
             {"", "-ftz", "-bias0", "-bias-5", "-bias11", "-bias128", "-bias-125"})
          try {
            formats.push_back(Format::parse(format_message("e{}m{}{}{}", {e, m, specials, rest})));
          } catch (const Error&) {  // refused: test_formats knows which
          }
  return formats;
}

/// What a float's code stands for, by the definition of its special values; numbers come from the reference.
float float_of_code(const Format& f, const Reference& reference, uint32_t code) {
  const int magnitude_bits = f.exponent_bits + f.significand_bits;
  const uint32_t magnitude = code % (1u << magnitude_bits);
  const float sign = code >> magnitude_bits != 0 ? -1.0f : 1.0f;
  const bool sign_only = sign < 0 && magnitude == 0;
  const bool p3109 = f.specials == Specials::P3109 || f.specials == Specials::P3109Finite;
  if (sign_only && (p3109 || f.specials == Specials::Fnuz)) return std::nanf("");
  if (reference.points()[magnitude] <= reference.max())
    return sign * static_cast<float>(reference.points()[magnitude]);
  const bool is_first = reference.points()[magnitude - 1] <= reference.max();
  switch (f.specials) {
    case Specials::Ieee: return is_first ? sign * kInf : std::nanf("");
    case Specials::P3109: return is_first ? sign * kInf : std::nanf("");
    case Specials::None: return sign * kInf;  // e8mY-none from 2^128 on
    default: return std::nanf("");
  }
}

/// Numbers and NaN must come back as their own code; of several codes of Inf or NaN one must.
void check_code(const Format& f, uint32_t code, float want, Mismatches& bad) {
  const float got = decode(f, code);
  if (!same(got, want))
    bad.add(format_message("{}: code {:#x} is {}, want {}", {f, code, got, want}));
  const auto back = encode(f, got);
  const bool as_it_was =
      back == code || (!std::isfinite(got) && back && same(decode(f, *back), got));
  if (!as_it_was)
    bad.add(format_message("{}: code {:#x}, {}, comes back as {:#x}",
                           {f, code, got, back.value_or(kNoCode)}));
}

/// A posit by its standard: sign, regime run, exponent, fraction, in exact powers of two.
double posit_of_code(uint32_t code, int n, int es) {
  const uint32_t half = 1u << (n - 1);
  if (code == 0) return 0;
  if (code == half) return std::nan("");
  if (code > half) return -posit_of_code(2 * half - code, n, es);
  int at = n - 2;  // bit that is read next
  const bool first = (code >> at & 1) != 0;
  int run = 0;
  while (at >= 0 && ((code >> at & 1) != 0) == first) {
    ++run;
    --at;
  }
  --at;
  int exponent = (first ? run - 1 : -run) * (1 << es);
  for (int bit = es - 1; bit >= 0; --bit, --at)
    if (at >= 0 && (code >> at & 1) != 0) exponent += 1 << bit;
  const double fraction = at >= 0 ? std::ldexp(code % (1u << (at + 1)), -(at + 1)) : 0;
  return std::ldexp(1 + fraction, exponent);
}

}  // namespace

TEST_SUITE("codes") {
  TEST_CASE("every code of every float up to 12 bits") {
    const std::vector<Format> formats = floats(12);
    CHECK(formats.size() > 500);
    Mismatches bad;
    for (const Format& f : formats) {
      const Reference reference{Quantizer(f)};
      REQUIRE(code_bits(f) == 1 + f.exponent_bits + f.significand_bits);
      for (uint32_t code = 0; code < 1u << code_bits(f); ++code)
        check_code(f, code, float_of_code(f, reference, code), bad);
    }
    report(bad);
  }

  TEST_CASE("every code of floats with 13 to 16 bits") {
    Mismatches bad;
    for (const char* name :
         {"fp16", "bf16", "e8m7-none", "e8m7-ftz", "e6m9", "e6m9-none", "e4m11", "e4m11-fn",
          "e5m8-fnuz", "e7m8", "e3m12-none", "e2m13", "e1m14-none", "e8m5-bias128-fn"}) {
      const Format f = Format::parse(name);
      const Reference reference{Quantizer(f)};
      for (uint32_t code = 0; code < 1u << code_bits(f); ++code)
        check_code(f, code, float_of_code(f, reference, code), bad);
    }
    report(bad);
  }

  TEST_CASE("P3109: all 256 codes are gfloat's, and by definition") {
    Mismatches bad;
    const auto tables = reference::p3109_tables();
    REQUIRE(tables.size() == 28);
    for (const auto& table : tables)
      for (uint32_t code = 0; code < 256; ++code)
        check_code(Format::parse(table.name), code, table.values[code], bad);
    for (const std::string& name : reference::p3109_names()) {
      const Format f = Format::parse(name);
      const Reference reference{Quantizer(f)};
      for (uint32_t code = 0; code < 256; ++code)
        check_code(f, code, float_of_code(f, reference, code), bad);
    }
    report(bad);
  }

  TEST_CASE("every code of fixed point up to 16 bits, and of the elements of bfp and hbfp") {
    Mismatches bad;
    const auto check_all = [&](const Format& f, int bits, bool is_signed, int fraction) {
      REQUIRE(code_bits(f) == bits);
      for (uint32_t code = 0; code < 1u << bits; ++code) {
        const double k = is_signed && code >> (bits - 1) != 0
                             ? static_cast<double>(code) - std::ldexp(1.0, bits)
                             : static_cast<double>(code);
        check_code(f, code, static_cast<float>(std::ldexp(k, -fraction)), bad);
      }
    };
    for (int bits = 1; bits <= 16; ++bits)
      for (const int fraction : {0, 1, 4, 8, bits, 20, 149, -3, -100})
        for (const char* flag : {"", "-u", "-sat", "-wrap"})
          check_all(Format::parse(format_message("fixed{}.{}{}", {bits, fraction, flag})), bits,
                    *flag != '-' || flag[1] != 'u', fraction);
    for (int bits = 2; bits <= 16; ++bits) {
      check_all(block_float_format(bits), bits, true, 0);
      check_all(Format::parse(format_message("hbfp{}", {bits - 1})), bits, true, 0);
    }
    report(bad);
  }

  TEST_CASE("every code of every posit") {
    Mismatches bad;
    for (int n = 3; n <= 16; ++n)
      for (int es = 0; es <= 3; ++es) {
        const Format f = Format::parse(format_message("posit{}.{}", {n, es}));
        REQUIRE(code_bits(f) == n);
        for (uint32_t code = 0; code < 1u << n; ++code)
          check_code(f, code, static_cast<float>(posit_of_code(code, n, es)), bad);
      }
    report(bad);
  }

  TEST_CASE("tables: the index; a code beyond the last one is no number") {
    const auto path = std::filesystem::temp_directory_path() / "ulp-test-codes-table.txt";
    std::ofstream(path) << "-3\n0\n0.1\n2.5\n1e30\n";
    const std::string file = "table=" + path.string();
    const std::map<std::string, int> bits{
        {"nf4", 4}, {"pow2x4", 4}, {"pow2x5", 5}, {"pow2x8", 8}, {file, 3}};
    for (const auto& [name, count] : bits) {
      CAPTURE(name);
      const Format f = Quantizer::parse(name).format;
      const std::vector<float>& values = codebook(f.table).values;
      REQUIRE(code_bits(f) == count);
      for (uint32_t code = 0; code < values.size(); ++code) {
        CHECK(decode(f, code) == values[code]);
        CHECK(encode(f, values[code]) == code);
      }
      if (values.size() < 1u << count)
        CHECK(std::isnan(decode(make_code_rule(f), static_cast<uint32_t>(values.size()))));
      CHECK_THROWS_WITH_AS(decode(f, static_cast<uint32_t>(values.size())),
                           doctest::Contains("last code"), Error);
      for (const float x : {0.3f, -0.0f, std::nanf(""), kInf}) CHECK(!encode(f, x));
    }
    std::filesystem::remove(path);
  }

  TEST_CASE("wide formats: codes spread over all of them") {
    Mismatches bad;
    for (const char* name :
         {"fp32", "e8m23", "tf32", "e8m15", "e8m22-none", "e5m20-fn", "e3m20", "e1m23-none",
          "fixed25.0", "fixed25.12", "fixed24.10-u", "fixed20.149", "bfp25", "hbfp24"}) {
      const Format f = Format::parse(name);
      const uint32_t mask = low_bits(code_bits(f));
      for (uint64_t i = 0; i < 200000; ++i) {
        const auto code = static_cast<uint32_t>(i * 2654435761u) & mask;
        check_code(f, code, decode(f, code), bad);
      }
      for (const uint32_t code : {0u, 1u, mask, mask - 1, mask / 2, mask / 2 + 1})
        check_code(f, code, decode(f, code), bad);
    }
    for (uint64_t i = 0; i < 200000; ++i) {
      const auto bits = static_cast<uint32_t>(i * 2654435761u);
      if (!same(decode(Format{}, bits), float_of(bits)))
        bad.add(format_message("fp32: {:#x}", {bits}));
    }
    report(bad);
    CHECK(decode(Format::parse("fixed25.0"), 1u << 24) == -0x1p24f);
    CHECK(encode(Format::parse("fixed25.0"), -0x1p24f) == 1u << 24);
    CHECK(encode(Format::parse("fixed25.0"), 0x1p24f) == std::nullopt);
  }

  TEST_CASE("a number has a code if and only if rounding leaves it alone") {
    Mismatches bad;
    for (const char* name : {"fp32",
                             "fp16",
                             "bf16",
                             "e4m3",
                             "e4m3-ieee",
                             "e4m3-fnuz",
                             "e5m2",
                             "e5m2-fnuz",
                             "e2m3",
                             "e3m2",
                             "e2m1",
                             "e3m4",
                             "e8m7-none",
                             "e4m0-none",
                             "e1m2-none",
                             "e4m3-bias-100",
                             "e4m3-bias140",
                             "binary8p1",
                             "binary8p3",
                             "binary8p4-finite",
                             "binary8p4-unsigned",
                             "binary8p4-finite-unsigned",
                             "fixed8.4",
                             "fixed8.4-sym",
                             "fixed8.8-u",
                             "fixed1.3",
                             "fixed16.-20",
                             "fixed12.149"}) {
      const Format f = Format::parse(name);
      const Reference reference{Quantizer(f)};
      const bool has_nan = f.kind != FormatKind::Fixed && f.specials != Specials::None;
      for (const float x : reference::hard_inputs(reference)) {
        const bool is_number = std::isnan(x) ? has_nan : same(reference(x).value, x);
        // -sym leaves one code unused that two's complement has.
        const bool unused = f.symmetric && x == -8.0f;
        if (encode(f, x).has_value() != (is_number || unused))
          bad.add(format_message("{}: {} ({:#x})", {name, x, bits_of(x)}));
      }
    }
    report(bad);
  }

  TEST_CASE("whatever a quantizer puts out has a code, NaN if the format has one") {
    Mismatches bad;
    int64_t outputs = 0;
    for (const char* name : {"fp16",
                             "bf16",
                             "e4m3",
                             "e4m3-nan",
                             "e4m3-ftz",
                             "e4m3-fnuz",
                             "e5m2",
                             "e5m2-sat",
                             "e5m2-nan",
                             "e2m1",
                             "e3m2",
                             "e8m3-none",
                             "e8m3-none-sat",
                             "e6m9",
                             "e4m0-none",
                             "binary8p1",
                             "binary8p1-unsigned",
                             "binary8p3-sat",
                             "binary8p4-unsigned-nan",
                             "binary8p7-finite",
                             "fixed8.4",
                             "fixed8.4-sym-sat",
                             "fixed8.4-wrap",
                             "fixed8.8-u",
                             "fixed8.8-u-wrap",
                             "fixed1.0",
                             "fixed8.-100"})
      for (const char* rounding : kRoundings) {
        const Quantizer q = Quantizer::parse(std::string(name) + rounding);
        const CodeRule rule = make_code_rule(q.format);
        const Grid grid = make_grid(q);
        const bool has_nan = encode(rule, std::nanf("")) != kNoCode;
        uint32_t random = 1;
        for (const float x : reference::hard_inputs(Reference(q))) {
          const float y = quantise_value(x, grid, random *= 2654435761u);
          const uint32_t code = encode(rule, y);
          const bool want = !std::isnan(y) || has_nan;
          ++outputs;
          if ((code != kNoCode) != want || (want && !same(decode(rule, code), y)))
            bad.add(format_message("{}{}: {} became {}", {name, rounding, x, y}));
        }
      }
    report(bad);
    CHECK(outputs > 100000);
  }

  TEST_CASE("well-known codes") {
    const auto code = [](const char* format, float x) {
      return encode(Format::parse(format), x).value_or(kNoCode);
    };
    CHECK(code("e4m3", 448.0f) == 0x7E);
    CHECK(code("e4m3", -1.0f) == 0xB8);
    CHECK(code("e4m3", std::nanf("")) == 0x7F);
    CHECK(code("e5m2", 57344.0f) == 0x7B);
    CHECK(code("e5m2", -kInf) == 0xFC);
    CHECK(code("e5m2", std::nanf("")) == 0x7E);
    CHECK(code("e4m3-fnuz", 240.0f) == 0x7F);
    CHECK(code("e4m3-fnuz", std::nanf("")) == 0x80);
    CHECK(code("e2m1", -6.0f) == 0xF);
    CHECK(code("e2m3", 7.5f) == 0x1F);
    CHECK(code("e3m2", 28.0f) == 0x1F);
    CHECK(code("fp16", 1.0f) == 0x3C00);
    CHECK(code("bf16", -1.0f) == 0xBF80);
    CHECK(code("fp32", -std::nanf("")) == 0x7FC00000);
    CHECK(code("binary8p3", kInf) == 0x7F);
    CHECK(code("binary8p3-unsigned", kInf) == 0xFE);
    CHECK(code("binary8p3-unsigned", std::nanf("")) == 0xFF);
    CHECK(code("posit8.2", -1.0f) == 0xC0);
    CHECK(code("posit8.2", std::nanf("")) == 0x80);
    CHECK(code("fixed8.4", -0.0625f) == 0xFF);
    for (const char* format : {"e2m1", "fixed8.4", "nf4", "bfp8"})
      CHECK(code(format, std::nanf("")) == kNoCode);
    CHECK(code("fixed8.4", -0.0f) == kNoCode);
    CHECK(code("fixed8.4-noclamp", 1.0f) == kNoCode);
    CHECK(code_bits(Format::parse("fixed8.4-noclamp")) == 0);
    CHECK(code_bits(Format::parse("hbfp8")) == 9);
    CHECK_THROWS_WITH_AS(decode(Format::parse("fixed8.4-noclamp"), 0), doctest::Contains("codes"),
                         Error);
    CHECK_THROWS_WITH_AS(decode(Format::parse("e2m1"), 16), "e2m1: its last code is 0xF, got 0x10",
                         Error);
    CHECK(decode_e8m0(0) == 0x1p-127f);
    CHECK(decode_e8m0(127) == 1.0f);
    CHECK(decode_e8m0(254) == 0x1p127f);
    CHECK(std::isnan(decode_e8m0(255)));
  }
}

}  // namespace ulp
