#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
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

/// The axes with their titles, and lines at round values of y.
void draw_frame(svg::Drawing& out, const svg::Axis& y, const char* x_title, const char* y_title) {
  const double step = nice_step(y.to - y.from, 8);
  const int decimals = std::max(0, -static_cast<int>(std::floor(std::log10(step))));
  for (double a = std::ceil(y.from / step) * step; a <= y.to + step / 1e6; a += step) {
    out.line(kLeft, y.at(a), kRight, y.at(a), fmt::format("stroke=\"{}\"", kGrid));
    out.text(kLeft - 8, y.at(a) + 4, {11, kMuted, "end"}, fmt::format("{:.{}f}", a, decimals));
  }
  out.line(kLeft, kBottom, kRight, kBottom, fmt::format("stroke=\"{}\"", kMuted));
  out.text((kLeft + kRight) / 2, kBottom + 42, {12, kText, "middle"}, x_title);
  out.text(kLeft - 8, kTop - 12, {12, kText, "start"}, y_title);
}

void draw_tick(svg::Drawing& out, double x, const std::string& text) {
  out.line(x, kBottom, x, kBottom + 5, fmt::format("stroke=\"{}\"", kMuted));
  out.text(x, kBottom + 20, {11, kMuted, "middle"}, text);
}

void draw_bits(svg::Drawing& out, const svg::Axis& x) {
  for (const int bits : {1, 2, 3, 4, 6, 8, 12, 16, 24, 32}) {
    const double at = std::log2(bits);
    if (x.holds(at)) draw_tick(out, x.at(at), std::to_string(bits));
  }
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

/// The mean of curves as far as every one goes.
std::vector<double> mean_of(const std::vector<std::vector<double>>& curves) {
  if (curves.empty()) return {};
  size_t length = curves[0].size();
  for (const auto& curve : curves) length = std::min(length, curve.size());
  std::vector<double> mean(length, 0.0);
  for (const auto& curve : curves)
    for (size_t i = 0; i < length; ++i) mean[i] += curve[i] / static_cast<double>(curves.size());
  return mean;
}

std::string path_of(const std::vector<double>& curve, const svg::Axis& x, const svg::Axis& y) {
  std::string path;
  for (size_t i = 0; i < curve.size(); ++i)
    path += fmt::format("{}{} {}", i == 0 ? "M" : "L",
                        svg::number(x.at(static_cast<double>(i + 1))), svg::number(y.at(curve[i])));
  return path;
}

/// The range of losses that is shown.
std::pair<double, double> losses_of(const std::vector<std::vector<double>>& curves, size_t epochs) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const auto& curve : curves)
    for (size_t i = std::min(epochs / 4, curve.empty() ? 0 : curve.size() - 1); i < curve.size();
         ++i) {
      low = std::min(low, curve[i]);
      high = std::max(high, curve[i]);
    }
  if (!(low <= high)) return {0, 1};
  const double room = std::max(1e-3, 0.08 * (high - low));
  return {low - room, high + room};
}

}  // namespace

std::string draw_curves(const std::vector<SweepRun>& runs, const std::vector<std::string>& formats,
                        const std::string& title) {
  std::vector<std::vector<double>> all;
  size_t epochs = 1;
  for (const SweepRun& run : runs) {
    all.push_back(run.curve);
    epochs = std::max(epochs, run.curve.size());
  }
  const auto [low, high] = losses_of(all, epochs);
  const svg::Axis x{1, std::max(2.0, static_cast<double>(epochs)), kLeft, kRight},
      y{low, high, kBottom, kTop};
  svg::Drawing out;
  out.clip("curves", kLeft, kTop, kRight - kLeft, kBottom - kTop);
  out.text(kLeft, 30, {18, kText, "start", true, kWidth - 2 * kLeft}, title);
  draw_frame(out, y, "epochs", "loss on held-out samples");
  for (const int epoch : x.whole_numbers(30)) draw_tick(out, x.at(epoch), std::to_string(epoch));
  std::vector<Label> labels;
  std::string description = "Loss on held-out samples against epochs; the last mean of each:";
  for (size_t i = 0; i < formats.size(); ++i) {
    std::vector<std::vector<double>> own;
    for (const SweepRun& run : runs)
      if (run.formats == formats[i] && !run.curve.empty()) own.push_back(run.curve);
    const std::vector<double> mean = mean_of(own);
    if (mean.empty()) continue;
    out.open_group(fmt::format("id=\"curve-{}\" stroke=\"{}\" fill=\"none\" "
                               "clip-path=\"url(#curves)\"",
                               i, colour(i)),
                   formats[i]);
    if (own.size() > 1)
      for (const auto& curve : own)
        out.path(path_of(curve, x, y), "stroke-width=\"0.7\" stroke-opacity=\"0.5\"");
    out.path(path_of(mean, x, y), "stroke-width=\"1.8\"");
    out.close_group();
    const double height = std::clamp(y.at(mean.back()), kTop, kBottom);
    labels.push_back({i, x.at(static_cast<double>(mean.size())), height, height});
    description += fmt::format(" {} {:.4f}.", formats[i], mean.back());
  }
  keep_apart(labels);
  for (const Label& label : labels)
    out.text(label.x + 9, label.place + 4,
             {11, colour(label.row), "start", false, kWidth - label.x - 12}, formats[label.row]);
  return out.document({kWidth, kHeight, kWidth, "#ffffff", title, description});
}

std::string draw_sweep(const std::vector<SweepRow>& rows, const std::string& title) {
  const auto [low, high] = accuracies_of(rows);
  const auto [from, to] = exponents_of(rows);
  const svg::Axis x{from, to, kLeft, kRight}, y{low, high, kBottom, kTop};
  svg::Drawing out;
  out.text(kLeft, 30, {18, kText, "start", true, kWidth - 2 * kLeft}, title);
  draw_frame(out, y, "bits of an operand, mean over all products", "test accuracy, %");
  draw_bits(out, x);
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
