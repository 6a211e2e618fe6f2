#pragma once

// What kernels share that make each element of an image from elements of another: blocks of the result, cut where pixels end.

#include <array>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/spans.h"

namespace ulp::cpu {

template <class T>
using Values = std::array<T, kBlock>;

/// Elements begin … begin + n − 1, n ≤ kBlock: in the tensor itself, or decoded into `buffer`.
template <class T>
const T* read_values(const Tensor& t, int64_t begin, int64_t n, T* buffer) {
  if constexpr (std::is_same_v<T, double>)
    return t.data<double>() + begin;
  else
    return read_block(t.raw(), t.dtype(), begin, n, buffer);
}

/// A result with the rounding of its elements.
template <class T>
class Result {
 public:
  Result(Tensor out, const Quantizer& quantizer, const RandomKey& key)
      : data_(out.mutable_raw()), dtype_(out.dtype()), quantiser_(quantizer, key) {}
  /// Rounds n ≤ kBlock values in place and writes them as elements from `begin` on.
  void write(int64_t begin, int64_t n, T* values) const {
    if constexpr (std::is_same_v<T, double>) {
      std::memcpy(static_cast<double*>(data_) + begin, values, static_cast<size_t>(n) * sizeof(T));
    } else {
      quantiser_.apply(values, n, begin);
      write_block(data_, dtype_, begin, n, values);
    }
  }

 private:
  void* data_;
  DType dtype_;
  BlockQuantiser quantiser_;
};

/// Neighbouring channels of one pixel; `at`: where they lie in their block.
struct PixelPiece {
  int64_t image, row, column, channel, n, at;
};

/// make(block, piece, values) for the pieces of each block of an image tensor (N, H, W, C), then done(begin, n, values), in
/// parallel; `block` counts from its first element.
template <class T, class Make, class Done>
void for_image_blocks(const Shape& shape, const Make& make, const Done& done) {
  const int64_t columns = shape[2], channels = shape[3];
  parallel_for_units(shape.numel(), kBlock, kGrain / 4, [&](int64_t first, int64_t last) {
    Values<T> values;
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t count = std::min(kBlock, last - begin);
      const int64_t pixel = begin / channels;
      PixelPiece p{pixel / columns / shape[1],
                   pixel / columns % shape[1],
                   pixel % columns,
                   begin % channels,
                   0,
                   0};
      for (; p.at < count; p.at += p.n) {
        p.n = std::min(channels - p.channel, count - p.at);
        make(begin, p, values.data());
        p.channel = 0;
        if (++p.column < columns) continue;
        p.column = 0;
        if (++p.row < shape[1]) continue;
        p.row = 0;
        ++p.image;
      }
      done(begin, count, values.data());
    }
  });
}

}  // namespace ulp::cpu
