#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "conformance.h"
#include "core/convert.h"
#include "core/error.h"
#include "core/grid.h"
#include "core/random.h"
#include "kernels/kernels.h"
#include "reference.h"

namespace ulp {
namespace {

using conformance::compare;
using conformance::expected_of;
using conformance::hex;
using conformance::kScaleRules;
using conformance::mixed_values;
using conformance::run;
using conformance::scramble;
using conformance::spread_float;
using conformance::Tally;
using conformance::TensorCase;
using conformance::TensorRun;
using reference::Mismatches;
using reference::Reference;
using reference::report;
using reference::Rounded;
using reference::same;
using reference::ScaledReference;

constexpr float kMost = std::numeric_limits<float>::max();
constexpr float kInf = std::numeric_limits<float>::infinity();

/// The OCP MX formats, then elements at the edges of what can be scaled: with Inf codes, without −0, flushed, biased,
/// unsigned, with negative largest exponents, with one significant bit, with the widest significands and ranges.
constexpr const char* kMx[] = {"mxfp8", "mxfp8-e5m2", "mxfp6", "mxfp6-e3m2", "mxfp4", "mxint8"};
constexpr const char* kOthers[] = {
    "e4m3-ieee",    "e4m3-fnuz",          "e3m4-ftz",     "e5m6",         "e2m1-bias-3",
    "e2m1-bias12",  "e5m2-sat",           "e1m0-none",    "e4m0-none",    "binary8p3",
    "fixed8.6",     "binary8p4-unsigned", "fixed2.0-sym", "fixed2.0",     "fixed2.-3",
    "fixed4.-2",    "fixed8.6-u",         "fixed13.6",    "fixed12.22-u", "fixed8.12-sym",
    "fixed1.-12-u", "e1m2-none"};

/// All of the above as quantizers over groups of 32, without a rule.
std::vector<std::string> all_elements() {
  std::vector<std::string> names(std::begin(kMx), std::end(kMx));
  for (const char* element : kOthers) names.push_back(std::string(element) + "-g32");
  return names;
}

/// Element-wise comparison of the number core on one block with the reference.
void check_block(const std::string& name, const Quantizer& quantizer, DType out, float amax,
                 const std::vector<float>& inputs, Mismatches& bad) {
  const ScaledReference reference(quantizer, reference::least_scale_of(quantizer, out));
  const int exponent = reference.scale_exponent(amax);
  Grid grid = make_grid(quantizer);
  set_block(grid, make_block_rule(quantizer, out), bits_of(amax));
  for (size_t i = 0; i < inputs.size(); ++i) {
    const float x = inputs[i];
    if (!(std::fabs(x) <= amax)) continue;
    const double magnitude = std::fabs(std::ldexp(static_cast<double>(x), 127 - exponent));
    const Reference::Place at = reference.element().place(magnitude);
    const auto t = static_cast<uint32_t>(std::ldexp((magnitude - at.low) / at.step, 32));
    for (const uint32_t random : {t, t - 1, t + 1, 0u, 0xFFFFFFFFu, scramble(i)}) {
      bool clamped = false;
      const float got = quantise_value(x, grid, grid.rounding, random, &clamped);
      const Rounded want = reference(x, exponent, random);
      if (!same(got, want.value) || clamped != want.clamped)
        bad.add(format_message(
            "{} amax {} X {}: x {} R {:#010x}: got {} clamped {}, want {} clamped {}",
            {name, hex(amax), exponent, hex(x), random, hex(got), clamped ? 1 : 0, hex(want.value),
             want.clamped ? 1 : 0}));
      if (!quantizer.is_stochastic()) break;
    }
  }
}

/// A block's hard inputs, thinned: the element's points, midpoints and neighbours times the scale; powers of two downwards,
/// amax itself, and numbers all over.
std::vector<float> block_inputs(const ScaledReference& reference, float amax, uint64_t seed) {
  const int shift = reference.scale_exponent(amax) - 127;
  const std::vector<float> hard = reference::hard_inputs(reference.element());
  const size_t step = reference::full() ? 1 : 1 + hard.size() / 60;
  std::vector<float> inputs = {amax, -amax, std::nextafter(amax, 0.0f), 0.0f, -0.0f, 0x1p-149f};
  for (size_t i = scramble(seed) % step; i < hard.size(); i += step)
    inputs.push_back(static_cast<float>(std::ldexp(static_cast<double>(hard[i]), shift)));
  const int top = amax == 0 ? -149 : std::ilogb(amax);
  for (uint64_t i = 0; i < 24; ++i)
    inputs.push_back(spread_float(seed * 100 + i, std::max(-149, top - static_cast<int>(i)), top));
  return inputs;
}

/// A vector, in F32.
std::vector<float> made(const char* name, const std::vector<float>& x, DType out = DType::F32) {
  return run(Quantizer::parse(name), {x, {static_cast<int64_t>(x.size())}, 0, {}}, out).values;
}

/// Does every number come back from `dtype` as it went in?
bool survives(const std::vector<float>& values, DType dtype) {
  for (const float x : values) {
    alignas(8) unsigned char bytes[8] = {};
    store_float(bytes, dtype, 0, x);
    if (!same(load_as_float(bytes, dtype, 0), x)) return false;
  }
  return true;
}

}  // namespace

TEST_SUITE("block_formats") {
  TEST_CASE("scale exponents: five rules, every element, all magnitudes at a stride") {
    const uint32_t stride = reference::full() ? 61 : 8191;
    Tally tally;
    for (const std::string& element : all_elements())
      for (const char* rule_flag : kScaleRules)
        for (const DType out : {DType::F32, DType::BF16})
          conformance::sweep_scale_exponents(element + rule_flag, out, stride, tally);
    report(tally.bad);
  }

  TEST_CASE("scale exponents by hand") {
    const auto x = [](const char* name, float amax, DType out = DType::F32) {
      return scale_exponent(make_block_rule(Quantizer::parse(name), out), bits_of(amax));
    };
    // 1 = 2^0; e4m3 reaches 448 = 1.75 · 2^8, e2m1 6 = 1.5 · 2^2.
    CHECK(x("mxfp8", 1.0f) == 127 - 8);
    CHECK(x("mxfp8", 1.99f) == 127 - 8);
    CHECK(x("mxfp8-ceil", 1.0f) == 127 - 8);
    CHECK(x("mxfp8-ceil", 1.0000001f) == 127 - 7);
    CHECK(x("mxfp8-even", 1.9374f) == 127 - 8);  // to 4 bits: 1.875
    CHECK(x("mxfp8-even", 1.9375f) == 127 - 7);  // 2
    CHECK(x("mxfp8-rceil", 1.75f) == 127 - 8);
    CHECK(x("mxfp8-rceil", 1.7500002f) == 127 - 7);
    CHECK(x("mxfp4-even", 1.75f) == 127 - 1);
    CHECK(x("mxfp4-rceil", 6.0f) == 127);
    CHECK(x("mxfp4-rceil", 6.0000005f) == 128);
    CHECK(x("mxfp4", 7.99f) == 127);
    for (const char* name : {"mxfp8-shift", "mxfp4-shift", "fixed8.7-sym+scale=shift"}) {
      CHECK(x(name, 1.0f) == 127);
      CHECK(x(name, 0x1.6A09E6p+0f) == 127);  // the last one below √2
      CHECK(x(name, 0x1.6A09E8p+0f) == 128);
      CHECK(x(name, 0x1.6A09E8p-30f) == 127 - 29);
      CHECK(x(name, 0x1.6A08p-127f) == 0);  // subnormal
      CHECK(x(name, 0x1.6A0Ap-127f) == 1);
    }
    for (const char* rule : kScaleRules)
      for (const char* mx : kMx) {
        const std::string name = std::string(mx) + rule;
        CHECK(x(name.c_str(), 0.0f) == 0);
        CHECK(x(name.c_str(), 0x1p-149f) <= 1);
      }
    for (const char* name : {"fixed8.10-g32", "fixed4.7-sym-g16", "e2m1-bias10-g16"})
      for (const char* rule : kScaleRules)
        CHECK(x((std::string(name) + rule).c_str(), 0.0f) == 0);  // also where emax < 0
    CHECK(x("mxint8-ceil", kMost) == 254);                        // 255 is NaN
    CHECK(x("mxint8-even", kMost) == 254);
    CHECK(x("mxint8", kMost) == 254);
    CHECK(x("mxfp8-ceil", kMost) == 247);
    // BF16 ends at 2^−133: an e4m3 reaches down to 2^−9, an e5m2 to 2^−16.
    CHECK(x("mxfp8", 0x1p-140f, DType::BF16) == 3);
    CHECK(x("mxfp8-e5m2", 0.0f, DType::BF16) == 10);
    CHECK(x("mxfp6", 0.0f, DType::BF16) == 0);
    CHECK(x("mxfp6-e3m2", 0.0f, DType::BF16) == 0);
    CHECK(x("mxfp4", 0.0f, DType::BF16) == 0);
    CHECK(x("mxint8", 0.0f, DType::BF16) == 0);
    for (const std::string& element : all_elements()) {
      const Quantizer quantizer = Quantizer::parse(element);
      for (const DType out : {DType::F32, DType::BF16})
        CHECK(make_block_rule(quantizer, out).least_scale ==
              reference::least_scale_of(quantizer, out));
    }
  }

  TEST_CASE("one block: every element, rule and rounding, with injected words") {
    const float amaxes[] = {0.0f,       0x1p-149f,       0x1.8p-130f, 0x1p-127f,  0x1.fffffcp-127f,
                            0x1p-126f,  0x1.fcp-120f,    0x1.8p-112f, 1.0f,       1.5f,
                            1.75f,      0x1.fffffep8f,   464.0f,      0x1.dp-40f, 0x1p127f,
                            0x1.8p127f, 0x1.c00002p127f, kMost};
    const std::vector<std::string> elements = all_elements();
    Mismatches bad;
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < elements.size(); ++i)
      for (const char* rule : kScaleRules)
        for (const char* mode :
             {"rne", "rna", "rnu", "rtz", "ru", "rd", "odd", "sr", "sr5", "sr3c"}) {
          const std::string name = elements[i] + rule + ":" + mode;
          const Quantizer quantizer = Quantizer::parse(name);
          for (const DType out : {DType::F32, DType::BF16}) {
            if (!fits(quantizer, out)) continue;
            for (const float amax : amaxes) {
              if (out == DType::BF16 && amax > 0x1p-100f) continue;  // as F32
              const ScaledReference reference(quantizer, reference::least_scale_of(quantizer, out));
              const uint64_t seed = fnv1a32(name) + bits_of(amax);
              check_block(name, quantizer, out, amax, block_inputs(reference, amax, seed), bad);
            }
          }
        }
    report(bad);
  }

