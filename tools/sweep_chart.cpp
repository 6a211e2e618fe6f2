#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "tools/svg.h"
#include "tools/sweep_results.h"

namespace ulp::tools {
namespace {

constexpr double kWidth = 960, kHeight = 560;
constexpr double kLeft = 72, kRight = kWidth - 150, kTop = 64, kBottom = kHeight - 64;
constexpr double kLabelHeight = 14;
constexpr const char *kText = "#1a1a1a", *kMuted = "#5c5c5c", *kGrid = "#dcdcdc";
/// By Okabe and Ito, "Color Universal Design" (2008).
constexpr std::array<const char*, 7> kColours = {"#000000", "#0072B2", "#D55E00", "#009E73",
                                                 "#CC79A7", "#E69F00", "#56B4E9"};

std::string colour(size_t i) { return kColours[i % kColours.size()]; }

std::string circle(double x, double y, double r) {
  return fmt::format("M{} {}a{} {} 0 1 0 {} 0a{} {} 0 1 0 {} 0z", svg::number(x - r),
                     svg::number(y), svg::number(r), svg::number(r), svg::number(2 * r),
                     svg::number(r), svg::number(r), svg::number(-2 * r));
}

/// A step of 1, 2 or 5 times a power of ten that leaves at most `most` of them.
double nice_step(double range, int most) {
  const double power = std::pow(10.0, std::floor(std::log10(range / most)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (range / (factor * power) <= most) return factor * power;
  return 10 * power;
}

/// The least and the largest accuracy that is shown.
std::pair<double, double> accuracies_of(const std::vector<SweepRow>& rows) {
  double low = 100, high = 0;
  for (const SweepRow& row : rows)
    for (const double a : row.accuracies) {
      low = std::min(low, a);
      high = std::max(high, a);
    }
  if (low > high) return {0, 100};
  const double room = std::max(0.1, 0.1 * (high - low));
  return {std::max(0.0, low - room), std::min(100.0, high + room)};
}

std::pair<double, double> exponents_of(const std::vector<SweepRow>& rows) {
  double low = 5, high = 5;  // log2 of 32
  for (const SweepRow& row : rows) {
    low = std::min(low, std::log2(std::max(1.0, row.bits)));
    high = std::max(high, std::log2(std::max(1.0, row.bits)));
  }
  return {low - 0.3, high + 0.3};
}

void draw_axes(svg::Drawing& out, const svg::Axis& x, const svg::Axis& y) {
  const double step = nice_step(y.to - y.from, 8);
  const int decimals = std::max(0, -static_cast<int>(std::floor(std::log10(step))));
  for (double a = std::ceil(y.from / step) * step; a <= y.to + step / 1e6; a += step) {
    out.line(kLeft, y.at(a), kRight, y.at(a), fmt::format("stroke=\"{}\"", kGrid));
    out.text(kLeft - 8, y.at(a) + 4, {11, kMuted, "end"}, fmt::format("{:.{}f}", a, decimals));
  }
  for (const int bits : {1, 2, 3, 4, 6, 8, 12, 16, 24, 32}) {
    const double at = std::log2(bits);
    if (!x.holds(at)) continue;
    out.line(x.at(at), kBottom, x.at(at), kBottom + 5, fmt::format("stroke=\"{}\"", kMuted));
    out.text(x.at(at), kBottom + 20, {11, kMuted, "middle"}, std::to_string(bits));
  }
  out.line(kLeft, kBottom, kRight, kBottom, fmt::format("stroke=\"{}\"", kMuted));
  out.text((kLeft + kRight) / 2, kBottom + 42, {12, kText, "middle"},
           "bits of an operand, mean over all products");
  out.text(kLeft - 8, kTop - 12, {12, kText, "start"}, "test accuracy, %");
}

/// A name beside its point.
struct Label {
  size_t row;
  double x, y, place;  // y: of the point, place: of the text
};

/// Moves labels of points that are near each other apart.
void keep_apart(std::vector<Label>& labels) {
  std::sort(labels.begin(), labels.end(), [](const Label& a, const Label& b) { return a.y < b.y; });
  for (size_t i = 0; i < labels.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (std::abs(labels[i].x - labels[j].x) < 120 &&
          labels[i].place - labels[j].place < kLabelHeight)
        labels[i].place = labels[j].place + kLabelHeight;
}

void draw_row(svg::Drawing& out, const SweepRow& row, size_t i, double x, const svg::Axis& y) {
  out.open_group(
      fmt::format("id=\"formats-{}\" stroke=\"{}\" fill=\"{}\"", i, colour(i), colour(i)),
      row.formats);
  for (const double a : row.accuracies)
    out.path(circle(x, y.at(a), 2), "stroke=\"none\" fill-opacity=\"0.45\"");
  if (row.accuracy) {
    const double mean = row.accuracy->mean;
    if (const auto deviation = row.accuracy->deviation) {
      const double high = y.at(std::min(mean + *deviation, y.to)),
                   low = y.at(std::max(mean - *deviation, y.from));
      out.line(x, high, x, low, "stroke-width=\"1.5\"");
    }
    out.path(circle(x, y.at(mean), 4.5), "stroke=\"none\"");
  } else {
    out.path(fmt::format("M{} {}l8 8m0 -8l-8 8", svg::number(x - 4), svg::number(kBottom - 12)),
             "fill=\"none\" stroke-width=\"2\"");
  }
  out.close_group();
}

}  // namespace

std::string draw_sweep(const std::vector<SweepRow>& rows, const std::string& title) {
  const auto [low, high] = accuracies_of(rows);
  const auto [from, to] = exponents_of(rows);
  const svg::Axis x{from, to, kLeft, kRight}, y{low, high, kBottom, kTop};
  svg::Drawing out;
  out.text(kLeft, 30, {18, kText, "start", true, kWidth - 2 * kLeft}, title);
  draw_axes(out, x, y);
  if (!rows.empty() && rows[0].accuracy)
    out.line(kLeft, y.at(rows[0].accuracy->mean), kRight, y.at(rows[0].accuracy->mean),
             fmt::format("stroke=\"{}\" stroke-dasharray=\"5 4\"", kMuted));
  std::vector<Label> labels;
  for (size_t i = 0; i < rows.size(); ++i) {
    const double at = x.at(std::log2(std::max(1.0, rows[i].bits)));
    const double height = rows[i].accuracy ? y.at(rows[i].accuracy->mean) : kBottom - 8;
    draw_row(out, rows[i], i, at, y);
    labels.push_back({i, at, height, height});
  }
  keep_apart(labels);
  std::string description = "Test accuracy against bits.";
  for (const Label& label : labels) {
    const SweepRow& row = rows[label.row];
    const std::string name = row.accuracy ? row.formats : row.formats + " (diverged)";
    out.text(label.x + 9, label.place + 4,
             {11, colour(label.row), "start", false, kWidth - label.x - 12}, name);
    description += row.accuracy ? fmt::format(" {}: {:.4g} bits, {:.2f} %.", name, row.bits,
                                              row.accuracy->mean)
                                : fmt::format(" {}: {:.4g} bits.", name, row.bits);
  }
  return out.document({kWidth, kHeight, kWidth, "#ffffff", title, description});
}

}  // namespace ulp::tools
