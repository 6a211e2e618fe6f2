#pragma once

// The windows of an image (kernels/windows.h) as the operand of a strict product: gathered on the way to shared memory.

#include "kernels/cuda/strict_product.cuh"
#include "kernels/windows.h"

namespace ulp::cuda {

/// WindowAxis in 32 bits (check_conv has seen that all positions fit).
struct ShortAxis {
  int in, out, taps, step, up, start, dilation;

  ShortAxis() = default;
  explicit ShortAxis(const WindowAxis& a)
      : in(static_cast<int>(a.in)),
        out(static_cast<int>(a.out)),
        taps(static_cast<int>(a.taps)),
        step(static_cast<int>(a.step)),
        up(static_cast<int>(a.up)),
        start(static_cast<int>(a.start)),
        dilation(static_cast<int>(a.dilation)) {}

  /// Where tap 0 of place o lies, times up.
  __device__ __forceinline__ int first(int o) const { return o * step + start; }
  /// The input place at a position, −1: none.
  __device__ __forceinline__ int place(int at) const {
    if (up == 1) return at >= 0 && at < in ? at : -1;
    return at >= 0 && at % up == 0 && at / up < in ? at / up : -1;
  }
};

/// A group's windows.
struct WindowSource {
  const void* data;  // the group's first channel of the first pixel
  DType dtype;
  int rows, columns, channels, pixel;  // pixel: elements from pixel to pixel
  ShortAxis h, w;
  bool quads;  // four neighbouring channels can be read at once

  /// The first element of the line and pixel at these positions, −1 beyond the image. image: its number.
  __device__ __forceinline__ int64_t at(int64_t image, int at_h, int at_w) const {
    const int i = h.place(at_h), j = w.place(at_w);
    return i < 0 || j < 0 ? -1 : ((image * h.in + i) * w.in + j) * pixel;
  }
};

inline WindowSource window_source(const Tensor& image, const Windows& w, int64_t group) {
  WindowSource s{};
  s.dtype = image.dtype();
  s.data = static_cast<const char*>(image.raw()) +
           group * w.channels * static_cast<int64_t>(size_of(s.dtype));
  s.rows = static_cast<int>(w.rows());
  s.columns = static_cast<int>(w.columns());
  s.channels = static_cast<int>(w.channels);
  s.pixel = static_cast<int>(w.pixel());
  s.h = ShortAxis(w.h);
  s.w = ShortAxis(w.w);
  s.quads = s.channels % 4 == 0 && s.pixel % 4 == 0 &&
            reinterpret_cast<uintptr_t>(s.data) % (4 * size_of(s.dtype)) == 0;
  return s;
}

/// A row of the windows' matrix: its image and where its first tap lies.
struct WindowRow {
  int image, h, w;
  __device__ __forceinline__ WindowRow(const WindowSource& s, int row) {
    const int line = row / s.w.out;
    w = s.w.first(row - line * s.w.out);
    image = line / s.h.out;
    h = s.h.first(line - image * s.h.out);
  }
  WindowRow() = default;
};

/// A column: its tap and channel.
struct WindowColumn {
  int kh, kw, c;
  WindowColumn() = default;
  __device__ __forceinline__ WindowColumn(const WindowSource& s, int column) {
    const int tap = column / s.channels;
    c = column - tap * s.channels;
    kh = tap / s.w.taps;
    kw = tap - kh * s.w.taps;
  }
  __device__ __forceinline__ void advance(const WindowSource& s) {
    if (++c < s.channels) return;
    c = 0;
    if (++kw < s.w.taps) return;
    kw = 0;
    ++kh;
  }
};

namespace strict {

/// Element `i` of an array as its bytes, zero-extended; i < 0: +0.
__device__ __forceinline__ uint32_t word_at(const void* data, DType dtype, int64_t i) {
  if (i < 0) return 0;
  switch (size_of(dtype)) {
    case 4: return __ldg(static_cast<const uint32_t*>(data) + i);
    case 2: return __ldg(static_cast<const uint16_t*>(data) + i);
    default: return __ldg(static_cast<const uint8_t*>(data) + i);
  }
}

/// Four neighbours as they lie, packed from raw[0] on.
__device__ __forceinline__ void quad_at(const void* data, DType dtype, int64_t i,
                                        uint32_t (&raw)[4]) {
  raw[0] = raw[1] = raw[2] = raw[3] = 0;
  if (i < 0) return;
  const char* from = static_cast<const char*>(data) + i * static_cast<int64_t>(size_of(dtype));
  switch (size_of(dtype)) {
    case 4: {
      const uint4 quad = __ldg(reinterpret_cast<const uint4*>(from));
      raw[0] = quad.x, raw[1] = quad.y, raw[2] = quad.z, raw[3] = quad.w;
      break;
    }
    case 2: {
      const uint2 quad = __ldg(reinterpret_cast<const uint2*>(from));
      raw[0] = quad.x, raw[1] = quad.y;
      break;
    }
    default: raw[0] = __ldg(reinterpret_cast<const uint32_t*>(from));
  }
}

/// The values of four words; packed: as quad_at leaves them.
__device__ __forceinline__ void decode_four(const uint32_t (&raw)[4], DType dtype, bool packed,
                                            float (&values)[4]) {
  uint32_t words[4] = {raw[0], raw[1], raw[2], raw[3]};
  if (packed && size_of(dtype) == 2) {
    words[1] = raw[0] >> 16, words[0] = raw[0] & 0xFFFFu;
    words[3] = raw[1] >> 16, words[2] = raw[1] & 0xFFFFu;
  }
  if (packed && size_of(dtype) == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = raw[0] >> (8 * i) & 0xFFu;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) values[i] = decode(words[i], dtype);
}

/// Windows as the left operand: outer: rows, k: columns. Four columns of a row at a time.
template <class Cut, int kTile>
struct WindowRowLoader {
  using Source = WindowSource;
  static constexpr bool kAsync = false;
  static constexpr int kThreads = Cut::kBlockThreads, kDepth = Cut::kDepth;
  static constexpr int kQuads = kTile * kDepth / 4 / kThreads, kPitch = pitch_of(kTile);
  static constexpr int kPerRow = kDepth / 4, kRowStep = kThreads / kPerRow;
  static_assert(kQuads >= 1 && kQuads * kRowStep == kTile);
  const Source& source;
  int outer, depth, rows_left, column;  // column: this thread's first in the slice fetched next
  WindowRow rows[kQuads];               // outer, outer + kRowStep …
  uint32_t held[kQuads][4];

