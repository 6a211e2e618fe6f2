#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include "conformance.h"
#include "core/bits.h"
#include "core/error.h"
#include "kernels/cpu/isa.h"
#include "kernels/quantised.h"
#include "reference.h"
#include "tests/threads.h"

namespace ulp {
namespace {

using conformance::mixed_values;
using conformance::spread_float;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr RandomKey kKey{71, fnv1a32("quantise_stats"), 2, nullptr};

/// Elements of every loop (fast forms, bit by bit, lists), and every kind of block and scale.
constexpr const char* kQuantizers[] = {"fp32",
                                       "bf16",
                                       "e4m3",
                                       "e4m3-nan:sr",
                                       "e5m2:rna",
                                       "e2m1-ftz",
                                       "e6m9:sr8",
                                       "fixed8.4:sr",
                                       "fixed8.4-wrap",
                                       "fixed8.4-sym-sat",
                                       "fixed8.6-u:ru",
                                       "posit8.1:sr",
                                       "nf4",
                                       "binary8p3:rtz",
                                       "bfp8:sr",
                                       "bfp8-axis0",
                                       "bfp6-axis1:sr",
                                       "bfp5-g7",
                                       "bfp8-t5x3",
                                       "hbfp8-t16x16",
                                       "mxfp8",
                                       "mxfp4:sr",
                                       "mxint8-ceil",
                                       "e3m2-g4096",
                                       "mxfp4+q34",
                                       "nvfp4:sr",
                                       "nvfp4-t3x5",
                                       "e2m1-g16-scalee4m3",
                                       "e4m3-g128-scalef32:sr",
                                       "nf4-g64-scalef32",
                                       "fixed8.0-axis1-scalef32",
                                       "e4m3-t128x128-scalef32",
                                       "e4m3+scale=current",
                                       "e5m2+scale=row:sr",
                                       "e4m3+scale=delayed3"};

struct Stats {
  std::vector<float> values;
  QuantiseStats stats;
};

Tensor stats_tensor() {  // not zeros: the kernel must write all of it
  const auto size = static_cast<int64_t>(sizeof(QuantiseStats));
  return Tensor::from(std::vector<uint8_t>(sizeof(QuantiseStats), 0xA5), {size});
}

QuantiseStats stats_of(const Tensor& stats) {
  QuantiseStats result;
  std::memcpy(&result, stats.raw(), sizeof result);
  return result;
}

QuantiseArgs arguments(const Quantizer& q, const Tensor& in, const Tensor& out, int axis) {
  QuantiseArgs args;
  args.in = in;
  args.out = out;
  args.quantizer = q;
  args.group_axis = axis;
  args.key = kKey;
  if (q.scale.kind == Scale::Kind::Delayed) args.scaling = fresh_scaling(q, kCpu);
  return args;
}

Stats measured(const Quantizer& q, const Tensor& in, const Tensor& out, int axis) {
  QuantiseArgs args = arguments(q, in, out, axis);
  args.stats = stats_tensor();
  kernels::quantise(Stream{}, args);
  return {out.to_floats(), stats_of(args.stats)};
}
Stats measured(const Quantizer& q, const Tensor& in, int axis) {
  return measured(q, in, Tensor::empty(in.shape(), DType::F32, kCpu), axis);
}
Stats measured(const char* q, const std::vector<float>& x) {
  return measured(q, Tensor::from(x, {static_cast<int64_t>(x.size())}), 0);
}

/// The same numbers from a call that makes a mask and no statistics, by a loop in long double.
struct Expected {
  QuantiseStats counts;
  std::vector<float> values;
  long double error = 0, square_error = 0, square = 0, magnitude = 0;  // magnitude: Σ |y − x|
};
Expected expected(const Quantizer& q, const Tensor& in, DType dtype, int axis, bool gaps = false) {
  const Tensor mask = Tensor::zeros(in.shape(), DType::U8, kCpu);
  QuantiseArgs args = arguments(q, in, Tensor::empty(in.shape(), dtype, kCpu), axis);
  args.mask = mask;
  kernels::quantise(Stream{}, args);
  Expected e;
  e.values = args.out.to_floats();
  const std::vector<float> x = in.to_floats();
  float amax = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const float y = e.values[i];
    if (gaps && bits_of(x[i]) == kGapBits) continue;
    ++e.counts.count;
    e.counts.overflow += mask.data<uint8_t>()[i];
    if (x[i] != 0 && y == 0) ++e.counts.underflow;
    if (std::isnan(x[i])) ++e.counts.nan;
    if (std::isinf(x[i])) ++e.counts.infinite;
    if (std::isfinite(x[i])) amax = std::max(amax, std::fabs(x[i]));
    if (!std::isfinite(y - x[i])) continue;  // the fp32 difference
    ++e.counts.finite;
    const long double from = x[i], difference = y - from;
    e.error += difference;
    e.magnitude += std::fabs(difference);
    e.square_error += difference * difference;
    e.square += from * from;
  }
  e.counts.amax_bits = bits_of(amax);
  return e;
}

bool same_counts(const QuantiseStats& a, const QuantiseStats& b) {
  return a.count == b.count && a.overflow == b.overflow && a.underflow == b.underflow &&
         a.nan == b.nan && a.infinite == b.infinite && a.amax_bits == b.amax_bits &&
         a.finite == b.finite;
}

bool same_bits(double a, double b) { return std::memcmp(&a, &b, sizeof a) == 0; }
bool same_stats(const QuantiseStats& a, const QuantiseStats& b) {
  return same_counts(a, b) && same_bits(a.error, b.error) &&
         same_bits(a.square_error, b.square_error) && same_bits(a.square, b.square);
}

bool same_values(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), reference::same);
}

