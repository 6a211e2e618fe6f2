#include "kernels/pool.h"

#include "core/scalar_math.h"
#include "kernels/cpu/image_blocks.h"
#include "kernels/pool_math.h"

namespace ulp::cpu {
namespace {

/// Element (image, row, column, channel).
int64_t at(const Shape& s, int64_t image, int64_t row, int64_t column, int64_t channel) {
  return ((image * s[1] + row) * s[2] + column) * s[3] + channel;
}

ULP_HD float pick(bool condition, float a, float b) { return choose(condition, a, b); }
ULP_HD double pick(bool condition, double a, double b) { return condition ? a : b; }

/// The largest value of a piece's windows so far, and its place.
template <class T>
void take_larger(const T* x, int64_t n, uint32_t place, bool first, T* largest, uint32_t* places) {
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) {
      const bool takes = first || pool::exceeds(x[i], largest[i]);
      largest[i] = pick(takes, x[i], largest[i]);
      places[i] = select_bits(takes, place, places[i]);
    }
  });
}

void write_places(const Tensor& index, int64_t begin, int64_t n, const uint32_t* places) {
  if (!index.defined()) return;
  Tensor handle = index;
  void* const data = handle.mutable_raw();
  if (index.dtype() == DType::U8)
    for (int64_t i = 0; i < n; ++i)
      static_cast<uint8_t*>(data)[begin + i] = static_cast<uint8_t>(places[i]);
  else
    for (int64_t i = 0; i < n; ++i)
      static_cast<int32_t*>(data)[begin + i] = static_cast<int32_t>(places[i]);
}

template <class T>
void max_pool_of(const MaxPoolArgs& args) {
  const Shape &in = args.in.shape(), &out = args.out.shape();
  const auto [rows, columns] = pool::axes_of(args.window, in, out);
  const Result<T> result(args.out, args.output, args.key);
  for_image_blocks<T>(
      out,
      [&, rows = rows, columns = columns](int64_t block, const PixelPiece& p, T* values) {
        Values<T> buffer;
        std::array<uint32_t, kBlock> places;
        const pool::Range r = rows.inputs(static_cast<int32_t>(p.row)),
                          c = columns.inputs(static_cast<int32_t>(p.column));
        bool first = true;
        for (int32_t i = r.first; i < r.end; ++i)
          for (int32_t j = c.first; j < c.end; ++j) {
            const T* x = read_values(args.in, at(in, p.image, i, j, p.channel), p.n, buffer.data());
            const int32_t place =
                (i - r.first + r.place) * columns.kernel + (j - c.first + c.place);
            take_larger(x, p.n, static_cast<uint32_t>(place), first, values + p.at, places.data());
            first = false;
          }
        write_places(args.index, block + p.at, p.n, places.data());
      },
      [&](int64_t begin, int64_t n, T* values) { result.write(begin, n, values); });
}

/// sums[i] += index[i] == place ? grad[i] : 0
template <class T, class Index>
void add_where(const T* grad, const Index* index, int64_t n, Index place, T* sums) {
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) sums[i] += pick(index[i] == place, grad[i], T(0));
  });
}

template <class T>
void max_pool_backward_of(const MaxPoolBackwardArgs& args) {
  const Shape &image = args.out.shape(), &pooled = args.grad.shape();
  const auto [rows, columns] = pool::axes_of(args.window, image, pooled);
  const Result<T> result(args.out, args.output, args.key);
  const bool bytes = args.index.dtype() == DType::U8;
  for_image_blocks<T>(
      image,
      [&, rows = rows, columns = columns](int64_t, const PixelPiece& p, T* values) {
        Values<T> buffer;
        T* sums = values + p.at;
        std::fill(sums, sums + p.n, T(0));
        const auto row = static_cast<int32_t>(p.row), column = static_cast<int32_t>(p.column);
        const pool::Range r = rows.outputs(row), c = columns.outputs(column);
        for (int32_t i = r.first; i < r.end; ++i)
          for (int32_t j = c.first; j < c.end; ++j) {
            const int64_t from = at(pooled, p.image, i, j, p.channel);
            const T* g = read_values(args.grad, from, p.n, buffer.data());
            const int32_t place = rows.place(row, i) * columns.kernel + columns.place(column, j);
            if (bytes)
              add_where(g, args.index.data<uint8_t>() + from, p.n, static_cast<uint8_t>(place),
                        sums);
            else
              add_where(g, args.index.data<int32_t>() + from, p.n, place, sums);
          }
      },
      [&](int64_t begin, int64_t n, T* values) { result.write(begin, n, values); });
}

