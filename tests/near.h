#pragma once

// How close a result comes to one that somebody else computed.

#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/tensor.h"

namespace ulp::tests {

/// As many values, and max |a − b| ≤ bound · max |b|. A NaN on either side is not near.
inline bool near(const std::vector<double>& a, const std::vector<double>& b, double bound = 1e-5) {
  if (a.size() != b.size()) return false;
  double most = 0;
  for (const double value : b) most = std::max(most, std::abs(value));
  for (size_t i = 0; i < a.size(); ++i)
    if (!(std::abs(a[i] - b[i]) <= bound * most)) return false;
  return true;
}
inline bool near(const Tensor& a, const std::vector<double>& b) {
  return a.defined() && near(a.to_doubles(), b);
}

/// {"shape": […], "values": […]}, as the scripts of tests/fixtures write tensors.
inline Shape shape_of(const nlohmann::json& j) {
  const auto extents = j.at("shape").get<std::vector<int64_t>>();
  return Shape(std::span<const int64_t>(extents));
}
inline Tensor tensor_of(const nlohmann::json& j) {
  const auto values = j.at("values").get<std::vector<double>>();
  return Tensor::from(std::vector<float>(values.begin(), values.end()), shape_of(j));
}
/// Of the same shape, too.
inline bool near(const Tensor& a, const nlohmann::json& b) {
  return a.defined() && a.shape() == shape_of(b) &&
         near(a, b.at("values").get<std::vector<double>>());
}

}  // namespace ulp::tests
