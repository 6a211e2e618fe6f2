#include "core/quantizer.h"

#include <algorithm>

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

void parse_rounding(Quantizer& q, std::string_view name, std::string_view whole) {
  for (const RoundingName& known : kRoundings)
    if (name == known.name) {
      q.rounding = known.rounding;
      return;
    }
  std::string_view rest = name;
  if (text::take(rest, "sr")) {
    RandomBits bits;
    if (rest.ends_with('f')) bits.variant = RandomBits::Variant::Centred;
    if (rest.ends_with('c')) bits.variant = RandomBits::Variant::Nearest;
    if (bits.variant != RandomBits::Variant::Plain) rest.remove_suffix(1);
    const auto count = text::number(rest);
    if (count.has_value()) {
      ULP_CHECK(*count >= 1 && *count <= 32,
                "{}: stochastic rounding takes 1 to 32 random bits, got {}", whole, *count);
      bits.count = static_cast<uint8_t>(*count);
      q.rounding = Rounding::Stochastic;
      q.bits = bits;
      return;
    }
  }
  throw_error(
      "{}: unknown rounding '{}'; wanted rne, rna, rnu, rtz, ru, rd, odd, sr, or srN, srNf, srNc "
      "with "
      "N random bits",
      whole, name);
}

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
    ULP_CHECK(size >= 1 && size < 1000000, "{}: -gN needs a group of at least 1 element, got {}",
              whole, size);
    block.kind = Block::Kind::Group;
    block.columns = size;
  } else if (rest.size() > 1 && rest[0] == 't' && rest.find('x') != std::string_view::npos) {
    const size_t x = rest.find('x');
    const auto rows = text::number(rest.substr(1, x - 1)),
               columns = text::number(rest.substr(x + 1));
    if (!rows || !columns) return false;
    ULP_CHECK(*rows >= 1 && *columns >= 1 && *rows < 1000000 && *columns < 1000000,
              "{}: -tRxC needs a tile of at least 1 x 1", whole);
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
                               {"rceil", Scale::Rule::RoundCeil}};

bool parse_rule(Quantizer& q, std::string_view flag, std::string_view whole) {
  for (const RuleName& known : kRules)
    if (flag == known.flag) {
      ULP_CHECK(q.scale.rule == Scale::Rule::None, "{}: the scale rule is given twice", whole);
      q.scale.rule = known.rule;
      return true;
    }
  return false;
}

/// The OCP MX formats: groups of 32 of an element format. Source: OCP Microscaling Formats (MX) specification 1.0, §5.
struct MxName {
  const char *name, *element;
};
constexpr MxName kMx[] = {{"mxfp8-e5m2", "e5m2"}, {"mxfp8", "e4m3"}, {"mxfp6-e3m2", "e3m2"},
                          {"mxfp6", "e2m3"},      {"mxfp4", "e2m1"}, {"mxint8", "fixed8.6-sym"}};
constexpr int kMxGroup = 32;

/// "mxfp8-e5m2-rceil" → the tokens of e5m2-g32-rceil. Other names stay as they are.
std::vector<std::string_view> expand_mx(std::vector<std::string_view> tokens) {
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

void check_scaled(const Quantizer& q, std::string_view whole) {
  const Format& f = q.format;
  if (f.kind == FormatKind::BlockFloat || f.kind == FormatKind::Hbfp) {
    ULP_CHECK(
        q.scale.rule == Scale::Rule::None,
        "{}: its exponent rule is its own; -floor, -ceil, -even and -rceil are for scaled elements",
        whole);
    return;
  }
  const bool blocks = q.block.kind != Block::Kind::None;
  ULP_CHECK(blocks || q.scale.rule == Scale::Rule::None,
            "{}: a scale rule needs blocks (-gN, -axisK or -tRxC)", whole);
  if (!blocks) return;
  ULP_CHECK(f.kind == FormatKind::Float || f.kind == FormatKind::Fixed,
            "{}: blocks scale floats (eXmY) and fixed point", whole);
  const FormatLimits limits = limits_of(f);
  ULP_CHECK(
      f.overflow != Overflow::Wrap && f.overflow != Overflow::None && f.overflow != Overflow::Nan,
      "{}: elements of a scaled block saturate; leave -wrap, -noclamp and -nan out", whole);
  ULP_CHECK(
      limits.max > 0 && limits.emax <= 15 && limits.quantum >= -22 && limits.significant_bits <= 12,
      "{}: an element of a scaled block has at most 12 significant bits within 2^-22 … 2^15",
      whole);
}

}  // namespace

