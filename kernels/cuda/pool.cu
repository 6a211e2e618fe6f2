#include "core/scalar_math.h"
#include "kernels/cuda/quads.cuh"
#include "kernels/pool.h"
#include "kernels/pool_math.h"

namespace ulp::cuda {
namespace {

using pool::Axes;
using pool::Range;

/// A result made from elements of another tensor: `out` is (N, H, W, C), `from` what windows are read in.
struct Work {
  Source from;
  Sink out;
  Rounder output;
  uint8_t* bytes;  // the places in windows, of either type
  int32_t* words;
  Axes axes;
  PoolDivisor divisor;
  uint32_t height, width, channels;  // of out
  uint32_t from_height, from_width;
  bool quads;        // channels come in fours, and all accesses of four lie well
  bool quad_places;  // the places' too
  int64_t n;
};

struct Pixel {
  int64_t image;
  int32_t row, column;
  uint32_t channel;
};

template <class Int>
__device__ __forceinline__ Pixel split(const Work& w, Int i) {
  const Int pixel = i / w.channels, line = pixel / w.width;
  return {static_cast<int64_t>(line / w.height), static_cast<int32_t>(line % w.height),
          static_cast<int32_t>(pixel % w.width), static_cast<uint32_t>(i % w.channels)};
}
__device__ __forceinline__ Pixel pixel_of(const Work& w, int64_t i) {
  return i <= UINT32_MAX ? split(w, static_cast<uint32_t>(i)) : split(w, i);
}

/// Where an element of `from` lies.
__device__ __forceinline__ int64_t source_at(const Work& w, const Pixel& p, int32_t row,
                                             int32_t column) {
  return ((p.image * w.from_height + row) * w.from_width + column) * w.channels + p.channel;
}

/// kCount neighbours: a quad or one.
template <int kCount>
__device__ __forceinline__ void load_some(const Source& s, int64_t i, float (&x)[kCount]) {
  if constexpr (kCount == kQuad)
    load_quad(s, i, x);
  else
    x[0] = load_one(s.data, s.dtype, i);
}

template <int kCount>
__device__ __forceinline__ void store_places(const Work& w, int64_t i,
                                             const uint32_t (&place)[kCount]) {
  if (w.bytes != nullptr) {
    if constexpr (kCount == kQuad) {
      if (w.quad_places) {
        *reinterpret_cast<uint32_t*>(w.bytes + i) =
            place[0] | place[1] << 8 | place[2] << 16 | place[3] << 24;
        return;
      }
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) w.bytes[i + k] = static_cast<uint8_t>(place[k]);
  } else if (w.words != nullptr) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) w.words[i + k] = static_cast<int32_t>(place[k]);
  }
}

template <int kCount>
__device__ __forceinline__ void load_places(const Work& w, int64_t i, uint32_t (&place)[kCount]) {
  if (w.bytes != nullptr) {
    if constexpr (kCount == kQuad) {
      if (w.quad_places) {
        const uint32_t all = *reinterpret_cast<const uint32_t*>(w.bytes + i);
#pragma unroll
        for (int k = 0; k < kCount; ++k) place[k] = all >> (8 * k) & 0xFFu;
        return;
      }
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) place[k] = w.bytes[i + k];
    return;
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) place[k] = static_cast<uint32_t>(w.words[i + k]);
}

struct MaxPool {
  template <int kCount>
  __device__ static void make(const Work& w, int64_t i, float (&y)[kCount]) {
    const Pixel p = pixel_of(w, i);
    const Range r = w.axes.rows.inputs(p.row), c = w.axes.columns.inputs(p.column);
    uint32_t places[kCount] = {};
    bool first = true;
    for (int32_t a = r.first; a < r.end; ++a)
      for (int32_t b = c.first; b < c.end; ++b) {
        float x[kCount];
        load_some<kCount>(w.from, source_at(w, p, a, b), x);
        const auto place = static_cast<uint32_t>((a - r.first + r.place) * w.axes.columns.kernel +
                                                 (b - c.first + c.place));
#pragma unroll
        for (int k = 0; k < kCount; ++k)
          if (first || pool::exceeds(x[k], y[k])) y[k] = x[k], places[k] = place;
        first = false;
      }
    store_places<kCount>(w, i, places);
  }
};

