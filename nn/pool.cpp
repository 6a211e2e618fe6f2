#include "nn/pool.h"

#include <cmath>

namespace ulp::nn {

bool Pool::unit_scale(const UnitPlace& place) {
  unit_ = place.edge;
  set_scaled(kind_ == Kind::Largest ? "y / size of a window's largest, dx × √(pixels a window)"
                                    : "dx × pixels a window");
  return true;
}

Var Pool::result(Tape& tape, const Var& x, const Var& y, int64_t window) const {
  if (!unit_ || y.value.numel() == 0) return y;
  const double ratio = static_cast<double>(x.value.numel()) / static_cast<double>(y.value.numel()),
               n = window == 0 ? ratio : static_cast<double>(window);
  const Gains gains = kind_ == Kind::Largest
                          ? Gains{1 / largest_size(static_cast<int64_t>(n)), std::sqrt(ratio)}
                          : Gains{1, std::sqrt(n * ratio)};
  return scaled(tape, y, settled(gains, *unit_));
}

std::string WindowPool::describe() const {
  const auto pair = [this](const std::pair<int64_t, int64_t>& p) {
    const std::string first = std::to_string(p.first);
    return axes_ == 1 ? first : first + "×" + std::to_string(p.second);
  };
  const auto differs = [this](const std::pair<int64_t, int64_t>& p, int64_t first, int64_t second) {
    return p.first != first || (axes_ > 1 && p.second != second);
  };
  std::string text = std::string(name_) + " " + pair(options_.kernel);
  std::pair<int64_t, int64_t> stride = options_.stride;
  if (stride.first == 0) stride.first = options_.kernel.first;
  if (stride.second == 0) stride.second = options_.kernel.second;
  if (differs(stride, options_.kernel.first, options_.kernel.second))
    text += ", stride " + pair(stride);
  if (differs(options_.padding, 0, 0)) text += ", padding " + pair(options_.padding);
  if (options_.ceil) text += ", ceil";
  return text;
}

}  // namespace ulp::nn
