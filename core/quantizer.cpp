#include "core/quantizer.h"

#include <algorithm>
#include <optional>

#include "core/codebook.h"
#include "core/error.h"
#include "core/format_text.h"
#include "core/grid.h"

namespace ulp {
namespace {

struct RoundingName {
  const char* name;
  Rounding rounding;
};
constexpr RoundingName kRoundings[] = {
    {"rne", Rounding::NearestEven}, {"rna", Rounding::NearestAway}, {"rnu", Rounding::NearestUp},
    {"rtz", Rounding::TowardZero},  {"ru", Rounding::Up},           {"rd", Rounding::Down},
    {"odd", Rounding::Odd},         {"sr", Rounding::Stochastic},
};

/// False if there is no such rounding.
bool read_rounding(Quantizer& q, std::string_view name, std::string_view whole) {
  for (const RoundingName& known : kRoundings)
    if (name == known.name) {
      q.rounding = known.rounding;
      return true;
    }
  std::string_view rest = name;
  if (!text::take(rest, "sr")) return false;
  RandomBits bits;
  if (rest.ends_with('f')) bits.variant = RandomBits::Variant::Centred;
  if (rest.ends_with('c')) bits.variant = RandomBits::Variant::Nearest;
  if (bits.variant != RandomBits::Variant::Plain) rest.remove_suffix(1);
  const auto count = text::number(rest);
  if (!count.has_value()) return false;
  ULP_CHECK(*count >= 1 && *count <= 32,
            "{}: stochastic rounding takes 1 to 32 random bits, got {}", whole, *count);
  bits.count = static_cast<uint8_t>(*count);
  q.rounding = Rounding::Stochastic;
  q.bits = bits;
  return true;
}

constexpr int kMostExtent = 999999;  // of a block

bool parse_block(Quantizer& q, std::string_view flag, std::string_view whole) {
  Block block;
  std::string_view rest = flag;
  if (text::take(rest, "axis")) {
    const auto axis = text::number(rest);
    if (!axis) return false;
    ULP_CHECK(*axis >= 0 && *axis < 8, "{}: -axisK names axis 0 to 7, got {}", whole, *axis);
    block.kind = Block::Kind::Axis;
    block.axis = static_cast<int8_t>(*axis);
  } else if (rest.size() > 1 && rest[0] == 'g' && text::number(rest.substr(1))) {
    const int size = *text::number(rest.substr(1));
    ULP_CHECK(size >= 1 && size <= kMostExtent, "{}: -gN takes groups of 1 to {} elements, got {}",
              whole, kMostExtent, rest.substr(1));
    block.kind = Block::Kind::Group;
    block.columns = size;
  } else if (rest.size() > 1 && rest[0] == 't' && rest.find('x') != std::string_view::npos) {
    const size_t x = rest.find('x');
    const auto rows = text::number(rest.substr(1, x - 1)),
               columns = text::number(rest.substr(x + 1));
    if (!rows || !columns) return false;
    ULP_CHECK(std::min(*rows, *columns) >= 1 && std::max(*rows, *columns) <= kMostExtent,
              "{}: -tRxC takes tiles of 1 to {} rows and columns, got {}", whole, kMostExtent,
              rest.substr(1));
    block.kind = Block::Kind::Tile;
    block.rows = *rows;
    block.columns = *columns;
  } else {
    return false;
  }
  ULP_CHECK(q.block.kind == Block::Kind::None, "{}: its blocks are given twice", whole);
  q.block = block;
  return true;
}

struct RuleName {
  const char* flag;
  Scale::Rule rule;
};
constexpr RuleName kRules[] = {{"floor", Scale::Rule::Floor},
                               {"ceil", Scale::Rule::Ceil},
                               {"even", Scale::Rule::Even},
                               {"rceil", Scale::Rule::RoundCeil},
                               {"shift", Scale::Rule::Shift}};

std::optional<Scale::Rule> rule_named(std::string_view name) {
  for (const RuleName& known : kRules)
    if (name == known.flag) return known.rule;
  return {};
}

struct ScaleName {
  const char* flag;
  Scale::Kind kind;
};
constexpr const char* kTensorScaled = "nvfp4 scale";  // no flag: only the name nvfp4 asks for it
constexpr ScaleName kScales[] = {{"scalee4m3", Scale::Kind::E4M3},
                                 {"scalef32", Scale::Kind::F32},
                                 {kTensorScaled, Scale::Kind::E4M3Tensor}};

void set_scale(Quantizer& q, const Scale& scale, std::string_view whole) {
  ULP_CHECK(q.scale.kind == Scale::Kind::None, "{}: the scale rule is given twice", whole);
  q.scale = scale;
}

bool parse_scale(Quantizer& q, std::string_view flag, std::string_view whole) {
  if (const auto rule = rule_named(flag)) {
    set_scale(q, {Scale::Kind::PowerOfTwo, *rule, 0}, whole);
    return true;
  }
  for (const ScaleName& known : kScales)
    if (flag == known.flag) {
      set_scale(q, {known.kind, Scale::Rule::None, 0}, whole);
      return true;
    }
  return false;
}

constexpr int kMostHistory = 1024;

/// "scale=current", "rht16" … behind a '+'.
void parse_part(Quantizer& q, std::string_view part, std::string_view whole) {
  std::string_view rest = part;
  if (part == "rht16" || part == "rht32") {
    ULP_CHECK(q.transform.hadamard == 0, "{}: a Hadamard rotation is given twice", whole);
    q.transform.hadamard = part == "rht16" ? 16 : 32;
    return;
  }
  if (part == "q34") {
    ULP_CHECK(!q.transform.three_quarters, "{}: +q34 is given twice", whole);
    q.transform.three_quarters = true;
    return;
  }
  if (text::take(rest, "scale=")) {
    ULP_CHECK(q.block.kind == Block::Kind::None && q.scale.kind == Scale::Kind::None,
              "{}: +scale= is for formats without blocks; blocks have scales of their own "
              "(-scalef32, -scalee4m3)",
              whole);
    if (rest == "row") {
      q.block.kind = Block::Kind::Row;
      q.scale.kind = Scale::Kind::F32;
      return;
    }
    q.block.kind = Block::Kind::Tensor;
    q.scale.kind = Scale::Kind::F32;
    if (rest == "current") return;
    if (rest == "squeeze") {
      q.scale.kind = Scale::Kind::Squeeze;
      return;
    }
    if (const auto rule = rule_named(rest)) {
      q.scale = {Scale::Kind::PowerOfTwo, *rule, 0};
      return;
    }
    if (text::take(rest, "delayed")) {
      const auto history = text::number(rest);
      ULP_CHECK(history.has_value() && *history >= 1 && *history <= kMostHistory,
                "{}: +scale=delayedN remembers 1 to {} calls, got '{}'", whole, kMostHistory, rest);
      q.scale = {Scale::Kind::Delayed, Scale::Rule::None, static_cast<uint16_t>(*history)};
      return;
    }
  }
  throw_error(
      "{}: unknown part '+{}'; there are rht16, rht32, q34 and "
      "scale=current|row|delayedN|squeeze|floor|ceil|even|rceil|shift",
      whole, part);
}

/// The OCP MX formats: groups of 32 of an element format. Source: OCP Microscaling Formats (MX) specification 1.0, §5.
struct MxName {
  const char *name, *element;
};
constexpr MxName kMx[] = {{"mxfp8-e5m2", "e5m2"}, {"mxfp8", "e4m3"}, {"mxfp6-e3m2", "e3m2"},
                          {"mxfp6", "e2m3"},      {"mxfp4", "e2m1"}, {"mxint8", "fixed8.6-sym"}};
constexpr int kMxGroup = 32;

constexpr const char* kNvfp4 = "nvfp4";
constexpr int kNvfp4Group = 16;

bool is_block_flag(std::string_view flag) {
  Quantizer q;
  return parse_block(q, flag, flag);
}

/// "mxfp8-e5m2-rceil" → the tokens of e5m2-g32-rceil, "nvfp4" → those of e2m1-g16 with its scale. Other names stay as they
/// are.
std::vector<std::string_view> expand_named(std::vector<std::string_view> tokens) {
  if (tokens.front() == kNvfp4) {
    tokens.front() = "e2m1";
    if (std::none_of(tokens.begin() + 1, tokens.end(), is_block_flag)) tokens.push_back("g16");
    tokens.push_back(kTensorScaled);
    return tokens;
  }
  for (const MxName& mx : kMx) {
    const auto name = text::split(mx.name, '-');
    if (tokens.size() < name.size() || !std::equal(name.begin(), name.end(), tokens.begin()))
      continue;
    auto expanded = text::split(mx.element, '-');
    expanded.push_back("g32");
    expanded.insert(expanded.end(), tokens.begin() + static_cast<std::ptrdiff_t>(name.size()),
                    tokens.end());
    return expanded;
  }
  return tokens;
}

bool shares_exponent(const Format& f) {
  return f.kind == FormatKind::BlockFloat || f.kind == FormatKind::Hbfp;
}

/// Completes the scale and throws if it does not go with the format.
void settle_scale(Quantizer& q, std::string_view whole) {
  const Format& f = q.format;
  if (shares_exponent(f)) {
    ULP_CHECK(q.scale.kind == Scale::Kind::None,
              "{}: its exponent rule is its own; scales and their rules are for other elements",
              whole);
    if (q.block.kind == Block::Kind::None) q.block.kind = Block::Kind::Tensor;
    return;
  }
  if (q.block.kind == Block::Kind::None) {
    ULP_CHECK(q.scale.kind == Scale::Kind::None,
              "{}: a scale rule needs blocks (-gN, -axisK or -tRxC); without them there is "
              "+scale=current|row|delayedN|squeeze|floor|ceil|even|rceil|shift",
              whole);
    return;
  }
  if (q.scale.kind == Scale::Kind::Squeeze) {
    ULP_CHECK(f.kind == FormatKind::Float && limits_of(f).emax > 0,
              "{}: +scale=squeeze is for floats (eXmY) with numbers from 2 on", whole);
    return;
  }
  if (q.scale.kind == Scale::Kind::None) q.scale = {Scale::Kind::PowerOfTwo, Scale::Rule::Floor, 0};
  const bool is_factor = q.scale.kind == Scale::Kind::F32 || q.scale.kind == Scale::Kind::Delayed;
  const bool is_list = f.kind == FormatKind::Posit || f.kind == FormatKind::Codebook;
  ULP_CHECK(f.kind == FormatKind::Float || f.kind == FormatKind::Fixed || (is_list && is_factor),
            "{}: such scales are for floats (eXmY) and fixed point; posits and tables take "
            "-scalef32 and +scale=",
            whole);
  if (is_list) return;
  const FormatLimits limits = limits_of(f);
  ULP_CHECK(
      f.overflow != Overflow::Wrap && f.overflow != Overflow::None && f.overflow != Overflow::Nan,
      "{}: elements of a scaled block saturate; leave -wrap, -noclamp and -nan out", whole);
  ULP_CHECK(limits.max > 0, "{}: an element without positive numbers cannot be scaled", whole);
  if (is_factor) return;
  ULP_CHECK(limits.emax <= 15 && limits.quantum >= -22 && limits.significant_bits <= 12,
            "{}: an element of a scaled block has at most 12 significant bits within 2^-22 … 2^15",
            whole);
}

void check_transform(const Quantizer& q, std::string_view whole) {
  if (q.transform == Transform{}) return;
  ULP_CHECK(q.scale.kind != Scale::Kind::Squeeze, "{}: +scale=squeeze goes with no transform",
            whole);
  ULP_CHECK(!q.is_identity(), "{}: fp32 is not rounded; a transform would change nothing", whole);
  ULP_CHECK(!q.transform.three_quarters || q.scale.kind == Scale::Kind::PowerOfTwo,
            "{}: +q34 is for blocks with power-of-two scales (mxfp4+q34); others do not clip",
            whole);
}

}  // namespace

Quantizer Quantizer::parse(std::string_view whole) {
  Quantizer q;
  // table=PATH may contain '-' and '+', and ':' if a rounding follows.
  const bool is_path = whole.starts_with("table=");
  const size_t colon = is_path ? whole.rfind(':') : whole.find(':');
  if (is_path && colon != std::string_view::npos)
    ULP_CHECK(read_rounding(q, whole.substr(colon + 1), whole),
              "{}: unknown rounding '{}'; if it is part of the path, write {}:rne", whole,
              whole.substr(colon + 1), whole);
  std::vector<std::string_view> parts{whole.substr(0, colon)};
  if (!is_path) parts = text::split(parts.front(), '+');
  std::vector<std::string_view> own, tokens{parts.front()};
  if (!is_path) tokens = expand_named(text::format_tokens(parts.front()));
  own.push_back(tokens.front());
  for (size_t i = 1; i < tokens.size(); ++i)
    if (!parse_block(q, tokens[i], whole) && !parse_scale(q, tokens[i], whole))
      own.push_back(tokens[i]);
  ULP_CHECK(q.scale.kind != Scale::Kind::E4M3Tensor || own.size() == 1,
            "{}: unknown flag '-{}'; nvfp4 takes -gN -axisK -tRxC", whole, own[1]);
  q.format = text::parse_format(own, whole);
  ULP_CHECK(!q.format.is_fp32() || q.block.kind == Block::Kind::None, "{}: fp32 has no blocks",
            whole);
  for (size_t i = 1; i < parts.size(); ++i) {
    ULP_CHECK(!shares_exponent(q.format) || !parts[i].starts_with("scale="),
              "{}: its blocks have exponents of their own; leave +{} out", whole, parts[i]);
    ULP_CHECK(!q.is_identity() || !parts[i].starts_with("scale="),
              "{}: fp32 is not rounded; leave +{} out", whole, parts[i]);
    parse_part(q, parts[i], whole);
  }
  settle_scale(q, whole);
  check_transform(q, whole);
  if (colon != std::string_view::npos) {
    ULP_CHECK(!q.format.is_fp32(), "{}: fp32 is not rounded; leave '{}' out", whole,
              whole.substr(colon));
    ULP_CHECK(
        read_rounding(q, whole.substr(colon + 1), whole),
        "{}: unknown rounding '{}'; wanted rne, rna, rnu, rtz, ru, rd, odd, sr, or srN, srNf, "
        "srNc with N random bits",
        whole, whole.substr(colon + 1));
  }
  return q;
}

std::string to_string(Rounding rounding) {
  for (const RoundingName& known : kRoundings)
    if (rounding == known.rounding) return known.name;
  return "?";
}

namespace {

std::string block_text(const Block& block) {
  switch (block.kind) {
    case Block::Kind::Axis: return "-axis" + std::to_string(block.axis);
    case Block::Kind::Group: return "-g" + std::to_string(block.columns);
    case Block::Kind::Tile:
      return "-t" + std::to_string(block.rows) + "x" + std::to_string(block.columns);
    default: return "";
  }
}

/// Format, blocks and scale.
std::string scaled_text(const Quantizer& q) {
  std::string name = to_string(q.format), blocks = block_text(q.block);
  switch (q.scale.kind) {
    case Scale::Kind::None: return name + blocks;
    case Scale::Kind::E4M3: return name + blocks + "-scalee4m3";
    case Scale::Kind::E4M3Tensor:
      return kNvfp4 + (blocks == "-g" + std::to_string(kNvfp4Group) ? "" : blocks);
    case Scale::Kind::Delayed: return name + "+scale=delayed" + std::to_string(q.scale.history);
    case Scale::Kind::Squeeze: return name + "+scale=squeeze";
    case Scale::Kind::F32:
      if (q.block.kind == Block::Kind::Tensor) return name + "+scale=current";
      if (q.block.kind == Block::Kind::Row) return name + "+scale=row";
      return name + blocks + "-scalef32";
    case Scale::Kind::PowerOfTwo: break;
  }
  if (blocks == "-g" + std::to_string(kMxGroup))
    for (const MxName& mx : kMx)
      if (name == mx.element) {
        name = mx.name;
        blocks.clear();
        break;
      }
  name += blocks;
  const bool of_tensor = q.block.kind == Block::Kind::Tensor;
  if (of_tensor || q.scale.rule != Scale::Rule::Floor)
    for (const RuleName& known : kRules)
      if (q.scale.rule == known.rule)
        name += (of_tensor ? "+scale=" : "-") + std::string(known.flag);
  return name;
}

}  // namespace

std::string to_string(const Quantizer& q) {
  std::string name = scaled_text(q);
  if (q.transform.hadamard != 0) name += "+rht" + std::to_string(q.transform.hadamard);
  if (q.transform.three_quarters) name += "+q34";
  const bool is_clear =
      name.find(':') == std::string::npos;  // no path could be taken for a rounding
  if (q.is_identity() || (q.rounding == Rounding::NearestEven && is_clear)) return name;
  name += ":" + to_string(q.rounding);
  if (q.rounding == Rounding::Stochastic && q.bits != RandomBits{}) {
    name += std::to_string(q.bits.count);
    if (q.bits.variant == RandomBits::Variant::Centred) name += "f";
    if (q.bits.variant == RandomBits::Variant::Nearest) name += "c";
  }
  return name;
}

Grid make_grid(const Quantizer& q) {
  const Format& f = q.format;
  Grid grid{};
  grid.rounding = q.rounding;
  grid.bits = q.bits;
  grid.infinity_bits[0] = grid.infinity_bits[1] = kNanBits;
  if (f.kind == FormatKind::BlockFloat || f.kind == FormatKind::Hbfp) {
    grid.significand_bits = kUniform;
    return grid;
  }
  if (f.kind == FormatKind::Posit) {
    grid.kind = GridKind::Posit;
    grid.posit_bits = static_cast<int8_t>(f.word_bits);
    grid.posit_exponent_bits = static_cast<int8_t>(f.exponent_bits);
    return grid;
  }
  if (f.kind == FormatKind::Codebook) {
    const std::vector<float>& values = codebook(f.table).values;
    grid.kind = GridKind::Table;
    grid.table = values.data();
    grid.table_size = static_cast<int32_t>(values.size());
    return grid;
  }
  const FormatLimits limits = limits_of(f);
  grid.min_quantum = limits.quantum;
  grid.max_bits[0] = bits_of(static_cast<float>(limits.max));
  grid.max_bits[1] = bits_of(static_cast<float>(-limits.lowest)) & ~kSignBit;
  for (const int s : {0, 1}) {
    const uint32_t sign = s == 1 && grid.max_bits[1] != 0 ? kSignBit : 0;
    const bool points_back = q.rounding == Rounding::TowardZero || q.rounding == Rounding::Odd ||
                             (q.rounding == Rounding::Up && s == 1) ||
                             (q.rounding == Rounding::Down && s == 0);
    grid.overflow_bits[s] = grid.max_bits[s] | sign;
    if (f.overflow == Overflow::Infinity && !points_back)
      grid.overflow_bits[s] = kInfinityBits | sign;
    if (f.overflow == Overflow::Nan) grid.overflow_bits[s] = kNanBits;
    if (f.overflow == Overflow::Saturate) grid.infinity_bits[s] = grid.max_bits[s] | sign;
    if (limits.has_infinity) grid.infinity_bits[s] = kInfinityBits | sign;
    if (q.scale.kind != Scale::Kind::None) {  // saturates, also where x · before is beyond fp32
      grid.overflow_bits[s] = grid.infinity_bits[s] = grid.max_bits[s] | sign;
    }
    if (limits.lowest == 0 && s == 1) {  // an unsigned format
      grid.overflow_bits[s] = 0;
      const bool saturates = f.overflow == Overflow::Saturate || q.scale.kind != Scale::Kind::None;
      grid.infinity_bits[s] = saturates ? 0 : kNanBits;
    }
  }
  if (f.kind == FormatKind::Fixed) {
    grid.significand_bits = kUniform;
    if (f.overflow == Overflow::None || f.overflow == Overflow::Wrap)
      grid.max_bits[0] = grid.max_bits[1] = kInfinityBits;
    if (f.overflow == Overflow::Wrap) {
      grid.wrap_bits = static_cast<int8_t>(f.word_bits);
      grid.wrap_unsigned = f.is_unsigned;
    }
    return grid;
  }
  grid.significand_bits = f.kind == FormatKind::Fp32 ? 23 : f.significand_bits;
  if (f.flush_subnormals) grid.min_normal_bits = bits_of(static_cast<float>(limits.min_normal));
  const bool p3109 = f.specials == Specials::P3109 || f.specials == Specials::P3109Finite;
  if (p3109 && f.significand_bits == 0) grid.kind = GridKind::OneBit;
  grid.zero_sign = p3109 || f.specials == Specials::Fnuz ? 0 : kSignBit;
  if (f.kind == FormatKind::Float && f.specials == Specials::None && limits.has_infinity &&
      q.scale.kind == Scale::Kind::None)  // e8mY-none: its numbers from 2^128 on read as Inf
    for (const int s : {0, 1})
      grid.overflow_bits[s] = grid.infinity_bits[s] = kInfinityBits | (s == 1 ? kSignBit : 0);
  return grid;
}

namespace {

float largest_magnitude(const Format& f) {
  const FormatLimits limits = limits_of(f);
  const double least = f.kind == FormatKind::Codebook ? -limits.lowest : 0;
  return static_cast<float>(std::max(limits.max, least));
}

}  // namespace

BlockRule make_block_rule(const Quantizer& q, DType out) {
  BlockRule rule{};
  rule.word_bits = q.format.word_bits;
  rule.kind = q.format.kind == FormatKind::BlockFloat ? BlockRule::Kind::BlockFloat
              : q.format.kind == FormatKind::Hbfp     ? BlockRule::Kind::Hbfp
                                                      : BlockRule::Kind::Scaled;
  if (rule.kind != BlockRule::Kind::Scaled) return rule;
  const FormatLimits limits = limits_of(q.format);
  rule.scale = q.scale;
  rule.emax = limits.emax;
  rule.precision = limits.significant_bits;
  rule.max = largest_magnitude(q.format);
  rule.inverse_max = 1.0f / rule.max;
  rule.three_quarters = q.transform.three_quarters;
  rule.most_scale = 254 - std::max(0, limits.quantum);
  rule.least_scale = out == DType::BF16 ? std::max(0, -133 + 127 - limits.quantum) : 0;
  return rule;
}

bool fits(const Quantizer& q, DType dtype) {
  if (dtype == DType::F32 || dtype == DType::F64) return true;
  if (q.scale.kind == Scale::Kind::Squeeze) return false;
  if (q.scale.kind == Scale::Kind::PowerOfTwo)
    return dtype == DType::BF16 && limits_of(q.format).significant_bits <= 8;
  if (q.scale.kind != Scale::Kind::E4M3 && q.scale.kind != Scale::Kind::E4M3Tensor)
    return fits(q.format, dtype);
  // q · d with d an e4m3 number: 4 more significant bits, exponents from 2^−9 up to 448.
  const FormatLimits limits = limits_of(q.format);
  const int bits = limits.significant_bits + 4;
  if (dtype == DType::BF16) return bits <= 8;
  return dtype == DType::F16 && bits <= 11 && limits.quantum - 9 >= -24 &&
         limits.max * 448 <= 65504 && limits.lowest * 448 >= -65504;
}

DType storage_type(const Quantizer& q) {
  if (q.has_factor() || q.transform.hadamard != 0) return DType::F32;
  for (const DType dtype : {DType::F8E4M3, DType::F8E5M2, DType::BF16, DType::F16})
    if (fits(q, dtype)) return dtype;
  return DType::F32;
}

DType gemm_type(const Quantizer& q) {
  for (const DType dtype : {DType::BF16, DType::F16})
    if (fits(q, dtype)) return dtype;
  return DType::F32;
}

}  // namespace ulp
