#include <algorithm>
#include <cmath>

#include "tests/conformance_parts.h"

namespace ulp::conformance {

using reference::Reference;

// ---- +scale=squeeze -------------------------------------------------------------------------------------------------
namespace {

constexpr double kUnit = 0x1p-24;

double two_to(double t) { return std::exp2(t); }

/// The definition of core/squeeze.h in double, and how far fp32's logarithms and sums may lead away from it: logarithms are off
/// by half an ulp and 2^-22, sums of n by `depth` roundings of Σ|l|, every other operation by one.
class Squeezed {
 public:
  Squeezed(const std::vector<float>& x, double top) {
    double sum = 0, sizes = 0, most = 0;
    int64_t count = 0;
    for (const float v : x) {
      broken_ = broken_ || !std::isfinite(v);
      if (v == 0) continue;
      const double l = log_of(v);
      most = count == 0 ? l : std::max(most, l);
      sum += l;
      sizes += std::fabs(l);
      ++count;
    }
    if (broken_ || count == 0) return;
    const auto n = static_cast<double>(count);
    // Chunks of 4096: 64 lanes of 64 and a tree of 6; then the same for the sums of chunks.
    const double chunks = std::ceil(static_cast<double>(x.size()) / 4096);
    const double depth = 70 + (chunks > 1 ? std::ceil(chunks / 64) + 6 : 0);
    mean_ = sum / n;
    mean_error_ = (depth + 1) * kUnit * sizes / n + 0x1p-22 + 2 * kUnit * std::fabs(mean_);
    const double spread = most - mean_;
    alpha_ = spread > 0 ? top / spread : 1;
    alpha_error_ = (log_error(most) + mean_error_) / spread + 3 * kUnit;  // relative
  }

  bool broken() const { return broken_; }

  /// What is between squeezing and rounding: the least and the most that it may be. x is not 0.
  std::pair<double, double> range(float x) const {
    const double l = log_of(x), t = alpha_ * (l - mean_);
    const double error =
        alpha_ * (log_error(l) + mean_error_) + std::fabs(t) * (alpha_error_ + 3 * kUnit);
    return {two_to(t - error) * (1 - 4 * kUnit), two_to(t + error) * (1 + 4 * kUnit)};
  }

  /// Whether y may be what q, above 0, is turned back to.
  bool turns_back(double q, float y) const {
    const double l = std::log2(q), t = l / alpha_ + mean_;
    const double error = log_error(l) / alpha_ + std::fabs(l / alpha_) * (alpha_error_ + kUnit) +
                         mean_error_ + kUnit * std::fabs(t);
    const auto size = std::min(std::fabs(static_cast<double>(y)), static_cast<double>(kMost));
    return size >= std::min(two_to(t - error) * (1 - 4 * kUnit), static_cast<double>(kMost)) -
                       0x1p-149 &&
           size <= two_to(t + error) * (1 + 4 * kUnit) + 0x1p-149;
  }

 private:
  static double log_of(float x) { return std::log2(std::fabs(static_cast<double>(x))); }
  static double log_error(double l) { return kUnit * std::fabs(l) + 0x1p-22; }

  bool broken_ = false;
  double mean_ = 0, mean_error_ = 0, alpha_ = 1, alpha_error_ = 0;
};

}  // namespace

void compare_squeezed(const std::string& element, const std::string& rounding,
                      const TensorCase& tensor, Tally& tally) {
  const Reference reference(Quantizer::parse(element + ":" + rounding));
  const Reference nearest(Quantizer::parse(element + ":rne"));
  const Squeezed squeezed(tensor.x, std::floor(std::log2(reference.max())));
  const std::string name = element + "+scale=squeeze:" + rounding;
  const std::vector<float> got = run(Quantizer::parse(name), tensor, DType::F32).values;
  const RandomSource random(tensor.key);
  tally.compared += static_cast<int64_t>(got.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const float x = tensor.x[i], y = got[i];
    bool fits = std::signbit(x) == std::signbit(y);
    if (squeezed.broken()) {
      fits = std::isnan(y);
    } else if (x == 0) {
      fits = fits && y == 0;
    } else {
      // Where a boundary lies within what rounding may see, either neighbour may come; a number of the format stays.
      const auto [least, most] = squeezed.range(x);
      const auto near = static_cast<double>(nearest((least + most) / 2).value);
      bool any = false;
      for (const double size : {least, near >= least && near <= most ? near : least, most}) {
        const float q = reference(std::copysign(size, static_cast<double>(x)),
                                  random.word(static_cast<uint64_t>(i)))
                            .value;
        any = any || (q == 0 ? y == 0 : squeezed.turns_back(std::fabs(static_cast<double>(q)), y));
      }
      fits = fits && any;
    }
    if (!fits) tally.bad.add(format_message("{} {}: x {} became {}", {name, i, hex(x), hex(y)}));
  }
}

}  // namespace ulp::conformance
