#include "core/format.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "core/codebook.h"
#include "core/error.h"
#include "core/format_text.h"

namespace ulp {
namespace {

constexpr const char* kNames =
    "fp32, fp16, bf16, tf32, eXmY (e4m3, e5m2, e3m2 …), fixedW.F (fixed8.4), bfpW (bfp8), hbfpM, "
    "mxfp8, mxfp6, mxfp4, mxint8, nvfp4, positN.E, binary8pP, nf4, pow2xW, dynamic8, dynamic8u "
    "or table=FILE";

struct Alias {
  const char* name;
  int exponent_bits, significand_bits;
};
constexpr Alias kAliases[] = {{"fp16", 5, 10}, {"bf16", 8, 7}, {"tf32", 8, 10}};

bool is(int exponent_bits, int significand_bits, int e, int m) {
  return exponent_bits == e && significand_bits == m;
}

Specials default_specials(int e, int m) {
  if (is(e, m, 4, 3)) return Specials::Fn;
  if (is(e, m, 2, 3) || is(e, m, 3, 2) || is(e, m, 2, 1)) return Specials::None;
  return Specials::Ieee;
}

bool is_p3109(Specials specials) {
  return specials == Specials::P3109 || specials == Specials::P3109Finite;
}

int default_bias(int exponent_bits, Specials specials) {
  return (1 << (exponent_bits - 1)) - (specials == Specials::Fnuz || is_p3109(specials) ? 0 : 1);
}

Overflow default_overflow(Specials specials) {
  return specials == Specials::Ieee || specials == Specials::P3109 ? Overflow::Infinity
                                                                   : Overflow::Clamp;
}

/// e8mY-none with the usual bias: its top binade lies beyond fp32 and reads as Inf.
bool tops_out_at_infinity(const Format& f) {
  return f.kind == FormatKind::Float && f.specials == Specials::None && f.exponent_bits == 8 &&
         f.bias == 127;
}

void check_float(const Format& f, std::string_view text) {
  const int e = f.exponent_bits, m = f.significand_bits;
  if (f.specials == Specials::Ieee) {
    ULP_CHECK(m > 0,
              "{}: with IEEE specials a float without significand bits has no NaN code; add "
              "-fn, -fnuz or -none",
              text);
    ULP_CHECK(e > 1,
              "{}: with IEEE specials one exponent bit leaves no normal numbers; add -fn, "
              "-fnuz or -none",
              text);
  }
  ULP_CHECK(!(f.specials == Specials::Fn && m == 0 && e == 1),
            "{}: the NaN code leaves no normal numbers; add -none", text);
  if (f.overflow == Overflow::Infinity)
    ULP_CHECK(f.specials == Specials::Ieee || f.specials == Specials::P3109,
              "{}: -inf needs a format with Inf codes (-ieee)", text);
  if (f.overflow == Overflow::Nan)
    ULP_CHECK(f.specials != Specials::None, "{}: -nan needs a format with a NaN code", text);
  const FormatLimits limits = limits_of(f);
  ULP_CHECK(
      limits.quantum >= -149,
      "{}: its smallest number would be 2^{}, below fp32's 2^-149; raise the exponents (-biasB)",
      text, limits.quantum);
  ULP_CHECK(limits.emax <= 127 || tops_out_at_infinity(f),
            "{}: its largest numbers would reach 2^{}, beyond fp32's 2^127; lower the exponents "
            "(-biasB)",
            text, limits.emax);
  ULP_CHECK(limits.emin <= 127, "{}: its normal numbers would start at 2^{}", text, limits.emin);
}

void check_fixed(const Format& f, std::string_view text) {
  const int w = f.word_bits, fraction = f.fraction_bits;
  const int most = f.is_unsigned ? 24 : 25;
  ULP_CHECK(w >= 1 && w <= most,
            "{}: a fixed-point word has 1 to 25 bits (24 unsigned) so that its bounds are fp32 "
            "numbers, got {}",
            text, w);
  const int top = w - fraction - (f.is_unsigned ? 0 : 1);
  ULP_CHECK(fraction <= 149 && top <= 127,
            "{}: its step 2^{} and bound 2^{} must lie within fp32's 2^-149 … 2^127", text,
            -fraction, top);
  ULP_CHECK(!(f.symmetric && f.is_unsigned), "{}: -sym and -u exclude each other", text);
  ULP_CHECK(!(f.symmetric && f.overflow == Overflow::Wrap), "{}: -sym and -wrap exclude each other",
            text);
  ULP_CHECK(!(f.symmetric && f.overflow == Overflow::None),
            "{}: -sym sets a bound and -noclamp removes it", text);
  ULP_CHECK(!(f.symmetric && w == 1), "{}: one bit with -sym holds only zero", text);
}

}  // namespace

namespace text {

std::optional<int> number(std::string_view digits) {
  int value = 0;
  if (digits.empty()) return std::nullopt;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error == std::errc::result_out_of_range) return digits.front() == '-' ? -1000000 : 1000000;
  const size_t first = digits.starts_with('-') ? 1 : 0;
  if (digits.size() > first + 1 && digits[first] == '0') return std::nullopt;
  if (digits == "-0") return std::nullopt;  // one spelling a number
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return value;
}

bool take(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t end = text.find(at);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

}  // namespace text

Format float_format(int exponent_bits, int significand_bits) {
  Format f;
  f.kind = FormatKind::Float;
  f.exponent_bits = static_cast<uint8_t>(exponent_bits);
  f.significand_bits = static_cast<uint8_t>(significand_bits);
  f.specials = default_specials(exponent_bits, significand_bits);
  f.bias = static_cast<int16_t>(default_bias(exponent_bits, f.specials));
  f.overflow = default_overflow(f.specials);
  return f;
}

namespace {

/// Kinds other than Float leave the float fields zero, so that equal formats compare equal.
Format blank(FormatKind kind) {
  Format f;
  f.kind = kind;
  f.exponent_bits = 0;
  f.significand_bits = 0;
  f.bias = 0;
  f.specials = Specials::None;
  f.overflow = Overflow::Clamp;
  return f;
}

}  // namespace

Format fixed_format(int word_bits, int fraction_bits) {
  Format f = blank(FormatKind::Fixed);
  f.word_bits = static_cast<uint8_t>(word_bits);
  f.fraction_bits = static_cast<int16_t>(fraction_bits);
  check_fixed(f, to_string(f));
  return f;
}

Format block_float_format(int word_bits) {
  ULP_CHECK(word_bits >= 2 && word_bits <= 25,
            "bfp{}: a block floating-point significand has 2 to 25 bits with its sign", word_bits);
  Format f = blank(FormatKind::BlockFloat);
  f.word_bits = static_cast<uint8_t>(word_bits);
  return f;
}

Format p3109_format(int precision, bool is_unsigned) {
  ULP_CHECK(precision >= 1 && precision <= 7,
            "binary8p{}: P3109's 8-bit formats have 1 to 7 significand bits", precision);
  Format f = float_format(is_unsigned ? 9 - precision : 8 - precision, precision - 1);
  f.specials = Specials::P3109;
  f.is_unsigned = is_unsigned;
  f.bias = static_cast<int16_t>(default_bias(f.exponent_bits, f.specials));
  f.overflow = default_overflow(f.specials);
  return f;
}

namespace {

/// The base name, without flags; nullopt if it is no format's name.
std::optional<Format> parse_base(std::string_view name, std::string_view whole) {
  if (name == "fp32") return Format{};
  for (const Alias& alias : kAliases)
    if (name == alias.name) return float_format(alias.exponent_bits, alias.significand_bits);
  if (const int table = find_codebook(name); table >= 0) {
    Format format = blank(FormatKind::Codebook);
    format.table = static_cast<uint8_t>(table);
    return format;
  }
  std::string_view rest = name;
  if (text::take(rest, "posit")) {
    const size_t dot = rest.find('.');
    if (dot == std::string_view::npos) return std::nullopt;
    const auto n = text::number(rest.substr(0, dot)), es = text::number(rest.substr(dot + 1));
    if (!n || !es) return std::nullopt;
    ULP_CHECK(*n >= 3 && *n <= 16 && *es >= 0 && *es <= 3,
              "{}: positN.E has 3 to 16 bits, 0 to 3 of them exponent, got {} and {}", whole, *n,
              *es);
    Format format = blank(FormatKind::Posit);
    format.word_bits = static_cast<uint8_t>(*n);
    format.exponent_bits = static_cast<uint8_t>(*es);
    return format;
  }
  if (text::take(rest, "fixed")) {
    const size_t dot = rest.find('.');
    if (dot == std::string_view::npos) return std::nullopt;
    const auto w = text::number(rest.substr(0, dot)), f = text::number(rest.substr(dot + 1));
    if (!w || !f) return std::nullopt;
    ULP_CHECK(*w >= 1 && *w <= 25, "{}: a fixed-point word has 1 to 25 bits (24 unsigned), got {}",
              whole, *w);
    ULP_CHECK(*f >= -126 && *f <= 149, "{}: its step 2^{} must lie within fp32's 2^-149 … 2^126",
              whole, -*f);
    Format format = blank(FormatKind::Fixed);
    format.word_bits = static_cast<uint8_t>(*w);
    format.fraction_bits = static_cast<int16_t>(*f);
    return format;
  }
  if (text::take(rest, "hbfp")) {
    const auto m = text::number(rest);
    if (!m) return std::nullopt;
    ULP_CHECK(*m >= 1 && *m <= 24, "{}: an hbfp significand has 1 to 24 bits, got {}", whole, *m);
    Format format = blank(FormatKind::Hbfp);
    format.word_bits = static_cast<uint8_t>(*m + 1);
    return format;
  }
  if (text::take(rest, "binary8p")) {
    const auto p = text::number(rest);
    if (!p) return std::nullopt;
    ULP_CHECK(*p >= 1 && *p <= 7, "{}: P3109's 8-bit formats have 1 to 7 significand bits, got {}",
              whole, *p);
    return p3109_format(*p);
  }
  if (text::take(rest, "bfp")) {
    const auto w = text::number(rest);
    if (!w) return std::nullopt;
    ULP_CHECK(*w >= 2 && *w <= 25,
              "{}: a block floating-point significand has 2 to 25 bits with its sign, got {}",
              whole, *w);
    return block_float_format(*w);
  }
  if (text::take(rest, "e")) {
    const size_t m_at = rest.find('m');
    if (m_at == std::string_view::npos) return std::nullopt;
    const auto e = text::number(rest.substr(0, m_at)), m = text::number(rest.substr(m_at + 1));
    if (!e || !m) return std::nullopt;
    ULP_CHECK(*e >= 1 && *e <= 8 && *m >= 0 && *m <= 23,
              "{}: eXmY has 1 to 8 exponent bits and 0 to 23 significand bits, got {} and {}",
              whole, *e, *m);
    ULP_CHECK(!(*e == 8 && *m == 0),
              "{}: e8m0 stores block scales and has neither sign nor zero; a tensor cannot have it",
              whole);
    return float_format(*e, *m);
  }
  return std::nullopt;
}

struct FlagReader {
  Format& format;
  std::string_view whole;
  bool specials_given = false, overflow_given = false, bias_given = false;

