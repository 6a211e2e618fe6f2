#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
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

const std::vector<double>& values_of(const SweepRow& row, bool by_loss) {
  return by_loss ? row.losses : row.accuracies;
}

const std::optional<Spread>& spread_of(const SweepRow& row, bool by_loss) {
  return by_loss ? row.loss : row.accuracy;
}

/// The least and the largest result that is shown.
std::pair<double, double> values_of(const std::vector<SweepRow>& rows, bool by_loss) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const SweepRow& row : rows)
    for (const double v : values_of(row, by_loss)) {
      low = std::min(low, v);
      high = std::max(high, v);
    }
  if (low > high) return by_loss ? std::pair{0.0, 1.0} : std::pair{0.0, 100.0};
  const double room = std::max(by_loss ? 0.001 : 0.1, 0.1 * (high - low));
  return {std::max(0.0, low - room), by_loss ? high + room : std::min(100.0, high + room)};
}

std::pair<double, double> exponents_of(const std::vector<SweepRow>& rows) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const SweepRow& row : rows) {
    low = std::min(low, std::log2(std::max(1.0, row.x)));
    high = std::max(high, std::log2(std::max(1.0, row.x)));
  }
  if (low > high) return {0, 5};
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

void draw_whole_numbers(svg::Drawing& out, const svg::Axis& x) {
  for (const int number : {1, 2, 3, 4, 6, 8, 12, 16, 24, 32}) {
    const double at = std::log2(number);
    if (x.holds(at)) draw_tick(out, x.at(at), std::to_string(number));
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

void draw_row(svg::Drawing& out, const SweepRow& row, size_t i, const std::string& colour, double x,
              const svg::Axis& y, bool by_loss) {
  out.open_group(fmt::format("id=\"formats-{}\" stroke=\"{}\" fill=\"{}\"", i, colour, colour),
                 row.formats);
  for (const double v : values_of(row, by_loss))
    out.path(circle(x, y.at(v), 2), "stroke=\"none\" fill-opacity=\"0.45\"");
  if (const auto& spread = spread_of(row, by_loss)) {
    if (spread->deviation) {
      const double high = y.at(std::min(spread->mean + *spread->deviation, y.to)),
                   low = y.at(std::max(spread->mean - *spread->deviation, y.from));
      out.line(x, high, x, low, "stroke-width=\"1.5\"");
    }
    out.path(circle(x, y.at(spread->mean), 4.5), "stroke=\"none\"");
  } else {
    out.path(fmt::format("M{} {}l8 8m0 -8l-8 8", svg::number(x - 4), svg::number(kBottom - 12)),
             "fill=\"none\" stroke-width=\"2\"");
  }
  out.close_group();
}

/// The place of a row's series among those there are; without one the row's own.
size_t series_of(const std::vector<SweepRow>& rows, size_t row) {
  std::vector<std::string> before;
  for (size_t i = 0;; ++i) {
    const bool own = rows[i].series.empty();
    const auto found = std::find(before.begin(), before.end(), rows[i].series);
    const auto place =
        static_cast<size_t>(own ? before.end() - before.begin() : found - before.begin());
    if (i == row) return place;
    if (own || found == before.end()) before.push_back(rows[i].series);
  }
}

/// Lines through the means of the rows of one series, from left to right.
void draw_series(svg::Drawing& out, const std::vector<SweepRow>& rows, const svg::Axis& x,
                 const svg::Axis& y, bool by_loss) {
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].series.empty() || !spread_of(rows[i], by_loss)) continue;
    const SweepRow* next = nullptr;
    for (const SweepRow& row : rows)
      if (row.series == rows[i].series && row.x > rows[i].x && spread_of(row, by_loss) &&
          (next == nullptr || row.x < next->x))
        next = &row;
    if (next == nullptr) continue;
    out.line(x.at(std::log2(std::max(1.0, rows[i].x))), y.at(spread_of(rows[i], by_loss)->mean),
             x.at(std::log2(std::max(1.0, next->x))), y.at(spread_of(*next, by_loss)->mean),
             fmt::format("stroke=\"{}\"", colour(series_of(rows, i))));
  }
}

/// True unless a row of the same series lies further right.
bool is_end(const std::vector<SweepRow>& rows, size_t row) {
  return rows[row].series.empty() ||
         std::none_of(rows.begin(), rows.end(), [&](const SweepRow& other) {
           return other.series == rows[row].series && other.x > rows[row].x;
         });
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
    out.path(circle(x.at(static_cast<double>(mean.size())), y.at(mean.back()), 2), "");
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

std::string draw_sweep(const std::vector<SweepRow>& rows, const std::string& title,
                       const ChartStyle& style) {
  const bool by_loss = style.by_loss;
  const auto [low, high] = values_of(rows, by_loss);
  const auto [from, to] = exponents_of(rows);
  const svg::Axis x{from, to, kLeft, kRight}, y{low, high, kBottom, kTop};
  const char* const y_title =
      by_loss ? "loss on held-out samples" : "accuracy on held-out samples, %";
  svg::Drawing out;
  out.text(kLeft, 30, {18, kText, "start", true, kWidth - 2 * kLeft}, title);
  draw_frame(out, y, style.x_title, y_title);
  draw_whole_numbers(out, x);
  if (!rows.empty() && spread_of(rows[0], by_loss)) {
    const double reference = y.at(spread_of(rows[0], by_loss)->mean);
    out.line(kLeft, reference, kRight, reference,
             fmt::format("stroke=\"{}\" stroke-dasharray=\"5 4\"", kMuted));
  }
  draw_series(out, rows, x, y, by_loss);
  std::vector<Label> labels;
  for (size_t i = 0; i < rows.size(); ++i) {
    const double at = x.at(std::log2(std::max(1.0, rows[i].x)));
    const auto& spread = spread_of(rows[i], by_loss);
    const double height = spread ? y.at(spread->mean) : kBottom - 8;
    draw_row(out, rows[i], i, colour(series_of(rows, i)), at, y, by_loss);
    if (is_end(rows, i)) labels.push_back({i, at, height, height});
  }
  keep_apart(labels);
  for (const Label& label : labels) {
    const SweepRow& row = rows[label.row];
    const std::string name = row.series.empty() ? row.formats : row.series;
    out.text(label.x + 9, label.place + 4,
             {11, colour(series_of(rows, label.row)), "start", false, kWidth - label.x - 12},
             spread_of(row, by_loss) ? name : name + " (diverged)");
  }
  std::string description = fmt::format("{} against {}.", y_title, style.x_title);
  for (const SweepRow& row : rows) {
    description += fmt::format(" {}: {:.4g}", row.formats, row.x);
    if (const auto& spread = spread_of(row, by_loss))
      description +=
          by_loss ? fmt::format(", {:.4f}", spread->mean) : fmt::format(", {:.2f} %", spread->mean);
    description += ".";
  }
  return out.document({kWidth, kHeight, kWidth, "#ffffff", title, description});
}

}  // namespace ulp::tools