  __device__ WindowRowLoader(const Source& s, int64_t first, int64_t k) : source(s) {
    const int thread = static_cast<int>(threadIdx.x);
    outer = thread / kPerRow;
    depth = thread % kPerRow * 4;
    rows_left = s.rows - static_cast<int>(first) - outer;
    column = static_cast<int>(k) + depth;
#pragma unroll
    for (int j = 0; j < kQuads; ++j)
      if (j * kRowStep < rows_left)
        rows[j] = WindowRow(s, static_cast<int>(first) + outer + j * kRowStep);
  }

  __device__ __forceinline__ void fetch(float*, int k_left) {
    const int steps = k_left - depth;
    if (steps > 0) {
      WindowColumn at(source, column);
      if (source.quads) {
        const int dh = at.kh * source.h.dilation, dw = at.kw * source.w.dilation;
#pragma unroll
        for (int j = 0; j < kQuads; ++j) {
          if (j * kRowStep >= rows_left) continue;
          const int64_t i = source.at(rows[j].image, rows[j].h + dh, rows[j].w + dw);
          quad_at(source.data, source.dtype, i < 0 ? i : i + at.c, held[j]);
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int dh = at.kh * source.h.dilation, dw = at.kw * source.w.dilation;
#pragma unroll
          for (int j = 0; j < kQuads; ++j) {
            held[j][i] = 0;
            if (i >= steps || j * kRowStep >= rows_left) continue;
            const int64_t e = source.at(rows[j].image, rows[j].h + dh, rows[j].w + dw);
            held[j][i] = word_at(source.data, source.dtype, e < 0 ? e : e + at.c);
          }
          at.advance(source);
        }
      }
    }
    column += kDepth;
  }

  __device__ __forceinline__ void land(float* slice) const {
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      float values[4];
      decode_four(held[j], source.dtype, source.quads, values);
      float* to = slice + depth * kPitch + outer + j * kRowStep;
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i * kPitch] = values[i];
    }
  }
};

/// Windows as the right operand of dw: outer: columns, k: rows. Four columns of a row at a time.
template <class Cut, int kTile>
struct WindowColumnLoader {
  using Source = WindowSource;
  static constexpr bool kAsync = false;
  static constexpr int kThreads = Cut::kBlockThreads, kDepth = Cut::kDepth;
  static constexpr int kQuads = kTile * kDepth / 4 / kThreads, kPitch = pitch_of(kTile);
  static constexpr int kPerStep = kTile / 4, kStep = kThreads / kPerStep;
  static_assert(kQuads >= 1 && kQuads * kStep == kDepth);
  const Source& source;
  int outer, depth, columns_left, row;  // row: this thread's first in the slice fetched next
  WindowColumn columns[4];
  uint32_t held[kQuads][4];

  __device__ WindowColumnLoader(const Source& s, int64_t first, int64_t k) : source(s) {
    const int thread = static_cast<int>(threadIdx.x);
    outer = thread % kPerStep * 4;
    depth = thread / kPerStep;
    columns_left = s.columns - static_cast<int>(first) - outer;
    row = static_cast<int>(k) + depth;
    WindowColumn at;
    if (columns_left > 0) at = WindowColumn(s, static_cast<int>(first) + outer);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= columns_left) continue;
      columns[i] = at;
      at.advance(s);
    }
  }

  __device__ __forceinline__ void fetch(float*, int k_left) {
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      if (columns_left <= 0 || k_left - depth - j * kStep <= 0) continue;
      const WindowRow at(source, row + j * kStep);
      if (source.quads) {
        const int64_t i = source.at(at.image, at.h + columns[0].kh * source.h.dilation,
                                    at.w + columns[0].kw * source.w.dilation);
        quad_at(source.data, source.dtype, i < 0 ? i : i + columns[0].c, held[j]);
        continue;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        held[j][i] = 0;
        if (i >= columns_left) continue;
        const int64_t e = source.at(at.image, at.h + columns[i].kh * source.h.dilation,
                                    at.w + columns[i].kw * source.w.dilation);
        held[j][i] = word_at(source.data, source.dtype, e < 0 ? e : e + columns[i].c);
      }
    }
    row += kDepth;
  }

  __device__ __forceinline__ void land(float* slice) const {
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      float values[4];
      decode_four(held[j], source.dtype, source.quads, values);
      *reinterpret_cast<float4*>(slice + (depth + j * kStep) * kPitch + outer) =
          make_float4(values[0], values[1], values[2], values[3]);
    }
  }
};

}  // namespace strict
}  // namespace ulp::cuda