  void once(bool& given, const char* what) {
    ULP_CHECK(!given, "{}: {} is given twice", whole, what);
    given = true;
  }
  void specials(Specials value) {
    once(specials_given, "the set of special values (-ieee, -fn, -fnuz, -none)");
    format.specials = value;
  }
  void overflow(Overflow value) {
    once(overflow_given, "what overflow becomes (-sat, -inf, -nan, -wrap, -noclamp)");
    format.overflow = value;
  }
  void set(bool& flag, std::string_view name) {
    ULP_CHECK(!flag, "{}: -{} is given twice", whole, name);
    flag = true;
  }
  bool read(std::string_view flag) {
    const bool is_float = format.kind == FormatKind::Float,
               fixed = format.kind == FormatKind::Fixed;
    if (is_p3109(format.specials)) {
      if (flag == "finite") return specials(Specials::P3109Finite), true;
      if (flag == "unsigned") {
        set(format.is_unsigned, flag);
        ++format.exponent_bits;  // the sign's bit
        return true;
      }
      if (flag == "sat") return overflow(Overflow::Saturate), true;
      if (flag == "nan") return overflow(Overflow::Nan), true;
      return false;
    }
    if (is_float && flag == "ieee") return specials(Specials::Ieee), true;
    if (is_float && flag == "fn") return specials(Specials::Fn), true;
    if (is_float && flag == "fnuz") return specials(Specials::Fnuz), true;
    if (is_float && flag == "none") return specials(Specials::None), true;
    if ((is_float || fixed) && flag == "sat") return overflow(Overflow::Saturate), true;
    if (is_float && flag == "inf") return overflow(Overflow::Infinity), true;
    if (is_float && flag == "nan") return overflow(Overflow::Nan), true;
    if (is_float && flag == "ftz") return set(format.flush_subnormals, flag), true;
    if (fixed && flag == "wrap") return overflow(Overflow::Wrap), true;
    if (fixed && flag == "noclamp") return overflow(Overflow::None), true;
    if (fixed && flag == "sym") return set(format.symmetric, flag), true;
    if (fixed && flag == "u") return set(format.is_unsigned, flag), true;
    if (is_float && text::take(flag, "bias")) {
      const auto bias = text::number(flag);
      ULP_CHECK(bias.has_value() && *bias > -1000 && *bias < 1000,
                "{}: -biasB needs an integer, as in -bias8", whole);
      once(bias_given, "the bias");
      format.bias = static_cast<int16_t>(*bias);
      return true;
    }
    return false;
  }
};

/// What may follow the name.
std::string flags_of(const Format& f) {
  const std::string blocks =
      ", and for blocks -gN -axisK -tRxC with -floor -ceil -even -rceil -shift -scalee4m3 "
      "-scalef32";
  switch (f.kind) {
    case FormatKind::Float:
      if (is_p3109(f.specials)) return "-finite -unsigned -sat -nan" + blocks;
      return "-ieee -fn -fnuz -none -sat -inf -nan -ftz -biasB" + blocks;
    case FormatKind::Fixed: return "-sym -u -sat -wrap -noclamp" + blocks;
    case FormatKind::BlockFloat:
    case FormatKind::Hbfp: return "-axisK -gN -tRxC";
    case FormatKind::Posit:
    case FormatKind::Codebook: return "for blocks -gN -axisK -tRxC with -scalef32";
    case FormatKind::Fp32: break;
  }
  return "no flags";
}

}  // namespace

namespace text {

Format parse_format(const std::vector<std::string_view>& tokens, std::string_view whole) {
  std::optional<Format> base = parse_base(tokens.front(), whole);
  ULP_CHECK(base.has_value(), "unknown format '{}': wanted {}", whole, kNames);
  Format format = *base;
  FlagReader reader{format, whole};
  for (size_t i = 1; i < tokens.size(); ++i)
    ULP_CHECK(reader.read(tokens[i]), "{}: unknown flag '-{}'; {} takes {}", whole, tokens[i],
              tokens.front(), flags_of(format));
  if (format.kind == FormatKind::Float) {
    if (!reader.bias_given)
      format.bias = static_cast<int16_t>(default_bias(format.exponent_bits, format.specials));
    if (!reader.overflow_given) format.overflow = default_overflow(format.specials);
    check_float(format, whole);
  }
  if (format.kind == FormatKind::Fixed) check_fixed(format, whole);
  return format;
}

std::vector<std::string_view> format_tokens(std::string_view whole) {
  // "-bias-5" and "fixed8.-2" contain a minus sign that separates nothing.
  std::vector<std::string_view> tokens;
  size_t start = 0;
  for (size_t i = 1; i <= whole.size(); ++i) {
    const bool sign =
        i < whole.size() && (whole[i - 1] == '.' || whole.substr(0, i).ends_with("-bias"));
    if (i == whole.size() || (whole[i] == '-' && !sign)) {
      tokens.push_back(whole.substr(start, i - start));
      start = i + 1;
    }
  }
  if (whole.ends_with('-') || tokens.empty()) tokens.push_back("");
  return tokens;
}

}  // namespace text

Format Format::parse(std::string_view whole) {
  return text::parse_format(text::format_tokens(whole), whole);
}

std::string to_string(const Format& f) {
  std::string name;
  switch (f.kind) {
    case FormatKind::Fp32: return "fp32";
    case FormatKind::Posit:
      return "posit" + std::to_string(f.word_bits) + "." + std::to_string(f.exponent_bits);
    case FormatKind::Codebook: return codebook(f.table).name;
    case FormatKind::BlockFloat: return "bfp" + std::to_string(f.word_bits);
    case FormatKind::Hbfp: return "hbfp" + std::to_string(f.word_bits - 1);
    case FormatKind::Fixed:
      name = "fixed" + std::to_string(f.word_bits) + "." + std::to_string(f.fraction_bits);
      if (f.symmetric) name += "-sym";
      if (f.is_unsigned) name += "-u";
      if (f.overflow == Overflow::Saturate) name += "-sat";
      if (f.overflow == Overflow::Wrap) name += "-wrap";
      if (f.overflow == Overflow::None) name += "-noclamp";
      return name;
    case FormatKind::Float: break;
  }
  if (is_p3109(f.specials)) {
    name = "binary8p" + std::to_string(f.significand_bits + 1);
    if (f.specials == Specials::P3109Finite) name += "-finite";
    if (f.is_unsigned) name += "-unsigned";
    if (f.overflow != default_overflow(f.specials))
      name += f.overflow == Overflow::Nan ? "-nan" : "-sat";
    return name;
  }
  name = "e" + std::to_string(f.exponent_bits) + "m" + std::to_string(f.significand_bits);
  for (const Alias& alias : kAliases)
    if (is(f.exponent_bits, f.significand_bits, alias.exponent_bits, alias.significand_bits) &&
        f.specials == Specials::Ieee)
      name = alias.name;
  if (f.specials != default_specials(f.exponent_bits, f.significand_bits)) {
    constexpr const char* kFlag[] = {"-ieee", "-fn", "-fnuz", "-none"};
    name += kFlag[static_cast<int>(f.specials)];
  }
  if (f.overflow != default_overflow(f.specials)) {
    if (f.overflow == Overflow::Saturate) name += "-sat";
    if (f.overflow == Overflow::Infinity) name += "-inf";
    if (f.overflow == Overflow::Nan) name += "-nan";
  }
  if (f.flush_subnormals) name += "-ftz";
  if (f.bias != default_bias(f.exponent_bits, f.specials)) name += "-bias" + std::to_string(f.bias);
  return name;
}

namespace {

/// Codes of a float, signs aside, above that of the largest number.
int codes_above(const Format& f) {
  switch (f.specials) {
    case Specials::Ieee: return 1 << f.significand_bits;
    case Specials::Fn: return 1;
    case Specials::P3109:
      return f.is_unsigned ? 2 : 1;  // Inf; NaN takes the sign-only code, or the topmost
    case Specials::P3109Finite: return f.is_unsigned ? 1 : 0;
    case Specials::Fnuz:
    case Specials::None: break;
  }
  return 0;
}

}  // namespace

FormatLimits limits_of(const Format& f) {
  FormatLimits r;
  switch (f.kind) {
    case FormatKind::Fp32:
      return {-126, 127, -149, 0x1.fffffep127, -0x1.fffffep127, 0x1p-126, 0x1p-149, 24, true};
    case FormatKind::Float: {
      // Numbers are codes in ascending order; what is no number stands above the last one.
      const int m = f.significand_bits;
      const int64_t last = (int64_t{1} << (f.exponent_bits + m)) - 1 - codes_above(f);
      const int field = static_cast<int>(last >> m);
      const double fraction = static_cast<double>(last - (int64_t{field} << m));
      r.emin = 1 - f.bias;
      r.emax = field - f.bias;
      r.quantum = r.emin - m;
      r.max = std::ldexp(1.0 + std::ldexp(fraction, -m), r.emax);
      if (tops_out_at_infinity(f)) {
        r.emax = 127;
        r.max = std::ldexp(2.0 - std::ldexp(1.0, -m), 127);
      }
      r.lowest = f.is_unsigned ? 0 : -r.max;
      r.min_normal = std::ldexp(1.0, r.emin);
      r.min_positive = f.flush_subnormals || m == 0 ? r.min_normal : std::ldexp(1.0, r.quantum);
      r.significant_bits = m + 1;
      r.has_infinity = (f.specials == Specials::Ieee || f.specials == Specials::P3109 ||
                        tops_out_at_infinity(f)) &&
                       f.overflow != Overflow::Saturate;
      return r;
    }
    case FormatKind::Fixed: {
      const double step = std::ldexp(1.0, -f.fraction_bits);
      r.quantum = -f.fraction_bits;
      r.max = std::ldexp(1.0, f.word_bits - f.fraction_bits - (f.is_unsigned ? 0 : 1)) - step;
      r.min_positive = r.max > 0 ? step : 0.0;
      r.lowest = f.is_unsigned ? 0.0 : (f.symmetric ? -r.max : -(r.max + step));
      r.significant_bits = f.is_unsigned ? f.word_bits : std::max(f.word_bits - 1, 1);
      if (f.overflow == Overflow::None) {
        r.max = 0x1.fffffep127;
        r.lowest = -r.max;
        r.significant_bits = 24;
      }
      r.emax = r.max > 0 ? std::ilogb(r.max) : r.quantum;
      return r;
    }
    case FormatKind::BlockFloat:
      r.emin = -126;
      r.emax = 127;
      r.quantum = std::max(-126 + 2 - f.word_bits, -149);
      r.significant_bits = f.word_bits - 1;
      r.max = std::ldexp(1.0, 128) - std::ldexp(1.0, 129 - f.word_bits);
      r.lowest = -r.max;
      r.min_positive = std::ldexp(1.0, r.quantum);
      return r;
    case FormatKind::Hbfp: {  // one step less at the same exponents, which reach one higher
      r = limits_of(block_float_format(f.word_bits));
      r.quantum = std::max(-126 + 1 - f.word_bits, -149);
      r.min_positive = std::ldexp(1.0, r.quantum);
      return r;
    }
    case FormatKind::Posit: {
      r.emax = (f.word_bits - 2) << f.exponent_bits;
      r.emin = r.quantum = -r.emax;
      r.max = std::ldexp(1.0, r.emax);
      r.lowest = -r.max;
      r.min_normal = r.min_positive = std::ldexp(1.0, r.emin);
      r.significant_bits = std::max(1, f.word_bits - 2 - f.exponent_bits);
      return r;
    }
    case FormatKind::Codebook: {
      const std::vector<float>& values = codebook(f.table).values;
      r.max = values.back();
      r.lowest = values.front();
      r.emax = std::ilogb(std::max(std::abs(r.max), std::abs(r.lowest)));
      r.quantum = 127;
      for (const float v : values) {
        if (v > 0 && (r.min_positive == 0 || v < r.min_positive)) r.min_positive = v;
        if (v == 0) continue;
        int exponent = 0;  // v = odd · 2^low
        const auto digits =
            static_cast<int64_t>(std::ldexp(std::frexp(std::abs(v), &exponent), 24));
        const int zeros = __builtin_ctzll(static_cast<uint64_t>(digits));
        r.significant_bits = std::max(r.significant_bits, 24 - zeros);
        r.quantum = std::min(r.quantum, exponent - 24 + zeros);
      }
      r.emin = r.min_positive > 0 ? std::ilogb(r.min_positive) : 0;
      return r;
    }
  }
  throw_error("{}: limits are not known", f);
}

bool fits(const Format& format, DType dtype) {
  const FormatLimits f = limits_of(format);
  const double most = std::max(f.max, -f.lowest);
  switch (dtype) {
    case DType::F32:
    case DType::F64: return true;
    case DType::BF16: return f.significant_bits <= 8 && f.quantum >= -133 && most <= 0x1.fep127;
    case DType::F16: return f.significant_bits <= 11 && f.quantum >= -24 && most <= 65504;
    case DType::F8E5M2: return f.significant_bits <= 3 && f.quantum >= -16 && most <= 57344;
    case DType::F8E4M3:
      return f.significant_bits <= 4 && f.quantum >= -9 && most <= 448 && !f.has_infinity;
    default: return false;
  }
}

}  // namespace ulp
