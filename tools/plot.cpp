#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/format_text.h"
#include "nn/data/atomic_file.h"
#include "tools/commands.h"
#include "tools/format_options.h"
#include "tools/plot_charts.h"
#include "tools/plot_series.h"
#include "tools/values.h"

namespace ulp::tools {
namespace {

using namespace plot;

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
