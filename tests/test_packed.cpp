#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/packed.h"
#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"
#include "kernels/pack.h"
#include "reference.h"

namespace ulp {
namespace {

using reference::Mismatches;
using reference::report;
using reference::same;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kMost = std::numeric_limits<float>::max();
constexpr const char* kRoundings[] = {"",    ":rna", ":rnu", ":rtz", ":ru",
                                      ":rd", ":odd", ":sr",  ":sr4f"};
constexpr RandomKey kKey{1234, fnv1a32("packed"), 0, nullptr};

/// Element-wise formats of every kind: with NaN codes, and without.
constexpr const char* kWithNan[] = {
    "fp32",     "tf32",      "fp16",      "bf16",     "e4m3",      "e4m3-nan",
    "e4m3-ftz", "e4m3-fnuz", "e5m2",      "e5m2-sat", "e5m2-fnuz", "e3m4",
    "e6m9",     "e2m1-ieee", "e3m2-fn",   "e5m5",     "binary8p1", "binary8p3",
    "posit8.1", "posit5.0",  "posit16.2", "posit3.0", "posit11.3", "binary8p4-finite-unsigned"};
constexpr const char* kWithoutNan[] = {
    "e2m1",     "e2m3",          "e3m2",         "e4m3-none",  "e8m7-none", "fixed8.4",
    "fixed1.0", "fixed5.2-wrap", "fixed8.8-u",   "fixed25.10", "fixed3.1",  "fixed7.3-sym-sat",
    "nf4",      "pow2x5",        "fixed17.0-sat"};
/// Blocks of every kind under powers of two, bfp and hbfp.
constexpr const char* kBlocks[] = {
    "mxfp8",        "mxfp8-e5m2-ceil", "mxfp6-even",       "mxfp6-e3m2",        "mxfp4",
    "mxfp4-rceil",  "mxint8",          "e4m3-g7",          "e5m2-axis0",        "e2m1-axis1",
    "e3m4-t2x5",    "e2m1-t16x1-ceil", "fixed8.6-g3-even", "fixed8.6-u-g4",     "e4m3-fnuz-g16",
    "binary8p3-g8", "e1m2-none-g5",    "fixed2.-3-g4",     "e4m0-none-g4-ceil", "bfp5",
    "bfp8-axis0",   "bfp8-axis1",      "bfp6-g16",         "bfp12-t3x2",        "bfp2-g3",
    "bfp25-g4",     "hbfp8",           "hbfp4-t2x2",       "hbfp24-g5",         "hbfp1-g2",
    "hbfp12-axis1"};
/// Blocks under e4m3 and fp32 scales.
constexpr const char* kFactors[] = {"nvfp4",
                                    "nvfp4-g3",
                                    "nvfp4-t2x5",
                                    "e2m1-g16-scalee4m3",
                                    "e4m3-g5-scalee4m3",
                                    "fixed4.0-g8-scalee4m3",
                                    "e4m3-g16-scalef32",
                                    "nf4-g8-scalef32",
                                    "e5m2-t3x2-scalef32",
                                    "posit8.1-g4-scalef32",
                                    "fixed8.4-axis0-scalef32",
                                    "e4m3+scale=current",
                                    "fixed8.7-sym+scale=shift",
                                    "e5m2+scale=row",
                                    "mxfp4+q34",
                                    "e4m3-g5+q34"};

const std::vector<Shape> kShapes = {{1, 1}, {7, 1}, {1, 33}, {3, 5, 7}, {33, 2}, {4, 64}, {5, 300}};

uint32_t scramble(uint64_t n) {
  n = (n + 0x9E3779B97F4A7C15u) * 0xBF58476D1CE4E5B9u;
  n = (n ^ (n >> 29)) * 0x94D049BB133111EBu;
  return static_cast<uint32_t>(n >> 32);
}

/// Stretches of ordinary numbers, zeros of both signs, all of fp32's exponents, subnormals and the largest numbers; with
/// Inf and NaN here and there if asked.
std::vector<float> mixed_values(int64_t n, uint64_t seed, bool with_specials) {
  std::vector<float> values;
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t at = seed * 1000003 + static_cast<uint64_t>(i);
    const uint32_t word = scramble(at);
    const int choice = static_cast<int>(scramble(seed + static_cast<uint64_t>(i) / 9) % 6);
    float x = float_of(word);
    if (!std::isfinite(x)) x = kMost;
    if (choice < 2) x = float_of((word & 0x807FFFFFu) | (118 + word / 64 % 12) << 23);
    if (choice == 2) x = word % 2 == 0 ? 0.0f : -0.0f;
    if (choice == 3) x = float_of(word & 0x807FFFFFu);
    if (choice == 4) x = word % 5 == 0 ? -kMost : float_of((word & 0x807FFFFFu) | 0x7E000000u);
    if (with_specials && scramble(at + 5) % 50 == 0)
      x = word % 2 == 0 ? std::nanf("") : (word % 4 == 1 ? kInf : -kInf);
    values.push_back(x);
  }
  return values;
}

Tensor quantised(const Quantizer& q, const Tensor& x, int group_axis = 0) {
  Tensor out = Tensor::empty(x.shape(), DType::F32, kCpu);
  kernels::quantise(Stream{}, {x, out, q, group_axis, kKey, {}});
  return out;
}

/// Values whose factors are apart, and what they stand for.
struct Factored {
  Tensor values;
  std::vector<float> products;
};
Factored quantised_with_factors(const Quantizer& q, const Tensor& x, int group_axis) {
  const Tensor products = quantised(q, x, group_axis);
  if (!q.has_factor()) return {products, products.to_floats()};
  Tensor values = Tensor::empty(x.shape(), DType::F32, kCpu);
  const Tensor factors = Tensor::empty({factor_count(q, x.shape(), group_axis)}, DType::F32, kCpu);
  kernels::quantise(Stream{}, {x, values, q, group_axis, kKey, {}, factors});
  return {values, products.to_floats()};
}

void compare(const std::string& what, const std::vector<float>& got, const std::vector<float>& want,
             Mismatches& bad) {
  if (got.size() != want.size()) return bad.add(what + ": another number of elements");
  for (size_t i = 0; i < got.size(); ++i)
    if (!same(got[i], want[i]))
      bad.add(format_message("{}: element {} came back as {}, was {}", {what, i, got[i], want[i]}));
}

std::vector<int> bytes_of(const Tensor& t) {
  const uint8_t* bytes = t.data<uint8_t>();
  return std::vector<int>(bytes, bytes + t.numel());
}

PackedTensor pack_values(const char* format, const std::vector<float>& x, const Shape& shape) {
  const Tensor in = Tensor::from(x, shape);
  return pack({quantised(format, in, shape.rank() - 1), in, format, shape.rank() - 1});
}
PackedTensor pack_values(const char* format, const std::vector<float>& x) {
  return pack_values(format, x, {static_cast<int64_t>(x.size())});
}

}  // namespace