/// A run's bound of core/quantise_stats.h; adding the runs in double loses far less.
bool near(double got, long double want, long double magnitude) {
  return std::fabs(got - want) <= 16.001L * 0x1p-24L * magnitude;
}

void check_against_loop(const Stats& got, const Expected& want) {
  CHECK(same_counts(got.stats, want.counts));
  CHECK(near(got.stats.error, want.error, want.magnitude));
  CHECK(near(got.stats.square_error, want.square_error, want.square_error));
  CHECK(near(got.stats.square, want.square, want.square));
  CHECK(same_values(got.values, want.values));
}

std::vector<float> ordinary_values(int64_t n, uint64_t seed) {
  std::vector<float> values;
  for (int64_t i = 0; i < n; ++i)
    values.push_back(spread_float(seed * 1000003 + static_cast<uint64_t>(i), -12, 4));
  return values;
}

}  // namespace

TEST_SUITE("quantise_stats") {
  TEST_CASE("counts are those of a plain loop, sums near it, values as without: every shape") {
    uint64_t seed = 0;
    int64_t overflow = 0, underflow = 0, nan = 0, infinite = 0;
    for (const char* name : kQuantizers)
      for (const Shape& shape : {Shape{1, 1}, Shape{7, 9}, Shape{33, 130}, Shape{3, 4097},
                                 Shape{5, 12, 70}, Shape{4096, 2}, Shape{2, 8192}})
        for (const int kind : {0, 1, 2}) {
          CAPTURE(std::string(name));
          CAPTURE(to_string(shape));
          CAPTURE(kind);
          const Quantizer q = name;
          const int64_t n = shape.numel();
          const auto x = Tensor::from(
              kind == 0 ? ordinary_values(n, ++seed) : mixed_values(n, ++seed, kind == 2), shape);
          const int axis = static_cast<int>(seed) % shape.rank();
          const Stats got = measured(q, x, axis);
          check_against_loop(got, expected(q, x, DType::F32, axis));
          overflow += got.stats.overflow;
          underflow += got.stats.underflow;
          nan += got.stats.nan;
          infinite += got.stats.infinite;
        }
    CHECK(std::min({overflow, underflow, nan, infinite}) > 1000);
  }

  TEST_CASE("narrow inputs and outputs") {
    for (const char* name : {"e4m3:sr", "fixed6.3", "bfp8-g16", "mxfp4", "e2m1-g16-scalee4m3"})
      for (const DType dtype : {DType::BF16, DType::F16}) {
        const Quantizer q = name;
        if (!fits(q, dtype)) continue;
        CAPTURE(std::string(name));
        Tensor x = Tensor::empty({37, 65}, dtype, kCpu);
        kernels::quantise(Stream{},
                          arguments(dtype == DType::BF16 ? "bf16" : "fp16",
                                    Tensor::from(ordinary_values(37 * 65, 4), {37, 65}), x, 0));
        const Expected want = expected(q, x, dtype, 1);
        check_against_loop(measured(q, x, Tensor::empty({37, 65}, dtype, kCpu), 1), want);
        check_against_loop(measured(q, x, x, 1), want);
      }
  }

  TEST_CASE("in place") {
    for (const char* name : kQuantizers)
      for (const int axis : {0, 1}) {
        CAPTURE(std::string(name));
        const std::vector<float> values = mixed_values(130 * 67, 8, axis == 1);
        const Quantizer q = name;
        const auto x = Tensor::from(values, {130, 67});
        const Expected want = expected(q, x, DType::F32, axis);
        check_against_loop(measured(q, x, x, axis), want);
      }
  }

  TEST_CASE("a mask and statistics together") {
    for (const char* name : {"e4m3", "bfp5-g7:sr", "nvfp4", "nf4"}) {
      CAPTURE(std::string(name));
      const Quantizer q = name;
      const auto x = Tensor::from(mixed_values(9 * 501, 3, true), {9, 501});
      QuantiseArgs args = arguments(q, x, Tensor::empty(x.shape(), DType::F32, kCpu), 1);
      args.mask = Tensor::zeros(x.shape(), DType::U8, kCpu);
      args.stats = stats_tensor();
      kernels::quantise(Stream{}, args);
      const uint8_t* mask = args.mask.data<uint8_t>();
      CHECK(stats_of(args.stats).overflow == std::count(mask, mask + x.numel(), uint8_t{1}));
      check_against_loop({args.out.to_floats(), stats_of(args.stats)},
                         expected(q, x, DType::F32, 1));
    }
  }

  TEST_CASE("the same bits for 1, 2 and 3 threads and every instruction set") {
    const cpu::Isa before = cpu::current_isa();
    const Shape shape{2, 211, 331};
    const auto x = Tensor::from(mixed_values(shape.numel(), 12, false), shape);
    for (const char* name : kQuantizers)
      for (const int axis : {1, 2}) {
        CAPTURE(std::string(name));
        const Stats first = measured(name, x, axis);
        for (const cpu::Isa isa : {cpu::Isa::Portable, cpu::Isa::Avx2, cpu::Isa::Avx512}) {
          if (!cpu::has_isa(isa)) continue;
          cpu::set_isa(isa);
          for (const int threads : {1, 2, 3}) {
            const tests::Threads scope(threads);
            const Stats again = measured(name, x, axis);
            CHECK(same_stats(again.stats, first.stats));
            CHECK(same_values(again.values, first.values));
          }
        }
        cpu::set_isa(before);
      }
  }

  TEST_CASE("a result beyond the caches is streamed past them: the same statistics") {
    const Shape shape{64, 1 << 17};  // 32 MiB
    const auto x = Tensor::from(ordinary_values(shape.numel(), 6), shape);
    for (const char* name : {"e4m3", "mxfp4"}) {
      CAPTURE(std::string(name));
      const Stats got = measured(name, x, 1);
      check_against_loop(got, expected(name, x, DType::F32, 1));
      const tests::Threads one(1);
      CHECK(same_stats(measured(name, x, 1).stats, got.stats));
    }
  }

  TEST_CASE("nothing, nothing but NaN, nothing but Inf") {
    for (const char* name : kQuantizers) {
      CAPTURE(std::string(name));
      const Quantizer q = name;
      for (const Shape& shape : {Shape{0, 4}, Shape{4, 0}})
        CHECK(same_stats(measured(q, Tensor::zeros(shape, DType::F32, kCpu), 1).stats,
                         QuantiseStats{}));
      for (const float x : {std::nanf(""), kInf, -kInf, 0.0f, -0.0f}) {
        const auto in = Tensor::from(std::vector<float>(5000, x), {50, 100});
        const QuantiseStats s = measured(q, in, 1).stats;
        CHECK(s.count == 5000);
        CHECK(s.nan == (std::isnan(x) ? 5000 : 0));
        CHECK(s.infinite == (std::isinf(x) ? 5000 : 0));
        CHECK(s.finite == (x == 0 ? 5000 : 0));
        CHECK(s.overflow == 0);
        CHECK(s.underflow == 0);
        CHECK(s.amax() == 0);
        CHECK(s.mean_error() == 0);
        CHECK(s.square == 0);
        CHECK(s.sqnr_db() == kInf);
      }
    }
  }

  TEST_CASE("by hand") {
    // 1 stays, 2.5 is a tie that becomes 2, 8 overflows to 6, 1/8 underflows to 0.
    const QuantiseStats s = measured("e2m1", {1, 2.5f, 8, 0.125f}).stats;
    CHECK(s.count == 4);
    CHECK(s.finite == 4);
    CHECK(s.overflow == 1);
    CHECK(s.underflow == 1);
    CHECK(s.amax() == 8);
    CHECK(s.error == -2.625);
    CHECK(s.mean_error() == -0.65625);
    CHECK(s.square_error == 4.265625);
    CHECK(s.square == 71.265625);
    CHECK(std::abs(s.sqnr_db() - 12.2289) < 1e-4);
    // What is not finite, before or after, has no share in the sums.
    const QuantiseStats t = measured("e5m2", {1e6f, -kInf, std::nanf(""), 3, 0}).stats;
    CHECK(t.overflow == 1);
    CHECK(t.infinite == 1);
    CHECK(t.nan == 1);
    CHECK(t.finite == 2);
    CHECK(t.amax() == 1e6f);
    CHECK(t.square == 9);
    CHECK(t.sqnr_db() == kInf);
    // The factor belongs to y: 33 is halved, rounded to 16 and doubled.
    const QuantiseStats u = measured("e4m3+scale=current", {896, 33, -3, 0}).stats;
    CHECK(u.error == -1);
    CHECK(u.overflow == 0);
  }

  TEST_CASE("squares far beyond fp32, and errors far below the values they are of") {
    for (const float unit : {0x1p-126f, 0x1p-70f, 1.0f, 0x1p70f, 0x1p120f}) {
      CAPTURE(unit);
      const Stats s = measured("bf16", {unit, 3 * unit, unit * (1 + 0x1p-12f)});
      CHECK(s.stats.error == -0x1p-12 * unit);
      CHECK(s.stats.square_error == 0x1p-24 * unit * unit);
      CHECK(near(s.stats.square, (11 + 0x1p-11L) * unit * unit, 11.0L * unit * unit));
    }
    const Stats far = measured("bf16", {1, 0x1.001p-90f});
    CHECK(far.stats.square_error == 0x1p-204);
    // 6 · 2^125 wraps to −2 · 2^125, and y − x = −2^128 is no fp32 number: the element has no share.
    const Stats wrap = measured("fixed3.-125-wrap", {0x1.8p127f, 1});
    CHECK(wrap.values[0] == -0x1p126f);
    CHECK(wrap.stats.finite == 1);
    CHECK(wrap.stats.square == 1);
  }

  TEST_CASE("a sine over the whole range: 6.02 dB a bit and 1.76 dB") {
    // Source: the uniform noise model, Bennett 1948: signal 1/2, noise step²/12.
    constexpr int64_t kCount = 1 << 16;
    for (const int bits : {6, 8, 10, 12}) {
      CAPTURE(bits);
      std::vector<float> x;
      const double step = std::ldexp(1.0, 1 - bits), amplitude = 1 - step;
      for (int64_t i = 0; i < kCount; ++i)
        x.push_back(
            static_cast<float>(amplitude * std::sin(2 * std::numbers::pi * std::numbers::sqrt2 *
                                                    static_cast<double>(i) / 97)));
      const Quantizer q = Quantizer::parse(format_message("fixed{}.{}", {bits, bits - 1}));
      const double ideal = 10 * std::log10(6 * (amplitude / step) * (amplitude / step));
      CHECK(std::abs(ideal - (6.02 * bits + 1.76)) < 0.3);  // amplitude is not quite 1
      CHECK(std::abs(measured(q, Tensor::from(x, {kCount}), 0).stats.sqnr_db() - ideal) < 0.3);
    }
  }

  TEST_CASE("of a rotated tensor they are those of the rotation") {
    const auto x = Tensor::from(ordinary_values(40 * 70, 5), {40, 70});
    for (const char* base : {"mxfp4", "e4m3-g8-scalef32:sr"})
      for (const int axis : {0, 1}) {
        std::string name = base;
        name.insert(name.find(':') == std::string::npos ? name.size() : name.find(':'), "+rht16");
        CAPTURE(name);
        Tensor rotated = Tensor::empty(x.shape(), DType::F32, kCpu);
        kernels::rotate(Stream{}, {x, rotated, axis, 16, -2, kKey.seed, false});
        QuantiseUse use{Quantizer::parse(name), axis, kKey};
        const Tensor plain = quantised(Stream{}, x, use);
        use.stats = stats_tensor();
        CHECK(same_values(quantised(Stream{}, x, use).to_floats(), plain.to_floats()));
        CHECK(same_stats(stats_of(use.stats), measured(base, rotated, axis).stats));
      }
  }

  TEST_CASE("delayed scaling: of the scale that was used, and asking for them changes no state") {
    const Quantizer q = "e4m3+scale=delayed2";
    Tensor with = fresh_scaling(q, kCpu), without = fresh_scaling(q, kCpu);
    for (const float most : {1000.0f, 40.0f, 50.0f}) {
      std::vector<float> x = ordinary_values(300, 9);
      x[7] = most;
      QuantiseArgs args =
          arguments(q, Tensor::from(x, {300}), Tensor::empty({300}, DType::F32, kCpu), 0);
      args.scaling = without;
      kernels::quantise(Stream{}, args);
      const std::vector<float> y = args.out.to_floats();
      args.scaling = with;
      args.stats = stats_tensor();
      kernels::quantise(Stream{}, args);
      CHECK(same_values(args.out.to_floats(), y));
      CHECK(same_values(with.to_floats(), without.to_floats()));
      // Only the first scale, 1, lets 1000 leave e4m3.
      CHECK(stats_of(args.stats).overflow == (most == 1000 ? 1 : 0));
      CHECK(stats_of(args.stats).amax() == most);
    }
  }

  TEST_CASE("gaps are no elements; without being told of them, NaNs") {
    std::vector<float> x = mixed_values(5003, 3, true);
    for (size_t i = 0; i < x.size(); ++i)
      if (i / 1024 == 1 || i % 3 == 0 || i > 4990) x[i] = float_of(kGapBits);
    const Tensor in = Tensor::from(x, {5003}), out = Tensor::empty({5003}, DType::F32, kCpu);
    const int64_t there =
        std::count_if(x.begin(), x.end(), [](float v) { return bits_of(v) != kGapBits; });
    for (const char* name : kQuantizers) {
      const Quantizer q = Quantizer::parse(name);
      if (!q.is_elementwise()) continue;
      CAPTURE(std::string(name));
      QuantiseArgs args = arguments(q, in, out, 0);
      args.gaps = true;
      args.stats = stats_tensor();
      kernels::quantise(Stream{}, args);
      check_against_loop({out.to_floats(), stats_of(args.stats)},
                         expected(q, in, DType::F32, 0, true));
      CHECK(stats_of(args.stats).count == there);
      CHECK(measured(q, in, 0).stats.nan == stats_of(args.stats).nan + 5003 - there);
    }
    const Tensor none = Tensor::from(std::vector<float>(2048, float_of(kGapBits)), {2048});
    QuantiseArgs args = arguments("e4m3", none, Tensor::empty({2048}, DType::F32, kCpu), 0);
    args.gaps = true;
    args.stats = stats_tensor();
    kernels::quantise(Stream{}, args);
    CHECK(same_stats(stats_of(args.stats), QuantiseStats{}));
    args.quantizer = "mxfp8";
    CHECK_THROWS_WITH_AS(kernels::quantise(Stream{}, args), doctest::Contains("gaps"), Error);
  }

  TEST_CASE("refused: another size, and beside factors") {
    const auto x = Tensor::from<float>({1, 2}, {2});
    QuantiseArgs args = arguments("e4m3+scale=current", x, Tensor::empty({2}, DType::F32, kCpu), 0);
    args.stats = Tensor::zeros({8}, DType::U8, kCpu);
    CHECK_THROWS_WITH_AS(kernels::quantise(Stream{}, args), doctest::Contains("wanted a tensor"),
                         Error);
    args.stats = stats_tensor();
    args.factors = Tensor::empty({1}, DType::F32, kCpu);
    CHECK_THROWS_WITH_AS(kernels::quantise(Stream{}, args), doctest::Contains("leave `factors`"),
                         Error);
  }
}

}  // namespace ulp