  TEST_CASE("near FLT_MAX every rule's scale is finite, for all magnitudes from 2^127 on") {
    std::vector<std::string> names;
    for (const std::string& element : all_elements())
      for (const char* rule : kScaleRules) names.push_back(element + rule);
    Mismatches bad;
    int64_t looked = 0, infinite = 0;
#pragma omp parallel for schedule(dynamic) reduction(+ : looked, infinite)
    for (size_t i = 0; i < names.size(); ++i) {
      const Quantizer quantizer = Quantizer::parse(names[i]);
      const BlockRule rule = make_block_rule(quantizer, DType::F32);
      const ScaledReference reference(quantizer);
      const Grid plain = make_grid(quantizer);
      // Every pattern of the OCP formats, of the others every 251st and the last ones; values at every 509th and the last.
      const bool every = reference::full() || names[i].starts_with("mx");
      for (uint32_t a = 0x7F000000u; a < kInfinityBits; a += every || a >= 0x7F7FFF00u ? 1 : 251) {
        ++looked;
        const float amax = float_of(a);
        const int32_t exponent = scale_exponent(rule, a);
        if (exponent < 0 || exponent > 254 || !std::isfinite(std::ldexp(1.0f, exponent - 127)))
          bad.add(format_message("{} amax {}: X {}", {names[i], hex(amax), exponent}));
        if (a % 509 != 0 && a < 0x7F7FFF00u) continue;
        Grid grid = plain;
        set_block(grid, rule, a);
        const float y = quantise_value(amax, grid, grid.rounding, 0u);
        const Rounded element =
            reference.element()(std::ldexp(static_cast<double>(amax), 127 - exponent), 0);
        const double exact = std::ldexp(static_cast<double>(element.value), exponent - 127);
        // Inf is only what the finite scale times a number of the element is in fp32: 2^128 or more.
        if (std::isinf(y) != (exact > double{kMost}) || (std::isfinite(y) && y != exact))
          bad.add(format_message("{} amax {} X {}: {}", {names[i], hex(amax), exponent, hex(y)}));
        infinite += std::isinf(y) ? 1 : 0;
      }
    }
    report(bad);
    CHECK(looked >= int64_t{30} << 23);
    CHECK(infinite > 0);
  }

