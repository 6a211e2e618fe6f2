#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "core/convert.h"
#include "core/error.h"
#include "core/format.h"
#include "core/quantizer.h"
#include "float_names.h"
#include "reference.h"

namespace ulp {
namespace {

using reference::Mismatches;
using reference::Reference;
using reference::report;
using tests::FloatName;
using tests::for_each_float;

constexpr DType kNative[] = {DType::F8E4M3, DType::F8E5M2, DType::BF16, DType::F16};

/// The message of the refusal, or "" if the text is taken.
std::string refusal(const std::string& text) {
  try {
    Quantizer::parse(text);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

/// Bits from the first to the last 1.
int significant_bits(double value) {
  if (value == 0 || std::isinf(value)) return 0;
  int exponent = 0;
  const auto integer =
      static_cast<uint64_t>(std::ldexp(std::frexp(std::fabs(value), &exponent), 53));
  return 53 - std::countr_zero(integer);
}

/// Does every value, NaN too, come back from `dtype` as it went in?
bool survives(const std::vector<double>& values, DType dtype) {
  return std::all_of(values.begin(), values.end(), [&](double value) {
    alignas(8) unsigned char bytes[8] = {};
    const auto x = static_cast<float>(value);
    if (!std::isnan(value) && x != value) return false;
    store_float(bytes, dtype, 0, x);
    return reference::same(load_as_float(bytes, dtype, 0), x);
  });
}

std::vector<double> with_nan(std::vector<double> values) {
  values.push_back(std::nan(""));
  return values;
}

/// fits, storage_type and gemm_type of one format against the set of its values.
void check_types(const std::string& name, const Format& format, const std::vector<double>& values,
                 Mismatches& bad) {
  DType narrowest = DType::F32, product = DType::F32;
  for (const DType dtype : {DType::F16, DType::BF16, DType::F8E5M2, DType::F8E4M3})
    if (survives(values, dtype)) narrowest = dtype;
  if (narrowest == DType::F16 && survives(values, DType::BF16)) narrowest = DType::BF16;
  for (const DType dtype : {DType::F16, DType::BF16})
    if (survives(values, dtype)) product = dtype;
  for (const DType dtype : kNative)
    if (fits(format, dtype) != survives(values, dtype))
      bad.add(format_message("{} in {}: fits says {}", {name, dtype, fits(format, dtype) ? 1 : 0}));
  if (!fits(format, DType::F32)) bad.add(name + " does not fit F32");
  if (storage_type(format) != narrowest)
    bad.add(format_message("{}: storage {}, want {}", {name, storage_type(format), narrowest}));
  if (gemm_type(format) != product)
    bad.add(format_message("{}: gemm {}, want {}", {name, gemm_type(format), product}));
}

}  // namespace

TEST_SUITE("format_limits") {
  TEST_CASE("limits of the standard formats") {
    struct Row {
      const char* name;
      double max, min_normal, min_positive;
      int bias, significant_bits;
      bool has_infinity;
    };
    const Row rows[] = {
        {"e4m3", 448, 0x1p-6, 0x1p-9, 7, 4, false},
        {"e5m2", 57344, 0x1p-14, 0x1p-16, 15, 3, true},
        {"e2m3", 7.5, 1, 0.125, 1, 4, false},
        {"e3m2", 28, 0.25, 0.0625, 3, 3, false},
        {"e2m1", 6, 1, 0.5, 1, 2, false},
        {"fp16", 65504, 0x1p-14, 0x1p-24, 15, 11, true},
        {"bf16", 0x1.fep127, 0x1p-126, 0x1p-133, 127, 8, true},
        {"tf32", 0x1.ffcp127, 0x1p-126, 0x1p-136, 127, 11, true},
        {"fp32", 0x1.fffffep127, 0x1p-126, 0x1p-149, 127, 24, true},
        {"e3m4", 15.5, 0.25, 0x1p-6, 3, 5, true},
        {"e6m9", 0x1.ff8p31, 0x1p-30, 0x1p-39, 31, 10, true},
        {"e4m3-none", 480, 0x1p-6, 0x1p-9, 7, 4, false},
        {"e5m2-none", 114688, 0x1p-14, 0x1p-16, 15, 3, false},
        {"e4m3-fnuz", 240, 0x1p-7, 0x1p-10, 8, 4, false},
        {"e5m2-fnuz", 57344, 0x1p-15, 0x1p-17, 16, 3, false},
        {"e4m3-ieee", 240, 0x1p-6, 0x1p-9, 7, 4, true},
        {"e4m3-ftz", 448, 0x1p-6, 0x1p-6, 7, 4, false},
        {"e5m2-sat", 57344, 0x1p-14, 0x1p-16, 15, 3, false},
        {"e8m7-none", 0x1.fep127, 0x1p-126, 0x1p-133, 127, 8, true},
        {"binary8p3", 49152, 0x1p-15, 0x1p-17, 16, 3, true},
        {"binary8p3-finite", 57344, 0x1p-15, 0x1p-17, 16, 3, false},
        {"binary8p4", 224, 0x1p-7, 0x1p-10, 8, 4, true},
        {"binary8p4-sat", 224, 0x1p-7, 0x1p-10, 8, 4, false},
        {"binary8p1", 0x1p62, 0x1p-63, 0x1p-63, 64, 1, true},
    };
    for (const Row& row : rows) {
      INFO(row.name);
      const Format format = Format::parse(row.name);
      const FormatLimits limits = limits_of(format);
      CHECK(format.bias == row.bias);
      CHECK(limits.max == row.max);
      CHECK(limits.lowest == -row.max);
      CHECK(limits.min_normal == row.min_normal);
      CHECK(limits.min_positive == row.min_positive);
      CHECK(limits.significant_bits == row.significant_bits);
      CHECK(limits.has_infinity == row.has_infinity);
    }
    const FormatLimits fixed = limits_of(Format::parse("fixed8.4"));
    CHECK(fixed.max == 7.9375);
    CHECK(fixed.lowest == -8);
    CHECK(fixed.min_positive == 0.0625);
    CHECK(limits_of(Format::parse("fixed8.4-sym")).lowest == -7.9375);
    CHECK(limits_of(Format::parse("fixed8.4-u")).lowest == 0);
    CHECK(limits_of(Format::parse("fixed8.4-u")).max == 15.9375);
    CHECK(limits_of(Format::parse("bfp8")).significant_bits == 7);
  }

  TEST_CASE("limits and native types against every value: floats up to 12 bits") {
    Mismatches bad;
    for_each_float(12, [&](const FloatName& name) {
      if (!name.exists()) return;
      const std::string text = name.text();
      const Format format = Format::parse(text);
      const std::vector<double> values = Reference(text.c_str()).values();
      // e1m1-fn holds 0, 1, 2 only; its bounds are those of a format that also had 1.5 of 2.
      const bool loose = name.e == 1 && name.m == 1 && name.specials == Specials::Fn;

      const FormatLimits limits = limits_of(format);
      double max = 0, min_positive = 0;
      int bits = 0;
      bool has_infinity = false;
      for (const double value : values) {
        has_infinity = has_infinity || std::isinf(value);
        bits = std::max(bits, significant_bits(value));
        if (std::isinf(value) || value <= 0) continue;
        max = std::max(max, value);
        if (min_positive == 0) min_positive = value;
      }
      const bool right =
          limits.max == max && limits.lowest == -max && limits.min_positive == min_positive &&
          limits.min_normal == std::ldexp(1.0, 1 - name.real_bias()) &&
          limits.emin == 1 - name.real_bias() && limits.emax == std::ilogb(max) &&
          limits.quantum == 1 - name.real_bias() - name.m && limits.has_infinity == has_infinity &&
          (limits.significant_bits == bits || (loose && limits.significant_bits == 2));
      if (!right)
        bad.add(format_message(
            "{}: max {} least {} bits {} Inf {}; limits say {} {} {} {}",
            {text, max, min_positive, bits, has_infinity ? 1 : 0, limits.max, limits.min_positive,
             limits.significant_bits, limits.has_infinity ? 1 : 0}));
      check_types(text, format, with_nan(values), bad);
    });
    report(bad);
  }

  TEST_CASE("P3109: limits, native types and all 256 codes against gfloat's values") {
    Mismatches bad;
    const std::vector<reference::P3109Table> tables = reference::p3109_tables();
    REQUIRE(tables.size() == 28);
    for (const reference::P3109Table& table : tables) {
      const bool is_unsigned = table.name.ends_with("-unsigned");
      std::vector<double> want;
      int nans = 0;
      for (const float value : table.values) {
        if (std::isnan(value)) ++nans;
        if (!std::isnan(value)) want.push_back(value);
        if (value == 0 && std::signbit(value)) bad.add(table.name + " has a -0");
      }
      if (nans != 1 || !std::isnan(table.values[is_unsigned ? 255 : 128]))
        bad.add(table.name + ": NaN is elsewhere");
      std::sort(want.begin(), want.end());
      for (const char* overflow : {"", "-sat", "-nan"}) {
        const std::string text = table.name + overflow;
        std::vector<double> values = Reference(text.c_str()).values();
        std::sort(values.begin(), values.end());
        std::vector<double> numbers = want;
        if (std::string_view(overflow) == "-sat")  // Inf becomes the largest number
          std::erase_if(numbers, [](double value) { return std::isinf(value); });
        if (values != numbers) bad.add(text + ": other values");

        const Format format = Format::parse(text);
        const FormatLimits limits = limits_of(format);
        std::vector<double> finite = numbers;
        std::erase_if(finite, [](double value) { return std::isinf(value); });
        double min_positive = finite.back();
        int bits = 0;
        for (const double value : finite) {
          if (value > 0) min_positive = std::min(min_positive, value);
          bits = std::max(bits, significant_bits(value));
        }
        const int precision = table.name[8] - '0';
        const int bias = 1 << ((is_unsigned ? 8 : 7) - precision);
        if (format.bias != bias || limits.max != finite.back() || limits.lowest != finite.front() ||
            limits.min_positive != min_positive || limits.significant_bits != bits ||
            limits.min_normal != std::ldexp(1.0, 1 - bias) || limits.emin != 1 - bias ||
            limits.emax != std::ilogb(finite.back()) || limits.quantum != 2 - bias - precision ||
            limits.has_infinity != (finite.size() < numbers.size()))
          bad.add(text + ": limits differ from the values");
        check_types(text, format, with_nan(numbers), bad);
      }
    }
    report(bad);
  }

  TEST_CASE("limits and native types against every value: fixed point up to 13 bits, bfp, hbfp") {
    Mismatches bad;
    for (int w = 1; w <= 13; ++w)
      for (int fraction = -120; fraction <= 149; ++fraction)
        for (const char* flags : {"", "-sat", "-sym", "-u", "-wrap", "-u-wrap"}) {
          const std::string text = format_message("fixed{}.{}{}", {w, fraction, flags});
          if (!refusal(text).empty()) continue;
          const Format format = Format::parse(text);
          const std::vector<double> values = Reference(text.c_str()).values();
          const FormatLimits limits = limits_of(format);
          const auto [least, most] = std::minmax_element(values.begin(), values.end());
          const double step = std::ldexp(1.0, -fraction);
          int bits = 0;
          for (const double value : values) bits = std::max(bits, significant_bits(value));
          if (limits.max != *most || limits.lowest != *least || limits.significant_bits != bits ||
              limits.min_positive != (*most > 0 ? step : 0) || limits.quantum != -fraction ||
              limits.has_infinity)
            bad.add(text + ": limits differ from the values");
          check_types(text, format, with_nan(values), bad);
        }
    for (int w = 2; w <= 13; ++w) {
      const std::string text = "bfp" + std::to_string(w);
      std::vector<double> values = {std::nan("")};
      for (int exponent = -149; exponent <= 127; ++exponent)
        for (const double value :
             Reference(Quantizer::parse(text), std::ldexp(1.0f, exponent)).values())
          values.push_back(value);
      check_types(text, Format::parse(text), values, bad);
    }
    for (int m = 1; m <= 12; ++m) {
      const std::string text = "hbfp" + std::to_string(m);
      std::vector<double> values = {std::nan("")};
      for (int exponent = -149; exponent <= 127; ++exponent)
        for (const float amax : {std::ldexp(1.0f, exponent), std::ldexp(1.5f, exponent)})
          for (const double value : Reference(Quantizer::parse(text), amax).values())
            values.push_back(value);
      check_types(text, Format::parse(text), values, bad);
      const FormatLimits limits = limits_of(Format::parse(text));
      int bits = 0;
      for (const double value : values) bits = std::max(bits, significant_bits(value));
      const double max = *std::max_element(values.begin() + 1, values.end());
      if (limits.max != max || limits.lowest != -max || limits.significant_bits != bits ||
          limits.min_positive != std::ldexp(1.0, limits.quantum))
        bad.add(text + ": limits differ from the values");
    }
    for (const char* wide : {"fixed8.4-noclamp", "fixed20.4", "bfp25", "e8m20", "fp32", "e8m11"}) {
      CHECK(storage_type(Format::parse(wide)) == DType::F32);
      CHECK(gemm_type(Format::parse(wide)) == DType::F32);
    }
    report(bad);
  }

  TEST_CASE("native types of the well-known formats") {
    struct Row {
      const char* name;
      DType storage, gemm;
    };
    for (const Row& row :
         {Row{"e4m3", DType::F8E4M3, DType::BF16}, Row{"e5m2", DType::F8E5M2, DType::BF16},
          Row{"e2m3", DType::F8E4M3, DType::BF16}, Row{"e3m2", DType::F8E4M3, DType::BF16},
          Row{"e2m1", DType::F8E4M3, DType::BF16}, Row{"bf16", DType::BF16, DType::BF16},
          Row{"fp16", DType::F16, DType::F16}, Row{"tf32", DType::F32, DType::F32},
          Row{"e6m9", DType::F32, DType::F32}, Row{"e4m3-ieee", DType::BF16, DType::BF16},
          Row{"bfp8", DType::BF16, DType::BF16}, Row{"fixed8.4", DType::BF16, DType::BF16}}) {
      INFO(row.name);
      CHECK(storage_type(Format::parse(row.name)) == row.storage);
      CHECK(gemm_type(Format::parse(row.name)) == row.gemm);
    }
  }
}

}  // namespace ulp
