#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "core/error.h"

namespace ulp {

inline constexpr int kMaxRank = 8;

/// Up to eight extents, outermost first. Rank 0 is a scalar (one element).
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> extents)
      : Shape(std::span<const int64_t>(extents.begin(), extents.size())) {}
  explicit Shape(std::span<const int64_t> extents) : rank_(static_cast<int>(extents.size())) {
    ULP_CHECK(extents.size() <= kMaxRank, "shape: at most {} axes, got {}", kMaxRank,
              extents.size());
    for (int i = 0; i < rank_; ++i) {
      ULP_CHECK(extents[static_cast<size_t>(i)] >= 0, "shape: extents must be >= 0, got {}",
                extents[static_cast<size_t>(i)]);
      extents_[static_cast<size_t>(i)] = extents[static_cast<size_t>(i)];
    }
  }

  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return extents_[static_cast<size_t>(axis)]; }
  int64_t& operator[](int axis) { return extents_[static_cast<size_t>(axis)]; }
  /// The product of the extents; one beyond 63 bits is given as INT64_MAX (no tensor of that shape can be made).
  int64_t numel() const {
    int64_t n = 1;
    bool huge = false;
    for (int i = 0; i < rank_; ++i) {
      if ((*this)[i] == 0) return 0;
      huge = huge || __builtin_mul_overflow(n, (*this)[i], &n);
    }
    return huge ? INT64_MAX : n;
  }
  bool operator==(const Shape& other) const {
    if (rank_ != other.rank_) return false;
    for (int i = 0; i < rank_; ++i)
      if ((*this)[i] != other[i]) return false;
    return true;
  }

 private:
  std::array<int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

/// "(2, 3)".
inline std::string to_string(const Shape& shape) {
  std::string text = "(";
  for (int i = 0; i < shape.rank(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

}  // namespace ulp