Quantizer Quantizer::parse(std::string_view whole) {
  Quantizer q;
  // table=PATH may contain others.
  const size_t colon = whole.starts_with("table=") ? whole.rfind(':') : whole.find(':');
  const std::string_view name = whole.substr(0, colon);
  ULP_CHECK(name.starts_with("table=") || name.find('+') == std::string_view::npos,
            "{}: parts after '+' (transforms, scales) are not known here", whole);
  std::vector<std::string_view> own, tokens;
  if (name.starts_with("table="))
    tokens = {name};
  else
    tokens = expand_mx(text::format_tokens(name));
  own.push_back(tokens.front());
  for (size_t i = 1; i < tokens.size(); ++i)
    if (!parse_block(q, tokens[i], whole) && !parse_rule(q, tokens[i], whole))
      own.push_back(tokens[i]);
  q.format = text::parse_format(own, whole);
  ULP_CHECK(!q.format.is_fp32() || q.block.kind == Block::Kind::None, "{}: fp32 has no blocks",
            whole);
  const bool shares_exponent =
      q.format.kind == FormatKind::BlockFloat || q.format.kind == FormatKind::Hbfp;
  if (shares_exponent && q.block.kind == Block::Kind::None) q.block.kind = Block::Kind::Tensor;
  check_scaled(q, whole);
  if (!shares_exponent && q.block.kind != Block::Kind::None && q.scale.rule == Scale::Rule::None)
    q.scale.rule = Scale::Rule::Floor;
  if (colon != std::string_view::npos) {
    ULP_CHECK(!q.format.is_fp32(), "{}: fp32 is not rounded; leave '{}' out", whole,
              whole.substr(colon));
    parse_rounding(q, whole.substr(colon + 1), whole);
  }
  return q;
}

std::string to_string(Rounding rounding) {
  for (const RoundingName& known : kRoundings)
    if (rounding == known.rounding) return known.name;
  return "?";
}

std::string to_string(const Quantizer& q) {
  std::string name = to_string(q.format);
  bool is_mx = false;
  if (q.block == Block{Block::Kind::Group, 0, 0, kMxGroup} && q.scale.rule != Scale::Rule::None)
    for (const MxName& mx : kMx)
      if (!is_mx && name == mx.element) {
        name = mx.name;
        is_mx = true;
      }
  if (q.block.kind == Block::Kind::Axis) name += "-axis" + std::to_string(q.block.axis);
  if (q.block.kind == Block::Kind::Group && !is_mx) name += "-g" + std::to_string(q.block.columns);
  if (q.block.kind == Block::Kind::Tile)
    name += "-t" + std::to_string(q.block.rows) + "x" + std::to_string(q.block.columns);
  if (q.scale.rule != Scale::Rule::Floor)
    for (const RuleName& known : kRules)
      if (q.scale.rule == known.rule) name += std::string("-") + known.flag;
  if (q.rounding == Rounding::NearestEven || q.is_identity()) return name;
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
    if (q.scale.rule != Scale::Rule::None) {  // elements of a scaled block saturate
      grid.overflow_bits[s] = grid.max_bits[s] | sign;
      grid.infinity_bits[s] = kNanBits;
    }
    if (limits.lowest == 0 && s == 1) {  // an unsigned format
      grid.overflow_bits[s] = 0;
      grid.infinity_bits[s] = f.overflow == Overflow::Saturate ? 0 : kNanBits;
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
  if (f.kind == FormatKind::Float && f.specials == Specials::None && f.exponent_bits == 8 &&
      f.bias == 127 && limits.has_infinity) {  // its numbers from 2^128 on read as Inf
    for (const int s : {0, 1}) {
      const uint32_t sign = s == 1 ? kSignBit : 0;
      const bool saturates = f.overflow == Overflow::Saturate;
      grid.overflow_bits[s] = (saturates ? grid.max_bits[s] : kInfinityBits) | sign;
      grid.infinity_bits[s] = grid.overflow_bits[s];
    }
  }
  return grid;
}

BlockRule make_block_rule(const Quantizer& q, DType out) {
  BlockRule rule{};
  rule.word_bits = q.format.word_bits;
  switch (q.format.kind) {
    case FormatKind::BlockFloat: rule.kind = BlockRule::Kind::BlockFloat; return rule;
    case FormatKind::Hbfp: rule.kind = BlockRule::Kind::Hbfp; return rule;
    default: break;
  }
  const FormatLimits limits = limits_of(q.format);
  rule.kind = BlockRule::Kind::Scaled;
  rule.scale = q.scale.rule;
  rule.emax = limits.emax;
  rule.precision = limits.significant_bits;
  rule.inverse_max = 1.0f / static_cast<float>(limits.max);
  rule.most_scale = 254 - std::max(0, limits.quantum);
  rule.least_scale = out == DType::BF16 ? std::max(0, -133 + 127 - limits.quantum) : 0;
  return rule;
}

bool fits(const Quantizer& q, DType dtype) {
  if (q.scale.rule == Scale::Rule::None) return fits(q.format, dtype);
  if (dtype == DType::BF16) return limits_of(q.format).significant_bits <= 8;
  return dtype == DType::F32 || dtype == DType::F64;
}

DType storage_type(const Quantizer& q) {
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
