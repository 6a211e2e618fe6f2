#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/grid.h"
#include "tools/neighbours.h"

// The numbers of formats as `ulp plot` draws and describes them.
namespace ulp::tools::plot {

inline constexpr int64_t kMostTicks = 1024;  // more numbers than that are drawn as their density

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
/// Throws UsageError for what is no format, or has a rounding.
Series make_series(const std::string& text);

/// Neighbouring numbers, low ≤ x < high.
struct Gap {
  double low, high;
  double width() const { return high - low; }
};
/// The gap that holds x; none beyond the ends.
std::optional<Gap> gap_at(const Neighbours& numbers, double x);

/// The envelope of the relative error: its value for from ≤ x < to.
struct Step {
  double from, to, error;
};
std::vector<Step> exact_steps(const Series& s);
/// The worst over parts of the axis, `count` between the exponents from and to.
std::vector<Step> sampled_steps(const Series& s, double from, double to, int count);

/// Significant bits in the binade from 2^exponent on: as many numbers as 2^(bits − 1) fill it.
double bits_in_binade(const Series& s, int exponent);
struct Binades {
  int first, last;
};
Binades binades_of(const Series& s);
double most_bits(const Series& s);
std::optional<double> spacing_above_one(const Series& s);
inline double binades(const Series& s) { return std::log2(s.max / s.least); }
inline double decades(const Series& s) { return std::log10(s.max / s.least); }
/// The smallest and the largest magnitude of all series, without 0.
std::pair<double, double> magnitudes(const std::vector<Series>& all);

/// "2^-9" → "2⁻⁹", "-3.4e+38" → "−3.4·10³⁸".
std::string raised(std::string text);
/// "2⁻⁹".
std::string power(int base, int exponent);
/// "−3.4·10³⁸".
std::string short_text(double value);
std::string one_decimal(double value);
std::string bits_text(double bits);
std::string count_text(const Series& s);
/// What huge and tiny positive values become.
std::string overflow_text(const Series& s);
std::string underflow_text(const Series& s);

}  // namespace ulp::tools::plot
