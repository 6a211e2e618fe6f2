#include "core/quantizer.h"

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
  } else {
    return false;
  }
  ULP_CHECK(q.block.kind == Block::Kind::None, "{}: its blocks are given twice", whole);
  q.block = block;
  return true;
}

}  // namespace

Quantizer Quantizer::parse(std::string_view whole) {
  Quantizer q;
  const size_t colon = whole.find(':');
  const std::string_view name = whole.substr(0, colon);
  ULP_CHECK(name.find('+') == std::string_view::npos,
            "{}: parts after '+' (transforms, scales) are not known here", whole);
  std::vector<std::string_view> own, tokens = text::format_tokens(name);
  const bool block_format = tokens.front().starts_with("bfp");
  for (const std::string_view token : tokens)
    if (!(block_format && parse_block(q, token, whole))) own.push_back(token);
  q.format = text::parse_format(own, whole);
  if (q.format.kind == FormatKind::BlockFloat && q.block.kind == Block::Kind::None)
    q.block.kind = Block::Kind::Tensor;
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
  if (q.block.kind == Block::Kind::Axis) name += "-axis" + std::to_string(q.block.axis);
  if (q.block.kind == Block::Kind::Group) name += "-g" + std::to_string(q.block.columns);
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
  if (f.kind == FormatKind::BlockFloat) {
    grid.significand_bits = kUniform;
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
  grid.zero_sign = f.specials == Specials::Fnuz ? 0 : kSignBit;
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

}  // namespace ulp