TEST_SUITE("packed") {
  TEST_CASE("element-wise formats come back to the bit, for every rounding and shape") {
    Mismatches bad;
    const auto check = [&](const std::string& name, bool with_nan) {
      const Quantizer q = Quantizer::parse(name);
      uint64_t seed = 1;
      for (const Shape& shape : {Shape{0}, Shape{}, Shape{1}, Shape{7}, Shape{33}, Shape{3, 5, 7},
                                 Shape{1025}, Shape{2, 0, 3}}) {
        const auto x = Tensor::from(mixed_values(shape.numel(), ++seed, with_nan), shape);
        const Tensor y = quantised(q, x);
        const PackedTensor packed = pack({y, {}, q});
        const int64_t bits = code_bits(q.format) * shape.numel();
        if (packed.codes.numel() != (bits + 7) / 8 || packed.scales.defined())
          bad.add(name + ": wrong size");
        const Tensor back = unpack(packed);
        if (!(back.shape() == shape)) bad.add(name + ": another shape");
        compare(name, back.to_floats(), y.to_floats(), bad);
      }
    };
    for (const char* rounding : kRoundings) {
      for (const char* name : kWithNan)
        check(std::string(name) + (Quantizer(name).is_identity() ? "" : rounding), true);
      for (const char* name : kWithoutNan) check(std::string(name) + rounding, false);
    }
    report(bad);
  }

  TEST_CASE("blocks come back to the bit: every kind, rounding, shape and group axis") {
    Mismatches bad;
    int64_t tensors = 0;
    for (const char* name : kBlocks)
      for (const char* rounding : kRoundings)
        for (const bool with_specials : {false, true})
          for (const Shape& shape : kShapes) {
            const Quantizer q = Quantizer::parse(std::string(name) + rounding);
            const int axes = q.block.kind == Block::Kind::Group ? shape.rank() : 1;
            for (int axis = 0; axis < axes; ++axis) {
              const auto x =
                  Tensor::from(mixed_values(shape.numel(), ++tensors % 97, with_specials), shape);
              const Tensor y = quantised(q, x, axis);
              const PackedTensor packed = pack({y, x, q, axis});
              compare(format_message("{}{} {} axis {}", {name, rounding, shape, axis}),
                      unpack(packed).to_floats(), y.to_floats(), bad);
            }
          }
    report(bad);
    CHECK(tensors > 4000);
  }

  TEST_CASE("e4m3 and fp32 scales: values times factors come back to the bit") {
    Mismatches bad;
    for (const char* name : kFactors)
      for (const char* rounding : {"", ":rtz", ":ru", ":sr"})
        for (const bool with_specials : {false, true})
          for (const bool narrow : {false, true})
            for (const Shape& shape : kShapes) {
              const Quantizer q = Quantizer::parse(std::string(name) + rounding);
              for (int axis = 0; axis < shape.rank(); ++axis) {
                std::vector<float> x = mixed_values(shape.numel(), 5 + shape.rank(), with_specials);
                for (float& v : x)  // within a few binades, so that few blocks are zeros
                  if (narrow && std::isfinite(v))
                    v = float_of((bits_of(v) & 0x807FFFFFu) | (120 + bits_of(v) % 9) << 23);
                const auto in = Tensor::from(x, shape);
                const Factored want = quantised_with_factors(q, in, axis);
                compare(format_message("{}{} {} axis {}", {name, rounding, shape, axis}),
                        unpack(pack({want.values, in, q, axis})).to_floats(), want.products, bad);
              }
            }
    report(bad);
  }

  TEST_CASE("delayed scaling: the factor is the caller's") {
    const Quantizer q = "e4m3+scale=delayed4";
    const auto values = Tensor::from<float>({448.0f, -1.0f, 0.0f}, {3});
    const PackedTensor packed = pack({values, {}, q, 0, 0.25f});
    CHECK(packed.scales.to_floats() == std::vector<float>{0.25f});
    CHECK(unpack(packed).to_floats() == std::vector<float>{112.0f, -0.25f, 0.0f});
    CHECK(packed.bytes() == 7);
  }

  TEST_CASE("narrow storage: scales follow the type that the values live in") {
    for (const char* name : {"mxfp8", "mxfp8-e5m2", "mxfp4"}) {
      CAPTURE(std::string(name));
      const auto x = Tensor::from(mixed_values(640, 3, true), {10, 64});
      Tensor y = Tensor::empty(x.shape(), DType::BF16, kCpu);
      kernels::quantise(Stream{}, {x, y, name, 1, kKey, {}});
      Mismatches bad;
      compare(name, unpack(pack({y, x, name, 1})).to_floats(), y.to_floats(), bad);
      report(bad);
    }
  }

  TEST_CASE("bytes by hand: element-wise") {
    const auto bytes = [](const char* format, const std::vector<float>& x) {
      return bytes_of(pack_values(format, x).codes);
    };
    using Bytes = std::vector<int>;
    // 0.5 1 −6 0 1.5: codes 1 2 F 0 3, the first one low.
    CHECK(bytes("e2m1", {0.5f, 1, -6, 0, 1.5f}) == Bytes{0x21, 0x0F, 0x03});
    // 1 −7.5 0.125 2: 001000 111111 000001 010000, each behind the one before from bit 0 on.
    CHECK(bytes("e2m3", {1, -7.5f, 0.125f, 2}) == Bytes{0xC8, 0x1F, 0x40});
    CHECK(bytes("e3m2", {28, -0.0f}) == Bytes{0x1F, 0x08});
    // 1 −1 8 0.5: 01000 11000 01111 00100.
    CHECK(bytes("posit5.0", {1, -1, 8, 0.5f}) == Bytes{0x08, 0x3F, 0x02});
    CHECK(bytes("fixed3.0", {-4, 3, -1}) == Bytes{0xDC, 0x01});
    CHECK(bytes("nf4", {-1, 1, 0}) == Bytes{0xF0, 0x07});
    CHECK(bytes("e4m3", {448, -1, std::nanf("")}) == Bytes{0x7E, 0xB8, 0x7F});
    CHECK(bytes("fp16", {1, -2}) == Bytes{0x00, 0x3C, 0x00, 0xC0});
    CHECK(bytes("fp32", {1}) == Bytes{0x00, 0x00, 0x80, 0x3F});
    CHECK(bytes("fixed1.0", {-1, 0, -1, -1, 0, 0, 0, 0, -1}) == Bytes{0x0D, 0x01});
  }

  TEST_CASE("bytes by hand: blocks") {
    using Bytes = std::vector<int>;
    std::vector<float> x(32, 0.0f);
    x[0] = 12;  // exponent 3, e2m1's largest 2: X − 127 = 1; 12 / 2 is code 7, −1 / 2 code 9
    x[1] = -1;
    PackedTensor p = pack_values("mxfp4", x);
    Bytes codes(16, 0);
    codes[0] = 0x97;
    CHECK(bytes_of(p.codes) == codes);
    CHECK(bytes_of(p.scales) == Bytes{0x80});

    x[0] = 15;  // 7.5 and −0.125 times 2^1: 011111 100001
    x[1] = -0.25f;
    p = pack_values("mxfp6", x);
    codes.assign(24, 0);
    codes[0] = 0x5F;
    codes[1] = 0x08;
    CHECK(bytes_of(p.codes) == codes);
    CHECK(bytes_of(p.scales) == Bytes{0x80});

    // bfp5: exponent 0, step 1/8: 8 −2 15 0 are 01000 11110 01111 00000.
    p = pack_values("bfp5", {1, -0.25f, 1.875f, 0});
    CHECK(bytes_of(p.codes) == Bytes{0xC8, 0x3F, 0x00});
    CHECK(bytes_of(p.scales) == Bytes{127});
    // hbfp4: values below 2^0, step 1/16: 15 and −8, 01111 11000.
    p = pack_values("hbfp4", {1, -0.5f});
    CHECK(bytes_of(p.codes) == Bytes{0x0F, 0x03});
    CHECK(bytes_of(p.scales) == Bytes{126});
    // Zeros, and a NaN; amax beyond 2^127 for hbfp, whose exponent rounds up.
    CHECK(bytes_of(pack_values("mxfp4", std::vector<float>(40, 0.0f)).scales) == Bytes{0, 0});
    CHECK(bytes_of(pack_values("bfp8-g2", {0, 0, 1, std::nanf(""), -kInf}).scales) ==
          Bytes{1, 255, 255});
    CHECK(bytes_of(pack_values("bfp8-g2", {0, 0, 1, std::nanf(""), -kInf}).codes) ==
          Bytes{0, 0, 0, 0, 0});
    CHECK(bytes_of(pack_values("hbfp8-g1", {kMost, 0x1p-149f}).scales) == Bytes{254, 0});
    CHECK(bytes_of(pack_values("bfp8-g1", {kMost, 0x1p-149f}).scales) == Bytes{254, 1});
    CHECK(bytes_of(pack_values("e4m3-g1-ceil", {0}).scales) == Bytes{0});
  }

  TEST_CASE("bytes by hand: nvfp4 and fp32 scales") {
    // The largest is 6 · 448: S = 1, d = 448 and the element 6; the second block's d is 448 / 64.
    std::vector<float> x(20, 0.0f);
    x[0] = 2688;
    x[17] = -42;
    const auto in = Tensor::from(x, {20});
    const Quantizer q = "nvfp4";
    const Factored quantised_x = quantised_with_factors(q, in, 0);
    const PackedTensor p = pack({quantised_x.values, in, q, 0});
    CHECK(bytes_of(p.codes) == std::vector<int>{7, 0, 0, 0, 0, 0, 0, 0, 0xF0, 0});
    CHECK(bytes_of(p.scales) == std::vector<int>{0x7E, 0x4E});
    CHECK(p.factor == 1.0f);
    CHECK(p.bytes() == 10 + 2 + 4);
    CHECK(unpack(p).to_floats() == x);

    const auto v = Tensor::from<float>({448, -224, 3, 0}, {4});
    const PackedTensor f = pack({v, v, "e4m3-g2-scalef32", 0});
    CHECK(f.scales.to_floats() == std::vector<float>{1.0f, 1.0f / (448.0f / 3.0f)});
    CHECK(bytes_of(f.codes) == std::vector<int>{0x7E, 0xF6, 0x44, 0x00});
  }

  TEST_CASE("sizes as text") {
    CHECK(to_string(pack_values("mxfp4", std::vector<float>(256, 1.0f), {4, 64})) ==
          "mxfp4 (4, 64), 4.25 bits per element");
    CHECK(to_string(pack_values("mxfp6", std::vector<float>(64, 1.0f))) ==
          "mxfp6 (64), 6.25 bits per element");
    CHECK(pack_values("e2m3", std::vector<float>(4, 1.0f)).bytes() == 3);
    CHECK(pack_values("bfp8-axis0", std::vector<float>(64, 1.0f), {2, 32}).bits_per_element() ==
          8.25);
    CHECK(pack_values("e4m3", {}).bits_per_element() == 0);
    CHECK(packed_bytes((int64_t{1} << 59) - 1, 32) == (int64_t{1} << 61) - 4);
  }

  TEST_CASE("what has no code is refused, by name and place") {
    std::vector<float> x(3000, 1.0f);
    x[17] = x[2500] = std::nanf("");
    const auto values = Tensor::from(x, {3000});
    CHECK_THROWS_WITH_AS(pack({values, {}, "e2m1", 0, 1, "weights"}),
                         "weights: element 17 is NaN, and e2m1 has no code for it", Error);
    CHECK_THROWS_WITH_AS(pack({values, {}, "fixed8.4"}), doctest::Contains("element 17 is NaN"),
                         Error);
    CHECK_NOTHROW(pack({values, {}, "e4m3"}));
    CHECK_THROWS_WITH_AS(pack({values, {}, "fixed8.4-noclamp", 0, 1, "weights"}),
                         doctest::Contains("weights: fixed8.4-noclamp"), Error);
    const auto off = Tensor::from<float>({1, 0.3f}, {2});
    CHECK_THROWS_WITH_AS(pack({off, {}, "e4m3", 0, 1, "bias"}),
                         doctest::Contains("bias: element 1 is 0.3"), Error);
    const auto infinite = Tensor::from<float>({kInf}, {1});
    CHECK_THROWS_WITH_AS(pack({infinite, {}, "e4m3"}), doctest::Contains("element 0 is inf"),
                         Error);
    // A NaN that its block does not have, and a number in a block of NaN.
    const auto one = Tensor::from<float>({1, 1}, {2}), nan = Tensor::from<float>({1, NAN}, {2});
    CHECK_THROWS_WITH_AS(pack({nan, one, "mxfp4"}), doctest::Contains("element 1 is NaN"), Error);
    CHECK_THROWS_WITH_AS(pack({nan, nan, "mxfp4"}), doctest::Contains("element 0 is 1"), Error);
    CHECK_THROWS_WITH_AS(pack({one, {}, "mxfp4"}), doctest::Contains("x must be"), Error);
    CHECK_THROWS_WITH_AS(pack({one, values, "bfp8"}), doctest::Contains("x must be"), Error);
    CHECK_THROWS_WITH_AS(pack({one, one, "mxfp4", 1}), doctest::Contains("needs axis 1"), Error);
    CHECK_THROWS_WITH_AS(pack({one, one, "mxfp4+rht16"}), doctest::Contains("without +rht16"),
                         Error);
  }

  TEST_CASE("unpack refuses codes and scales that do not go with the shape") {
    const PackedTensor good = pack_values("mxfp4", std::vector<float>(64, 1.0f));
    PackedTensor p = good;
    p.shape = {65};
    CHECK_THROWS_WITH_AS(unpack(p), doctest::Contains("33 bytes of codes"), Error);
    p = good;
    p.scales = Tensor::zeros({1}, DType::U8, kCpu);
    CHECK_THROWS_WITH_AS(unpack(p), doctest::Contains("2 scales"), Error);
    p.scales = Tensor::zeros({2}, DType::F32, kCpu);
    CHECK_THROWS_AS(unpack(p), Error);
    p = good;
    p.codes = {};
    CHECK_THROWS_AS(unpack(p), Error);
  }

  TEST_CASE("the same bytes for 1, 2 and 3 threads and every instruction set") {
    const cpu::Isa before = cpu::current_isa();
    const int threads_before = omp_get_max_threads();
    const Shape shape{3, 131, 701};
    const auto x = Tensor::from(mixed_values(shape.numel(), 11, false), shape);
    for (const char* name : {"e4m3", "e2m1", "e2m3", "posit8.1", "fixed5.2", "nf4", "bfp5", "mxfp4",
                             "bfp8-axis1", "bfp8-axis2", "mxfp6", "hbfp4-t7x9"}) {
      CAPTURE(std::string(name));
      for (const int axis : {1, 2}) {
        const Tensor y = quantised(name, x, axis);
        std::vector<int> codes, scales;
        for (const cpu::Isa isa : {cpu::Isa::Portable, cpu::Isa::Avx2, cpu::Isa::Avx512})
          for (const int threads : {1, 2, 3}) {
            if (!cpu::has_isa(isa)) continue;
            cpu::set_isa(isa);
            omp_set_num_threads(threads);
            const PackedTensor p = pack({y, x, name, axis});
            if (codes.empty()) codes = bytes_of(p.codes);
            CHECK(bytes_of(p.codes) == codes);
            if (p.scales.defined()) {
              if (scales.empty()) scales = bytes_of(p.scales);
              CHECK(bytes_of(p.scales) == scales);
            }
            Mismatches bad;
            compare(name, unpack(p).to_floats(), y.to_floats(), bad);
            report(bad);
          }
      }
    }
    omp_set_num_threads(threads_before);
    cpu::set_isa(before);
  }
}

}  // namespace ulp
