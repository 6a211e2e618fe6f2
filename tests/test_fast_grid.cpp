#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "conformance.h"
#include "core/error.h"
#include "core/fast_grid.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/spans.h"
#include "reference.h"

namespace ulp {
namespace {

using conformance::hex;
using conformance::mixed_values;
using conformance::scramble;
using conformance::spread_float;
using reference::Mismatches;
using reference::Reference;
using reference::report;

constexpr float kInf = std::numeric_limits<float>::infinity();

// ---- one value ------------------------------------------------------------------------------------------------------
using Bounds = FastGrid::Bounds;

template <Bounds kBounds>
float fast_value(float x, const FastGrid& g, bool stochastic, int32_t shift, uint32_t word,
                 bool& clamped) {
  if (g.form == FastGrid::Form::CutBits)
    return stochastic ? fast::stochastic_cut<kBounds>(x, g, word, clamped)
                      : fast::nearest_cut<kBounds>(x, g, clamped);
  return stochastic ? fast::stochastic_spaced<kBounds>(x, g, shift, word, clamped)
                    : fast::nearest_spaced<kBounds>(x, g, shift, clamped);
}

float fast_value(Bounds bounds, float x, const FastGrid& g, bool stochastic, int32_t shift,
                 uint32_t word, bool& clamped) {
  switch (bounds) {
    case Bounds::Plain: return fast_value<Bounds::Plain>(x, g, stochastic, shift, word, clamped);
    case Bounds::Signed: return fast_value<Bounds::Signed>(x, g, stochastic, shift, word, clamped);
    case Bounds::Any: break;
  }
  return fast_value<Bounds::Any>(x, g, stochastic, shift, word, clamped);
}

/// The least word that leaves |x| on the lower of its two neighbours, less one: |x| rises for words below it.
uint32_t threshold_of(float x, const Grid& grid) {
  const double a = std::fabs(static_cast<double>(x));
  if (!std::isfinite(a) || a == 0) return 0;
  const int quantum = std::max(std::ilogb(a) - grid.significand_bits, grid.min_quantum);
  const double steps = std::ldexp(a, -quantum);
  return static_cast<uint32_t>(std::ldexp(steps - std::floor(steps), 32));
}

std::array<uint32_t, 7> words_for(float x, const Grid& grid) {
  const uint32_t t = threshold_of(x, grid);
  return {0u, 1u, 1u << 31, ~0u, t - 1, t, t + 1};
}

/// A grid, and the short way to it.
struct Pair {
  std::string name;
  Grid grid;
  FastGrid fast;
  int32_t shift = 0;
};

void compare(const Pair& p, float x, Mismatches& bad) {
  const bool stochastic = p.grid.rounding == Rounding::Stochastic;
  const auto words = words_for(x, p.grid);
  for (const uint32_t word : words) {
    bool clamped = false;
    const float want = quantise_value(x, p.grid, p.grid.rounding, word, &clamped);
    for (const Bounds bounds : {Bounds::Plain, Bounds::Signed, Bounds::Any}) {
      if (bounds < p.fast.bounds) continue;  // a wider form serves as well
      bool got_clamped = false;
      const float got = fast_value(bounds, x, p.fast, stochastic, p.shift, word, got_clamped);
      if (bits_of(got) != bits_of(want) || got_clamped != clamped)
        bad.add(format_message(
            "{} shift {} bounds {}: x {} R {}: got {} clamped {}, want {} clamped {}",
            {p.name, p.shift, static_cast<int>(bounds), hex(x), word, hex(got), got_clamped ? 1 : 0,
             hex(want), clamped ? 1 : 0}));
    }
    if (!stochastic) return;
  }
}

/// All fp32 bit patterns at a stride.
void sweep(const Pair& p, uint64_t stride, Mismatches& bad) {
#pragma omp parallel for schedule(static)
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += stride)
    compare(p, float_of(static_cast<uint32_t>(bits)), bad);
}

Pair pair_of(const std::string& name) {
  const Grid grid = make_grid(Quantizer::parse(name));
  return {name, grid, make_fast_grid(grid)};
}

bool is_fast(const std::string& name) { return pair_of(name).fast.form != FastGrid::Form::None; }

// ---- lists of formats -----------------------------------------------------------------------------------------------
bool exists(const std::string& name) {
  try {
    Quantizer::parse(name);
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// Every eXmY of up to `bits` bits with every set of special values, overflow policy and -ftz.
std::vector<std::string> floats(int bits) {
  std::vector<std::string> names;
  for (int e = 1; e <= 8; ++e)
    for (int m = 0; m <= 23 && 1 + e + m <= bits; ++m)
      for (const char* specials : {"-ieee", "-fn", "-fnuz", "-none"})
        for (const char* overflow : {"", "-sat", "-inf", "-nan"})
          for (const char* ftz : {"", "-ftz"})
            names.push_back(format_message("e{}m{}{}{}{}", {e, m, specials, overflow, ftz}));
  return names;
}

std::vector<std::string> fixed_points() {
  std::vector<std::string> names;
  for (const char* base :
       {"fixed1.0", "fixed2.1", "fixed4.-3", "fixed5.8", "fixed8.4", "fixed8.0", "fixed9.-10",
        "fixed12.-100", "fixed6.-121", "fixed7.-118", "fixed10.93", "fixed10.94", "fixed10.95",
        "fixed8.-103", "fixed8.-104", "fixed8.125", "fixed8.126", "fixed8.127", "fixed10.149"})
    for (const char* flags : {"", "-sat", "-wrap", "-noclamp", "-sym", "-sym-sat", "-u", "-u-sat"})
      names.push_back(std::string(base) + flags);
  return names;
}

std::vector<std::string> narrow_formats() {
  std::vector<std::string> names = floats(9);
  for (const char* name :
       {"e4m3-bias11",       "e4m3-fnuz-bias11", "e5m2-bias-3",       "e5m2-bias-70-ftz",
        "e2m1-bias40",       "e2m1-bias120",     "e2m1-bias126",      "e2m1-bias127",
        "e2m1-bias128",      "e3m2-bias-100",    "e2m1-bias-120",     "e8m7-none-bias128",
        "e2m3-none-bias147", "e4m3-bias91",      "e4m3-bias92",       "e4m3-bias93",
        "e7m3-bias127",      "e7m3-bias127-ftz", "e8m2-none-bias100", "e8m1-bias127"})
    names.push_back(name);
  for (const std::string& name : fixed_points()) names.push_back(name);
  for (const std::string& name : reference::p3109_names()) names.push_back(name);
  std::erase_if(names, [](const std::string& name) { return !exists(name); });
  return names;
}

/// Those of many points, each with every flag that it takes.
std::vector<std::string> wide_formats() {
  std::vector<std::string> names;
  for (const char* base :
       {"fp16",       "bf16",         "tf32",         "e6m9",       "e6m9-none",  "e8m7-none",
        "e8m7-fn",    "e7m7",         "e5m11",        "e4m14",      "e6m16",      "e5m18",
        "e4m21",      "e4m22",        "e4m23",        "e8m21",      "e8m22",      "e8m22-none",
        "e7m22",      "fixed12.4",    "fixed16.8",    "fixed16.20", "fixed23.10", "fixed24.0",
        "fixed24.23", "fixed24.-103", "fixed24.-104", "fixed25.8"})
    for (const char* flags :
         {"", "-sat", "-nan", "-ftz", "-sat-ftz", "-nan-ftz", "-sym", "-sym-sat", "-u"})
      names.push_back(std::string(base) + flags);
  std::erase_if(names, [](const std::string& name) { return !exists(name); });
  return names;
}

// ---- blocks ---------------------------------------------------------------------------------------------------------
/// Elements whose blocks shift: flags of every kind, two that are one-sided, and those that are not fast at all.
constexpr const char* kElements[] = {
    "e4m3",         "e5m2",       "e2m3",         "e3m2",       "e2m1",     "e4m3-ftz",
    "e5m2-ftz-sat", "e4m3-fnuz",  "e4m3-none",    "e3m4",       "e2m1-fn",  "e4m0-none",
    "e1m2-none",    "e4m7",       "e4m11-none",   "e3m2-ftz",   "fixed8.6", "fixed8.6-sym",
    "fixed4.1-sat", "fixed8.6-u", "fixed2.-3",    "fixed12.0",  "fixed1.0", "binary8p3",
    "binary8p4",    "binary8p1",  "e2m3-bias-10", "e2m1-bias18"};
constexpr const char* kRules[] = {"-floor", "-ceil", "-even", "-rceil", "-shift"};

std::vector<std::string> shifting_blocks() {
  std::vector<std::string> names;
  for (const char* element : kElements)
    for (const char* rule : kRules) names.push_back(std::string(element) + "-g4" + rule);
  for (int width = 2; width <= 25; ++width) names.push_back(format_message("bfp{}", {width}));
  for (int width = 1; width <= 24; ++width) names.push_back(format_message("hbfp{}", {width}));
  std::erase_if(names, [](const std::string& name) { return !exists(name); });
  return names;
}

/// The largest magnitudes 2^e, the last one below it, and one between, for all of fp32's exponents.
std::vector<uint32_t> amaxes() {
  std::vector<uint32_t> bits = {0u, 1u, 2u, 0x003FFFFFu, 0x00400000u, 0x00600000u};
  for (uint32_t e = 0; e < 255; ++e)
    for (const uint32_t m : {0u, 0x1u, 0x0C0000u, 0x400000u, 0x600000u, 0x7FFFFFu})
      bits.push_back(e << 23 | m);
  return bits;
}

/// A few inputs of a block whose largest magnitude is `amax`: it, and what lies near points and middles below.
std::vector<float> block_inputs(float amax, uint64_t seed) {
  if (amax == 0) {  // a block of zeros has no other elements
    std::vector<float> zeros(64, 0.0f);
    std::fill(zeros.begin() + 20, zeros.end(), -0.0f);
    return zeros;
  }
  std::vector<float> x = {amax, -amax, 0.0f, -0.0f, 0x1p-149f, -0x1p-126f};
  for (uint64_t i = 0; i < 40; ++i) {
    const uint32_t word = scramble(seed * 64 + i);
    const uint32_t keep = ~0u << (word % 24);  // few significand bits: points and middles
    const auto bits = static_cast<int64_t>(bits_of(amax)) - (word >> 4) % (14u << 23);
    x.push_back(float_of(static_cast<uint32_t>(std::max<int64_t>(bits, 0)) & keep));
    if (word % 3 == 0) x.back() = -std::nextafter(x.back(), word % 2 == 0 ? 0.0f : amax);
  }
  return x;
}

// ---- spans ----------------------------------------------------------------------------------------------------------
template <class Call>
void for_every_isa(Call call) {
  const cpu::Isa before = cpu::current_isa();
  for (const cpu::Isa isa : {cpu::Isa::Portable, cpu::Isa::Avx2, cpu::Isa::Avx512}) {
    if (!cpu::has_isa(isa)) continue;
    cpu::set_isa(isa);
    call(std::string(cpu::to_string(isa)));
  }
  cpu::set_isa(before);
}

constexpr float kGuard = 12345.0f;
constexpr uint8_t kMaskGuard = 77;
constexpr int64_t kGuards = 4;

/// What a span call is given and what it must leave: n results, n marks, and nothing behind them.
struct SpanCase {
  std::string what;
  std::vector<float> x, want;
  std::vector<uint8_t> clamped;
  bool in_place = false, with_mask = false;
};

/// round(in, out, n, mask)
template <class Round>
void compare_span(const SpanCase& c, const Round& round, Mismatches& bad) {
  const auto n = static_cast<int64_t>(c.x.size());
  std::vector<float> out(c.x.size() + kGuards, kGuard);
  std::vector<uint8_t> mask(c.x.size() + kGuards, kMaskGuard);
  if (c.in_place) std::copy(c.x.begin(), c.x.end(), out.begin());
  round(c.in_place ? out.data() : c.x.data(), out.data(), n, c.with_mask ? mask.data() : nullptr);
  for (size_t i = 0; i < out.size(); ++i) {
    const bool inside = i < c.x.size();
    const float want = inside ? c.want[i] : kGuard;
    const uint8_t mark = inside && c.with_mask ? c.clamped[i] : kMaskGuard;
    if (bits_of(out[i]) == bits_of(want) && mask[i] == mark) continue;
    bad.add(format_message("{} n {} in place {}: element {}, {}, got {} mark {}, want {} mark {}",
                           {c.what, n, c.in_place ? 1 : 0, i, hex(inside ? c.x[i] : 0.0f),
                            hex(out[i]), mask[i], hex(want), mark}));
  }
}

/// Numbers around those of a format, of all magnitudes, and special ones.
std::vector<float> span_inputs(int64_t n, uint64_t seed, const std::string& name) {
  const Format format = Quantizer::parse(name).format;
  const double most = format.is_fp32() ? 1.0 : limits_of(format).max;
  const int top = std::min(127, std::ilogb(most) + 1);
  std::vector<float> x = mixed_values(n, seed, true);
  for (int64_t i = 0; i < n; ++i)
    if (scramble(seed + static_cast<uint64_t>(i)) % 3 != 0)
      x[static_cast<size_t>(i)] =
          spread_float(seed * 7919 + static_cast<uint64_t>(i), std::max(-149, top - 12), top);
  return x;
}

void sweep_span(const std::string& name, int64_t n, uint64_t seed, Mismatches& bad) {
  const Quantizer q = Quantizer::parse(name);
  const Grid grid = make_grid(q);
  const cpu::SpanGrid span(grid, q);
  const RandomSource random(RandomKey{seed, 9, 1, nullptr});
  const auto index = static_cast<int64_t>(scramble(seed) % 4096) + n;
  SpanCase c{
      name + " on " + cpu::to_string(cpu::current_isa()), span_inputs(n, seed, name), {}, {}};
  for (int64_t i = 0; i < n; ++i) {
    bool clamped = false;
    c.want.push_back(quantise_value(c.x[static_cast<size_t>(i)], grid, grid.rounding,
                                    random.word(static_cast<uint64_t>(index + i)), &clamped));
    c.clamped.push_back(clamped ? 1 : 0);
  }
  for (const bool in_place : {false, true})
    for (const bool with_mask : {false, true}) {
      c.in_place = in_place;
      c.with_mask = with_mask;
      compare_span(
          c,
          [&](const float* in, float* out, int64_t count, uint8_t* mask) {
            cpu::quantise_span(in, out, count, span, random, index, {mask, nullptr});
          },
          bad);
    }
}

/// Blocks of a span: their magnitudes and steps, and which one an element lies in.
struct Blocks {
  cpu::RunLayout layout;
  std::vector<uint32_t> amax;
  std::vector<int32_t> shift;
  std::vector<float> before, after;

  Blocks(int64_t n, cpu::RunLayout l) : layout(l) {
    const auto count = static_cast<size_t>((l.phase + n + l.run - 1) / l.run);
    amax.assign(count, 0u);
    shift.resize(count);
    before.resize(count);
    after.resize(count);
  }
  size_t of(int64_t i) const { return static_cast<size_t>((layout.phase + i) / layout.run); }
  cpu::BlockSteps steps() const { return {amax.data(), shift.data(), before.data(), after.data()}; }
};

/// A span of blocks; every block has its own range of exponents, some hold zeros, Inf or NaN.
std::vector<float> block_span_inputs(const Blocks& blocks, int64_t n, uint64_t seed) {
  std::vector<float> x;
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t block = seed * 1000 + blocks.of(i),
                   at = seed * 100003 + static_cast<uint64_t>(i);
    const uint32_t kind = scramble(block) % 16;
    const int top = kind < 8 ? static_cast<int>(scramble(block + 5) % 12) - 6
                             : static_cast<int>(scramble(block + 5) % 277) - 149;
    float value = spread_float(at, std::max(-149, top - 9), top);
    if (kind == 15) value = i % 2 == 0 ? 0.0f : -0.0f;
    if (kind == 14 && scramble(at) % 5 == 0) value = scramble(at) % 2 == 0 ? kInf : -kInf;
    if (kind == 13 && scramble(at) % 5 == 0) value = float_of(0xFFC01234u);
    x.push_back(value);
  }
  return x;
}

struct BlockSweep {
  std::string name;
  int64_t n;
  cpu::RunLayout layout;
  DType out = DType::F32;
  bool apart = false;  // factors are not multiplied
};

void sweep_block_span(const BlockSweep& s, uint64_t seed, Mismatches& bad) {
  const Quantizer q = Quantizer::parse(s.name);
  const Grid element = make_grid(q);
  const BlockRule rule = make_block_rule(q, s.out);
  const cpu::SpanGrid base(make_block_grid(q, rule), q);
  const RandomSource random(RandomKey{seed, 3, 2, nullptr});
  const auto index = static_cast<int64_t>(scramble(seed) % 4096);
  Blocks blocks(s.n, s.layout);
  SpanCase c{format_message("{} on {} run {} phase {}", {s.name, cpu::to_string(cpu::current_isa()),
                                                         s.layout.run, s.layout.phase}),
             block_span_inputs(blocks, s.n, seed),
             {},
             {}};
  uint32_t most = 0;
  for (int64_t i = 0; i < s.n; ++i) {
    uint32_t& amax = blocks.amax[blocks.of(i)];
    amax = std::max(amax, bits_of(c.x[static_cast<size_t>(i)]) & ~kSignBit);
    most = std::max(most, amax);
  }
  const float tensor = tensor_scale(rule, most);
  cpu::make_steps(rule, tensor, s.apart, static_cast<int64_t>(blocks.amax.size()),
                  blocks.amax.data(), blocks.shift.data(), blocks.before.data(),
                  blocks.after.data());
  const bool multiplied = !s.apart && rule.scale.kind != Scale::Kind::E4M3Tensor;
  for (int64_t i = 0; i < s.n; ++i) {
    Grid grid = element;
    const BlockScale scale = set_block(grid, rule, blocks.amax[blocks.of(i)], tensor);
    bool clamped = false;
    const float y = quantise_value(c.x[static_cast<size_t>(i)] * scale.before, grid, grid.rounding,
                                   random.word(static_cast<uint64_t>(index + i)), &clamped) *
                    scale.after;
    c.want.push_back(multiplied ? y * scale.factor : y);
    c.clamped.push_back(clamped ? 1 : 0);
  }
  const cpu::BlockSpan span{base, element, rule, tensor, blocks.steps(), s.layout};
  for (const bool in_place : {false, true})
    for (const bool with_mask : {false, true}) {
      c.in_place = in_place;
      c.with_mask = with_mask;
      compare_span(
          c,
          [&](const float* in, float* out, int64_t count, uint8_t* mask) {
            cpu::quantise_block_span(in, out, count, span, random, index, {mask, nullptr});
          },
          bad);
    }
}

/// Elements of every kind under every kind of scale.
std::vector<std::string> block_names() {
  std::vector<std::string> names = {"bfp8",
                                    "bfp2",
                                    "bfp16",
                                    "bfp25",
                                    "hbfp8",
                                    "hbfp1",
                                    "hbfp24",
                                    "nvfp4",
                                    "nf4-g4-scalef32",
                                    "posit8.1-g4-scalef32",
                                    "pow2x6-g4-scalef32",
                                    "fixed16.4-g4-scalef32",
                                    "e8m7-g4-scalef32"};
  for (const char* element :
       {"e4m3", "e5m2-ftz", "e2m1", "fixed8.6", "fixed8.6-u", "e4m0-none", "binary8p3", "e3m4"})
    for (const char* scale : {"-floor", "-even", "-rceil+q34", "-scalee4m3", "-scalef32"}) {
      const std::string text = scale;
      const size_t part = text.find('+');
      names.push_back(std::string(element) + "-g4" + text.substr(0, part) +
                      (part == std::string::npos ? "" : text.substr(part)));
    }
  std::erase_if(names, [](const std::string& name) { return !exists(name); });
  return names;
}

}  // namespace

TEST_SUITE("fast_grid") {
  TEST_CASE("formats that training uses have a fast form, what it cannot do has none") {
    for (const char* name : {"e4m3", "e5m2", "e4m3-fnuz", "e5m2-ftz", "e2m3", "e3m2", "e2m1",
                             "fp16", "bf16", "tf32", "e6m9", "e6m9-none", "e8m7-none", "fixed8.4",
                             "fixed16.8-sym", "fixed8.4-u", "binary8p3", "e8m7-ftz"})
      for (const char* mode : {"", ":sr"}) {
        const std::string both = std::string(name) + mode;
        CAPTURE(both);
        CHECK(is_fast(both));
      }
    for (const char* name : {"e4m3:rna", "e4m3:odd", "e4m3:sr8", "e4m3:sr31", "e4m3:sr32f",
                             "e4m3:sr32c", "fp32", "fixed8.4-wrap", "fixed8.4-noclamp", "fixed25.8",
                             "posit8.1", "nf4", "binary8p1", "e4m23", "e8m23"}) {
      CAPTURE(std::string(name));
      CHECK(!is_fast(name));
    }
    for (const char* name : {"bfp8", "hbfp8", "mxfp8", "mxfp4", "mxint8", "nvfp4"}) {
      CAPTURE(std::string(name));
      const Quantizer q = Quantizer::parse(name);
      const FastGrid fast = make_fast_grid(make_block_grid(q, make_block_rule(q, DType::F32)));
      CHECK(fast.form == FastGrid::Form::Spaced);
      CHECK(fast.least_shift <= -100);
      CHECK(fast.most_shift >= 90);
    }
  }

  TEST_CASE("shares of what lies beyond all bounds convert") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (const float low : {-kInf, -0x1p100f, -0.5f, -0.0f, 0.5f, -nan})
      CHECK(fast::draw_threshold(low) == 0);
    for (const float high : {0x1p32f, 0x1p100f, kInf, 0x1.fffffep31f, nan})
      CHECK(fast::draw_threshold(high) == 0xFFFFFF00u);
    CHECK(fast::draw_threshold(0x1p31f) == 0x80000000u);
    for (const float x : {-0.5f, -1e30f, -kInf, nan}) CHECK(fraction_between(x, 0, 1) == 0);
    CHECK(fraction_between(0, -kInf, 1) == 0);
    CHECK(fraction_between(1e30f, 0, 1) == 0xFFFFFFFFu);
    CHECK(fraction_between(0.75f, 0, 1) == 0xC0000000u);
  }

