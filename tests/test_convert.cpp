#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "core/bits.h"
#include "core/convert.h"
#include "reference.h"

namespace ulp {
namespace {

using reference::same;

struct Type {
  DType dtype;
  int exponent_bits, significand_bits;
  bool infinities;  // the all-ones exponent holds Inf and NaN; else one NaN, all ones
  uint32_t nan;     // the quiet NaN that is written
};

constexpr Type kTypes[] = {{DType::BF16, 8, 7, true, 0x7FC0},
                           {DType::F16, 5, 10, true, 0x7E00},
                           {DType::F8E4M3, 4, 3, false, 0x7F},
                           {DType::F8E5M2, 5, 2, true, 0x7E}};

uint32_t codes(const Type& type) { return 1u << (1 + type.exponent_bits + type.significand_bits); }

/// The number of a code, from the definition of an IEEE-like float.
double decode(const Type& type, uint32_t code) {
  const uint32_t top = codes(type) / 2, magnitude = code % top, steps = 1u << type.significand_bits;
  const uint32_t field = magnitude / steps, fraction = magnitude % steps;
  const uint32_t last_field = (1u << type.exponent_bits) - 1;
  const int bias = static_cast<int>(last_field / 2);
  const double sign = code >= top ? -1 : 1;
  if (type.infinities && field == last_field)
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  if (!type.infinities && magnitude == top - 1) return std::nan("");
  const double significand = static_cast<double>(fraction) / steps + (field > 0 ? 1 : 0);
  return sign * significand * std::pow(2.0, (field > 0 ? static_cast<int>(field) : 1) - bias);
}

uint32_t read_code(const std::vector<unsigned char>& bytes, DType dtype) {
  return size_of(dtype) == 2 ? bytes[0] + 256u * bytes[1] : bytes[0];
}

}  // namespace

TEST_SUITE("convert") {
  TEST_CASE("every code decodes by definition and comes back; NaNs become the one quiet NaN") {
    for (const Type& type : kTypes) {
      INFO("type ", std::string(to_string(type.dtype)));
      int wrong_values = 0, wrong_codes = 0;
      for (uint32_t code = 0; code < codes(type); ++code) {
        std::vector<unsigned char> bytes(8, 0);
        bytes[0] = static_cast<unsigned char>(code & 255);
        bytes[1] = static_cast<unsigned char>(code >> 8);
        const float x = load_as_float(bytes.data(), type.dtype, 0);
        const double want = decode(type, code);
        if (!same(x, static_cast<float>(want))) ++wrong_values;
        store_float(bytes.data(), type.dtype, 0, x);
        // E4M3 has its one NaN with either sign; what is written is positive like everywhere.
        if (read_code(bytes, type.dtype) != (std::isnan(want) ? type.nan : code)) ++wrong_codes;
      }
      CHECK(wrong_values == 0);
      CHECK(wrong_codes == 0);
    }
  }

  TEST_CASE("every NaN is written as the type's quiet NaN, whatever its sign and payload") {
    for (const uint32_t bits :
         {0x7F800001u, 0x7FC00000u, 0x7FFFFFFFu, 0xFF800001u, 0xFFC00000u, 0xFFFFFFFFu}) {
      CHECK(bits_of(canonical(float_of(bits))) == kNanBits);
      float stored = 0;
      store_float(&stored, DType::F32, 0, float_of(bits));
      CHECK(bits_of(stored) == kNanBits);
      for (const Type& type : kTypes) {
        std::vector<unsigned char> bytes(8, 0);
        store_float(bytes.data(), type.dtype, 0, float_of(bits));
        CHECK(read_code(bytes, type.dtype) == type.nan);
        CHECK(std::isnan(load_as_float(bytes.data(), type.dtype, 0)));
      }
    }
  }

  TEST_CASE("element i lies at i times the size; integers, F32 and F64 are read as numbers") {
    for (const Type& type : kTypes) {
      std::vector<unsigned char> bytes(16, 0);
      for (int i = 0; i < 4; ++i)
        store_float(bytes.data(), type.dtype, i, static_cast<float>(i) - 1.5f);
      for (int i = 0; i < 4; ++i)
        CHECK(load_as_float(bytes.data(), type.dtype, i) == static_cast<float>(i) - 1.5f);
      for (size_t i = 4 * size_of(type.dtype); i < bytes.size(); ++i) CHECK(bytes[i] == 0);
    }
    const float f32[] = {1, -0x1p-149f};
    const double f64[] = {1, -2.5};
    const int32_t i32[] = {1, -16777216};
    const int8_t i8[] = {1, -128};
    const uint8_t u8[] = {1, 255};
    CHECK(load_as_float(f32, DType::F32, 1) == -0x1p-149f);
    CHECK(load_as_float(f64, DType::F64, 1) == -2.5f);
    CHECK(load_as_float(i32, DType::I32, 1) == -16777216.0f);
    CHECK(load_as_float(i8, DType::I8, 1) == -128.0f);
    CHECK(load_as_float(u8, DType::U8, 1) == 255.0f);
  }

  TEST_CASE("bits: powers of two, selection, canonical NaN") {
    for (int exponent = -149; exponent <= 127; ++exponent)
      CHECK(pow2(exponent) == std::ldexp(1.0f, exponent));
    CHECK(select_bits(true, 0x12345678u, 0xFFFFFFFFu) == 0x12345678u);
    CHECK(select_bits(false, 0x12345678u, 0xFFFFFFFFu) == 0xFFFFFFFFu);
    for (const uint32_t bits :
         {0u, 0x80000000u, 1u, 0x7F7FFFFFu, 0x7F800000u, 0xFF800000u, 0x3F800000u}) {
      CHECK(bits_of(canonical(float_of(bits))) == bits);
      float stored = 1;
      store_float(&stored, DType::F32, 0, float_of(bits));
      CHECK(bits_of(stored) == bits);
    }
  }
}

}  // namespace ulp