  TEST_CASE("x · 2^(127−X) formed in fp32: only directed roundings can tell") {
    // Where the product is subnormal fp32 drops bits of it. It then lies below 2^−126, far below half the smallest step of
    // any element (≥ 2^−23) and below 2^−32 of that step: nearest modes, truncation and stochastic rounding give 0 either
    // way. Rounding up must still see that there was something, and sees it in the exact product.
    Mismatches bad;
    for (const char* mx : kMx)
      for (const char* rule : kScaleRules)
        for (const char* mode : {"rne", "rna", "rnu", "rtz", "sr", "ru", "rd", "odd"}) {
          const std::string name = std::string(mx) + rule + ":" + mode;
          const Quantizer q = Quantizer::parse(name);
          const bool tells = q.rounding == Rounding::Up || q.rounding == Rounding::Odd;
          const ScaledReference reference(q);
          for (const float amax : {1.0f, 0x1.4p100f, 0x1p127f}) {
            const int exponent = reference.scale_exponent(amax);
            const auto inverse = std::ldexp(1.0f, 127 - exponent);
            Grid grid = make_grid(q);
            set_block(grid, make_block_rule(q, DType::F32), bits_of(amax));
            for (int e = -149; e <= std::ilogb(amax); ++e)
              for (const float x : {std::ldexp(1.0f, e), std::ldexp(1.999999f, e)}) {
                const float product = x * inverse;
                const Rounded element = reference.element()(product, 0);
                const auto want = static_cast<float>(
                    std::ldexp(static_cast<double>(element.value), exponent - 127));
                const float got = quantise_value(x, grid, 0);
                if (tells && product == 0) {
                  const double step = reference.element().points()[1];
                  if (got != std::ldexp(step, exponent - 127)) bad.add(name + " lost " + hex(x));
                } else if (!same(got, want)) {
                  bad.add(name + ": " + hex(x) + " gave " + hex(got) + ", not " + hex(want));
                }
              }
          }
        }
    report(bad);
  }

