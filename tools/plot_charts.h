#pragma once

#include <array>
#include <string>
#include <vector>

#include "tools/plot_series.h"
#include "tools/svg.h"

// The page that `ulp plot` draws, and its charts.
namespace ulp::tools::plot {

inline constexpr size_t kMostFormats = 8;

/// Colours by Okabe and Ito, "Color Universal Design" (2008). Yellow is darker on white, and black is white on black.
struct Theme {
  const char *background, *text, *muted, *grid;
  std::array<const char*, kMostFormats> colours;
};
inline constexpr Theme kLight = {
    "#ffffff",
    "#1a1a1a",
    "#5c5c5c",
    "#dcdcdc",
    {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A800"}};
inline constexpr Theme kDark = {
    "#14171c",
    "#f0f0f0",
    "#a8adb5",
    "#363c45",
    {"#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#ffffff", "#0072B2"}};

/// The drawing's own units: everything is laid out for this width, --width only scales it.
inline constexpr double kWidth = 1280, kLeft = 24, kRight = kWidth - kLeft;
inline constexpr double kLabels = 176, kPlotLeft = kLeft + kLabels;

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

// Each begins at page.y and moves it to its end.
void draw_near_zero(
    Page& page);  // the numbers around 0, on a linear axis and by multiples of the least one
void draw_magnitudes(Page& page);  // all of them, on logarithmic axes
void draw_charts(Page& page);      // relative errors, and ranges

}  // namespace ulp::tools::plot
