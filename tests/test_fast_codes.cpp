#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "conformance.h"
#include "core/convert.h"
#include "core/error.h"
#include "core/fast_codes.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/code_spans.h"
#include "kernels/cpu/isa.h"
#include "kernels/state_code.h"
#include "reference.h"

namespace ulp {
namespace {

using conformance::hex;
using conformance::mixed_values;
using conformance::scramble;
using conformance::spread_float;
using reference::Mismatches;
using reference::report;

/// A quantizer by its definition, and the short way to its codes.
struct Pair {
  std::string name;
  Grid grid;
  CodeRule rule;
  FastCodes fast;

  uint32_t defined(float x, uint32_t word) const {
    return number_code(rule, quantise_value(x, grid, word));
  }
};

Pair pair_of(const std::string& name) {
  const Quantizer q = Quantizer::parse(name);
  Pair p{name, make_grid(q), make_code_rule(q.format), {}};
  p.fast = make_fast_codes(p.grid, p.rule);
  return p;
}

uint32_t fast_code(const FastCodes& c, float x, uint32_t word) {
  if (c.grid.form == FastGrid::Form::CutBits)
    return c.stochastic ? fast::stochastic_cut_code(x, c, word) : fast::nearest_cut_code(x, c);
  return c.stochastic ? fast::stochastic_spaced_code(x, c, word) : fast::nearest_spaced_code(x, c);
}

bool exists(const std::string& name) {
  try {
    Quantizer::parse(name);
    return true;
  } catch (const Error&) {
    return false;
  }
}

constexpr const char* kNatives[] = {"e4m3", "e5m2", "fp16", "bf16"};
/// States are kept in these; all of them go the short way.
constexpr const char* kUsual[] = {"e4m3",     "e5m2",     "fp16",  "bf16", "e6m9",     "e2m1",
                                  "e3m4",     "e5m10",    "e4m11", "e7m8", "e5m2-sat", "e4m3-ieee",
                                  "bf16-sat", "e2m1-sat", "e3m2",  "e2m3"};

/// Every eXmY of up to nine bits with every set of special values, overflow policy and -ftz; usual ones; biases; formats that
/// are no floats.
std::vector<std::string> all_names() {
  std::vector<std::string> names(std::begin(kUsual), std::end(kUsual));
  for (int e = 1; e <= 8; ++e)
    for (int m = 0; m <= 8 && e + m <= 8; ++m)
      for (const char* specials : {"-ieee", "-fn", "-fnuz", "-none"})
        for (const char* overflow : {"", "-sat", "-inf", "-nan"})
          for (const char* ftz : {"", "-ftz"})
            names.push_back(format_message("e{}m{}{}{}{}", {e, m, specials, overflow, ftz}));
  for (const char* name : {"e8m7-none",     "e8m7-fn",       "e6m9-none",    "e4m3-bias11",
                           "e5m2-bias-3",   "e2m1-bias120",  "e2m1-bias126", "e2m1-bias127",
                           "e4m3-bias91",   "e4m3-bias92",   "e4m3-bias93",  "e5m2-bias-70",
                           "e2m1-bias-120", "e3m2-bias-100", "e7m3-bias127", "e8m2-none-bias100",
                           "fixed8.4",      "posit8.1",      "binary8p3",    "binary8p4",
                           "nf4",           "fp32"})
    names.push_back(name);
  std::erase_if(names, [](const std::string& name) { return !exists(name); });
  return names;
}

std::vector<std::string> with_roundings(const std::vector<std::string>& names) {
  std::vector<std::string> all;
  for (const std::string& name : names)
    for (const char* rounding : {"", ":sr", ":rna", ":rtz", ":sr8"})
      if (exists(name + rounding)) all.push_back(name + rounding);
  return all;
}

/// Words that decide: around the share of 2^32 with which |x| rises.
std::vector<uint32_t> words_for(const Pair& p, float x) {
  if (!p.fast.stochastic) return {0u};
  std::vector<uint32_t> words = {0u, 1u, 1u << 31, ~0u, scramble(bits_of(x))};
  const double a = std::fabs(static_cast<double>(x));
  if (!std::isfinite(a) || a == 0) return words;
  const int quantum = std::max(std::ilogb(a) - p.grid.significand_bits, p.grid.min_quantum);
  const double steps = std::ldexp(a, -quantum);
  const auto share = static_cast<uint32_t>(std::ldexp(steps - std::floor(steps), 32));
  for (const uint32_t word : {share - 1, share, share + 1}) words.push_back(word);
  return words;
}

void compare(const Pair& p, float x, Mismatches& bad) {
  for (const uint32_t word : words_for(p, x)) {
    const uint32_t want = p.defined(x, word), got = fast_code(p.fast, x, word);
    if (got != want)
      bad.add(
          format_message("{}: x {} R {}: got code {}, want {}", {p.name, hex(x), word, got, want}));
  }
}

/// Both signs of a pattern and of those next to it.
void compare_around(const Pair& p, uint32_t a, Mismatches& bad) {
  for (const uint32_t sign : {0u, kSignBit})
    for (uint32_t step = 0; step < 5; ++step)
      compare(p, float_of(((a - 2u + step) & ~kSignBit) | sign), bad);
}

/// All numbers of the format, all middles between neighbours, what surrounds them, and fp32's corners.
void compare_corners(const Pair& p, Mismatches& bad) {
  for (const uint32_t a : {0u, 2u, 0x007FFFFFu, 0x00800000u, 0x7F7FFFFFu, kInfinityBits, kNanBits,
                           0x7FFFFFFDu, p.fast.limit, p.grid.max_bits[0]})
    compare_around(p, a, bad);
  for (uint32_t code = 0; code + 1 < p.rule.sign; ++code) {
    const float here = decode(p.rule, code), next = decode(p.rule, code + 1);
    if (!std::isfinite(here)) break;
    compare_around(p, bits_of(here), bad);
    const double last = std::isfinite(next) ? next : 2.0 * here;
    compare_around(p, bits_of(static_cast<float>((here + last) / 2)), bad);
  }
}

/// fp32's patterns at a stride.
void sweep(const Pair& p, uint64_t stride, Mismatches& bad) {
#pragma omp parallel for schedule(static)
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += stride)
    compare(p, float_of(static_cast<uint32_t>(bits)), bad);
}

template <class Call>
void for_every_isa(Call call) {
  const cpu::Isa before = cpu::current_isa();
  for (const cpu::Isa isa : {cpu::Isa::Portable, cpu::Isa::Avx2, cpu::Isa::Avx512}) {
    if (!cpu::has_isa(isa)) continue;
    cpu::set_isa(isa);
    call();
  }
  cpu::set_isa(before);
}

constexpr uint8_t kGuard = 0x5A;

/// A span in runs of so many elements (0: none), by the definitions and by the short way.
struct SpanCase {
  const Pair& p;
  int64_t n, run;
  uint64_t seed;
  std::vector<float> x, factors;