  TEST_CASE("tensors: groups, axes and tiles of every element, against the definition") {
    const Shape shapes[] = {{3, 5, 7}, {2, 40, 33}, {1, 1, 1}, {1, 35, 2}};
    const char* blocks[] = {"-g4",    "-g32",  "-axis0",  "-axis1",
                            "-axis2", "-t2x3", "-t16x16", "-t1x1"};
    const char* elements[] = {"e4m3",         "e5m2", "e2m3",  "e3m2",       "e2m1",
                              "fixed8.6-sym", "e5m6", "e3m4",  "fixed8.6-u", "e4m3-fnuz",
                              "bfp8",         "bfp3", "hbfp7", "hbfp10"};
    const char* modes[] = {"rne", "sr", "sr4c", "rtz", "odd", "rnu"};
    StepState state;
    state.random_step = 3;
    const RandomKey key{5, 6, 1, &state};
    Tally tally;
    uint64_t turn = 0;
    for (const char* element : elements)
      for (const char* block : blocks)
        for (const char* rule : kScaleRules)
          for (const Shape& shape : shapes) {
            const bool shares = std::string(element).find("bfp") != std::string::npos;
            ++turn;
            const std::string name =
                std::string(element) + block + (shares ? "" : rule) + ":" + modes[turn % 6];
            const Quantizer q = Quantizer::parse(name);
            const int group_axis = static_cast<int>(scramble(turn) % 3);
            const TensorCase tensor{mixed_values(shape.numel(), turn, turn % 2 == 0), shape,
                                    group_axis, key};
            const std::string what = format_message("{} {} axis {}", {name, shape, group_axis});
            for (const DType out : {DType::F32, DType::BF16})
              if (fits(q, out))
                compare(what, run(q, tensor, out, turn % 3 == 0), expected_of(q, tensor, out),
                        tensor.x, tally);
          }
    report(tally.bad);
  }