  TEST_CASE("narrow formats: every point, middle and neighbour, and a walk through fp32") {
    const std::vector<std::string> names = narrow_formats();
    const uint64_t stride = reference::full() ? 65521 : 1048573;
    Mismatches bad;
    int64_t fast = 0;
#pragma omp parallel for schedule(dynamic) reduction(+ : fast)
    for (size_t i = 0; i < names.size(); ++i)
      for (const char* mode : {"", ":sr"}) {
        const Pair p = pair_of(names[i] + mode);
        if (p.fast.form == FastGrid::Form::None) continue;
        ++fast;
        for (const float x : reference::hard_inputs(Reference(Quantizer::parse(p.name))))
          compare(p, x, bad);
        for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += stride)
          compare(p, float_of(static_cast<uint32_t>(bits)), bad);
      }
    report(bad);
    MESSAGE(fast << " of " << 2 * names.size() << " have a fast form");
    CHECK(fast > 1000);
  }

  TEST_CASE("wide formats: points, middles and neighbours where they can be listed, and a walk") {
    Mismatches bad;
    for (const std::string& name : wide_formats())
      for (const char* mode : {"", ":sr"}) {
        const Pair p = pair_of(name + mode);
        if (p.fast.form == FastGrid::Form::None) continue;
        const std::vector<float> inputs =
            reference::hard_inputs(Reference(Quantizer::parse(p.name)));
        const auto count = static_cast<int64_t>(inputs.size());
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < count; ++i) compare(p, inputs[static_cast<size_t>(i)], bad);
        sweep(p, reference::full() ? 8191 : 262139, bad);
      }
    report(bad);
  }

  TEST_CASE("fp32 at a stride of 16381 (every input with ULP_FULL=1)") {
    Mismatches bad;
    for (const char* name :
         {"e4m3", "e5m2", "e2m1", "fp16", "bf16", "tf32", "e6m9", "e4m3-fnuz", "e5m2-ftz",
          "bf16-sat-ftz", "fixed8.4", "fixed16.8-sym", "fixed8.4-u-sat", "binary8p3"})
      for (const char* mode : {"", ":sr"}) {
        const Pair p = pair_of(std::string(name) + mode);
        REQUIRE(p.fast.form != FastGrid::Form::None);
        sweep(p, reference::stride(16381), bad);
      }
    report(bad);
  }

  TEST_CASE("blocks: the grid of every shift that is allowed, its points and what lies around") {
    const std::vector<std::string> names = shifting_blocks();
    const std::vector<uint32_t> all = amaxes();
    Mismatches bad;
    int64_t compared = 0, refused = 0;
#pragma omp parallel for schedule(dynamic) reduction(+ : compared, refused)
    for (size_t i = 0; i < names.size(); ++i)
      for (const char* mode : {"", ":sr"}) {
        const Quantizer q = Quantizer::parse(names[i] + mode);
        for (const DType out : {DType::F32, DType::BF16}) {
          const BlockRule rule = make_block_rule(q, out);
          const FastGrid fast = make_fast_grid(make_block_grid(q, rule));
          if (fast.form == FastGrid::Form::None) continue;
          for (const uint32_t amax : all) {
            const int32_t shift = block_shift(make_block_shift(rule), amax);
            if (shift < fast.least_shift || shift > fast.most_shift) {
              ++refused;
              continue;
            }
            ++compared;
            Pair p{names[i] + mode, make_grid(q), fast, shift};
            set_block(p.grid, rule, amax);
            for (const float x : block_inputs(float_of(amax), amax)) compare(p, x, bad);
          }
        }
      }
    report(bad);
    CHECK(compared > 100000);
    CHECK(refused > 1000);
  }

  TEST_CASE("blocks: points and middles of the element at the least, middle and greatest shifts") {
    Mismatches bad;
    for (const std::string& name : shifting_blocks())
      for (const char* mode : {"", ":sr"}) {
        const Quantizer q = Quantizer::parse(name + mode);
        const BlockRule rule = make_block_rule(q, DType::F32);
        if (rule.precision > 9 || rule.word_bits > 9) continue;
        if (rule.kind == BlockRule::Kind::Scaled && rule.scale.rule != Scale::Rule::Floor) continue;
        const FastGrid fast = make_fast_grid(make_block_grid(q, rule));
        if (fast.form == FastGrid::Form::None) continue;
        Quantizer element = q;
        element.block = {};
        element.scale = {};
        const Reference reference(element, 1.0f);
        const std::vector<float> inputs = reference::hard_inputs(reference);
        int32_t seen = 0;
        for (int32_t e = -126; e <= 127; ++e) {
          const uint32_t amax = static_cast<uint32_t>(e + 127) << 23;
          const int32_t shift = block_shift(make_block_shift(rule), amax);
          const bool near_an_end =
              shift < fast.least_shift + 3 || shift > fast.most_shift - 3 || std::abs(shift) < 2;
          if (!near_an_end || shift < fast.least_shift || shift > fast.most_shift) continue;
          ++seen;
          Pair p{name + mode, make_grid(q), fast, shift};
          set_block(p.grid, rule, amax);
          for (const float x : inputs) compare(p, std::ldexp(x, shift), bad);
        }
        CAPTURE(name);
        CHECK(seen >= (fast.least_shift == 0 ? 1 : 6));
      }
    report(bad);
  }

  TEST_CASE("spans: 0 to 70 elements, any number format, every instruction set") {
    std::vector<std::string> names = {"fp32",         "e4m3:rna",     "e4m3:odd",
                                      "e5m2:ru",      "e5m2:sr5f",    "fixed8.4-wrap:sr",
                                      "binary8p1:sr", "posit8.1:rtz", "posit16.2:sr9c",
                                      "nf4:sr5"};
    for (const char* name : {"e4m3",          "e5m2-nan",
                             "e4m3-fnuz-sat", "e5m2-ftz",
                             "fp16",          "bf16",
                             "bf16-ftz-sat",  "tf32",
                             "e6m9-none",     "e8m7-none",
                             "fixed8.4",      "fixed8.4-u",
                             "fixed8.4-wrap", "fixed8.4-noclamp",
                             "fixed25.8",     "binary8p1",
                             "binary8p3",     "e3m4-ieee-bias120",
                             "posit8.0",      "posit8.2",
                             "posit3.3",      "posit16.1",
                             "nf4",           "pow2x4",
                             "pow2x5",        "pow2x6",
                             "pow2x8"})
      for (const char* mode : {"", ":sr"}) names.push_back(std::string(name) + mode);
    Mismatches bad;
    for_every_isa([&](const std::string&) {
      for (const std::string& name : names) {
        for (int64_t n = 0; n <= 70; ++n) sweep_span(name, n, static_cast<uint64_t>(n) + 1, bad);
        for (uint64_t seed = 100; seed < 108; ++seed) sweep_span(name, cpu::kBlock, seed, bad);
      }
    });
    report(bad);
  }

  TEST_CASE("spans of tables: numbers, boundaries and their neighbours in every rounding") {
    Mismatches bad;
    for_every_isa([&](const std::string& isa) {
      for (const std::string table : {"nf4", "pow2x4", "pow2x5", "pow2x6"})
        for (const char* mode : conformance::kRoundings) {
          const Quantizer q = Quantizer::parse(table + ":" + mode);
          const Grid grid = make_grid(q);
          const cpu::SpanGrid span(grid, q);
          const RandomSource random(RandomKey{5, 3, 2, nullptr});
          const std::vector<float> all = conformance::ListReference(q).hard_inputs();
          for (size_t begin = 0; begin < all.size(); begin += cpu::kBlock) {
            const size_t end = std::min(all.size(), begin + cpu::kBlock);
            SpanCase c{table + ":" + mode + " on " + isa, {}, {}, {}};
            for (size_t i = begin; i < end; ++i) {
              bool clamped = false;
              c.x.push_back(all[i]);
              c.want.push_back(
                  quantise_value(all[i], grid, grid.rounding, random.word(i), &clamped));
              c.clamped.push_back(clamped ? 1 : 0);
            }
            c.with_mask = true;
            compare_span(
                c,
                [&](const float* in, float* out, int64_t count, uint8_t* mask) {
                  cpu::quantise_span(in, out, count, span, random, static_cast<int64_t>(begin),
                                     {mask, nullptr});
                },
                bad);
          }
        }
    });
    report(bad);
  }

  TEST_CASE("spans of blocks: runs of every length and phase, every instruction set") {
    Mismatches bad;
    for_every_isa([&](const std::string&) {
      uint64_t seed = 0;
      for (const std::string& name : block_names())
        for (const char* mode : {"", ":sr", ":rna"})
          for (int64_t run = 1; run <= 33; ++run)
            for (int64_t phase = 0; phase < run; phase += 1 + run / 8) {
              const int64_t n = static_cast<int64_t>(++seed % 71);
              sweep_block_span({name + mode, n, {run, phase}, DType::F32, seed % 3 == 0}, seed,
                               bad);
            }
    });
    report(bad);
  }

  TEST_CASE("spans of blocks: whole runs, every length up to 70, and 1024 elements") {
    Mismatches bad;
    for_every_isa([&](const std::string&) {
      uint64_t seed = 500;
      for (const std::string& name : block_names())
        for (const char* mode : {"", ":sr"}) {
          for (int64_t n = 0; n <= 70; ++n)
            for (const int64_t run : {1, 16, 32, 100})
              sweep_block_span({name + mode, n, {run, 0}}, ++seed, bad);
          for (const cpu::RunLayout layout : {cpu::RunLayout{1, 0},
                                              {16, 0},
                                              {32, 0},
                                              {32, 5},
                                              {48, 0},
                                              {128, 0},
                                              {1024, 0},
                                              {5000, 4000}})
            sweep_block_span({name + mode, cpu::kBlock, layout, DType::F32, seed % 2 == 0}, ++seed,
                             bad);
        }
    });
    report(bad);
  }

  TEST_CASE("spans of blocks at every shift, allowed or not, F32 and BF16 scales") {
    const std::vector<uint32_t> all = amaxes();
    Mismatches bad;
    for_every_isa([&](const std::string& isa) {
      for (const char* name :
           {"bfp8", "bfp16:sr", "hbfp1", "hbfp8:sr", "e4m3-g4", "e5m2-ftz-g4:sr", "e2m1-g4-rceil",
            "fixed8.6-g4:sr", "fixed8.6-u-g4", "e4m0-none-g4", "e4m3-g4+q34", "e2m1-g4+q34:sr"})
        for (const DType out : {DType::F32, DType::BF16})
          for (const int64_t run : {1, 16}) {
            const Quantizer q = Quantizer::parse(name);
            const BlockRule rule = make_block_rule(q, out);
            const Grid element = make_grid(q);
            const cpu::SpanGrid base(make_block_grid(q, rule), q);
            const RandomSource random(RandomKey{8, 3, 2, nullptr});
            for (const uint32_t amax : all) {
              const std::vector<float> inputs = block_inputs(float_of(amax), amax + 1);
              SpanCase c{
                  format_message("{} amax {} {} on {}", {name, hex(float_of(amax)), out, isa}),
                  {inputs.begin(), inputs.begin() + 32},
                  {},
                  {}};
              Blocks blocks(32, {run, 0});
              blocks.amax.assign(blocks.amax.size(), amax);
              cpu::make_steps(rule, 1, true, static_cast<int64_t>(blocks.amax.size()),
                              blocks.amax.data(), blocks.shift.data(), blocks.before.data(),
                              blocks.after.data());
              for (size_t i = 0; i < 32; ++i) {
                Grid grid = element;
                const BlockScale scale = set_block(grid, rule, amax);
                bool clamped = false;
                c.want.push_back(quantise_value(c.x[i] * scale.before, grid, grid.rounding,
                                                random.word(i), &clamped) *
                                 scale.after);
                c.clamped.push_back(clamped ? 1 : 0);
              }
              for (const bool with_mask : {false, true}) {
                c.with_mask = with_mask;
                compare_span(
                    c,
                    [&](const float* in, float* to, int64_t count, uint8_t* mask) {
                      cpu::quantise_block_span(in, to, count,
                                               {base, element, rule, 1, blocks.steps(), {run, 0}},
                                               random, 0, {mask, nullptr});
                    },
                    bad);
              }
            }
          }
    });
    report(bad);
  }

  TEST_CASE("largest magnitudes of spans, element by element and in runs") {
    for_every_isa([&](const std::string& isa) {
      CAPTURE(isa);
      for (int64_t n = 0; n <= 70; ++n) {
        const std::vector<float> x = mixed_values(n, static_cast<uint64_t>(n), n % 2 == 0);
        std::vector<uint32_t> each(x.size(), 0x3F800000u), want = each;
        uint32_t most = 0x3F000000u;
        for (size_t i = 0; i < x.size(); ++i) {
          const uint32_t a = bits_of(x[i]) & ~kSignBit;
          want[i] = std::max(want[i], a);
          most = std::max(most, a);
        }
        cpu::amax_each(x.data(), n, each.data());
        CHECK(each == want);
        CHECK(cpu::amax_span(x.data(), n, 0x3F000000u) == most);
        for (const int64_t run : {1, 3, 16, 32, 35}) {
          std::vector<uint32_t> runs(static_cast<size_t>(n / run)), expected = runs;
          for (int64_t i = 0; i < n / run * run; ++i) {
            uint32_t& own = expected[static_cast<size_t>(i / run)];
            own = std::max(own, bits_of(x[static_cast<size_t>(i)]) & ~kSignBit);
          }
          cpu::amax_runs(x.data(), n, run, runs.data());
          CHECK(runs == expected);
        }
      }
    });
  }
}

}  // namespace ulp
