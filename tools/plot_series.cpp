#include "tools/plot_series.h"

#include <fmt/format.h>

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "core/codes.h"
#include "tools/format_options.h"
#include "tools/number_text.h"
#include "tools/values.h"

namespace ulp::tools::plot {
namespace {

/// set_block's grid tells all about such a block: an exponent is shared, and nothing else is multiplied.
bool shares_exponent(const Quantizer& q) {
  if (q.transform.three_quarters) return false;
  switch (q.scale.rule) {
    case Scale::Rule::Floor:
    case Scale::Rule::Ceil:
    case Scale::Rule::Even:
    case Scale::Rule::RoundCeil:
    case Scale::Rule::Shift: return true;
    default: return q.format.kind == FormatKind::BlockFloat || q.format.kind == FormatKind::Hbfp;
  }
}

Series::Shown shown_of(const Quantizer& q) {
  if (q.is_elementwise()) return Series::Shown::All;
  return shares_exponent(q) ? Series::Shown::Block : Series::Shown::Elements;
}

std::vector<float> listed(const Neighbours& numbers) {
  std::vector<float> all;
  if (numbers.count() == 0 || numbers.count() > kMostTicks) return all;
  float x = numbers.lowest();
  while (true) {
    all.push_back(x + 0.0f);  // no −0
    if (x >= numbers.max()) return all;
    x = *numbers.place(std::nextafter(x, INFINITY)).above;
  }
}

}  // namespace

Series make_series(const std::string& text) {
  if (text.find(':') != std::string::npos)
    throw UsageError("plot: --formats takes formats without a rounding (nearest is drawn), got '" +
                     text + "'; write " + text.substr(0, text.find(':')));
  const Quantizer q = format_value("plot: --formats", text);
  const Series::Shown shown = shown_of(q);
  Grid grid = make_grid(q);
  int exponent = 0;
  if (shown == Series::Shown::Block) {
    exponent = -grid.min_quantum;
    set_block(grid, make_block_rule(q, DType::F32), bits_of(1.0f));
    exponent += grid.min_quantum;
  }
  const Neighbours numbers(q, grid);
  const int bits = code_bits(q.format);
  const bool rotated = q.transform.hadamard != 0;
  Series s{to_string(q), shown,  q.format, rotated, bits == 0 ? q.format.word_bits : bits,
           grid,         numbers};
  s.values = listed(numbers);
  s.max = numbers.max();
  if (s.max > 0) s.least = *numbers.place(FLT_TRUE_MIN).above;
  s.least_normal = std::ldexp(limits_of(q.format).min_normal, exponent);
  return s;
}

std::optional<Gap> gap_at(const Neighbours& numbers, double x) {
  const auto value = static_cast<float>(x);
  Place p = numbers.place(value);
  if (p.below && p.above && *p.below == *p.above)
    p.above = numbers.place(std::nextafter(value, INFINITY)).above;
  if (!p.below || !p.above || std::isinf(*p.below) || std::isinf(*p.above)) return std::nullopt;
  return Gap{*p.below, *p.above};
}

namespace {

/// The largest |x − Q(x)| / x of nearest rounding between two neighbours above 0. Where rounding turns from one to the other
/// is found by bisection (posits do not turn in the middle); where fp32 has nothing between them, it is the middle.
double worst_error(const Grid& grid, const Gap& gap) {
  const auto low = static_cast<float>(gap.low);
  uint32_t below = bits_of(low), above = bits_of(static_cast<float>(gap.high));
  if (above - below == 1) return gap.width() / (gap.low + gap.high);
  while (above - below > 1) {
    const uint32_t middle = below + (above - below) / 2;
    (quantise_value(float_of(middle), grid, 0) <= low ? below : above) = middle;
  }
  const double last = float_of(below), first = float_of(above);
  return std::max((last - gap.low) / last, (gap.high - first) / first);
}

}  // namespace

std::vector<Step> exact_steps(const Series& s) {
  std::vector<Step> steps;
  for (size_t i = 0; i + 1 < s.values.size(); ++i)
    if (s.values[i] > 0)
      steps.push_back(
          {s.values[i], s.values[i + 1], worst_error(s.grid, {s.values[i], s.values[i + 1]})});
  return steps;
}

/// Gaps are looked at one after another, of those that are narrower than an eighth of a part only some.
std::vector<Step> sampled_steps(const Series& s, double from, double to, int count) {
  std::vector<Step> steps;
  const double part = (to - from) / count, stride = std::exp2(part / 8);
  for (int i = 0; i < count; ++i) {
    const double begin = std::max(std::exp2(from + i * part), s.least);
    const double end = std::min(std::exp2(from + (i + 1) * part), s.max);
    double worst = 0;
    for (double x = begin; x < end;) {
      const auto gap = gap_at(s.numbers, x);
      if (!gap) break;
      worst = std::max(worst, worst_error(s.grid, *gap));
      x = std::max(gap->high, x * stride);
    }
    if (worst > 0) steps.push_back({begin, end, worst});
  }
  return steps;
}

double bits_in_binade(const Series& s, int exponent) {
  const double inside = std::clamp(std::ldexp(1.5, exponent), s.least, s.max);
  const auto gap = gap_at(s.numbers, std::nextafter(static_cast<float>(inside), 0.0f));
  return gap ? std::max(0.0, 1 + exponent - std::log2(gap->width())) : 1;
}

Binades binades_of(const Series& s) {
  const int first = std::ilogb(s.least);
  return {first, std::max(first, static_cast<int>(std::ceil(std::log2(s.max))) - 1)};
}

double most_bits(const Series& s) {
  double most = 0;
  if (s.least == 0) return most;
  for (int e = binades_of(s).first; e <= binades_of(s).last; ++e)
    most = std::max(most, bits_in_binade(s, e));
  return most;
}

std::optional<double> spacing_above_one(const Series& s) {
  if (s.numbers.place(1.0f).below != 1.0f) return std::nullopt;
  const auto gap = gap_at(s.numbers, 1);
  return gap ? std::optional(gap->width()) : std::nullopt;
}

std::pair<double, double> magnitudes(const std::vector<Series>& all) {
  double least = INFINITY, most = 0;
  for (const Series& s : all) {
    if (s.least > 0) least = std::min(least, s.least);
    const float lowest = s.numbers.lowest();
    if (lowest < 0) least = std::min(least, -double{*s.numbers.place(-FLT_TRUE_MIN).below});
    most = std::max({most, s.max, -double{lowest}});
  }
  return {least, most};
}

std::string raised(std::string text) {
  constexpr const char* kDigits[] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  if (const size_t e = text.find('e'); e != std::string::npos)
    text = fmt::format("{}·10^{}", text.substr(0, e), std::stoi(text.substr(e + 1)));
  std::string out;
  bool up = false;
  for (const char c : text) {
    up = up || c == '^';
    if (c == '-')
      out += up ? "⁻" : "−";
    else if (up && c != '^')
      out += kDigits[c - '0'];
    else if (c != '^')
      out += c;
  }
  return out;
}

std::string power(int base, int exponent) { return raised(fmt::format("{}^{}", base, exponent)); }

std::string short_text(double value) { return raised(short_number(value)); }

std::string one_decimal(double value) {
  const std::string text = fmt::format("{:.1f}", value);
  return text.ends_with(".0") ? text.substr(0, text.size() - 2) : text;
}

std::string bits_text(double bits) {
  return one_decimal(bits) + (one_decimal(bits) == "1" ? " bit" : " bits");
}

std::string count_text(const Series& s) {
  return s.numbers.count() == 0 ? "unbounded" : fmt::format("{} numbers", s.numbers.count());
}

std::string overflow_text(const Series& s) {
  const float y = quantise_value(s.max < double{FLT_MAX} ? FLT_MAX : INFINITY, s.grid, 0);
  if (std::isnan(y)) return "→ NaN";
  if (std::isinf(y)) return "→ Inf";
  return double{y} == s.max ? "→ max" : "wraps";
}

std::string underflow_text(const Series& s) {
  if (s.least <= double{FLT_TRUE_MIN}) return "→ 0";  // fp32 has nothing below
  const float y = quantise_value(FLT_TRUE_MIN, s.grid, 0);
  return y == 0 ? "→ 0" : double{y} == s.least ? "→ min" : "→ " + short_text(y);
}

}  // namespace ulp::tools::plot