  TEST_CASE("tensors: whole, vectors, BF16 inputs, types that quantizers choose") {
    Tally tally;
    const RandomKey key{11, 2, 0, nullptr};
    for (const char* name : {"bfp8", "hbfp8:sr", "hbfp4", "mxfp8-rceil", "mxfp4:sr", "mxint8-even",
                             "mxfp8-e5m2", "e2m1-t4x16", "e4m3-axis0", "hbfp5-t3x5"}) {
      const Quantizer q = Quantizer::parse(name);
      for (const int64_t n : {1, 2, 31, 32, 33, 70, 2100}) {
        std::vector<float> x = mixed_values(n, static_cast<uint64_t>(n), false);
        for (float& value : x) value = float_of(bits_of(value) & 0xFFFF0000u);  // BF16 numbers
        for (const DType in : {DType::F32, DType::BF16})
          for (const DType out : {DType::F32, storage_type(q), gemm_type(q)}) {
            std::vector<uint16_t> codes;
            for (const float value : x)
              codes.push_back(static_cast<uint16_t>(bits_of(value) >> 16));
            Tensor input = Tensor::from(x, {n});
            if (in == DType::BF16) {
              input = Tensor::empty({n}, DType::BF16, kCpu);
              std::copy(codes.begin(), codes.end(), static_cast<uint16_t*>(input.mutable_raw()));
            }
            Tensor y = Tensor::empty({n}, out, kCpu);
            kernels::quantise(Stream{}, {input, y, q, 0, key, {}});
            compare(format_message("{} of {} {} to {}", {name, n, in, out}), {y.to_floats(), {}},
                    expected_of(q, {x, {n}, 0, key}, out), x, tally);
          }
      }
    }
    report(tally.bad);
  }

  TEST_CASE("one, two and three threads give the same bits, those of the definition") {
    const Shape shape{3, 210, 331};
    const RandomKey key{21, 4, 2, nullptr};
    const std::vector<float> x = mixed_values(shape.numel(), 8, true);
    const int threads = omp_get_max_threads();
    Tally tally;
    struct Case {
      const char* name;
      int group_axis;
    };
    for (const Case& c :
         {Case{"mxfp8:sr", 2}, Case{"mxfp4-rceil", 1}, Case{"mxint8:sr", 0},
          Case{"e4m3-axis1-even", 0}, Case{"e2m3-axis2:sr", 0}, Case{"e2m1-t16x16:sr", 0},
          Case{"hbfp8:sr", 0}, Case{"hbfp6-g32", 1}, Case{"bfp8-t7x9:rnu", 0}}) {
      const Quantizer q = Quantizer::parse(c.name);
      const TensorCase tensor{x, shape, c.group_axis, key};
      const std::vector<Rounded> want = expected_of(q, tensor, DType::F32);
      for (const int count : {1, 2, 3}) {
        omp_set_num_threads(count);
        compare(format_message("{} with {} threads", {c.name, count}),
                run(q, tensor, DType::F32, count == 2), want, x, tally);
      }
    }
    omp_set_num_threads(threads);
    report(tally.bad);
  }

