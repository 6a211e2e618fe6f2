#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "conformance.h"
#include "core/error.h"
#include "core/grid.h"
#include "core/random.h"
#include "reference.h"

namespace ulp {
namespace {

using conformance::compare;
using conformance::hex;
using conformance::kDeterministic;
using conformance::kRoundings;
using conformance::sweep;
using conformance::sweep_hard;
using conformance::Tally;
using reference::Mismatches;
using reference::Reference;
using reference::report;
using reference::same;

/// Every eXmY with at most `bits` bits in all, with every set of special values, overflow policy and -ftz.
std::vector<std::string> small_floats(int bits) {
  std::vector<std::string> names;
  for (int e = 1; e <= 8; ++e)
    for (int m = 0; m <= 23 && 1 + e + m <= bits; ++m)
      for (const char* specials : {"-ieee", "-fn", "-fnuz", "-none"})
        for (const char* overflow : {"", "-sat", "-nan"})
          for (const char* ftz : {"", "-ftz"}) {
            const std::string name =
                format_message("e{}m{}{}{}{}", {e, m, specials, overflow, ftz});
            try {
              Format::parse(name);
              names.push_back(name);
            } catch (const Error&) {  // test_formats says which names are refused
            }
          }
  return names;
}

std::vector<std::string> small_fixed() {
  std::vector<std::string> names;
  for (const char* base : {"fixed1.0", "fixed2.1", "fixed4.-3", "fixed5.8", "fixed8.4", "fixed8.0",
                           "fixed9.-10", "fixed10.149", "fixed7.-118", "fixed3.140"})
    for (const char* flags : {"", "-sat", "-wrap", "-noclamp", "-sym", "-sym-sat", "-u", "-u-sat",
                              "-u-wrap", "-u-noclamp"}) {
      const std::string name = std::string(base) + flags;
      if (name.starts_with("fixed1.0-sym")) continue;  // refused: holds only zero
      names.push_back(name);
    }
  return names;
}

/// Value above which χ² with `degrees` of freedom lies once in 10^6 draws. Source: Wilson, Hilferty 1931.
double chi_square_bound(double degrees) {
  constexpr double kNormalQuantile = 4.7534;  // of 1 − 10^−6
  const double v = 2 / (9 * degrees);
  return degrees * std::pow(1 - v + kNormalQuantile * std::sqrt(v), 3);
}

}  // namespace

TEST_SUITE("quantise_value") {
  TEST_CASE(
      "small formats: every point, midpoint and neighbour, all modes, specials and policies") {
    std::vector<std::string> names = small_floats(10);
    for (const char* biased : {"e4m3-bias11", "e4m3-fnuz-bias11", "e5m2-bias-3", "e2m1-bias40",
                               "e3m2-bias-100", "e8m7-none-bias128", "e2m3-none-bias147"})
      names.push_back(biased);
    for (const std::string& name : small_fixed()) names.push_back(name);
    for (const std::string& name : reference::p3109_names()) names.push_back(name);
    REQUIRE(names.size() > 900);
    Mismatches bad;
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < names.size(); ++i)
      for (const char* mode : kDeterministic) {
        const std::string name = names[i] + ":" + mode;
        const Quantizer quantizer = Quantizer::parse(name);
        const Grid grid = make_grid(quantizer);
        const Reference reference(quantizer);
        for (const float x : reference::hard_inputs(reference))
          compare(name, grid, reference, x, 0, bad);
        for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 16777213)
          compare(name, grid, reference, float_of(static_cast<uint32_t>(bits)), 0, bad);
      }
    report(bad);
  }

  TEST_CASE("wide formats: every point, midpoint and neighbour") {
    Tally tally;
    for (const char* format : {"e6m9", "e6m9-none", "bf16", "bf16-sat", "e8m7-none", "fp16",
                               "fp16-nan-ftz", "fixed16.8", "fixed16.8-wrap", "fixed16.20-u"})
      for (const char* mode : kDeterministic) {
        const int64_t before = tally.compared;
        sweep_hard(std::string(format) + ":" + mode, tally);
        REQUIRE(tally.compared - before > 100000);
      }
    report(tally.bad);
  }

  TEST_CASE("all of fp32 at a stride of 8191 (127 with ULP_FULL=1)") {
    const uint64_t stride = reference::full() ? 127 : 8191;
    Tally tally;
    sweep("fp32", stride, tally);
    for (const char* format :
         {"e4m3", "e5m2", "e6m9", "bf16", "fp16", "tf32", "fixed8.4", "fixed16.8-sat", "e8m7-none"})
      for (const char* mode : kRoundings) sweep(std::string(format) + ":" + mode, stride, tally);
    report(tally.bad);
  }

  TEST_CASE("every fp32 input, with ULP_FULL=1" * doctest::skip(!reference::full())) {
    Tally tally;
    for (const char* format : {"e4m3", "e5m2", "e6m9", "bf16", "fixed8.4"})
      for (const char* mode : {"rne", "sr"}) sweep(std::string(format) + ":" + mode, 1, tally);
    report(tally.bad);
  }

  TEST_CASE("bfp and hbfp: one block, all widths and modes") {
    Mismatches bad;
    for (int width = 2; width <= 49; ++width)
      for (const char* mode : {"rne", "rna", "rnu", "rtz", "ru", "rd", "odd", "sr", "sr4c"}) {
        const int word_bits = width > 25 ? width - 24 : width;  // hbfpM has words of M + 1 bits
        const std::string name = width > 25 ? format_message("hbfp{}:{}", {word_bits - 1, mode})
                                            : format_message("bfp{}:{}", {word_bits, mode});
        const Quantizer quantizer = Quantizer::parse(name);
        for (const float amax :
             {0.0f, 0x1p-149f, 0x1.8p-130f, 0x1p-126f, 0x1.fffffep-126f, 0x1p-125f, 0x1.4p-3f, 1.0f,
              0x1.fffffep0f, 6.25f, 0x1p126f, 0x1p127f, 0x1.fffffep127f}) {
          Grid grid = make_grid(quantizer);
          set_block(grid, make_block_rule(quantizer, DType::F32), bits_of(amax));
          const Reference reference(quantizer, amax);
          const std::string label = name + " amax " + hex(amax);
          for (uint32_t i = 0; i < 400; ++i) {
            // What is largest in the block bounds every input: multiples of amax/200 and halving magnitudes.
            const float x = i < 200 ? amax * (static_cast<float>(i + 1) / 200)
                                    : std::ldexp(amax, -static_cast<int>(i - 200) / 4) *
                                          (1 - static_cast<float>(i % 4) / 16);
            for (const float input : {x, -x, std::nextafter(x, 0.0f)})
              compare(label, grid, reference, input, i * 2654435761u, bad);
          }
          if (word_bits <= 8)
            for (const float x : reference::hard_inputs(reference))
              if (std::fabs(x) <= amax) compare(label, grid, reference, x, 0x80000000u, bad);
        }
      }
    report(bad);
  }

  TEST_CASE("stochastic rounding goes up exactly when R < T") {
    Mismatches bad;
    for (const char* format :
         {"e4m3", "e5m2", "e3m2", "e2m1", "e4m0-none", "e6m9", "bf16", "tf32", "e4m3-fnuz",
          "e5m2-ftz", "fixed8.4", "fixed8.4-wrap", "fixed4.-100", "binary8p1", "binary8p3",
          "binary8p4-unsigned", "binary8p7-finite"}) {
      const std::string name = std::string(format) + ":sr";
      const Quantizer quantizer = Quantizer::parse(name);
      const Grid grid = make_grid(quantizer);
      const Reference reference(quantizer);
      const int64_t inputs = 20000;
#pragma omp parallel for schedule(static)
      for (int64_t i = 0; i < inputs; ++i) {
        const float x = float_of(static_cast<uint32_t>(i) * 2654435761u + 12345u);
        if (!std::isfinite(x)) continue;
        const double magnitude = std::fabs(static_cast<double>(x));
        const Reference::Place at = reference.place(magnitude);
        const double threshold = std::floor(std::ldexp((magnitude - at.low) / at.step, 32));
        const auto t = static_cast<uint32_t>(threshold);
        for (const uint32_t random :
             {t - 1, t, t + 1, 0u, 1u, 0x7FFFFFFFu, 0x80000000u, 0xFFFFFFFFu})
          compare(name, grid, reference, x, random, bad);
      }
    }
    report(bad);
  }

  TEST_CASE("few random bits: every word and rounding variant") {
    Mismatches bad;
    for (const char* format : {"e4m3", "e2m1-sat", "e6m9", "fixed8.4"})
      for (int count = 1; count <= 32; ++count)
        for (const char* variant : {"", "f", "c"}) {
          const std::string name = format_message("{}:sr{}{}", {format, count, variant});
          const Quantizer quantizer = Quantizer::parse(name);
          const Grid grid = make_grid(quantizer);
          const Reference reference(quantizer);
          for (uint32_t i = 0; i < 1500; ++i) {
            // 2^-20 … 2^11: around and far below each format's subnormals, and beyond its largest.
            const uint32_t w = 2654435761u * i + 12345u;
            const float x = float_of((w & 0x807FFFFFu) | (107 + i % 32) << 23);
            for (const uint32_t random : {0u, 1u, 0x7FFFFFFFu, 0x80000000u, 0xFFFFFFFFu,
                                          w * 2246822519u, (w * 2246822519u) >> (i % 32)})
              compare(name, grid, reference, x, random, bad);
          }
          // All words of a few bits, at quarters, eighths … of a step and just beside them.
          if (count > 6) continue;
          for (int sixteenth = 0; sixteenth <= 32; ++sixteenth)
            for (const float nudge : {-0x1p-20f, 0.0f, 0x1p-20f})
              for (uint32_t word = 0; word < 1u << count; ++word) {
                const float x = 1.0f + std::ldexp(static_cast<float>(sixteenth), -10) + nudge;
                compare(name, grid, reference, x, word << (32 - count), bad);
                compare(name, grid, reference, -x,
                        (word << (32 - count)) | ((1u << (32 - count)) - 1u), bad);
              }
        }
    report(bad);
  }

  TEST_CASE("numbers of the format never move, whatever R") {
    Mismatches bad;
    for (const char* format : {"e4m3",          "e5m2",
                               "e4m3-fnuz",     "e3m4",
                               "e2m3",          "e3m2",
                               "e2m1",          "e5m0-none",
                               "bf16",          "fp16",
                               "e6m9",          "e8m7-none",
                               "fixed8.4",      "fixed9.-3-u",
                               "fixed6.2-wrap", "e5m2-ftz",
                               "binary8p1",     "binary8p1-unsigned",
                               "binary8p4",     "binary8p5-finite-unsigned"})
      for (const char* mode :
           {"sr", "sr1", "sr1f", "sr1c", "sr8", "sr8f", "sr8c", "sr32f", "sr32c"}) {
        const std::string name = std::string(format) + ":" + mode;
        const Quantizer quantizer = Quantizer::parse(name);
        const Grid grid = make_grid(quantizer);
        const std::vector<double> values = Reference(quantizer).values();
        REQUIRE(values.size() > 10);
        for (const double value : values)
          for (const uint32_t random : {0u, 1u, 0x12345678u, 0x80000000u, 0xFFFFFFFFu}) {
            const float x = static_cast<float>(value);
            const float y = quantise_value(x, grid, random);
            if (!same(x, y)) bad.add(name + ": " + hex(x) + " became " + hex(y));
          }
      }
    report(bad);
  }

  TEST_CASE("stochastic rounding is unbiased: chi-square over positions between neighbours") {
    struct Case {
      const char* name;
      float low, step;
    };
    constexpr int kPositions = 64;
    constexpr uint64_t kDraws = 1 << 16;
    for (const Case& c : {Case{"e4m3:sr", 1.0f, 0x1p-3f}, Case{"e4m3:sr", 0.0f, 0x1p-9f},
                          Case{"e5m2:sr", 0x1p-15f, 0x1p-16f}, Case{"bf16:sr", -2.0f, -0x1p-6f},
                          Case{"fixed8.4:sr", 3.0f, 0x1p-4f}, Case{"e2m1:sr", -3.0f, -1.0f}}) {
      const Grid grid = make_grid(Quantizer::parse(c.name));
      const RandomSource random(
          RandomKey{.seed = 17, .stream = fnv1a32(c.name), .ordinal = bits_of(c.low)});
      double chi_square = 0;
      for (int position = 0; position < kPositions; ++position) {
        const float fraction = (static_cast<float>(position) + 0.5f) / kPositions;
        const float x = c.low + c.step * fraction;  // exact
        uint64_t ups = 0, others = 0;
        for (uint64_t draw = 0; draw < kDraws; ++draw) {
          const uint32_t word = random.word(static_cast<uint64_t>(position) * kDraws + draw);
          const float y = quantise_value(x, grid, word);
          ups += y == c.low + c.step ? 1 : 0;
          others += y != c.low + c.step && y != c.low ? 1 : 0;
        }
        CHECK(others == 0);
        const double expected = static_cast<double>(kDraws) * fraction;
        const double off = static_cast<double>(ups) - expected;
        chi_square += off * off / (expected * (1 - fraction));
      }
      INFO(c.name << " from " << c.low << ", seed 17: chi-square " << chi_square << " of "
                  << kPositions);
      CHECK(chi_square < chi_square_bound(kPositions));
      CHECK(chi_square >
            kPositions / 4);  // once in 10^10: words that are too even are no random words
    }
  }

  TEST_CASE("few random bits: bias over all words") {
    // P(up) − position over all 2^N words. Plain: in (−2^−N, 0]. Centred and Nearest: at most half of that either way,
    // and over evenly spread positions the mean is 0 where Plain's is about −2^−N / 2.
    for (const int count : {1, 3, 6}) {
      const double unit = std::ldexp(1.0, -count);
      for (const char* variant : {"", "f", "c"}) {
        const std::string name = format_message("e4m3:sr{}{}", {count, variant});
        INFO(name);
        const Grid grid = make_grid(Quantizer::parse(name));
        const bool plain = *variant == 0;
        double least = 1, most = -1, sum = 0;
        constexpr int kPositions = 1 << 12;
        for (int i = 0; i < kPositions; ++i) {
          const double position = (i + 0.5) / kPositions;
          const auto x = static_cast<float>(1 + 0.125 * position);  // exact
          int ups = 0;
          for (uint32_t word = 0; word < 1u << count; ++word)
            ups += quantise_value(x, grid, word << (32 - count)) == 1.125f ? 1 : 0;
          const double bias = ups * unit - position;
          least = std::min(least, bias);
          most = std::max(most, bias);
          sum += bias;
        }
        const double mean = sum / kPositions;
        CHECK(least > (plain ? -unit : -unit / 2));
        CHECK(most < (plain ? 0 : unit / 2));
        CHECK(std::fabs(mean - (plain ? -unit / 2 : 0)) < 1e-12);
      }
    }
  }

  TEST_CASE("documented edges") {
    const auto made = [](const char* name, float x) {
      return quantise_value(x, make_grid(Quantizer::parse(name)), 0);
    };
    const float inf = float_of(kInfinityBits);
    CHECK(made("e4m3", 464.0f) == 448.0f);
    CHECK(made("e4m3", 1e30f) == 448.0f);
    CHECK(std::isnan(made("e4m3-nan", 464.1f)));
    CHECK(std::isnan(made("e4m3", inf)));
    CHECK(made("e4m3-sat", -inf) == -448.0f);
    CHECK(made("e5m2", 61439.0f) == 57344.0f);
    CHECK(made("e5m2", 61440.0f) == inf);
    CHECK(made("e5m2:rtz", 1e9f) == 57344.0f);
    CHECK(made("e5m2:ru", -1e9f) == -57344.0f);
    CHECK(made("e5m2:rd", -1e9f) == -inf);
    CHECK(made("e5m2-nan", inf) == inf);  // -nan is about finite values; the format has Inf
    CHECK(std::isnan(made("e5m2-nan", 1e9f)));
    CHECK(made("e2m1", 5.0f) == 4.0f);
    CHECK(made("e2m1", 5.001f) == 6.0f);
    CHECK(bits_of(made("e4m3", -1e-9f)) == kSignBit);
    CHECK(bits_of(made("e4m3-fnuz", -1e-9f)) == 0);
    CHECK(bits_of(made("fixed8.4", -1e-9f)) == 0);
    CHECK(made("fixed8.4", 8.0f) == 7.9375f);
    CHECK(made("fixed8.4", -9.0f) == -8.0f);
    CHECK(made("fixed8.4-sym", -9.0f) == -7.9375f);
    CHECK(made("fixed8.4-wrap", 8.0f) == -8.0f);
    const auto is_beyond = [](const char* name, float x) {
      bool clamped = false;
      const Grid grid = make_grid(Quantizer::parse(name));
      quantise_value(x, grid, grid.rounding, 0, &clamped);
      return clamped;
    };
    for (const float beyond : {8.0f, 7.97f, 16.0f, -8.04f, 1e30f, -kMaxFloat}) {
      CHECK(is_beyond("fixed8.4", beyond));
      CHECK(is_beyond("fixed8.4-wrap", beyond));
    }
    CHECK(is_beyond("fixed8.4-u-wrap", -1.0f));
    for (const float inside : {7.96f, -8.03f, -0.0f, -1e-9f, inf, std::nanf("")})
      CHECK(!is_beyond("fixed8.4-wrap", inside));
    CHECK(!is_beyond("fixed8.4-noclamp", 1000.0f));
    CHECK(made("fixed8.4-noclamp", 1000.03f) == 1000.0f);
    CHECK(made("fixed8.4-u", -1.0f) == 0.0f);
    CHECK(made("e4m3-none", 1e9f) == 480.0f);
    CHECK(made("e5m2-none", 1e9f) == 114688.0f);
    CHECK(made("e4m3-fnuz", 1e9f) == 240.0f);
    CHECK(made("e5m2-fnuz", 1e9f) == 57344.0f);
    CHECK(made("e8m7-none", 0x1.fffffep127f) == inf);
    CHECK(made("binary8p3", 0x1.8p15f) == 0x1.8p15f);
    CHECK(made("binary8p3", 0x1.ap15f) == 0x1.8p15f);  // a tie; Inf's code is odd
    CHECK(made("binary8p3", 0x1.a00002p15f) == inf);
    CHECK(made("binary8p3:rtz", 1e9f) == 0x1.8p15f);
    CHECK(made("binary8p3-sat", -inf) == -0x1.8p15f);
    CHECK(made("binary8p3-nan", -inf) == -inf);
    CHECK(std::isnan(made("binary8p3-nan", 1e9f)));
    CHECK(made("binary8p3-finite", 1e9f) == 0x1.cp15f);
    CHECK(std::isnan(made("binary8p3-finite", inf)));
    CHECK(bits_of(made("binary8p3", -1e-9f)) == 0);
    for (const char* format : {"binary8p3-unsigned", "binary8p3-unsigned-nan"}) {
      CHECK(made(format, inf) == inf);
      CHECK(bits_of(made(format, -0.0f)) == 0);
      CHECK(bits_of(made(format, -1.0f)) == 0);
      CHECK(bits_of(made(format, -1e30f)) == 0);
      CHECK(std::isnan(made(format, -inf)));
    }
    CHECK(bits_of(made("binary8p3-unsigned-sat", -inf)) == 0);
    CHECK(made("binary8p1", 3.0f) ==
          4.0f);  // ties go to the even code: 2 has an odd one, 4 an even one
    CHECK(made("binary8p1", 6.0f) == 4.0f);
    CHECK(made("binary8p1", 0x1p-64f) == 0.0f);
    CHECK(made("binary8p1:odd", 5.0f) == 8.0f);
    CHECK(made("binary8p1:odd", 3.0f) == 2.0f);
    CHECK(bits_of(made("fp32", float_of(0xFF812345u))) == kNanBits);
  }

  TEST_CASE("equal to ml_dtypes on hard inputs") {
    Tally tally;
    const std::vector<conformance::ValueTable> tables = conformance::ml_dtypes_tables();
    for (const conformance::ValueTable& table : tables) compare_table(table, tally);
    CHECK(tables.size() == 11);
    CHECK(tally.compared > 3000);
    report(tally.bad);
  }

  TEST_CASE("P3109: equal to gfloat on hard inputs") {
    Tally tally;
    for (const reference::P3109Table& table : reference::p3109_tables()) {
      REQUIRE(table.rounded.size() > 10);
      conformance::compare_table(table, tally);
    }
    CHECK(tally.compared > 5000);
    report(tally.bad);
  }

  TEST_CASE("golden hashes of QPyTorch's formats, correctly rounded") {
    REQUIRE(conformance::golden_input_hash('B') == 0x17f1e3aaa658fb5cu);
    REQUIRE(conformance::golden_input_hash('C') == 0xa3af258fab80507eu);
    Tally tally;
    for (const conformance::Golden& golden : conformance::golden_hashes())
      compare_golden(golden, tally);
    report(tally.bad);
  }
}

}  // namespace ulp