  SpanCase(const Pair& pair, int64_t count, int64_t length, uint64_t s)
      : p(pair), n(count), run(length), seed(s), x(mixed_values(count, s, true)) {
    const int top = std::ilogb(float_of(p.grid.max_bits[0])) + 1;
    for (size_t i = 0; i < x.size(); ++i)
      if (scramble(seed + i) % 3 != 0)
        x[i] = spread_float(seed * 7919 + i, std::max(-149, top - 14), std::min(127, top));
    for (int64_t i = 0; run != 0 && i * run < n; ++i)
      factors.push_back(i % 7 == 6 ? float_of(kNanBits)
                                   : spread_float(seed + static_cast<uint64_t>(i), -2, 2));
  }
  cpu::RunFactors runs() const { return {run, run == 0 ? nullptr : factors.data()}; }
  float factor(int64_t i) const { return run == 0 ? 1.0f : factors[static_cast<size_t>(i / run)]; }
  std::string text() const {
    return format_message("{} on {}, {} elements in runs of {}",
                          {p.name, cpu::to_string(cpu::current_isa()), n, run});
  }
};

uint32_t code_at(const std::vector<uint8_t>& bytes, int64_t i, int bits) {
  const auto at = static_cast<size_t>(i);
  if (bits == 16) return bytes[2 * at] | static_cast<uint32_t>(bytes[2 * at + 1]) << 8;
  return bits == 8 ? bytes[at] : bytes[at / 2] >> (i % 2 * 4) & 15u;
}

void compare_writing(const SpanCase& c, Mismatches& bad) {
  const RandomSource random(RandomKey{c.seed, 9, 1, nullptr});
  const auto index = static_cast<int64_t>(scramble(c.seed) % 4096);
  const int bits = c.p.rule.bits;
  const auto size = static_cast<size_t>((c.n * bits + 7) / 8);
  std::vector<uint8_t> bytes(size + 4, kGuard);
  cpu::write_rounded(c.x.data(), c.n, c.runs(), c.p.fast, random, index, bytes.data());
  for (int64_t i = 0; i < c.n; ++i) {
    const float x = c.x[static_cast<size_t>(i)] * c.factor(i);
    const uint32_t want = c.p.defined(x, random.word(static_cast<uint64_t>(index + i)));
    const uint32_t got = code_at(bytes, i, bits);
    if (got != want)
      bad.add(format_message("{}: element {}, {}: got code {}, want {}",
                             {c.text(), i, hex(x), got, want}));
  }
  if (bits == 4 && c.n % 2 != 0 && bytes[size - 1] >> 4 != 0)
    bad.add(c.text() + ": the last byte is not filled up with zeros");
  for (size_t i = size; i < bytes.size(); ++i)
    if (bytes[i] != kGuard) bad.add(c.text() + ": bytes behind the codes were written");
}

/// Codes below `most`, so that some spans have neither Inf nor NaN.
void compare_reading(const SpanCase& c, uint32_t most, Mismatches& bad) {
  const int bits = c.p.rule.bits;
  std::vector<uint8_t> bytes(static_cast<size_t>((c.n * bits + 7) / 8));
  for (int64_t i = 0; i < c.n; ++i) {
    const auto word = scramble(c.seed * 31 + static_cast<uint64_t>(i));
    const uint32_t code = word % most | ((word >> 20 & 1u) != 0 ? c.p.rule.sign : 0u);
    for (int bit = 0; bit < bits; ++bit)
      if ((code >> bit & 1u) != 0)
        bytes[static_cast<size_t>((i * bits + bit) / 8)] |=
            static_cast<uint8_t>(1u << ((i * bits + bit) % 8));
  }
  std::vector<float> out(static_cast<size_t>(c.n) + 4, 777.0f);
  cpu::read_numbers(bytes.data(), c.n, c.runs(), c.p.fast, out.data());
  for (int64_t i = 0; i < c.n; ++i) {
    const float number = decode(c.p.rule, code_at(bytes, i, bits));
    const float want = c.run == 0 ? number : canonical(number * c.factor(i));
    const float got = out[static_cast<size_t>(i)];
    if (bits_of(got) != bits_of(want))
      bad.add(
          format_message("{}: element {}: got {}, want {}", {c.text(), i, hex(got), hex(want)}));
  }
  for (size_t i = static_cast<size_t>(c.n); i < out.size(); ++i)
    if (out[i] != 777.0f) bad.add(c.text() + ": numbers behind the last one were written");
}

}  // namespace