  TEST_CASE("special values in a block, by hand") {
    const auto all_nan = [](const std::vector<float>& y) {
      return std::all_of(y.begin(), y.end(), [](float v) { return bits_of(v) == kNanBits; });
    };
    for (const char* name : {"mxfp8", "mxfp8-e5m2-rceil", "mxfp4-even", "mxint8-ceil:sr", "hbfp8",
                             "bfp8", "e5m2-sat-g4", "fixed8.6-u-g3"}) {
      INFO(name);
      CHECK(all_nan(made(name, {1.0f, kInf, 0.0f})));
      CHECK(all_nan(made(name, {-kInf})));
      CHECK(all_nan(made(name, {0.0f, std::nanf("")})));
      CHECK(all_nan(made(name, {float_of(0xFF800001u), 3.0f}, storage_type(Quantizer(name)))));
    }
    // A neighbouring group is untouched.
    const std::vector<float> beside = made("e2m1-g2", {1.0f, kInf, 1.0f, 3.0f, 5.0f});
    CHECK(all_nan({beside[0], beside[1]}));
    CHECK(beside[2] == 1.0f);
    CHECK(beside[3] == 3.0f);
    CHECK(beside[4] == 4.0f);
    for (const char* name : {"mxfp8", "mxfp6-ceil", "mxfp4-even", "mxfp8-e5m2-rceil"}) {
      const std::vector<float> zeros = made(name, {0.0f, -0.0f});
      CHECK(bits_of(zeros[0]) == 0);
      CHECK(bits_of(zeros[1]) == kSignBit);
    }
    for (const char* name : {"mxint8", "hbfp8", "bfp8", "e4m3-fnuz-g2", "binary8p3-g2"})
      for (const float zero : made(name, {-0.0f, 0.0f, -1e-30f, 100.0f, 50.0f, 60.0f}))
        CHECK((zero != 0 || bits_of(zero) == 0));
    // Floor clips the top of a block; rounding the scale up does not.
    CHECK(made("mxfp4", {7.9f})[0] == 6.0f);
    CHECK(made("mxfp4-ceil", {7.9f})[0] == 8.0f);
    CHECK(made("mxint8", {-1.999f})[0] == -1.984375f);
    CHECK(made("fixed8.6-g32", {-1.999f})[0] == -2.0f);
    CHECK(made("fixed8.6-u-g32", {-4.0f, 3.9f, 1.0f}) == std::vector<float>{0.0f, 3.90625f, 1.0f});
    // A number that a rounded-up scale carries to 2^128 is Inf, as it is in fp32.
    CHECK(made("mxfp8-ceil", {kMost})[0] == kInf);
    CHECK(made("mxfp8-ceil:rtz", {kMost})[0] == 0x1.ep127f);
    CHECK(made("mxfp8", {kMost})[0] == 0x1.cp127f);
  }

  TEST_CASE("equal to numpy with ml_dtypes, all formats and rules") {
    const conformance::MxTable table = conformance::mx_table();
    Tally tally;
    for (const conformance::MxTable::Made& made : table.made) compare_mx(table, made, tally);
    CHECK(table.blocks.size() == 12);
    CHECK(table.made.size() == 6 * 4 * 12);
    report(tally.bad);
  }

  TEST_CASE("hbfp by hand, and where it differs from bfp") {
    using Values = std::vector<float>;
    // amax = 1: E = 0, step 1/16, bound 15/16. bfp5 has E = 0 as well, but steps of 1/8 up to 15/8.
    CHECK(made("hbfp4", {1.0f, -1.0f, 0.9f, 0.5f, 0.03125f, -0.03126f}) ==
          Values{0.9375f, -0.9375f, 0.875f, 0.5f, 0.0f, -0.0625f});
    CHECK(made("bfp5", {1.0f, -1.0f, 0.9f, 0.5f, 0.0625f, -0.0626f}) ==
          Values{1.0f, -1.0f, 0.875f, 0.5f, 0.0f, -0.125f});
    CHECK(made("hbfp4", {1.25f, 1.19f, -0.06f}) == Values{1.25f, 1.25f, 0.0f});
    CHECK(made("hbfp1", {4.0f, 1.0f, -3.0f}) == Values{2.0f, 0.0f, -2.0f});
    CHECK(made("hbfp1", {5.0f, 2.0f, -3.0f}) == Values{4.0f, 0.0f, -4.0f});
    CHECK(made("hbfp8", {0x1p127f})[0] == 0x1.fep126f);
    CHECK(made("hbfp8", {kMost})[0] == 0x1.fep127f);
    CHECK(made("hbfp8", {0x1p-126f})[0] == 0x1.fep-127f);
    CHECK(made("hbfp24:rtz", {0x1p-149f})[0] == 0x1p-149f);
    // Elsewhere hbfpM is bfp(M+1); below 2^−126 bfp stops one binade higher.
    const RandomKey key{3, 9, 0, nullptr};
    for (int m = 1; m <= 24; ++m)
      for (const char* mode : {"rne", "sr", "rd"}) {
        const Quantizer h = Quantizer::parse(format_message("hbfp{}-g8:{}", {m, mode}));
        const Quantizer b = Quantizer::parse(format_message("bfp{}-g8:{}", {m + 1, mode}));
        std::vector<float> x;
        for (uint64_t i = 0; i < 800; ++i) x.push_back(spread_float(i + 7000, -120, 127));
        for (size_t i = 0; i < x.size(); i += 8)  // no power of two is the largest
          x[i] = std::ldexp(1.7f, std::ilogb(x[i])) + x[i] * 0.125f;
        bool odd_ones_out = true;
        const TensorRun hb = run(h, {x, {800}, 0, key}, DType::F32),
                        bb = run(b, {x, {800}, 0, key}, DType::F32);
        for (size_t i = 0; i < x.size(); ++i)
          odd_ones_out = odd_ones_out && same(hb.values[i], bb.values[i]);
        CHECK(odd_ones_out);
      }
  }

