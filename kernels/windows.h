#pragma once

// How a convolution's output meets its input. Shared by both backends.

#include <cstdint>

#include "core/macros.h"

namespace ulp {

/// One spatial axis: tap k of output place o reads input place i where  i · up = o · step + start + k · dilation,  or +0
/// where there is no such place. A convolution has step = stride, start = −padding, up = 1; a transposed one has up = stride,
/// step = 1, start = padding and a negative dilation: each is the adjoint of the other.
struct WindowAxis {
  int64_t in = 1, out = 1, taps = 1;
  int64_t step = 1, up = 1, start = 0, dilation = 1;

  /// The input place, or −1.
  ULP_HD int64_t source(int64_t o, int64_t k) const {
    const int64_t at = o * step + start + k * dilation;
    if (up == 1) return at >= 0 && at < in ? at : -1;
    return at >= 0 && at % up == 0 && at / up < in ? at / up : -1;
  }
  /// The same meetings seen from the input.
  WindowAxis adjoint() const { return {out, in, taps, up, step, -start, -dilation}; }
  bool operator==(const WindowAxis&) const = default;
};

/// The windows of an image (N, H, W, G·C) as one matrix a group: row (n, oh, ow), column (kh, kw, c) holds channel c of the
/// group at the pixel that tap (kh, kw) of output pixel (oh, ow) reads, +0 beyond the image. No kernel makes it whole.
struct Windows {
  int64_t images = 0, groups = 1, channels = 1;  // channels: of a group
  WindowAxis h, w;

  ULP_HD int64_t rows() const { return images * h.out * w.out; }
  ULP_HD int64_t taps() const { return h.taps * w.taps; }
  ULP_HD int64_t columns() const { return taps() * channels; }
  /// Channels of the image: elements from pixel to pixel.
  ULP_HD int64_t pixel() const { return groups * channels; }
  /// Those of the adjoint operator, whose image has `channels` channels a group.
  Windows adjoint(int64_t of_channels) const {
    return {images, groups, of_channels, h.adjoint(), w.adjoint()};
  }
  /// The matrix is the image itself: kernels of one pixel, one step after another.
  bool is_image() const {
    const auto plain = [](const WindowAxis& a) {
      return a.taps == 1 && a.step == 1 && a.up == 1 && a.start == 0 && a.in == a.out;
    };
    return groups == 1 && plain(h) && plain(w);
  }
};

}  // namespace ulp
