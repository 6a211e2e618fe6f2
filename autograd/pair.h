#pragma once

#include <cstdint>

namespace ulp::ops {

/// A number for the height and one for the width; one number alone stands for both.
struct Pair {
  int64_t h = 0, w = 0;

  constexpr Pair() = default;
  constexpr Pair(int64_t both) : h(both), w(both) {}
  constexpr Pair(int64_t height, int64_t width) : h(height), w(width) {}
  bool operator==(const Pair&) const = default;
};

}  // namespace ulp::ops
