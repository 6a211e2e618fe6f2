#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

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

/// The message of the refusal, or "" if the text is taken.
std::string refusal(const std::string& text) {
  try {
    Quantizer::parse(text);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

Overflow expected_overflow(const FloatName& name) {
  const std::string flag = name.overflow;
  if (flag == "-sat") return Overflow::Saturate;
  if (flag == "-nan") return Overflow::Nan;
  return name.specials == Specials::Ieee ? Overflow::Infinity : Overflow::Clamp;
}

}  // namespace

TEST_SUITE("formats") {
  TEST_CASE("every eXmY, set of specials, policy and bias: taken or refused, and printed back") {
    Mismatches bad;
    int taken = 0, refused = 0;
    for_each_float(32, [&](const FloatName& name) {
      const std::string text = name.text();
      std::string why;
      Format format;
      try {
        format = Format::parse(text);
      } catch (const Error& error) {
        why = error.what();
      }
      if (name.exists() != why.empty()) bad.add(text + (why.empty() ? " was taken" : ": " + why));
      if (!why.empty()) {
        ++refused;
        if (why.find(text) == std::string::npos) bad.add(text + " is not named in: " + why);
        return;
      }
      ++taken;
      Format want;
      want.kind = FormatKind::Float;
      want.exponent_bits = static_cast<uint8_t>(name.e);
      want.significand_bits = static_cast<uint8_t>(name.m);
      want.specials = name.specials;
      want.bias = static_cast<int16_t>(name.real_bias());
      want.overflow = expected_overflow(name);
      want.flush_subnormals = name.ftz;
      if (format != want) bad.add(text + " is read as " + to_string(format));
      const std::string printed = to_string(format);
      if (printed.size() > text.size() + 1 || Format::parse(printed) != format)
        bad.add(text + " prints as " + printed);
      if (to_string(Format::parse(printed)) != printed) bad.add(printed + " prints otherwise");
    });
    CHECK(taken > 5000);
    CHECK(refused > 5000);
    report(bad);
  }

  TEST_CASE("flags in any order") {
    std::vector<std::string> flags = {"-ieee", "-sat", "-ftz", "-bias-3"};
    std::sort(flags.begin(), flags.end());
    const Format want = Format::parse("e4m3-ieee-sat-ftz-bias-3");
    do {
      std::string text = "e4m3";
      for (const std::string& flag : flags) text += flag;
      CHECK(Format::parse(text) == want);
    } while (std::next_permutation(flags.begin(), flags.end()));
    CHECK(Format::parse("fixed8.-2-sat-sym") == Format::parse("fixed8.-2-sym-sat"));
    CHECK(Format::parse("fixed8.4-wrap-u") == Format::parse("fixed8.4-u-wrap"));
  }

  TEST_CASE("canonical names") {
    const std::pair<const char*, const char*> names[] = {
        {"e8m7", "bf16"},
        {"e5m10", "fp16"},
        {"e8m10", "tf32"},
        {"bf16", "bf16"},
        {"fp32", "fp32"},
        {"e8m23", "e8m23"},
        {"bf16-none", "e8m7-none"},
        {"e5m10-sat", "fp16-sat"},
        {"e4m3-fn", "e4m3"},
        {"e4m3-bias7", "e4m3"},
        {"e5m2-ieee-inf", "e5m2"},
        {"e2m1-none", "e2m1"},
        {"e4m3-fnuz-bias8", "e4m3-fnuz"},
        {"e4m3-bias8-fnuz", "e4m3-fnuz"},
        {"e4m3-bias8", "e4m3-bias8"},
        {"e5m2-ftz-nan-fnuz", "e5m2-fnuz-nan-ftz"},
        {"fixed8.4-u-sat", "fixed8.4-u-sat"},
        {"fixed8.-4", "fixed8.-4"},
        {"bfp8", "bfp8"},
        {"bfp8-axis0:rnu", "bfp8-axis0:rnu"},
        {"bfp6-g32:sr8f", "bfp6-g32:sr8f"},
        {"e5m2:rne", "e5m2"},
        {"e5m2:sr32", "e5m2:sr"},
    };
    for (const auto& [text, want] : names) CHECK(to_string(Quantizer::parse(text)) == want);
  }

  TEST_CASE("fixed and bfp print back") {
    for (int w = 1; w <= 25; ++w) {
      CHECK(block_float_format(std::max(w, 2)) ==
            Format::parse("bfp" + std::to_string(std::max(w, 2))));
      for (const int fraction : {-100, -1, 0, 1, 7, 30, 149})
        for (const char* flags : {"", "-sat", "-wrap", "-noclamp", "-sym", "-sym-sat", "-u",
                                  "-u-sat", "-u-wrap", "-u-noclamp"}) {
          const std::string text = format_message("fixed{}.{}{}", {w, fraction, flags});
          INFO(text);
          const std::string_view flag = flags;
          const bool exists =
              !(w == 25 && flag.starts_with("-u")) && !(w == 1 && flag.starts_with("-sym"));
          CHECK((refusal(text).empty()) == exists);
          if (!exists) continue;
          const Format format = Format::parse(text);
          CHECK(to_string(format) == text);
          CHECK(format.kind == FormatKind::Fixed);
          CHECK(format.word_bits == w);
          CHECK(format.fraction_bits == fraction);
          if (flag.empty()) CHECK(format == fixed_format(w, fraction));
        }
    }
    for_each_float(12, [](const FloatName& name) {
      if (name.text() == name.base() && name.exists())
        CHECK(Format::parse(name.base()) == float_format(name.e, name.m));
    });
  }

  TEST_CASE("P3109, hbfp and scaled blocks print back") {
    std::vector<std::string> names = reference::p3109_names();
    CHECK(names.size() == 84);
    for (int m = 1; m <= 24; ++m)
      for (const char* blocks : {"", "-axis0", "-axis7", "-g1", "-g999999", "-t1x1", "-t128x64"}) {
        names.push_back(format_message("hbfp{}{}", {m, blocks}));
        names.push_back(format_message("bfp{}{}", {m + 1, blocks}));
      }
    for (const char* element :
         {"e4m3", "e5m2", "e2m3", "e3m2", "e2m1", "fixed8.6-sym", "e4m3-ieee", "e4m3-fnuz", "e3m4",
          "e5m2-sat", "e2m3-ftz", "e2m1-bias3", "e5m6", "fixed4.-2", "fixed2.0-sym", "fixed8.6-u",
          "fixed13.8-sat", "binary8p3", "binary8p4-finite-unsigned-sat"})
      for (const char* blocks : {"-g16", "-g33", "-axis1", "-t16x16", "-t1x128"})
        for (const char* rule : {"", "-ceil", "-even", "-rceil", "-shift"})
          names.push_back(std::string(element) + blocks + rule);
    for (const char* mx : {"mxfp8", "mxfp8-e5m2", "mxfp6", "mxfp6-e3m2", "mxfp4", "mxint8"})
      for (const char* rule : {"", "-ceil", "-even", "-rceil", "-shift"})
        names.push_back(std::string(mx) + rule);
    for (const std::string& name : names)
      for (const char* rounding : {"", ":rtz", ":sr", ":sr6c"}) {
        const std::string text = name + rounding;
        INFO(text << ": " << refusal(text));
        REQUIRE(refusal(text).empty());
        CHECK(to_string(Quantizer::parse(text)) == text);
      }
  }

  TEST_CASE("flags of new formats in any order, and other spellings") {
    const std::pair<const char*, const char*> names[] = {
        {"binary8p3-unsigned-finite", "binary8p3-finite-unsigned"},
        {"binary8p3-sat-unsigned", "binary8p3-unsigned-sat"},
        {"binary8p5-nan-finite-unsigned:rne", "binary8p5-finite-unsigned-nan"},
        {"e4m3-g32", "mxfp8"},
        {"e4m3-g32-floor", "mxfp8"},
        {"e4m3-floor-g32", "mxfp8"},
        {"mxfp8-floor", "mxfp8"},
        {"e4m3-fn-g32-rceil", "mxfp8-rceil"},
        {"e5m2-g32", "mxfp8-e5m2"},
        {"e5m2-ceil-g32-ieee:sr", "mxfp8-e5m2-ceil:sr"},
        {"mxfp8-e5m2-even", "mxfp8-e5m2-even"},
        {"e2m3-g32", "mxfp6"},
        {"e3m2-even-g32", "mxfp6-e3m2-even"},
        {"e2m1-none-g32", "mxfp4"},
        {"fixed8.6-sym-g32", "mxint8"},
        {"fixed8.6-g32-sym", "mxint8"},
        {"fixed8.6-g32", "fixed8.6-g32"},
        {"nvfp4", "nvfp4"},
        {"nvfp4-g16", "nvfp4"},
        {"nvfp4-g32:sr", "nvfp4-g32:sr"},
        {"nvfp4-t16x16", "nvfp4-t16x16"},
        {"e2m1-scalee4m3-g16", "e2m1-g16-scalee4m3"},
        {"e4m3-scalef32-t128x128", "e4m3-t128x128-scalef32"},
        {"nf4-g64-scalef32", "nf4-g64-scalef32"},
        {"fp16+scale=current", "fp16+scale=current"},
        {"fixed8.7-sym+scale=shift", "fixed8.7-sym+scale=shift"},
        {"e4m3+scale=floor", "e4m3+scale=floor"},
        {"e2m1+scale=rceil+q34:sr", "e2m1+scale=rceil+q34:sr"},
        {"posit8.1+scale=row:sr", "posit8.1+scale=row:sr"},
        {"e5m2-sat+scale=delayed16:rtz", "e5m2-sat+scale=delayed16:rtz"},
        {"mxfp4+q34+rht32:sr", "mxfp4+rht32+q34:sr"},
        {"e4m3+rht16+scale=current", "e4m3+scale=current+rht16"},
        {"e4m3-g31", "e4m3-g31"},
        {"mxfp8-sat", "e4m3-sat-g32"},
        {"mxfp4-ftz-ceil", "e2m1-ftz-g32-ceil"},
        {"mxint8-sat", "fixed8.6-sym-sat-g32"},
        {"e4m3-g32-fnuz", "e4m3-fnuz-g32"},
        {"e2m1-t16x16-floor", "e2m1-t16x16"},
        {"e2m1-axis0-floor-bias-2", "e2m1-bias-2-axis0"},
        {"hbfp8-g64:rne", "hbfp8-g64"},
    };
    for (const auto& [text, want] : names) {
      INFO(text);
      CHECK(to_string(Quantizer::parse(text)) == want);
      CHECK(Quantizer::parse(want) == Quantizer::parse(text));
    }
    std::vector<std::string> flags = {"-bias5", "-ftz", "-ieee", "-rceil", "-sat", "-t4x8"};
    const Quantizer want = Quantizer::parse("e3m3-ieee-sat-ftz-bias5-t4x8-rceil");
    do {
      std::string text = "e3m3";
      for (const std::string& flag : flags) text += flag;
      CHECK(Quantizer::parse(text) == want);
    } while (std::next_permutation(flags.begin(), flags.end()));
    for (int p = 1; p <= 7; ++p)
      for (const bool is_unsigned : {false, true}) {
        const std::string text =
            format_message("binary8p{}{}", {p, is_unsigned ? "-unsigned" : ""});
        CHECK(Format::parse(text) == p3109_format(p, is_unsigned));
      }
  }

  TEST_CASE("roundings") {
    const std::pair<const char*, Rounding> names[] = {
        {"rne", Rounding::NearestEven}, {"rna", Rounding::NearestAway},
        {"rnu", Rounding::NearestUp},   {"rtz", Rounding::TowardZero},
        {"ru", Rounding::Up},           {"rd", Rounding::Down},
        {"odd", Rounding::Odd},         {"sr", Rounding::Stochastic}};
    for (const auto& [name, rounding] : names) {
      CHECK(to_string(rounding) == name);
      const Quantizer q = Quantizer::parse(std::string("e5m2:") + name);
      CHECK(q.rounding == rounding);
      CHECK(q.format == Format::parse("e5m2"));
      CHECK(q.bits == RandomBits{});
      CHECK(Quantizer::parse(to_string(q)) == q);
    }
    using Variant = RandomBits::Variant;
    for (int count = 1; count <= 32; ++count)
      for (const auto& [suffix, variant] :
           {std::pair{"", Variant::Plain}, {"f", Variant::Centred}, {"c", Variant::Nearest}}) {
        const Quantizer q = Quantizer::parse(format_message("bf16:sr{}{}", {count, suffix}));
        CHECK(q.is_stochastic());
        CHECK(q.bits == RandomBits{static_cast<uint8_t>(count), variant});
        CHECK(Quantizer::parse(to_string(q)) == q);
      }
    CHECK(Quantizer::parse("fp32") == Quantizer{});
    CHECK(Quantizer::parse("fp32").is_identity());
    CHECK(!Quantizer::parse("e8m23").is_identity());
  }

  TEST_CASE("blocks") {
    const Quantizer whole = Quantizer::parse("bfp8");
    CHECK(whole.block.kind == Block::Kind::Tensor);
    CHECK(!whole.is_elementwise());
    CHECK(!whole.follows_reduction());
    const Quantizer axis = Quantizer::parse("bfp8-axis2:sr");
    CHECK(axis.block.kind == Block::Kind::Axis);
    CHECK(axis.block.axis == 2);
    CHECK(!axis.follows_reduction());
    const Quantizer group = Quantizer::parse("bfp4-g64");
    CHECK(group.block.kind == Block::Kind::Group);
    CHECK(group.block.columns == 64);
    CHECK(group.follows_reduction());
    CHECK(Quantizer::parse("e4m3").is_elementwise());
    CHECK(Quantizer::parse("binary8p4").is_elementwise());
    CHECK(Quantizer::parse("hbfp8").block.kind == Block::Kind::Tensor);
    for (const char* text : {"bfp8-t4x16", "hbfp8-t4x16", "e4m3-t4x16", "e4m3-t4x16-even"}) {
      const Quantizer tile = Quantizer::parse(text);
      CHECK(tile.block == Block{Block::Kind::Tile, 0, 4, 16});
      CHECK(!tile.follows_reduction());
      CHECK(!tile.is_elementwise());
    }
    const std::pair<const char*, Scale::Rule> rules[] = {
        {"", Scale::Rule::Floor},           {"-floor", Scale::Rule::Floor},
        {"-ceil", Scale::Rule::Ceil},       {"-even", Scale::Rule::Even},
        {"-rceil", Scale::Rule::RoundCeil}, {"-shift", Scale::Rule::Shift}};
    for (const auto& [flag, rule] : rules) {
      const Quantizer mx = Quantizer::parse(std::string("mxfp6-e3m2") + flag);
      CHECK(mx.format == Format::parse("e3m2"));
      CHECK(mx.block == Block{Block::Kind::Group, 0, 0, 32});
      CHECK(mx.scale.rule == rule);
      CHECK(mx.follows_reduction());
      CHECK(Quantizer::parse(std::string("e5m2-axis3") + flag).scale.rule == rule);
    }
    for (const char* text : {"e4m3", "fixed8.4", "bfp8-g32", "hbfp8", "fp32"})
      CHECK(Quantizer::parse(text).scale.rule == Scale::Rule::None);
  }

  TEST_CASE("what cannot be is refused, and why") {
    const std::pair<const char*, const char*> refusals[] = {
        {"e4m0", "NaN code"},
        {"e4m0-ieee", "NaN code"},
        {"e1m2", "normal numbers"},
        {"e1m2-ieee", "normal numbers"},
        {"e1m0-fn", "normal numbers"},
        {"e8m0", "scales"},
        {"e8m0-none", "scales"},
        {"e8m7-fn", "beyond fp32"},
        {"e8m7-none-bias126", "beyond fp32"},
        {"e5m2-bias-200", "beyond fp32"},
        {"e8m23-bias128", "below fp32"},
        {"e4m3-bias148", "below fp32"},
        {"e9m2", "1 to 8 exponent bits"},
        {"e0m2", "1 to 8 exponent bits"},
        {"e5m24", "0 to 23 significand bits"},
        {"e99999999999m2", "1 to 8 exponent bits"},
        {"e4m3-inf", "Inf codes"},
        {"e4m3-fnuz-inf", "Inf codes"},
        {"e2m1-nan", "NaN code"},
        {"e5m2-none-nan", "NaN code"},
        {"e4m3-ieee-fn", "given twice"},
        {"e4m3-sat-nan", "given twice"},
        {"e4m3-ftz-ftz", "given twice"},
        {"e4m3-bias3-bias3", "given twice"},
        {"e4m3-bias", "integer"},
        {"e4m3-biasx", "integer"},
        {"e4m3-bias--5", "integer"},
        {"e4m3-bias99999999999", "integer"},
        {"e4m3-wrap", "unknown flag '-wrap'"},
        {"e4m3-sym", "'-sym'; e4m3 takes -ieee -fn -fnuz -none -sat -inf -nan -ftz -biasB, and"},
        {"e4m3-u", "-gN -axisK -tRxC with -floor -ceil -even -rceil -shift -scalee4m3 -scalef32"},
        {"e4m3-", "unknown flag '-'"},
        {"e4m3--sat", "unknown flag '-'"},
        {"fp32-sat", "unknown flag '-sat'; fp32 takes no flags"},
        {"nf4-sat", "nf4 takes for blocks -gN -axisK -tRxC with -scalef32"},
        {"posit8.1-u", "posit8.1 takes for blocks -gN -axisK -tRxC with -scalef32"},
        {"fixed26.4", "25"},
        {"fixed0.0", "25"},
        {"fixed25.4-u", "24 unsigned"},
        {"fixed8.150", "2^-150"},
        {"fixed8.-127", "2^127"},
        {"fixed8.-121", "2^128"},
        {"fixed8.4-sym-u", "exclude each other"},
        {"fixed8.4-sym-wrap", "exclude each other"},
        {"fixed8.4-sym-noclamp", "removes it"},
        {"fixed1.0-sym", "only zero"},
        {"fixed8.4-sat-wrap", "given twice"},
        {"fixed8.4-sym-sym", "given twice"},
        {"fixed8.4-ftz", "unknown flag '-ftz'"},
        {"fixed8.4-inf", "'-inf'; fixed8.4 takes -sym -u -sat -wrap -noclamp, and for blocks"},
        {"fixed8", "unknown format"},
        {"fixed8.", "unknown format"},
        {"fixed8.4.2", "unknown format"},
        {"bfp1", "2 to 25 bits"},
        {"bfp26", "2 to 25 bits"},
        {"bfp8-axis8", "axis 0 to 7"},
        {"bfp8-axis-1", "unknown flag '-axis'"},
        {"bfp8-g0", "1 to 999999 elements, got 0"},
        {"bfp8-g32-axis1", "given twice"},
        {"bfp8-sat", "unknown flag '-sat'"},
        {"", "unknown format ''"},
        {"-sat", "unknown format"},
        {"float8", "unknown format 'float8'"},
        {"E4M3", "unknown format"},
        {" e4m3", "unknown format"},
        {"e4m3 ", "unknown format"},
        {"e4", "unknown format"},
        {"em", "unknown format"},
        {"e4m3x", "unknown format"},
        {"e4m3+nothing", "unknown part '+nothing'"},
        {"e4m3+", "unknown part '+'"},
        {"e4m3+rht8", "unknown part '+rht8'"},
        {"mxfp4+rht16+rht32", "given twice"},
        {"mxfp4+q34+q34", "given twice"},
        {"e4m3+q34", "power-of-two scales"},
        {"nvfp4+q34", "power-of-two scales"},
        {"bfp8+q34", "power-of-two scales"},
        {"fp32+rht16", "fp32 is not rounded"},
        {"fp32+scale=current", "fp32 is not rounded"},
        {"e4m3+scale=", "unknown part '+scale='"},
        {"e4m3+scale=column", "unknown part '+scale=column'"},
        {"e4m3+scale=current+scale=row", "without blocks"},
        {"mxfp8+scale=current", "without blocks"},
        {"bfp8+scale=row", "exponents of their own"},
        {"e4m3+scale=delayed", "1 to 1024 calls"},
        {"e4m3+scale=delayed0", "1 to 1024 calls"},
        {"e4m3+scale=delayed1025", "1 to 1024 calls"},
        {"e4m3-scalef32", "needs blocks"},
        {"e4m3-scalee4m3", "needs blocks"},
        {"e4m3-g32-scalef32-ceil", "given twice"},
        {"nvfp4-scalef32", "given twice"},
        {"nvfp4-g16-t4x4", "blocks are given twice"},
        {"nvfp4-sat", "unknown flag '-sat'; nvfp4 takes -gN -axisK -tRxC"},
        {"nvfp4-t16x16-bias3", "unknown flag '-bias3'; nvfp4 takes"},
        {"nvfp4-ftz-wrap", "unknown flag '-ftz'; nvfp4 takes"},
        {"nvfp4-none", "unknown flag '-none'; nvfp4 takes"},
        {"nf4-g64", "posits and tables take -scalef32"},
        {"posit8.1-g32-scalee4m3", "posits and tables take -scalef32"},
        {"fixed8.4-wrap+scale=current", "saturate"},
        {"e4m3-nan+scale=row", "saturate"},
        {"e4m3:", "unknown rounding ''"},
        {"e4m3:nearest", "unknown rounding 'nearest'"},
        {"e4m3:sr0", "1 to 32 random bits"},
        {"e4m3:sr33", "1 to 32 random bits"},
        {"e4m3:srf", "unknown rounding"},
        {"e4m3:sr8x", "unknown rounding"},
        {"e4m3:sr8fc", "unknown rounding"},
        {"e4m3:rne:sr", "unknown rounding"},
        {"fp32:sr", "fp32 is not rounded"},
        {"binary8p0", "1 to 7 significand bits"},
        {"binary8p8", "1 to 7 significand bits"},
        {"binary8p", "unknown format"},
        {"binary16p3", "unknown format"},
        {"binary8p3-inf", "'-inf'; binary8p3 takes -finite -unsigned -sat -nan, and for blocks"},
        {"binary8p3-fn", "unknown flag '-fn'"},
        {"binary8p3-ftz", "unknown flag '-ftz'"},
        {"binary8p3-bias5", "unknown flag '-bias5'"},
        {"binary8p3-u", "unknown flag '-u'"},
        {"binary8p3-finite-finite", "given twice"},
        {"binary8p3-unsigned-unsigned", "-unsigned is given twice"},
        {"binary8p3-sat-nan", "given twice"},
        {"e4m3-unsigned", "unknown flag '-unsigned'"},
        {"e4m3-finite", "unknown flag '-finite'"},
        {"hbfp0", "1 to 24 bits"},
        {"hbfp25", "1 to 24 bits"},
        {"hbfp", "unknown format"},
        {"hbfp8-sat", "unknown flag '-sat'"},
        {"hbfp8-ceil", "exponent rule is its own"},
        {"hbfp8-g32-even", "exponent rule is its own"},
        {"bfp8-floor", "exponent rule is its own"},
        {"bfp8-t4x4-rceil", "exponent rule is its own"},
        {"e4m3-floor", "a scale rule needs blocks"},
        {"e4m3-ceil:sr", "a scale rule needs blocks"},
        {"fixed8.4-rceil", "a scale rule needs blocks"},
        {"fp32-even", "a scale rule needs blocks"},
        {"fp32-g32", "fp32 has no blocks"},
        {"fp32-t4x4-floor", "fp32 has no blocks"},
        {"e4m3-g32-floor-ceil", "scale rule is given twice"},
        {"mxfp8-floor-floor", "scale rule is given twice"},
        {"mxfp8-g16", "blocks are given twice"},
        {"mxint8-axis0", "blocks are given twice"},
        {"e4m3-g32-t4x4", "blocks are given twice"},
        {"e4m3-t4x4-t4x4", "blocks are given twice"},
        {"bfp8-t4x4-axis0", "blocks are given twice"},
        {"e4m3-t0x4", "1 to 999999 rows and columns, got 0x4"},
        {"e4m3-t4x99999999999", "1 to 999999 rows and columns, got 4x99999999999"},
        {"bfp8-t4x0", "1 to 999999 rows and columns, got 4x0"},
        {"e4m3-t4", "unknown flag '-t4'"},
        {"e4m3-t4x", "unknown flag '-t4x'"},
        {"e4m3-tx4", "unknown flag '-tx4'"},
        {"e4m3-t4x4x4", "unknown flag '-t4x4x4'"},
        {"e4m3-t04x4", "unknown flag '-t04x4'"},
        {"e4m3-g0", "1 to 999999 elements, got 0"},
        {"e4m3-g99999999999", "1 to 999999 elements, got 99999999999"},
        {"e4m3-g", "unknown flag '-g'"},
        {"e4m3-gx", "unknown flag '-gx'"},
        {"e4m3-axis8", "axis 0 to 7"},
        {"e4m3-g32-nan", "saturate"},
        {"e5m2-axis0-nan", "saturate"},
        {"mxfp8-nan", "saturate"},
        {"fixed8.6-g32-wrap", "saturate"},
        {"fixed8.6-g32-noclamp", "saturate"},
        {"binary8p3-g32-nan", "saturate"},
        {"mxint8-wrap", "exclude each other"},
        {"bf16-g32", "12 significant bits"},
        {"fp16-g32", "12 significant bits"},
        {"e6m2-g32", "12 significant bits"},
        {"e4m12-g32", "12 significant bits"},
        {"fixed14.6-g32", "12 significant bits"},
        {"fixed8.23-g32", "12 significant bits"},
        {"fixed8.-10-g32", "12 significant bits"},
        {"fixed1.0-g32", "without positive numbers"},
        {"binary8p1-g32", "12 significant bits"},
        {"mxfp5", "unknown format"},
        {"mxfp8-e4m3", "unknown flag '-e4m3'"},
        {"mxfp4-e5m2", "unknown flag '-e5m2'"},
        {"mxfp8-sat-e5m2", "unknown flag '-e5m2'"},
        {"mxint4", "unknown format"},
    };
    for (const auto& [text, word] : refusals) {
      const std::string why = refusal(text);
      INFO("'" << std::string(text) << "' says: " << why);
      CHECK(why.find(word) != std::string::npos);
      CHECK(why.find(text) != std::string::npos);
      CHECK(why.find('\n') == std::string::npos);
    }
    CHECK_THROWS_AS(fixed_format(26, 0), Error);
    CHECK_THROWS_AS(fixed_format(8, 150), Error);
    CHECK_THROWS_AS(block_float_format(1), Error);
    // The neighbours of refusals are taken.
    for (const char* text : {"e8m7-fn-bias128",
                             "e8m23",
                             "e8m22-fnuz",
                             "e4m3-bias147",
                             "fixed25.4",
                             "fixed24.4-u",
                             "fixed8.149",
                             "fixed8.-120",
                             "fixed2.0-sym",
                             "bfp2",
                             "bfp25",
                             "bfp8-axis7",
                             "bfp8-g1",
                             "e4m3:sr1",
                             "e4m3:sr32c",
                             "e1m0-none",
                             "e1m2-fn",
                             "e4m0-none",
                             "e8m23-none",
                             "binary8p1",
                             "binary8p7",
                             "hbfp1",
                             "hbfp24",
                             "e4m3-t1x1",
                             "e5m7-g2",
                             "fixed13.6-g32",
                             "fixed12.22-u-g32",
                             "fixed8.-8-g32",
                             "fixed1.0-u-g32",
                             "e1m0-none-g32"}) {
      INFO(text);
      CHECK(refusal(text) == "");
    }
  }
}

}  // namespace ulp
