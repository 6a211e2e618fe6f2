#include "tools/plot_charts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <optional>
#include <utility>

namespace ulp::tools::plot {
namespace {

using svg::Axis;

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

}  // namespace

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

namespace {

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

}  // namespace

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

namespace {

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

}  // namespace

/// Errors and ranges share their axis of magnitudes.
void draw_charts(Page& page) {
  const double bottom = page.y + std::max(250.0, 60 + 36 * static_cast<double>(page.series.size()));
  const double low = page.low - page.room, high = page.high + page.room;
  draw_errors(page, {low, high, 160, 640}, bottom);
  draw_ranges(page, {low, high, 728, kRight}, bottom);
  page.y = bottom + 40;
}

}  // namespace ulp::tools::plot