struct MaxPoolBackward {
  template <int kCount>
  __device__ static void make(const Work& w, int64_t i, float (&y)[kCount]) {
    const Pixel p = pixel_of(w, i);
    const Range r = w.axes.rows.outputs(p.row), c = w.axes.columns.outputs(p.column);
#pragma unroll
    for (int k = 0; k < kCount; ++k) y[k] = 0;
    for (int32_t a = r.first; a < r.end; ++a)
      for (int32_t b = c.first; b < c.end; ++b) {
        const int64_t from = source_at(w, p, a, b);
        float g[kCount];
        uint32_t places[kCount];
        load_some<kCount>(w.from, from, g);
        load_places<kCount>(w, from, places);
        const auto place =
            static_cast<uint32_t>(w.axes.rows.place(p.row, a) * w.axes.columns.kernel +
                                  w.axes.columns.place(p.column, b));
#pragma unroll
        for (int k = 0; k < kCount; ++k) y[k] += places[k] == place ? g[k] : 0.0f;
      }
  }
};

struct AveragePool {
  template <int kCount>
  __device__ static void make(const Work& w, int64_t i, float (&y)[kCount]) {
    const Pixel p = pixel_of(w, i);
    const Range r = w.axes.rows.inputs(p.row), c = w.axes.columns.inputs(p.column);
#pragma unroll
    for (int k = 0; k < kCount; ++k) y[k] = 0;
    for (int32_t a = r.first; a < r.end; ++a)
      for (int32_t b = c.first; b < c.end; ++b) {
        float x[kCount];
        load_some<kCount>(w.from, source_at(w, p, a, b), x);
#pragma unroll
        for (int k = 0; k < kCount; ++k) y[k] += x[k];
      }
    const float divisor = static_cast<float>(w.axes.rows.counted(p.row, w.divisor)) *
                          static_cast<float>(w.axes.columns.counted(p.column, w.divisor));
#pragma unroll
    for (int k = 0; k < kCount; ++k) y[k] = y[k] / divisor;
  }
};

struct AveragePoolBackward {
  template <int kCount>
  __device__ static void make(const Work& w, int64_t i, float (&y)[kCount]) {
    const Pixel p = pixel_of(w, i);
    const Range r = w.axes.rows.outputs(p.row), c = w.axes.columns.outputs(p.column);
#pragma unroll
    for (int k = 0; k < kCount; ++k) y[k] = 0;
    for (int32_t a = r.first; a < r.end; ++a)
      for (int32_t b = c.first; b < c.end; ++b) {
        float g[kCount];
        load_some<kCount>(w.from, source_at(w, p, a, b), g);
        const float divisor = static_cast<float>(w.axes.rows.counted(a, w.divisor)) *
                              static_cast<float>(w.axes.columns.counted(b, w.divisor));
#pragma unroll
        for (int k = 0; k < kCount; ++k) y[k] += g[k] / divisor;
      }
  }
};

template <class Pool>
__global__ void __launch_bounds__(kThreads) pool_kernel(const __grid_constant__ Work w) {
  const RandomSource random = w.output.random();
  for_quads(w.n, [&](int64_t i, int count) {
    float y[kQuad] = {};
    if (w.quads) {
      Pool::template make<kQuad>(w, i, y);
    } else {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        float one[1] = {};
        if (k < count) Pool::template make<1>(w, i + k, one);
        y[k] = one[0];
      }
    }
    round_quad(w.output, random, i, y);
    store_quad(w.out, i, count, y);
  });
}