  TEST_CASE("a quantised block with the floor rule stays as it is") {
    const RandomKey key{8, 8, 0, nullptr};
    const Shape shape{4, 400};
    for (const char* mx : kMx)
      for (const char* mode : {"rne", "rtz", "ru", "odd", "sr"}) {
        const Quantizer q = Quantizer::parse(std::string(mx) + ":" + mode);
        const std::vector<float> x = mixed_values(shape.numel(), 5, true);
        for (const DType out : {DType::F32, DType::BF16}) {
          const std::vector<float> once = run(q, {x, shape, 1, key}, out).values;
          const std::vector<float> twice = run(q, {once, shape, 1, key}, out).values;
          bool stays = true;
          for (size_t i = 0; i < once.size(); ++i) stays = stays && same(once[i], twice[i]);
          INFO(to_string(q) << " in " << to_string(out));
          CHECK(stays);
        }
      }
  }

  TEST_CASE("types that hold every number of every block") {
    for (const std::string& element : all_elements()) {
      INFO(element);
      const Quantizer q = Quantizer::parse(element);
      const std::vector<double> values = ScaledReference(q).element().values();
      REQUIRE(!values.empty());
      const auto holds = [&](DType dtype) {
        std::vector<float> numbers = {std::nanf("")};
        for (int x = reference::least_scale_of(q, dtype); x <= 254; ++x)
          for (const double value : values)
            numbers.push_back(static_cast<float>(std::ldexp(value, x - 127)));
        return survives(numbers, dtype);
      };
      DType narrowest = DType::F32;
      for (const DType dtype :
           {DType::F16, DType::BF16, DType::F8E5M2, DType::F8E4M3, DType::F32}) {
        CHECK(fits(q, dtype) == holds(dtype));
        if (dtype != DType::F32 && holds(dtype)) narrowest = dtype;
      }
      CHECK(storage_type(q) == narrowest);
      CHECK(gemm_type(q) == narrowest);
    }
    for (const char* mx : kMx) CHECK(storage_type(Quantizer(mx)) == DType::BF16);
    CHECK(storage_type(Quantizer("fixed13.6-g32")) == DType::F32);
    CHECK(storage_type(Quantizer("hbfp7-g32")) == DType::BF16);
    CHECK(storage_type(Quantizer("hbfp9")) == DType::F32);
    CHECK_THROWS_AS(run(Quantizer("mxfp8"), {{1.0f}, {1}, 0, {}}, DType::F8E4M3), Error);
    CHECK_THROWS_AS(run(Quantizer("e5m7-g4"), {{1.0f}, {1}, 0, {}}, DType::F16), Error);
  }

  TEST_CASE("blocks that a tensor does not have are refused") {
    const std::vector<float> x(6, 1.0f);
    CHECK_THROWS_AS(run(Quantizer("e4m3-axis2"), {x, {2, 3}, 0, {}}, DType::F32), Error);
    CHECK_THROWS_AS(run(Quantizer("mxfp8"), {x, {2, 3}, 2, {}}, DType::F32), Error);
    CHECK_THROWS_AS(run(Quantizer("mxfp8"), {x, {2, 3}, -1, {}}, DType::F32), Error);
    CHECK(run(Quantizer("mxfp8"), {x, {2, 3}, 0, {}}, DType::F32).values == x);
    CHECK(run(Quantizer("mxfp8"), {{}, {0, 3}, 0, {}}, DType::F32).values.empty());
    CHECK(run(Quantizer("e4m3-t2x2"), {x, {6}, 0, {}}, DType::F32).values == x);
  }
}

}  // namespace ulp
