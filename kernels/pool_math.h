#pragma once

// Where the windows of a pool lie, and the mathematics of their elements, shared by both devices.

#include <cstdint>

#include "core/bits.h"
#include "core/macros.h"
#include "kernels/pool.h"

namespace ulp::pool {

/// Input first … end − 1 of one axis under an output's window, of which the first has place `place` in the window.
struct Range {
  int32_t first, end, place;
};

/// One axis of a pool.
struct Axis {
  int32_t in, out, kernel, stride, padding;

  /// The inputs of output i.
  ULP_HD Range inputs(int32_t i) const {
    const int32_t begin = i * stride - padding;
    const int32_t first = max_of(begin, 0);
    return {first, min_of(begin + kernel, in), first - begin};
  }
  /// The outputs that see input r, in ascending order, from `first` to before `end`.
  ULP_HD Range outputs(int32_t r) const {
    const int32_t least =
        r + padding - kernel + 1;  // the first begin that reaches r, shifted by the padding
    const int32_t first = least <= 0 ? 0 : (least + stride - 1) / stride;
    return {first, min_of((r + padding) / stride + 1, out), 0};
  }
  /// The place of input r in the window of output i.
  ULP_HD int32_t place(int32_t r, int32_t i) const { return r - (i * stride - padding); }
  /// How many of the window's elements count.
  ULP_HD int32_t counted(int32_t i, PoolDivisor divisor) const {
    const int32_t begin = i * stride - padding;
    if (divisor == PoolDivisor::Window) return min_of(begin + kernel, in + padding) - begin;
    return min_of(begin + kernel, in) - max_of(begin, 0);
  }
};

struct Axes {
  Axis rows, columns;
};

/// Whether x takes the place of the largest value so far.
template <class T>
ULP_HD bool exceeds(T x, T largest) {
  return largest == largest && !(x <= largest);
}

/// Host only: the axes of (N, H, W, C) → (N, OH, OW, C), whose shapes were checked.
inline Axes axes_of(const PoolWindow& w, const Shape& in, const Shape& out) {
  const auto axis = [](int64_t i, int64_t o, int64_t kernel, int64_t stride, int64_t padding) {
    return Axis{static_cast<int32_t>(i), static_cast<int32_t>(o), static_cast<int32_t>(kernel),
                static_cast<int32_t>(stride), static_cast<int32_t>(padding)};
  };
  return {axis(in[1], out[1], w.kernel_h, w.stride_h, w.padding_h),
          axis(in[2], out[2], w.kernel_w, w.stride_w, w.padding_w)};
}

}  // namespace ulp::pool
