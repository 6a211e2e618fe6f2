#include "nn/pool.h"

namespace ulp::nn {

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