TEST_SUITE("fast_codes") {
  TEST_CASE("the formats that states are kept in go the short way") {
    for (const char* name : kUsual)
      for (const char* rounding : {"", ":sr"}) {
        INFO(name, rounding);
        CHECK(pair_of(std::string(name) + rounding).fast.possible);
      }
  }

  TEST_CASE("what the short way cannot do is left to the definitions") {
    for (const char* name : {"e4m3-ftz", "e4m3-fnuz", "e4m3-nan", "fixed8.4", "posit8.1", "nf4",
                             "binary8p3", "e5m11", "e4m3:rna", "e4m3:sr8", "fp32", "tf32"}) {
      INFO(name);
      CHECK_FALSE(pair_of(name).fast.possible);
    }
    // A type may hold more numbers than the grid has.
    CHECK_FALSE(make_fast_codes(make_grid("e2m1"), make_code_rule(Format::parse("e4m3"))).possible);
    CHECK(make_fast_codes(make_grid("e4m3"), make_code_rule(Format::parse("e4m3"))).possible);
  }

  TEST_CASE("codes of every format's numbers, middles and corners, and of a sweep of fp32") {
    Mismatches bad;
    int possible = 0;
    for (const std::string& name : with_roundings(all_names())) {
      const Pair p = pair_of(name);
      if (!p.fast.possible) continue;
      ++possible;
      compare_corners(p, bad);
      sweep(p, 65537, bad);
    }
    CHECK(possible > 150);
    report(bad);
  }

  TEST_CASE("codes of a dense sweep of fp32") {
    Mismatches bad;
    for (const char* name : {"e4m3", "e5m2", "fp16", "bf16", "e6m9", "e2m1"})
      for (const char* rounding : {"", ":sr"})
        sweep(pair_of(std::string(name) + rounding), *rounding == '\0' ? 1021 : 8191, bad);
    report(bad);
  }

  TEST_CASE("numbers of all codes") {
    Mismatches bad;
    for (const std::string& name : all_names()) {
      const Pair p = pair_of(name);
      if (!p.fast.possible) continue;
      for (uint32_t code = 0; code <= low_bits(p.rule.bits); ++code) {
        const uint32_t want = bits_of(decode(p.rule, code));
        const uint32_t got = bits_of(fast::number_of_code(code, p.fast));
        const bool special = (want & ~kSignBit) >= kInfinityBits;
        const uint32_t finite = bits_of(fast::number_of_code<fast::Specials::Absent>(code, p.fast));
        if (got != want || (!special && finite != want))
          bad.add(format_message(
              "{}: code {}: got {} and {}, want {}",
              {name, code, hex(float_of(got)), hex(float_of(finite)), hex(float_of(want))}));
      }
    }
    report(bad);
  }

  TEST_CASE("spans of all lengths and runs, on every instruction set") {
    Mismatches bad;
    for (const char* name : {"e4m3", "e5m2:sr", "e2m1", "e2m1:sr", "e6m9", "e6m9:sr", "bf16",
                             "bf16:sr", "fp16", "e4m3-ieee", "e3m4:sr"}) {
      const Pair p = pair_of(name);
      REQUIRE(cpu::has_code_spans(p.fast));
      std::vector<int64_t> lengths = {127, 250, 1000, 1023, cpu::kBlock};
      for (int64_t n = 1; n <= 70; ++n) lengths.push_back(n);
      for_every_isa([&] {
        for (const int64_t n : lengths)
          for (const int64_t run : {0, 4, 32, 256}) {
            const SpanCase c(p, n, run, static_cast<uint64_t>(n + run));
            compare_writing(c, bad);
            compare_reading(c, p.rule.sign, bad);
            compare_reading(c, std::min(p.fast.first_infinity, p.fast.first_nan), bad);
          }
      });
    }
    report(bad);
  }

  TEST_CASE("native types store the codes of the formats they are named after") {
    constexpr DType kTypes[] = {DType::F8E4M3, DType::F8E5M2, DType::F16, DType::BF16};
    for (size_t t = 0; t < 4; ++t) {
      const Pair p = pair_of(kNatives[t]);
      for (uint32_t code = 0; code <= low_bits(p.rule.bits); ++code) {
        const float y = decode(p.rule, code);
        uint16_t stored = 0;
        store_float(&stored, kTypes[t], 0, y);
        INFO(kNatives[t], " code ", code);
        REQUIRE(stored == number_code(p.rule, y));
        const float read = load_as_float(&stored, kTypes[t], 0);
        REQUIRE(bits_of(canonical(read)) == bits_of(y));
      }
    }
  }
}

}  // namespace ulp