template <class T>
void average_pool_of(const AveragePoolArgs& args) {
  const Shape &in = args.in.shape(), &out = args.out.shape();
  const auto [rows, columns] = pool::axes_of(args.window, in, out);
  const Result<T> result(args.out, args.output, args.key);
  for_image_blocks<T>(
      out,
      [&, rows = rows, columns = columns](int64_t, const PixelPiece& p, T* values) {
        Values<T> buffer;
        T* sums = values + p.at;
        std::fill(sums, sums + p.n, T(0));
        const auto row = static_cast<int32_t>(p.row), column = static_cast<int32_t>(p.column);
        const pool::Range r = rows.inputs(row), c = columns.inputs(column);
        const int64_t n = p.n;
        for (int32_t i = r.first; i < r.end; ++i)
          for (int32_t j = c.first; j < c.end; ++j) {
            const T* x = read_values(args.in, at(in, p.image, i, j, p.channel), n, buffer.data());
            with_isa([=]() ULP_INLINE {
              for (int64_t k = 0; k < n; ++k) sums[k] += x[k];
            });
          }
        const T divisor = static_cast<T>(rows.counted(row, args.divisor)) *
                          static_cast<T>(columns.counted(column, args.divisor));
        with_isa([=]() ULP_INLINE {
          for (int64_t k = 0; k < n; ++k) sums[k] = sums[k] / divisor;
        });
      },
      [&](int64_t begin, int64_t n, T* values) { result.write(begin, n, values); });
}

template <class T>
void average_pool_backward_of(const AveragePoolBackwardArgs& args) {
  const Shape &image = args.out.shape(), &pooled = args.grad.shape();
  const auto [rows, columns] = pool::axes_of(args.window, image, pooled);
  const Result<T> result(args.out, args.output, args.key);
  for_image_blocks<T>(
      image,
      [&, rows = rows, columns = columns](int64_t, const PixelPiece& p, T* values) {
        Values<T> buffer;
        T* sums = values + p.at;
        std::fill(sums, sums + p.n, T(0));
        const pool::Range r = rows.outputs(static_cast<int32_t>(p.row)),
                          c = columns.outputs(static_cast<int32_t>(p.column));
        const int64_t n = p.n;
        for (int32_t i = r.first; i < r.end; ++i)
          for (int32_t j = c.first; j < c.end; ++j) {
            const T* g =
                read_values(args.grad, at(pooled, p.image, i, j, p.channel), n, buffer.data());
            const T divisor = static_cast<T>(rows.counted(i, args.divisor)) *
                              static_cast<T>(columns.counted(j, args.divisor));
            with_isa([=]() ULP_INLINE {
              for (int64_t k = 0; k < n; ++k) sums[k] += g[k] / divisor;
            });
          }
      },
      [&](int64_t begin, int64_t n, T* values) { result.write(begin, n, values); });
}

template <class T>
void spread_of(const SpreadArgs& args) {
  const Shape& out = args.out.shape();
  const T factor = static_cast<T>(args.factor);
  const Result<T> result(args.out, args.output, args.key);
  for_image_blocks<T>(
      {out[0], 1, out[1], out[2]},
      [&](int64_t, const PixelPiece& p, T* values) {
        Values<T> buffer;
        const int64_t n = p.n;
        const T* g = read_values(args.grad, p.image * out[2] + p.channel, n, buffer.data());
        T* y = values + p.at;
        with_isa([=]() ULP_INLINE {
          for (int64_t k = 0; k < n; ++k) y[k] = g[k] * factor;
        });
      },
      [&](int64_t begin, int64_t n, T* values) { result.write(begin, n, values); });
}

}  // namespace

#define ULP_DEFINE(name, Args)                                                         \
  void name(Stream stream, const Args& args) {                                         \
    check_##name(stream, args);                                                        \
    args.out.dtype() == DType::F64 ? name##_of<double>(args) : name##_of<float>(args); \
  }
ULP_POOL_KERNELS(ULP_DEFINE)

}  // namespace ulp::cpu
