#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/codes.h"
#include "core/format_text.h"
#include "nn/data/atomic_file.h"
#include "tools/commands.h"
#include "tools/format_options.h"
#include "tools/neighbours.h"
#include "tools/number_text.h"
#include "tools/svg.h"
#include "tools/values.h"

namespace ulp::tools {
namespace {

using svg::Axis;

constexpr size_t kMostFormats = 8;
constexpr int64_t kMostTicks = 1024;  // more numbers than that are drawn as their density

// ---- a format's numbers ---------------------------------------------------------------------------------------------
/// A format as it is drawn. Block formats: the numbers of one block with amax 1.
struct Series {
  enum class Shown : uint8_t { All, Block, Elements };
  std::string name;
  Shown shown = Shown::All;
  Format format;
  bool rotated = false;
  int bits = 0;
  Grid grid;
  Neighbours numbers;
  std::vector<float> values{};  // ascending; empty if there are more than kMostTicks
  double max = 0;
  double least = 0;         // the smallest above 0; 0 if there is none
  double least_normal = 0;  // 0 where there is no such thing

  bool is_subnormal(double value) const { return value != 0 && std::abs(value) < least_normal; }
};

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

/// Neighbouring numbers, low ≤ x < high.
struct Gap {
  double low, high;
  double width() const { return high - low; }
};

/// The gap that holds x; none beyond the ends.
std::optional<Gap> gap_at(const Neighbours& numbers, double x) {
  const auto value = static_cast<float>(x);
  Place p = numbers.place(value);
  if (p.below && p.above && *p.below == *p.above)
    p.above = numbers.place(std::nextafter(value, INFINITY)).above;
  if (!p.below || !p.above || std::isinf(*p.below) || std::isinf(*p.above)) return std::nullopt;
  return Gap{*p.below, *p.above};
}

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

/// The envelope of the relative error: its value for from ≤ x < to.
struct Step {
  double from, to, error;
};

std::vector<Step> exact_steps(const Series& s) {
  std::vector<Step> steps;
  for (size_t i = 0; i + 1 < s.values.size(); ++i)
    if (s.values[i] > 0)
      steps.push_back(
          {s.values[i], s.values[i + 1], worst_error(s.grid, {s.values[i], s.values[i + 1]})});
  return steps;
}

/// The worst over parts of the axis, `count` between the exponents from and to. Gaps are looked at one after another, of
/// those that are narrower than an eighth of a part only some.
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

/// Significant bits in the binade from 2^exponent on: as many numbers as 2^(bits − 1) fill it.
double bits_in_binade(const Series& s, int exponent) {
  const double inside = std::clamp(std::ldexp(1.5, exponent), s.least, s.max);
  const auto gap = gap_at(s.numbers, std::nextafter(static_cast<float>(inside), 0.0f));
  return gap ? std::max(0.0, 1 + exponent - std::log2(gap->width())) : 1;
}

struct Binades {
  int first, last;
};
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

/// The smallest and the largest magnitude of all series, without 0.
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

// ---- text -----------------------------------------------------------------------------------------------------------
/// "2^-9" → "2⁻⁹", "-3.4e+38" → "−3.4·10³⁸".
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

/// What huge and tiny positive values become.
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

// ---- the page -------------------------------------------------------------------------------------------------------
/// Colours by Okabe and Ito, "Color Universal Design" (2008). Yellow is darker on white, and black is white on black.
struct Theme {
  const char *background, *text, *muted, *grid;
  std::array<const char*, kMostFormats> colours;
};
constexpr Theme kLight = {
    "#ffffff",
    "#1a1a1a",
    "#5c5c5c",
    "#dcdcdc",
    {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A800"}};
constexpr Theme kDark = {
    "#14171c",
    "#f0f0f0",
    "#a8adb5",
    "#363c45",
    {"#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#ffffff", "#0072B2"}};

/// The drawing's own units: everything is laid out for this width, --width only scales it.
constexpr double kWidth = 1280, kLeft = 24, kRight = kWidth - kLeft;
constexpr double kLabels = 176, kPlotLeft = kLeft + kLabels;

struct Page {
  std::vector<Series> series;
  const Theme& theme;
  double low, high;  // exponents of the axes of magnitudes
  double room;       // binades beyond them, in the charts
  svg::Drawing out{};
  double y = 0;  // where the next panel begins

  double row_height() const { return series.size() <= 4 ? 38 : 32; }
  std::string colour(size_t i) const { return theme.colours[i]; }
};

/// 0 in the middle, negative numbers on the left, log2 of the magnitude on both sides.
struct SignLogAxis {
  static constexpr double kGap = 34;  // from 0 to the least magnitude
  double low, high, begin, end;
  double middle() const { return (begin + end) / 2; }
  /// The exponents of one sign, 1 or −1.
  Axis side(double sign) const {
    return {low, high, middle() + sign * kGap, sign > 0 ? end : begin};
  }
  std::optional<double> at(double value) const {
    if (value == 0) return middle();
    const double exponent = std::log2(std::abs(value));
    const Axis half = side(value > 0 ? 1 : -1);
    return half.holds(exponent) ? std::optional(half.at(exponent)) : std::nullopt;
  }
};

void draw_heading(Page& page, double x, const std::string& title, const std::string& meaning) {
  page.out.text(x, page.y + 14, {13, page.theme.text, "start", true}, title);
  page.out.text(x + 12 + 0.68 * 13 * static_cast<double>(title.size()), page.y + 14,
                {11, page.theme.muted}, meaning);
}

/// A line across the rows and its label below them.
void draw_mark(Page& page, double x, double top, double bottom, const std::string& label) {
  page.out.line(x, top, x, bottom, fmt::format("stroke=\"{}\"", page.theme.grid));
  page.out.text(x, bottom + 13, {10, page.theme.muted, "middle"}, label);
}

void draw_label(Page& page, size_t i, double middle) {
  const Series& s = page.series[i];
  page.out.rectangle(kLeft, middle - 11, 10, 10, fmt::format("fill=\"{}\"", page.colour(i)));
  page.out.text(kLeft + 16, middle - 2, {13, page.theme.text, "start", true, kLabels - 24}, s.name);
  std::string facts = count_text(s);
  if (s.values.empty()) facts += " (density)";
  if (s.shown == Series::Shown::Block) facts += ", amax 1";
  if (s.shown == Series::Shown::Elements) facts += ", " + to_string(s.format);
  page.out.text(kLeft + 16, middle + 11, {10, page.theme.muted, "start", false, kLabels - 24},
                facts);
}

std::string group_of(const Page& page, const char* panel, size_t i) {
  return fmt::format("id=\"{}-{}\" stroke=\"{}\" fill=\"{}\"", panel, i, page.colour(i),
                     page.colour(i));
}

// ---- numbers as ticks -----------------------------------------------------------------------------------------------
constexpr double kTick = 22, kShortTick = 10;

/// `place` gives a number's x, nothing if it lies off the axis. Subnormal numbers are short, zero is long.
template <class PlaceOf>
void draw_ticks(Page& page, const Series& s, const std::vector<float>& values, double middle,
                const PlaceOf& place) {
  std::string normal, subnormal, zero;
  double first = INFINITY, last = -INFINITY, count = 0;
  for (const float v : values) {
    const std::optional<double> x = place(v);
    if (!x) continue;
    first = std::min(first, *x);
    last = std::max(last, *x);
    ++count;
    std::string& path = v == 0 ? zero : s.is_subnormal(v) ? subnormal : normal;
    const double height = v == 0 ? kTick + 6 : s.is_subnormal(v) ? kShortTick : kTick;
    path += fmt::format("M{} {}v{}", svg::number(*x), svg::number(middle - height / 2),
                        svg::number(height));
  }
  const double thick = count > 1 ? std::clamp((last - first) / count / 2, 0.8, 1.8) : 1.8;
  const std::string width = fmt::format(" stroke-width=\"{}\"", svg::number(thick));
  page.out.path(normal, "class=\"normal\"" + width);
  page.out.path(subnormal, "class=\"subnormal\"" + width);
  page.out.path(zero,
                fmt::format("class=\"zero\" stroke=\"{}\" stroke-width=\"1.5\"", page.theme.text));
}

/// Heights from x = begin on, each for kColumn, as an area; the highest is as high as a tick.
constexpr double kColumn = 2;
void draw_area(Page& page, const std::vector<double>& heights, double begin, double middle) {
  const double most = *std::max_element(heights.begin(), heights.end());
  if (most <= 0) return;
  const double base = middle + kTick / 2;
  std::string path = fmt::format("M{} {}", svg::number(begin), svg::number(base));
  std::string last;
  for (size_t c = 0; c < heights.size(); ++c) {
    const std::string y = svg::number(base - kTick * heights[c] / most);
    const double x = begin + kColumn * static_cast<double>(c);
    if (y != last) path += fmt::format("H{}V{}", svg::number(x), y);
    last = y;
  }
  const double end = begin + kColumn * static_cast<double>(heights.size());
  path += fmt::format("H{}V{}Z", svg::number(end), svg::number(base));
  page.out.path(path, "class=\"density\" stroke=\"none\"");
}

/// log2 of 1 + the numbers in `width` around x, by the gap beyond x as seen from zero.
double density(const Series& s, double x, double width) {
  if (x < double{s.numbers.lowest()} || x > s.max) return 0;
  const auto gap = gap_at(s.numbers, x < 0 ? std::nextafter(static_cast<float>(x), -INFINITY) : x);
  return gap ? std::log2(1 + width / gap->width()) : 0;
}

/// The linear axis ends at a power of two: what holds all numbers of formats that have none above 8, else 2.
double linear_end(const std::vector<Series>& all) {
  double most = 0;
  bool beyond = false;
  for (const Series& s : all) {
    const double magnitude = std::max(s.max, -double{s.numbers.lowest()});
    if (magnitude <= 8) most = std::max(most, magnitude);
    beyond = beyond || magnitude > 8;
  }
  if (beyond) most = std::max(most, 2.0);
  return std::exp2(std::ceil(std::log2(most)));
}

void draw_linear_row(Page& page, size_t i, const Axis& axis, double middle) {
  const Series& s = page.series[i];
  page.out.open_group(group_of(page, "linear", i), s.name);
  if (s.values.empty()) {
    std::vector<double> heights;
    for (double x = axis.begin; x < axis.end; x += kColumn)
      heights.push_back(
          density(s, axis.value(x + kColumn / 2), axis.value(x + kColumn) - axis.value(x)));
    draw_area(page, heights, axis.begin, middle);
  } else {
    draw_ticks(page, s, s.values, middle,
               [&](double v) { return axis.holds(v) ? std::optional(axis.at(v)) : std::nullopt; });
  }
  page.out.close_group();
}

/// The numbers from 0 to `count` times the least positive one.
std::vector<float> first_numbers(const Series& s, double count) {
  std::vector<float> values{0.0f};
  if (s.least == 0) return {};
  if (s.numbers.place(0.0f).below != 0.0f) values.clear();
  for (auto x = static_cast<float>(s.least); double{x} <= s.least * count;) {
    values.push_back(x);
    const auto gap = gap_at(s.numbers, x);
    if (!gap) break;
    x = static_cast<float>(gap->high);
  }
  return values;
}

void draw_zero_row(Page& page, size_t i, const Axis& axis, double middle) {
  const Series& s = page.series[i];
  page.out.open_group(group_of(page, "zero", i), s.name);
  draw_ticks(page, s, first_numbers(s, axis.to), middle,
             [&](double v) { return std::optional(axis.at(v / s.least)); });
  page.out.close_group();
  const std::string unit = s.least == 0 ? "no number > 0" : "1 = " + short_text(s.least);
  page.out.text(axis.end + 10, middle + 4, {10, page.theme.muted, "start", false, 78}, unit);
}

void draw_near_zero(Page& page) {
  const double end = linear_end(page.series);
  const Axis linear{-end, end, kPlotLeft, 704}, zero{0, 24, 736, kRight - 88};
  draw_heading(page, kLeft, "Near zero", "linear axis; every number is a tick; short: subnormal");
  page.out.text(zero.begin, page.y + 14, {11, page.theme.muted},
                "from zero on, in units of each format's least positive number");
  const double top = page.y + 24;
  const double bottom = top + page.row_height() * static_cast<double>(page.series.size());
  for (int i = -4; i <= 4; ++i)
    draw_mark(page, linear.at(end * i / 4), top, bottom,
              raised(fmt::format("{:.4g}", end * i / 4)));
  for (int i = 0; i <= 24; i += 4) draw_mark(page, zero.at(i), top, bottom, fmt::format("{}", i));
  page.out.open_group(linear.attributes("linear"));
  for (size_t i = 0; i < page.series.size(); ++i) {
    const double middle = top + page.row_height() * (static_cast<double>(i) + 0.5);
    draw_label(page, i, middle);
    draw_linear_row(page, i, linear, middle);
  }
  page.out.close_group();
  page.out.open_group(zero.attributes("zero"));
  for (size_t i = 0; i < page.series.size(); ++i)
    draw_zero_row(page, i, zero, top + page.row_height() * (static_cast<double>(i) + 0.5));
  page.out.close_group();
  page.y = bottom + 26;
}

/// The magnitudes of one sign, from the least one on `side` up.
void draw_magnitude_area(Page& page, const Series& s, const Axis& side, double sign,
                         double middle) {
  std::vector<double> heights;
  const double pixel = side.end > side.begin ? kColumn : -kColumn;
  for (int c = 0; c * kColumn < std::abs(side.end - side.begin); ++c) {
    const double exponent = side.value(side.begin + pixel * (c + 0.5));
    heights.push_back(density(s, sign * std::exp2(exponent), std::exp2(std::floor(exponent))));
  }
  double begin = side.begin;
  if (pixel < 0) {
    std::reverse(heights.begin(), heights.end());
    begin -= kColumn * static_cast<double>(heights.size());
  }
  draw_area(page, heights, begin, middle);
}

void draw_magnitude_row(Page& page, size_t i, const SignLogAxis& axis, double middle) {
  const Series& s = page.series[i];
  page.out.open_group(group_of(page, "log", i), s.name);
  if (s.values.empty()) {
    draw_magnitude_area(page, s, axis.side(1), 1, middle);
    draw_magnitude_area(page, s, axis.side(-1), -1, middle);
  }
  draw_ticks(page, s, s.values.empty() ? std::vector<float>{0} : s.values, middle,
             [&](double v) { return axis.at(v); });
  page.out.close_group();
}

void draw_magnitudes(Page& page) {
  const SignLogAxis axis{page.low, page.high, kPlotLeft, kRight};
  draw_heading(page, kLeft, "The same numbers by magnitude", "logarithmic on both sides of zero");
  const double top = page.y + 24;
  const double bottom = top + page.row_height() * static_cast<double>(page.series.size());
  for (const int exponent : axis.side(1).whole_numbers(44)) {
    draw_mark(page, axis.side(1).at(exponent), top, bottom, power(2, exponent));
    draw_mark(page, axis.side(-1).at(exponent), top, bottom, "−" + power(2, exponent));
  }
  draw_mark(page, axis.middle(), top, bottom, "0");
  page.out.open_group(axis.side(1).attributes("log"));
  for (size_t i = 0; i < page.series.size(); ++i) {
    const double row = top + page.row_height() * (static_cast<double>(i) + 0.5);
    draw_label(page, i, row);
    draw_magnitude_row(page, i, axis, row);
  }
  page.out.close_group();
  page.y = bottom + 26;
}

// ---- relative error -------------------------------------------------------------------------------------------------
constexpr double kLane = 13;

struct Envelope {
  std::vector<Step> steps;
  double least = 0, most = 0;  // of the error; 0 where there are no steps
};

Envelope envelope_of(const Series& s, const Axis& x) {
  Envelope e;
  if (s.least == 0) return e;
  e.steps = s.values.empty() ? sampled_steps(s, x.from, x.to, static_cast<int>(x.end - x.begin))
                             : exact_steps(s);
  for (const Step& step : e.steps) {
    e.least = e.least == 0 ? step.error : std::min(e.least, step.error);
    e.most = std::max(e.most, step.error);
  }
  return e;
}

/// Whole powers of two that hold every error, 100 % among them.
std::pair<int, int> error_exponents(const std::vector<Envelope>& all) {
  double least = 0.25, most = 1;
  for (const Envelope& e : all) {
    if (e.steps.empty()) continue;
    least = std::min(least, e.least);
    most = std::max(most, e.most);
  }
  return {static_cast<int>(std::floor(std::log2(least))),
          static_cast<int>(std::ceil(std::log2(most)))};
}

/// What lies outside of a format's numbers, in a lane of its own above the chart.
void draw_lane(Page& page, size_t i, const Axis& x, double y) {
  const Series& s = page.series[i];
  page.out.text(kLeft + 14, y + 10, {10, page.theme.text, "start", false, x.begin - kLeft - 44},
                s.name);
  page.out.rectangle(kLeft, y + 3, 8, 8, fmt::format("fill=\"{}\"", page.colour(i)));
  if (s.least == 0) {
    page.out.text(x.begin + 6, y + 10, {9, page.theme.text}, "no number above 0");
    return;
  }
  page.out.line(x.begin, y + kLane / 2, x.end, y + kLane / 2,
                fmt::format("stroke=\"{}\" stroke-width=\"0.5\"", page.theme.grid));
  const double begin = x.at(std::clamp(std::log2(s.least), x.from, x.to));
  const double end = x.at(std::clamp(std::log2(s.max), x.from, x.to));
  const std::string fill = fmt::format("fill=\"{}\" fill-opacity=\"0.3\"", page.colour(i));
  if (begin > x.begin) page.out.rectangle(x.begin, y + 1, begin - x.begin, kLane - 2, fill);
  if (end < x.end) page.out.rectangle(end, y + 1, x.end - end, kLane - 2, fill);
  const std::string under = underflow_text(s), over = overflow_text(s);
  if (svg::width_of(under, 9) + 8 < begin - x.begin)
    page.out.text(begin - 4, y + 10, {9, page.theme.text, "end"}, under);
  if (svg::width_of(over, 9) + 8 < x.end - end)
    page.out.text(end + 4, y + 10, {9, page.theme.text}, over);
}

void draw_envelope(Page& page, size_t i, const Envelope& envelope, const Axis& x, const Axis& y) {
  const Series& s = page.series[i];
  page.out.open_group(group_of(page, "error", i) + " stroke-linejoin=\"round\"", s.name);
  std::string path;
  double end = 0;
  for (const Step& step : envelope.steps) {
    const std::string height = svg::number(y.at(std::log2(step.error)));
    if (step.from != end)
      path += fmt::format("M{} {}", svg::number(x.at(std::log2(step.from))), height);
    else
      path += "V" + height;
    path += "H" + svg::number(x.at(std::log2(step.to)));
    end = step.to;
  }
  page.out.path(path, "class=\"envelope\" fill=\"none\" stroke-width=\"1.6\"");
  if (s.least > 0)
    for (const double limit : {s.least, s.max})
      if (x.holds(std::log2(limit)))
        page.out.line(x.at(std::log2(limit)), y.end, x.at(std::log2(limit)), y.begin,
                      "stroke-dasharray=\"1 3\"");
  page.out.close_group();
}

std::string percent(int decade) {
  return decade >= -2 ? fmt::format("{:g} %", 100 * std::pow(10.0, decade))
                      : power(10, decade + 2) + " %";
}

void draw_error_axes(Page& page, const Axis& x, const Axis& y) {
  const std::string stroke = fmt::format("stroke=\"{}\"", page.theme.grid);
  for (const int exponent : x.whole_numbers(40))
    draw_mark(page, x.at(exponent), y.end, y.begin, power(2, exponent));
  for (const int exponent : y.whole_numbers(16)) {
    page.out.line(x.begin, y.at(exponent), x.end, y.at(exponent), stroke);
    page.out.text(x.begin - 6, y.at(exponent) + 4, {10, page.theme.muted, "end"},
                  power(2, exponent));
  }
  const double decade = std::log2(10.0);
  const Axis decades{y.from / decade, y.to / decade, y.begin, y.end};
  for (const int exponent : decades.whole_numbers(14))
    page.out.text(x.end + 6, decades.at(exponent) + 4, {10, page.theme.muted}, percent(exponent));
}

void draw_errors(Page& page, const Axis& x, double bottom) {
  draw_heading(page, kLeft, "Relative error",
               "worst |x − Q(x)| / |x| of nearest rounding; shaded: underflow, overflow");
  std::vector<Envelope> envelopes;
  for (const Series& s : page.series) envelopes.push_back(envelope_of(s, x));
  const double lanes = page.y + 22;
  for (size_t i = 0; i < page.series.size(); ++i)
    draw_lane(page, i, x, lanes + kLane * static_cast<double>(i));
  const auto [low, high] = error_exponents(envelopes);
  const double top = lanes + kLane * static_cast<double>(page.series.size()) + 8;
  const Axis y{static_cast<double>(low), static_cast<double>(high), bottom, top};
  draw_error_axes(page, x, y);
  page.out.clip("chart", x.begin, top - 2, x.end - x.begin, bottom - top + 4);
  page.out.open_group(x.attributes("error") +
                      fmt::format(" data-y=\"{} {} {} {}\" clip-path=\"url(#chart)\"", y.from, y.to,
                                  y.begin, y.end));
  for (size_t i = 0; i < page.series.size(); ++i) draw_envelope(page, i, envelopes[i], x, y);
  page.out.close_group();
}

// ---- dynamic range --------------------------------------------------------------------------------------------------
double binades(const Series& s) { return std::log2(s.max / s.least); }
double decades(const Series& s) { return std::log10(s.max / s.least); }

std::string range_text(const Series& s) {
  if (s.least == 0) return "no number above 0";
  return fmt::format("{} of precision, {} binades, {} decades", bits_text(most_bits(s)),
                     one_decimal(binades(s)), one_decimal(decades(s)));
}

/// One rectangle a binade, joined where they are equally thick.
void draw_bar(Page& page, size_t i, const Axis& x, double middle, double unit) {
  const Series& s = page.series[i];
  page.out.open_group(group_of(page, "range", i) + " stroke-width=\"0\"", s.name);
  std::array<std::string, 2> paths;
  const Binades all = s.least > 0 ? binades_of(s) : Binades{0, -1};
  for (int e = all.first; e <= all.last;) {
    const double bits = bits_in_binade(s, e);
    const bool subnormal = s.is_subnormal(std::max(std::ldexp(1.0, e), s.least));
    const double begin = std::max(std::log2(s.least), static_cast<double>(e));
    while (++e <= all.last && bits_in_binade(s, e) == bits &&
           s.is_subnormal(std::ldexp(1.0, e)) == subnormal) {
    }
    const double end = std::min(std::log2(s.max), static_cast<double>(e));
    const double width = std::max(x.at(end) - x.at(begin), 2.0), height = 3 + unit * bits;
    paths[subnormal ? 1 : 0] +=
        fmt::format("M{} {}h{}v{}h{}z", svg::number(x.at(begin)), svg::number(middle - height / 2),
                    svg::number(width), svg::number(height), svg::number(-width));
  }
  page.out.path(paths[0], "class=\"normal\"");
  page.out.path(paths[1], "class=\"subnormal\" fill-opacity=\"0.45\"");
  page.out.close_group();
}

void draw_range_row(Page& page, size_t i, const Axis& x, double top, double bottom, double most) {
  for (const int exponent : x.whole_numbers(40))
    page.out.line(x.at(exponent), top + 15, x.at(exponent), bottom - 2,
                  fmt::format("stroke=\"{}\"", page.theme.grid));
  page.out.text(x.begin + 4, top + 11, {11, page.theme.text, "start", true, 180},
                page.series[i].name);
  page.out.text(x.end - 2, top + 11, {10, page.theme.muted, "end"}, range_text(page.series[i]));
  const double thick = bottom - top - 20;
  draw_bar(page, i, x, top + 16 + thick / 2, (thick - 3) / most);
}

void draw_ranges(Page& page, const Axis& x, double bottom) {
  draw_heading(page, x.begin, "Dynamic range", "thickness: bits of precision; pale: subnormal");
  const double top = page.y + 22;
  const double pitch = std::min((bottom - top) / static_cast<double>(page.series.size()), 74.0);
  double most = 1;
  for (const Series& s : page.series) most = std::max(most, most_bits(s));
  const double end = top + pitch * static_cast<double>(page.series.size());
  for (const int exponent : x.whole_numbers(40))
    page.out.text(x.at(exponent), end + 13, {10, page.theme.muted, "middle"}, power(2, exponent));
  const double decade = std::log2(10.0);
  const Axis tens{x.from / decade, x.to / decade, x.begin, x.end};
  for (const int exponent : tens.whole_numbers(40))
    page.out.text(tens.at(exponent), end + 27, {10, page.theme.muted, "middle"},
                  power(10, exponent));
  page.out.clip("bars", x.begin, top, x.end - x.begin, end - top);
  page.out.open_group(x.attributes("range") + " clip-path=\"url(#bars)\"");
  for (size_t i = 0; i < page.series.size(); ++i) {
    const double row = top + pitch * static_cast<double>(i);
    draw_range_row(page, i, x, row, row + pitch, most);
  }
  page.out.close_group();
}

/// Errors and ranges share their axis of magnitudes.
void draw_charts(Page& page) {
  const double bottom = page.y + std::max(250.0, 60 + 36 * static_cast<double>(page.series.size()));
  const double low = page.low - page.room, high = page.high + page.room;
  draw_errors(page, {low, high, 160, 640}, bottom);
  draw_ranges(page, {low, high, 728, kRight}, bottom);
  page.y = bottom + 40;
}

// ---- the table and what else must be said ---------------------------------------------------------------------------
using Cells = std::array<std::string, 9>;
constexpr std::array kColumns = {"bits",    "numbers",   "max",     "min normal", "min positive",
                                 "epsilon", "precision", "binades", "decades"};

std::string cell(double value) { return value > 0 ? short_text(value) : "–"; }

Cells cells_of(const Series& s) {
  const bool positive = s.least > 0;
  return {fmt::format("{}{}", s.bits, s.shown == Series::Shown::All ? "" : " + scale"),
          s.numbers.count() == 0 ? "–" : fmt::format("{}", s.numbers.count()),
          short_text(s.max),
          cell(s.least_normal),
          cell(s.least),
          cell(spacing_above_one(s).value_or(0)),
          positive ? bits_text(most_bits(s)) : "–",
          positive ? one_decimal(binades(s)) : "–",
          positive ? one_decimal(decades(s)) : "–"};
}

void draw_table(Page& page) {
  constexpr double kFirst = 230, kLine = 18;
  const double width = (kRight - kLeft - kFirst) / static_cast<double>(kColumns.size());
  const auto right = [&](size_t c) { return kLeft + kFirst + width * static_cast<double>(c + 1); };
  for (size_t c = 0; c < kColumns.size(); ++c)
    page.out.text(right(c), page.y + 12, {11, page.theme.muted, "end"}, kColumns[c]);
  page.y += 18;
  for (size_t i = 0; i < page.series.size(); ++i) {
    page.out.line(kLeft, page.y, kRight, page.y, fmt::format("stroke=\"{}\"", page.theme.grid));
    page.out.rectangle(kLeft, page.y + 4, 10, 10, fmt::format("fill=\"{}\"", page.colour(i)));
    page.out.text(kLeft + 16, page.y + 13, {12, page.theme.text, "start", true, kFirst - 20},
                  page.series[i].name);
    const Cells cells = cells_of(page.series[i]);
    for (size_t c = 0; c < cells.size(); ++c)
      page.out.text(right(c), page.y + 13, {12, page.theme.text, "end", false, width - 6},
                    cells[c]);
    page.y += kLine;
  }
}

template <class Holds>
std::string names(const std::vector<Series>& all, const Holds& holds) {
  std::vector<std::string> found;
  for (const Series& s : all)
    if (holds(s)) found.push_back(s.name);
  return fmt::format("{}", fmt::join(found, ", "));
}

std::vector<std::string> notes_of(const Page& page, bool given_range) {
  std::vector<std::string> notes;
  const auto note = [&](const std::string& whom, const std::string& text) {
    if (!whom.empty()) notes.push_back(whom + ": " + text);
  };
  note(names(page.series, [](const Series& s) { return s.shown == Series::Shown::Block; }),
       "the numbers of one block whose largest magnitude (amax) is 1; they move with the block's "
       "exponent.");
  note(names(page.series, [](const Series& s) { return s.shown == Series::Shown::Elements; }),
       "the numbers of an element alone, without its scales.");
  note(names(page.series, [](const Series& s) { return s.rotated; }),
       "the numbers that rotated values become.");
  note(names(page.series, [](const Series& s) { return s.values.empty(); }),
       fmt::format("more than {} numbers, drawn as an area whose height is the logarithm of their "
                   "density.",
                   kMostTicks));
  if (given_range)
    notes.push_back(fmt::format("Axes of magnitudes show {} to {} only.",
                                power(2, static_cast<int>(page.low)),
                                power(2, static_cast<int>(page.high))));
  return notes;
}

void draw_notes(Page& page, const std::vector<std::string>& notes) {
  page.y += 6;
  for (const std::string& note : notes)
    for (const std::string& line : svg::lines_of(note, 11, kRight - kLeft)) {
      page.y += 15;
      page.out.text(kLeft, page.y, {11, page.theme.muted}, line);
    }
  page.y += 16;
}

std::string description(const Page& page) {
  std::string text =
      "Number lines, relative rounding error against magnitude and dynamic range of number "
      "formats.";
  for (const Series& s : page.series)
    text += fmt::format(" {}: {} bits, {}, {} to {}.", s.name, cells_of(s)[0], count_text(s),
                        short_text(s.numbers.lowest()), short_text(s.max));
  return text;
}

// ---- the command ----------------------------------------------------------------------------------------------------
struct PlotOptions {
  std::string formats, out, width = "1280", theme = "light";
  std::optional<std::string> title, range;
};

std::vector<Series> read_formats(const std::string& list) {
  const auto names = text::split(list, ',');
  if (names.size() > kMostFormats)
    throw UsageError(
        fmt::format("plot: --formats takes 1 to {} formats, got {}", kMostFormats, names.size()));
  std::vector<Series> all;
  for (const std::string_view name : names) all.push_back(make_series(std::string(name)));
  return all;
}

const Theme& read_theme(const std::string& name) {
  if (name == "light") return kLight;
  if (name == "dark") return kDark;
  throw UsageError("plot: --theme takes light or dark, got '" + name + "'");
}

/// "-20:20".
std::pair<int, int> read_range(const std::string& given) {
  const auto ends = text::split(given, ':');
  const auto low = text::number(ends.front()), high = text::number(ends.back());
  if (ends.size() != 2 || !low || !high || *low < -149 || *high > 128 || *low >= *high)
    throw UsageError(
        "plot: --range takes two exponents LO:HI from -149 to 128, as in -20:20, got '" + given +
        "'");
  return {*low, *high};
}

std::pair<int, int> range_of(const std::vector<Series>& all) {
  const auto [least, most] = magnitudes(all);
  const int low = static_cast<int>(std::floor(std::log2(least)));
  return {low, std::max(low + 1, static_cast<int>(std::ceil(std::log2(most))))};
}

std::string draw(const PlotOptions& o) {
  const auto width = integer_value("plot: --width", o.width, 320, 16384);
  const Theme& theme = read_theme(o.theme);
  std::vector<Series> series = read_formats(o.formats);
  const auto [low, high] = o.range ? read_range(*o.range) : range_of(series);
  const double room = o.range ? 0 : std::max(1.0, std::ceil((high - low) * 0.09));
  Page page{std::move(series), theme, static_cast<double>(low), static_cast<double>(high), room};
  const std::string title =
      o.title.value_or(names(page.series, [](const Series&) { return true; }));
  page.out.text(kLeft, 36, {22, theme.text, "start", true, kRight - kLeft}, title);
  page.y = 52;
  draw_near_zero(page);
  draw_magnitudes(page);
  draw_charts(page);
  draw_table(page);
  draw_notes(page, notes_of(page, o.range.has_value()));
  return page.out.document(
      {kWidth, page.y, static_cast<double>(width), theme.background, title, description(page)});
}

void run_plot(const PlotOptions& o) {
  if (o.out != "-" && std::filesystem::path(o.out).extension() != ".svg")
    throw UsageError(
        "plot: --out takes a file that ends in .svg, or - for the standard output, got '" + o.out +
        "'");
  const std::string document = draw(o);
  if (o.out == "-") {
    std::fwrite(document.data(), 1, document.size(), stdout);
    return;
  }
  nn::write_file_atomically(o.out, document);
  fmt::print("{}: {} bytes\n", o.out, document.size());
}

}  // namespace

void add_plot(CLI::App& app) {
  auto o = std::make_shared<PlotOptions>();
  CLI::App* cmd =
      app.add_subcommand("plot", "Draw number formats side by side: numbers, error, range");
  cmd->add_option("--formats", o->formats, "1 to 8 number formats: e4m3,e5m2,posit8.1")->required();
  cmd->add_option("--out", o->out, "the picture, FILE.svg; - is the standard output")->required();
  add_text(*cmd, "--title", o->title, "above the picture (default: the formats)");
  cmd->add_option("--theme", o->theme, "light or dark")->capture_default_str();
  cmd->add_option("--width", o->width, "pixels that a viewer gives the picture")
      ->capture_default_str();
  add_text(*cmd, "--range", o->range,
           "LO:HI, axes of magnitudes show 2^LO to 2^HI (default: every number)");
  cmd->callback([o] { run_plot(*o); });
}

}  // namespace ulp::tools