/// `image`: what windows lie over, `pooled`: an element each window; out is one of them.
Work make_work(const char* kernel, Stream stream, const Tensor& from, const Tensor& out,
               const Axes& axes, const Tensor& index, const Quantizer& output,
               const RandomKey& key) {
  check_no_f64(kernel, out);
  Work w{};
  w.from = source_of(from);
  w.out = sink_of(out);
  w.output = make_elementwise_rounder(kernel, stream.device, output, key);
  w.axes = axes;
  w.height = static_cast<uint32_t>(out.size(1));
  w.width = static_cast<uint32_t>(out.size(2));
  ULP_CHECK(out.size(3) <= INT32_MAX, "{}: {} channels are more than its CUDA kernel takes", kernel,
            out.size(3));
  w.channels = static_cast<uint32_t>(out.size(3));
  w.from_height = static_cast<uint32_t>(from.size(1));
  w.from_width = static_cast<uint32_t>(from.size(2));
  w.quads = w.channels % kQuad == 0 && w.from.aligned;
  w.n = out.numel();
  if (!index.defined()) return w;
  void* const places = const_cast<void*>(index.raw());
  if (index.dtype() == DType::U8)
    w.bytes = static_cast<uint8_t*>(places);
  else
    w.words = static_cast<int32_t*>(places);
  w.quad_places = w.bytes != nullptr && reinterpret_cast<uintptr_t>(places) % kQuad == 0;
  return w;
}

struct SpreadWork {
  Source grad;
  Sink out;
  Rounder output;
  float factor;
  int64_t inner, channels, n;  // inner: S · C
};

__global__ void __launch_bounds__(kThreads) spread_kernel(const __grid_constant__ SpreadWork w) {
  const RandomSource random = w.output.random();
  for_quads(w.n, [&](int64_t i, int count) {
    float y[kQuad] = {};
    const int64_t first = i / w.inner * w.channels + i % w.channels;
    if (w.channels % kQuad == 0 && w.grad.aligned) {
      load_quad(w.grad, first, y);
    } else {
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        if (k < count)
          y[k] = load_one(w.grad.data, w.grad.dtype,
                          (i + k) / w.inner * w.channels + (i + k) % w.channels);
    }
#pragma unroll
    for (int k = 0; k < kQuad; ++k) y[k] = y[k] * w.factor;
    round_quad(w.output, random, i, y);
    store_quad(w.out, i, count, y);
  });
}

}  // namespace

void max_pool(Stream stream, const MaxPoolArgs& args) {
  check_max_pool(stream, args);
  if (args.index.defined()) written(args.index);
  const Work w = make_work("max_pool", stream, args.in, args.out,
                           pool::axes_of(args.window, args.in.shape(), args.out.shape()),
                           args.index, args.output, args.key);
  launch("max_pool", stream, quad_blocks(w.n), kThreads, pool_kernel<MaxPool>, w);
}

void max_pool_backward(Stream stream, const MaxPoolBackwardArgs& args) {
  check_max_pool_backward(stream, args);
  const Work w = make_work("max_pool_backward", stream, args.grad, args.out,
                           pool::axes_of(args.window, args.out.shape(), args.grad.shape()),
                           args.index, args.output, args.key);
  launch("max_pool_backward", stream, quad_blocks(w.n), kThreads, pool_kernel<MaxPoolBackward>, w);
}

void average_pool(Stream stream, const AveragePoolArgs& args) {
  check_average_pool(stream, args);
  Work w = make_work("average_pool", stream, args.in, args.out,
                     pool::axes_of(args.window, args.in.shape(), args.out.shape()), {}, args.output,
                     args.key);
  w.divisor = args.divisor;
  launch("average_pool", stream, quad_blocks(w.n), kThreads, pool_kernel<AveragePool>, w);
}

void average_pool_backward(Stream stream, const AveragePoolBackwardArgs& args) {
  check_average_pool_backward(stream, args);
  Work w = make_work("average_pool_backward", stream, args.grad, args.out,
                     pool::axes_of(args.window, args.out.shape(), args.grad.shape()), {},
                     args.output, args.key);
  w.divisor = args.divisor;
  launch("average_pool_backward", stream, quad_blocks(w.n), kThreads,
         pool_kernel<AveragePoolBackward>, w);
}

void spread(Stream stream, const SpreadArgs& args) {
  check_spread(stream, args);
  check_no_f64("spread", args.out);
  SpreadWork w{};
  w.grad = source_of(args.grad);
  w.out = sink_of(args.out);
  w.output = make_elementwise_rounder("spread", stream.device, args.output, args.key);
  w.factor = static_cast<float>(args.factor);
  w.channels = args.out.size(2);
  w.inner = args.out.size(1) * w.channels;
  w.n = args.out.numel();
  launch("spread", stream, quad_blocks(w.n), kThreads, spread_kernel, w);
}

}  // namespace ulp::cuda
