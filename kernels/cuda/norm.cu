#include "kernels/cuda/held_rows.cuh"
#include "kernels/cuda/sum.cuh"
#include "kernels/norm.h"
#include "kernels/norm_math.h"

namespace ulp::cuda {
namespace {

// ---- what all of them share ------------------------------------------------------------------------------------------

/// NormLayout with what kernels divide by. Rows of 2^31 elements and more are refused.
struct Layout {
  int64_t rows;
  uint32_t channels, width, groups;
  int64_t span;
  bool per_channel;

  __device__ int64_t statistic(int64_t row, uint32_t channel) const {
    if (per_channel) return channel;
    const int64_t block = span == 1 ? row : row / span;
    return groups == 1 ? block : block * groups + channel / width;
  }
};

struct Statistics {
  const float *mean, *inverse;  // mean: null is zero
  Layout layout;
  bool aligned;  // four neighbours from a multiple of four on are one access

  __device__ __forceinline__ float mean_of(int64_t i) const {
    return mean == nullptr ? 0.0f : mean[i];
  }
};

/// One number a channel; no data: the same for all.
struct Channels {
  Source source;
  float other;

  __device__ __forceinline__ float at(uint32_t channel) const {
    if (source.data == nullptr) return other;
    return source.dtype == DType::F32 ? static_cast<const float*>(source.data)[channel]
                                      : load_one(source.data, source.dtype, channel);
  }
};

/// Where an element lies.
struct Place {
  int64_t row;
  uint32_t channel;

  __device__ void next(uint32_t channels) {
    if (++channel == channels) channel = 0, ++row;
  }
};

__device__ __forceinline__ Place place_of(int64_t i, uint32_t channels) {
  if (i <= UINT32_MAX) {
    const auto small = static_cast<uint32_t>(i);
    return {small / channels, small % channels};
  }
  return {i / channels, static_cast<uint32_t>(i % channels)};
}

/// One value, whatever its neighbours are, in the short forms too.
__device__ __noinline__ float round_apart(const Rounder& rounder, const RandomSource& random,
                                          int64_t i, float value) {
  float result = value;
  for_how(rounder.how, [&]<Rounder::How kHow>() {
    if constexpr (kHow == Rounder::How::Copy) {
      result = canonical(value);
    } else if constexpr (kHow == Rounder::How::Any) {
      const bool draws = rounder.grid.rounding == Rounding::Stochastic;
      result =
          round_any(value, rounder.grid, draws ? random.word(static_cast<uint64_t>(i)) : 0u).value;
    } else {
      uint32_t word = 0;
      if constexpr (Rounder::draws(kHow)) word = random.word(static_cast<uint64_t>(i));
      result = round_fast<kHow>(value, rounder, 0, word).value;
    }
  });
  return result;
}

/// Mostly there is nothing to do.
__device__ __forceinline__ float round_single(const Rounder& rounder, const RandomSource& random,
                                              int64_t i, float value) {
  if (rounder.how == Rounder::How::Copy) return canonical(value);
  return round_apart(rounder, random, i, value);
}
__device__ __forceinline__ float round_single(const InteriorRounder& rounder,
                                              const RandomSource& random, int64_t i, float value) {
  if (rounder.how == Rounder::How::Copy) return canonical(value);
  rounder.note(i, value);
  return round_apart(rounder, random, i, value);
}

/// Elements i, i + step … In line to nearest, where no word is drawn.
template <int kCount>
__device__ __forceinline__ void round_rows(const Rounder& rounder, const RandomSource& random,
                                           int64_t i, int64_t step, float (&x)[kCount]) {
  using How = Rounder::How;
  const auto nearest = [&]<How kHow>() {
#pragma unroll
    for (int k = 0; k < kCount; ++k) x[k] = round_fast<kHow>(x[k], rounder, 0, 0u).value;
  };
  switch (rounder.how) {
    case How::Nearest: return nearest.template operator()<How::Nearest>();
    case How::NearestCut: return nearest.template operator()<How::NearestCut>();
    default:
#pragma unroll
      for (int k = 0; k < kCount; ++k) x[k] = round_single(rounder, random, i + k * step, x[k]);
  }
}

/// The draws 0 … 3 of a norm: mean, variance, inverse deviation, normalised value.
struct Interior {
  InteriorRounder at[4];
  __device__ float one(int which, int64_t i, float value) const {
    return round_single(at[which], at[which].random(), i, value);
  }
};

Interior interior_of(const char* kernel, Stream stream, const NormInterior& n) {
  Interior interior;
  make_interior(kernel, stream, n.format, n.key, n.trace, interior.at);
  return interior;
}

Layout layout_of(const char* kernel, const NormLayout& l) {
  ULP_CHECK(l.channels < INT32_MAX, "{}: {} channels are more than its CUDA kernel takes", kernel,
            l.channels);
  return {l.rows,
          static_cast<uint32_t>(l.channels),
          static_cast<uint32_t>(l.width()),
          static_cast<uint32_t>(l.groups),
          std::max<int64_t>(1, l.span),
          l.per_channel()};
}

const float* floats_of(const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; }
float* written_floats(const Tensor& t) {
  return t.defined() ? static_cast<float*>(written(t)) : nullptr;
}
bool aligned_floats(const Tensor& t) { return !t.defined() || is_aligned(t.raw(), DType::F32); }
Statistics statistics_of(const char* kernel, const Tensor& mean, const Tensor& inverse,
                         const NormLayout& layout) {
  return {floats_of(mean), floats_of(inverse), layout_of(kernel, layout),
          aligned_floats(mean) && aligned_floats(inverse)};
}
Channels channels_of(const Tensor& t, float other) {
  return {t.defined() ? source_of(t) : Source{}, other};
}

// ---- sums of columns -------------------------------------------------------------------------------------------------

// A block sums one chunk of kSumChunk rows over 16 columns: thread (x, y) is lane y of column x. Where there are more chunks, the
// block that ends last of a tile of columns sums the chunks' sums in the same way. 64-byte pieces of each row are read.

constexpr int kTileColumns = 16;
constexpr int kSumThreads = kTileColumns * static_cast<int>(kSumLanes);
constexpr int kMostTiles = 4096;  // of one launch

/// How many chunks of a tile are done; zero between launches, of which one runs at a time on a device.
__device__ unsigned tile_chunks_done[kMostTiles];

using Lanes = float[kSumLanes][kTileColumns];

/// sum[k] ← the sum over the lanes, in all threads of a column. All threads of the block call it.
template <int kSums>
__device__ __forceinline__ void add_lanes(float (&sum)[kSums]) {
  __shared__ Lanes lanes[kSums];
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
#pragma unroll
  for (int k = 0; k < kSums; ++k) lanes[k][y][x] = sum[k];
  __syncthreads();
#pragma unroll
  for (int width = static_cast<int>(kSumLanes) / 2; width > 0; width /= 2) {
    if (y < width)
#pragma unroll
      for (int k = 0; k < kSums; ++k) lanes[k][y][x] += lanes[k][y + width][x];
    __syncthreads();
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) sum[k] = lanes[k][0][x];
  __syncthreads();
}

/// The sums of n values a column in the order of core/sum.h; value(k, i) reads, and threads beyond the columns read nothing.
template <int kSums, class Value>
__device__ __forceinline__ void sum_values(int64_t n, bool inside, float (&sum)[kSums],
                                           const Value& value) {
  const int y = static_cast<int>(threadIdx.y);
  float total[kSums] = {};
  for (int64_t begin = 0, chunk = 0;; begin += kSumChunk, ++chunk) {
    if (begin > 0 && begin >= n) break;
    const int64_t end = n - begin < kSumChunk ? n : begin + kSumChunk;
#pragma unroll
    for (int k = 0; k < kSums; ++k) sum[k] = 0;
    if (inside)
      for (int64_t i = begin + y; i < end; i += kSumLanes)
#pragma unroll
        for (int k = 0; k < kSums; ++k) sum[k] += value(k, i);
    add_lanes(sum);
    if (n <= kSumChunk) return;
    if (chunk % kSumLanes == y)
#pragma unroll
      for (int k = 0; k < kSums; ++k) total[k] += sum[k];
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) sum[k] = total[k];
  add_lanes(sum);
}

struct SumWork {
  Source x, grad;
  Statistics statistics;  // Sum: unused
  Interior interior;
  float* partial;  // (kSums, chunks, channels), where there are more chunks than one
  int64_t chunks;
  uint32_t first_tile, tiles;  // of this launch
  float *mean, *inverse;       // batch statistics
  float *running_mean, *running_variance;
  float count, eps, keep, momentum, unbiased;
  float *sum_grad, *sum_product;
};

enum class Columns : uint8_t {
  Mean,      // Σx, then the mean
  Variance,  // Σ(x − mean)², then the rest of the statistics
  Both,      // one after the other, of a single chunk
  Pair,      // Σg, Σgx̂
};

/// Calls term for this thread's rows of a chunk of n rows, in ascending order: with kAtOnce of them, whose loads wait together,
/// every 64th from the given one on, or with one.
template <int kAtOnce, class Term>
__device__ __forceinline__ void add_rows(int n, const Term& term) {
  int a = static_cast<int>(threadIdx.y);
  for (; a + (kAtOnce - 1) * kSumLanes < n; a += kAtOnce * static_cast<int>(kSumLanes))
    term.template operator()<kAtOnce>(a);
  for (; a < n; a += static_cast<int>(kSumLanes)) term.template operator()<1>(a);
}

__device__ __forceinline__ float sum_of_x(const SumWork& w, int64_t row, int n, uint32_t column) {
  float sum = 0;
  for_plain_type(w.x.dtype, [&]<DType kType>() {
    add_rows<8>(n, [&]<int kRows>(int a) {
      float x[kRows];
#pragma unroll
      for (int k = 0; k < kRows; ++k)
        x[k] = load_plain<kType>(w.x,
                                 (row + a + k * kSumLanes) * w.statistics.layout.channels + column);
#pragma unroll
      for (int k = 0; k < kRows; ++k) sum += x[k];
    });
  });
  return sum;
}

__device__ __forceinline__ float sum_of_squares(const SumWork& w, int64_t row, int n,
                                                uint32_t column, float mean) {
  float sum = 0;
  for_plain_type(w.x.dtype, [&]<DType kType>() {
    add_rows<8>(n, [&]<int kRows>(int a) {
      float x[kRows];
#pragma unroll
      for (int k = 0; k < kRows; ++k)
        x[k] = load_plain<kType>(w.x,
                                 (row + a + k * kSumLanes) * w.statistics.layout.channels + column);
#pragma unroll
      for (int k = 0; k < kRows; ++k) sum += norms::square_about(x[k], mean);
    });
  });
  return sum;
}

__device__ __forceinline__ void sum_of_pairs(const SumWork& w, int64_t row, int n, uint32_t column,
                                             float (&sum)[2]) {
  const Statistics& s = w.statistics;
  const RandomSource random = w.interior.at[3].random();
  float mean = 0, inverse = 0;
  if (s.layout.per_channel) mean = s.mean_of(column), inverse = s.inverse[column];
  for_plain_type(w.x.dtype, [&]<DType kType>() {
    for_plain_type(w.grad.dtype, [&]<DType kGrad>() {
      add_rows<4>(n, [&]<int kRows>(int a) {
        float x[kRows], g[kRows];
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
          const int64_t i = (row + a + k * kSumLanes) * s.layout.channels + column;
          x[k] = load_plain<kType>(w.x, i);
          g[k] = load_plain<kGrad>(w.grad, i);
        }
        float x_hat[kRows];
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
          if (!s.layout.per_channel) {
            const int64_t at = s.layout.statistic(row + a + k * kSumLanes, column);
            mean = s.mean_of(at), inverse = s.inverse[at];
          }
          x_hat[k] = norms::normalised(x[k], mean, inverse);
        }
        round_rows(w.interior.at[3], random,
                   (row + a) * static_cast<int64_t>(s.layout.channels) + column,
                   kSumLanes * static_cast<int64_t>(s.layout.channels), x_hat);
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
          sum[0] += g[k];
          sum[1] += g[k] * x_hat[k];
        }
      });
    });
  });
}

__device__ __forceinline__ float finish_mean(const SumWork& w, uint32_t column, float sum) {
  return w.interior.one(0, column, sum / w.count);
}

/// What follows from a variance; by one thread a column.
__device__ __forceinline__ void finish_variance(const SumWork& w, uint32_t column, float mean,
                                                float variance, bool moves) {
  variance = w.interior.one(1, column, variance);
  w.inverse[column] = w.interior.one(2, column, norms::inverse_deviation(variance, w.eps));
  if (!moves || w.running_mean == nullptr) return;
  float* const kept_mean = w.running_mean + column;
  float* const kept_variance = w.running_variance + column;
  *kept_mean = canonical(norms::moving(*kept_mean, mean, w.keep, w.momentum));
  *kept_variance =
      canonical(norms::moving(*kept_variance, variance * w.unbiased, w.keep, w.momentum));
}

/// The end of a column, its sums being complete; by one thread.
template <Columns kColumns, int kSums>
__device__ __forceinline__ void finish_column(const SumWork& w, uint32_t column,
                                              const float (&sum)[kSums]) {
  if constexpr (kColumns == Columns::Mean) {
    w.mean[column] = finish_mean(w, column, sum[0]);
  } else if constexpr (kColumns == Columns::Variance) {
    finish_variance(w, column, w.mean[column], sum[0] / w.count, true);
  } else if constexpr (kColumns == Columns::Pair) {
    w.sum_grad[column] = canonical(sum[0]);
    w.sum_product[column] = canonical(sum[1]);
  }
}

template <Columns kColumns>
__global__ void __launch_bounds__(kSumThreads)
    column_sums_kernel(const __grid_constant__ SumWork w) {
  constexpr int kSums = kColumns == Columns::Pair ? 2 : 1;
  __shared__ bool last;
  const Layout& layout = w.statistics.layout;
  const int64_t tasks = w.tiles * w.chunks;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const auto tile = static_cast<uint32_t>(task % w.tiles);
    const int64_t chunk = task / w.tiles, row = chunk * kSumChunk;
    const int n = static_cast<int>(layout.rows - row < kSumChunk ? layout.rows - row : kSumChunk);
    const uint32_t column = (w.first_tile + tile) * kTileColumns + threadIdx.x;
    const bool inside = column < layout.channels, leads = inside && threadIdx.y == 0;
    float sum[kSums] = {};
    if (inside) {
      if constexpr (kColumns == Columns::Pair)
        sum_of_pairs(w, row, n, column, sum);
      else if constexpr (kColumns == Columns::Variance)
        sum[0] = sum_of_squares(w, row, n, column, w.mean[column]);
      else
        sum[0] = sum_of_x(w, row, n, column);
    }
    add_lanes(sum);
    if constexpr (kColumns == Columns::Both) {
      const float mean = inside ? finish_mean(w, column, sum[0]) : 0.0f;
      sum[0] = inside ? sum_of_squares(w, row, n, column, mean) : 0.0f;
      add_lanes(sum);
      if (leads) {
        w.mean[column] = mean;
        finish_variance(w, column, mean, sum[0] / w.count, true);
      }
      continue;
    }
    if (w.chunks == 1) {
      if (leads) finish_column<kColumns>(w, column, sum);
      continue;
    }
    if (leads) {
#pragma unroll
      for (int k = 0; k < kSums; ++k)
        w.partial[(k * w.chunks + chunk) * layout.channels + column] = sum[k];
      __threadfence();
    }
    __syncthreads();  // what the block wrote is written
    if (threadIdx.x == 0 && threadIdx.y == 0)
      last = atomicInc(tile_chunks_done + tile, static_cast<unsigned>(w.chunks) - 1) ==
             static_cast<unsigned>(w.chunks) - 1;
    __syncthreads();
    if (last) {
      __threadfence();
      sum_values(w.chunks, inside, sum, [&](int k, int64_t i) {
        return __ldcg(w.partial + (k * w.chunks + i) * layout.channels + column);
      });
      if (leads) finish_column<kColumns>(w, column, sum);
    }
    __syncthreads();  // everyone has read `last`
  }
}

/// Launches the kernel over all columns; the work has its chunks.
template <Columns kColumns>
void sum_columns(const char* kernel, Stream stream, SumWork w) {
  constexpr int kSums = kColumns == Columns::Pair ? 2 : 1;
  const Layout& layout = w.statistics.layout;
  w.chunks = std::max<int64_t>(1, (layout.rows + kSumChunk - 1) / kSumChunk);
  Tensor partial;
  if (w.chunks > 1) {
    partial = Tensor::empty({kSums, w.chunks, layout.channels}, DType::F32, stream.device);
    w.partial = partial.mutable_data<float>();
  }
  const uint32_t all = (layout.channels + kTileColumns - 1) / kTileColumns;
  for (w.first_tile = 0; w.first_tile < all; w.first_tile += kMostTiles) {
    w.tiles = std::min<uint32_t>(kMostTiles, all - w.first_tile);
    launch(kernel, stream, blocks_for(w.tiles * w.chunks, 1),
           dim3(kTileColumns, static_cast<unsigned>(kSumLanes)), column_sums_kernel<kColumns>, w);
  }
}

/// Statistics that are the running ones.
__global__ void __launch_bounds__(kThreads)
    running_statistics_kernel(const __grid_constant__ SumWork w) {
  for (int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       c < w.statistics.layout.channels; c += static_cast<int64_t>(gridDim.x) * kThreads) {
    const auto column = static_cast<uint32_t>(c);
    const float mean = w.interior.one(0, c, w.running_mean[c]);
    w.mean[c] = mean;
    finish_variance(w, column, mean, w.running_variance[c], false);
  }
}

// ---- element by element ----------------------------------------------------------------------------------------------

struct ApplyWork {
  Source x, grad;
  Statistics statistics;
  Channels weight, bias;
  bool affine;
  const float *sum_grad, *sum_product;  // null: the statistics do not depend on x
  bool sums_aligned;
  float share;  // 1 / R
  InteriorRounder normal;
  Rounder output;
  Sink out;
  int64_t n;
};

/// p's numbers of four neighbours' channels.
__device__ __forceinline__ void load_channels(const Channels& p, Place place, uint32_t channels,
                                              float (&v)[kQuad]) {
  if (p.source.data != nullptr && p.source.aligned && channels % kQuad == 0)
    return load_quad(p.source, place.channel, v);
#pragma unroll
  for (int k = 0; k < kQuad; ++k, place.next(channels)) v[k] = p.at(place.channel);
}

__device__ __forceinline__ void load_statistics(const Statistics& s, Place place,
                                                float (&mean)[kQuad], float (&inverse)[kQuad]) {
  const Layout& layout = s.layout;
  if (layout.per_channel && s.aligned && layout.channels % kQuad == 0) {
    const float4 m =
        s.mean == nullptr ? float4{} : *reinterpret_cast<const float4*>(s.mean + place.channel);
    const float4 r = *reinterpret_cast<const float4*>(s.inverse + place.channel);
    mean[0] = m.x, mean[1] = m.y, mean[2] = m.z, mean[3] = m.w;
    inverse[0] = r.x, inverse[1] = r.y, inverse[2] = r.z, inverse[3] = r.w;
    return;
  }
  if (!layout.per_channel && layout.width % kQuad == 0) {  // a quad lies in one group
    const int64_t at = layout.statistic(place.row, place.channel);
    const float m = s.mean_of(at), r = s.inverse[at];
#pragma unroll
    for (int k = 0; k < kQuad; ++k) mean[k] = m, inverse[k] = r;
    return;
  }
#pragma unroll
  for (int k = 0; k < kQuad; ++k, place.next(layout.channels)) {
    const bool there = place.row < layout.rows;  // quads may reach beyond the last row
    const int64_t at = there ? layout.statistic(place.row, place.channel) : 0;
    mean[k] = s.mean_of(at), inverse[k] = s.inverse[at];
  }
}

/// x̂ of a quad, of which there are `count` elements.
__device__ __forceinline__ void normalise_quad(const ApplyWork& w, const RandomSource& random,
                                               int64_t i, int count, const float (&mean)[kQuad],
                                               const float (&inverse)[kQuad], float (&x)[kQuad]) {
#pragma unroll
  for (int k = 0; k < kQuad; ++k) x[k] = norms::normalised(x[k], mean[k], inverse[k]);
  if (w.normal.how == Rounder::How::Copy) return;
  if (w.normal.met != nullptr)
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      if (k < count) w.normal.note(i + k, x[k]);
  round_quad(w.normal, random, i, x);
}

__global__ void __launch_bounds__(kThreads) apply_kernel(const __grid_constant__ ApplyWork w) {
  const RandomSource random = w.output.random(), random_normal = w.normal.random();
  const uint32_t channels = w.statistics.layout.channels;
  for_quads(w.n, [&](int64_t i, int count) {
    float x[kQuad], mean[kQuad], inverse[kQuad];
    load_quad(w.x, i, count, x);
    const Place place = place_of(i, channels);
    load_statistics(w.statistics, place, mean, inverse);
    normalise_quad(w, random_normal, i, count, mean, inverse, x);
    if (w.affine) {
      float weight[kQuad], bias[kQuad];
      load_channels(w.weight, place, channels, weight);
      load_channels(w.bias, place, channels, bias);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) x[k] = norms::scaled(x[k], weight[k], bias[k]);
    }
    round_quad(w.output, random, i, x);
    store_quad(w.out, i, count, x);
  });
}

__device__ __forceinline__ void load_sums(const float* sums, bool aligned, Place place,
                                          uint32_t channels, float (&v)[kQuad]) {
  if (aligned && channels % kQuad == 0) {
    const float4 four = *reinterpret_cast<const float4*>(sums + place.channel);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    return;
  }
#pragma unroll
  for (int k = 0; k < kQuad; ++k, place.next(channels)) v[k] = sums[place.channel];
}

__global__ void __launch_bounds__(kThreads)
    batch_norm_backward_kernel(const __grid_constant__ ApplyWork w) {
  const RandomSource random = w.output.random(), random_normal = w.normal.random();
  const uint32_t channels = w.statistics.layout.channels;
  for_quads(w.n, [&](int64_t i, int count) {
    float x[kQuad] = {}, g[kQuad], mean[kQuad], inverse[kQuad], factor[kQuad];
    load_quad(w.grad, i, count, g);
    if (w.sum_grad != nullptr) load_quad(w.x, i, count, x);
    const Place place = place_of(i, channels);
    load_statistics(w.statistics, place, mean, inverse);
    load_channels(w.weight, place, channels, factor);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) factor[k] = factor[k] * inverse[k];
    if (w.sum_grad != nullptr) {
      float mean_g[kQuad], mean_gx[kQuad];
      load_sums(w.sum_grad, w.sums_aligned, place, channels, mean_g);
      load_sums(w.sum_product, w.sums_aligned, place, channels, mean_gx);
      normalise_quad(w, random_normal, i, count, mean, inverse, x);
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        g[k] =
            norms::input_gradient(g[k], x[k], mean_g[k] * w.share, mean_gx[k] * w.share, factor[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) g[k] = g[k] * factor[k];
    }
    round_quad(w.output, random, i, g);
    store_quad(w.out, i, count, g);
  });
}

// ---- norms of groups -------------------------------------------------------------------------------------------------

struct GroupWork {
  Source x, grad;
  Channels weight, bias;
  bool affine, centred;
  float *mean, *inverse;  // written forward, read backward
  Layout layout;
  int64_t statistics, size;
  float count, share, eps;
  Interior interior;
  Rounder output;
  Sink out;
};

/// The elements of a group.
struct Group {
  int64_t index, begin;  // its first element in the tensor
  uint32_t channel;      // that element's
  const Layout& layout;

  __device__ __forceinline__ Group(const Layout& l, int64_t index) : index(index), layout(l) {
    channel = static_cast<uint32_t>(index % l.groups) * l.width;
    begin = index / l.groups * l.span * l.channels + channel;
  }
  struct Element {
    int64_t at;  // in the tensor
    uint32_t channel;
  };
  __device__ __forceinline__ Element element(int64_t j) const {
    if (layout.span == 1) return {begin + j, channel + static_cast<uint32_t>(j)};
    const auto small = static_cast<uint32_t>(j);  // sizes are below kMostGroup
    const uint32_t s = small / layout.width, d = small % layout.width;
    return {begin + static_cast<int64_t>(s) * layout.channels + d, channel + d};
  }
};

__device__ __forceinline__ float load_float(const Source& s, int64_t i) {
  return s.dtype == DType::F32    ? static_cast<const float*>(s.data)[i]
         : s.dtype == DType::BF16 ? bf16_to_float(static_cast<const uint16_t*>(s.data)[i])
         : s.dtype == DType::F16  ? f16_to_float(static_cast<const uint16_t*>(s.data)[i])
                                  : load_one(s.data, s.dtype, i);
}
__device__ __forceinline__ void store_single(const Sink& s, int64_t i, float value) {
  if (s.dtype == DType::F32)
    static_cast<float*>(s.data)[i] = value;
  else
    store_one(s.data, s.dtype, i, value);
}

/// Calls body(group index) for this warp's groups, with all its lanes.
template <class Body>
__device__ __forceinline__ void for_warp_groups(int64_t groups, const Body& body) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  for (int64_t group = first; group < groups; group += warps) body(group);
}

/// Calls body(j, at) for this thread's elements of a group of at most 32·kHeld: at = j·32 + lane.
template <int kHeld, class Body>
__device__ __forceinline__ void for_held(int size, const Body& body) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int j = 0; j < kHeld; ++j)
    if (j * kWarp + lane < size) body(j, j * kWarp + lane);
}

__device__ __forceinline__ float finish_group(const GroupWork& w, int64_t group, float sum) {
  const float variance = w.interior.one(1, group, sum / w.count);
  return w.interior.one(2, group, norms::inverse_deviation(variance, w.eps));
}

/// y of one element from its x̂, written.
__device__ __forceinline__ void write_normalised(const GroupWork& w, const RandomSource& random,
                                                 const Group::Element& e, float x_hat) {
  const float y =
      w.affine ? norms::scaled(x_hat, w.weight.at(e.channel), w.bias.at(e.channel)) : x_hat;
  store_single(w.out, e.at, round_single(w.output, random, e.at, y));
}

/// Groups of at most 32·kHeld elements that lie side by side: each is read once and kept, element j·32 + t by thread t of a
/// warp, which is the order of warp_sum_chunk too.
template <int kHeld>
__global__ void __launch_bounds__(kThreads)
    group_norm_held_kernel(const __grid_constant__ GroupWork w) {
  const RandomSource random = w.output.random(), random_normal = w.interior.at[3].random();
  const int size = static_cast<int>(w.size);
  for_warp_groups(w.statistics, [&](int64_t index) {
    const Group group(w.layout, index);
    float x[kHeld];
    for_held<kHeld>(size, [&](int j, int at) { x[j] = load_float(w.x, group.begin + at); });
    float mean = 0;
    if (w.centred) {
      float sums[2] = {};  // of lanes t and t + 32
      for_held<kHeld>(size, [&](int j, int) { sums[j % 2] += x[j]; });
      mean = w.interior.one(0, index, warp_sum_lanes(sums[0], sums[1]) / w.count);
    }
    float sums[2] = {};
    for_held<kHeld>(size, [&](int j, int) { sums[j % 2] += norms::square_about(x[j], mean); });
    const float inverse = finish_group(w, index, warp_sum_lanes(sums[0], sums[1]));
    if (threadIdx.x % kWarp == 0) {
      if (w.centred) w.mean[index] = mean;
      w.inverse[index] = inverse;
    }
    for_held<kHeld>(size, [&](int j, int at) {
      const Group::Element e = group.element(at);
      const float x_hat = round_single(w.interior.at[3], random_normal, e.at,
                                       norms::normalised(x[j], mean, inverse));
      write_normalised(w, random, e, x_hat);
    });
  });
}

template <int kHeld>
__global__ void __launch_bounds__(kThreads)
    group_norm_backward_held_kernel(const __grid_constant__ GroupWork w) {
  const Rounder& normal = w.interior.at[3];
  const RandomSource random = w.output.random(), random_normal = normal.random();
  const int size = static_cast<int>(w.size);
  for_warp_groups(w.statistics, [&](int64_t index) {
    const Group group(w.layout, index);
    const float mean = w.centred ? w.mean[index] : 0.0f, inverse = w.inverse[index];
    float x[kHeld], h[kHeld];
    for_held<kHeld>(size, [&](int j, int at) {
      x[j] = load_float(w.x, group.begin + at);
      h[j] = load_float(w.grad, group.begin + at);
    });
    float sums[2] = {}, products[2] = {};
    for_held<kHeld>(size, [&](int j, int at) {
      x[j] = round_single(normal, random_normal, group.begin + at,
                          norms::normalised(x[j], mean, inverse));
      h[j] = h[j] * w.weight.at(group.channel + static_cast<uint32_t>(at));
      sums[j % 2] += h[j];
      products[j % 2] += h[j] * x[j];
    });
    const float sum = warp_sum_lanes(sums[0], sums[1]);
    const float mean_h = w.centred ? sum * w.share : 0.0f;
    const float mean_hx = warp_sum_lanes(products[0], products[1]) * w.share;
    for_held<kHeld>(size, [&](int j, int at) {
      const int64_t i = group.begin + at;
      const float dx = norms::input_gradient(h[j], x[j], mean_h, mean_hx, inverse);
      store_single(w.out, i, round_single(w.output, random, i, dx));
    });
  });
}

/// The numbers of a row's channels.
template <int kQuads>
__device__ __forceinline__ void load_channels(const Channels& c, int n, float (&x)[kQuads][kQuad]) {
  if (c.source.data != nullptr && c.source.aligned) return load_row(c.source, 0, n, x);
  for_row_quads<kQuads>(n, [&](int q, int at) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[q][k] = at < n ? c.at(static_cast<uint32_t>(at + k)) : 0.0f;
  });
}

/// Groups that are whole rows, in quads.
template <int kQuads>
__global__ void __launch_bounds__(kThreads)
    group_norm_quads_kernel(const __grid_constant__ GroupWork w) {
  const RandomSource random = w.output.random(), random_normal = w.interior.at[3].random();
  const int n = static_cast<int>(w.size);
  for_warp_groups(w.statistics, [&](int64_t index) {
    const int64_t begin = index * n;
    float x[kQuads][kQuad], other[kQuads][kQuad];
    load_row(w.x, begin, n, x);
    const float mean = w.centred ? w.interior.one(0, index, row_sum(n, x) / w.count) : 0.0f;
    for_row_quads<kQuads>(n, [&](int q, int at) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        other[q][k] = at < n ? norms::square_about(x[q][k], mean) : 0.0f;
    });
    const float inverse = finish_group(w, index, row_sum(n, other));
    if (threadIdx.x % kWarp == 0) {
      if (w.centred) w.mean[index] = mean;
      w.inverse[index] = inverse;
    }
#pragma unroll
    for (int q = 0; q < kQuads; ++q)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) x[q][k] = norms::normalised(x[q][k], mean, inverse);
    if (w.interior.at[3].how != Rounder::How::Copy) note_row(w.interior.at[3], begin, n, n, x);
    round_row(w.interior.at[3], random_normal, begin, n, x);
    if (w.affine) {
      float bias[kQuads][kQuad];
      load_channels(w.weight, n, other);
      load_channels(w.bias, n, bias);
      for_row_quads<kQuads>(n, [&](int q, int) {
#pragma unroll
        for (int k = 0; k < kQuad; ++k) x[q][k] = norms::scaled(x[q][k], other[q][k], bias[q][k]);
      });
    }
    round_row(w.output, random, begin, n, x);
    store_row(w.out, begin, n, x);
  });
}

template <int kQuads>
__global__ void __launch_bounds__(kThreads)
    group_norm_backward_quads_kernel(const __grid_constant__ GroupWork w) {
  const RandomSource random = w.output.random(), random_normal = w.interior.at[3].random();
  const int n = static_cast<int>(w.size);
  for_warp_groups(w.statistics, [&](int64_t index) {
    const int64_t begin = index * n;
    const float mean = w.centred ? w.mean[index] : 0.0f, inverse = w.inverse[index];
    float x[kQuads][kQuad], h[kQuads][kQuad], other[kQuads][kQuad];
    load_row(w.x, begin, n, x);
    load_row(w.grad, begin, n, h);
    load_channels(w.weight, n, other);
    for_row_quads<kQuads>(n, [&](int q, int at) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        x[q][k] = norms::normalised(x[q][k], mean, inverse);
        h[q][k] = at < n ? h[q][k] * other[q][k] : 0.0f;
      }
    });
    round_row(w.interior.at[3], random_normal, begin, n, x);
    for_row_quads<kQuads>(n, [&](int q, int at) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) other[q][k] = at < n ? h[q][k] * x[q][k] : 0.0f;
    });
    const float sum = row_sum(n, h);
    const float mean_h = w.centred ? sum * w.share : 0.0f;
    const float mean_hx = row_sum(n, other) * w.share;
    for_row_quads<kQuads>(n, [&](int q, int) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        h[q][k] = norms::input_gradient(h[q][k], x[q][k], mean_h, mean_hx, inverse);
    });
    round_row(w.output, random, begin, n, h);
    store_row(w.out, begin, n, h);
  });
}

// Larger groups: a block each, its warps take the chunks in turn.

constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kMostChunks = 2048, kMostGroup = kMostChunks * kSumChunk;

/// The sums of n values in the order of core/sum.h, for all threads of a block. read(i, values) gives the kSums values of i.
template <int kSums, class Read>
__device__ __forceinline__ void block_sums(int64_t n, float (&sum)[kSums], const Read& read) {
  __shared__ float chunk_sums[kSums][kMostChunks];
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t chunks = n <= kSumChunk ? 1 : (n + kSumChunk - 1) / kSumChunk;
  for (int64_t chunk = warp; chunk < chunks; chunk += kWarps) {
    const int64_t begin = chunk * kSumChunk;
    const int64_t end = n - begin < kSumChunk ? n : begin + kSumChunk;
    float low[kSums] = {}, high[kSums] = {}, value[kSums];
    int64_t i = begin + lane;
#pragma unroll 4
    for (; i + kWarp < end; i += kSumLanes) {
      read(i, value);
#pragma unroll
      for (int k = 0; k < kSums; ++k) low[k] += value[k];
      read(i + kWarp, value);
#pragma unroll
      for (int k = 0; k < kSums; ++k) high[k] += value[k];
    }
    if (i < end) {
      read(i, value);
#pragma unroll
      for (int k = 0; k < kSums; ++k) low[k] += value[k];
    }
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      const float all = warp_sum_lanes(low[k], high[k]);
      if (lane == 0) chunk_sums[k][chunk] = all;
    }
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kSums; ++k)
    sum[k] = chunks == 1 ? chunk_sums[k][0]
                         : warp_sum_chunk(chunks, [&](int64_t c) { return chunk_sums[k][c]; });
  __syncthreads();  // the next sums may write
}

__global__ void __launch_bounds__(kThreads) group_norm_kernel(const __grid_constant__ GroupWork w) {
  const RandomSource random = w.output.random(), random_normal = w.interior.at[3].random();
  for (int64_t index = blockIdx.x; index < w.statistics; index += gridDim.x) {
    const Group group(w.layout, index);
    float mean = 0, sum[1];
    if (w.centred) {
      block_sums(w.size, sum,
                 [&](int64_t j, float(&v)[1]) { v[0] = load_float(w.x, group.element(j).at); });
      mean = w.interior.one(0, index, sum[0] / w.count);
    }
    block_sums(w.size, sum, [&](int64_t j, float(&v)[1]) {
      v[0] = norms::square_about(load_float(w.x, group.element(j).at), mean);
    });
    const float inverse = finish_group(w, index, sum[0]);
    if (threadIdx.x == 0) {
      if (w.centred) w.mean[index] = mean;
      w.inverse[index] = inverse;
    }
    for (int64_t j = threadIdx.x; j < w.size; j += kThreads) {
      const Group::Element e = group.element(j);
      const float x_hat = round_single(w.interior.at[3], random_normal, e.at,
                                       norms::normalised(load_float(w.x, e.at), mean, inverse));
      write_normalised(w, random, e, x_hat);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    group_norm_backward_kernel(const __grid_constant__ GroupWork w) {
  const Rounder& rounder = w.interior.at[3];
  const RandomSource random = w.output.random(), random_normal = rounder.random();
  for (int64_t index = blockIdx.x; index < w.statistics; index += gridDim.x) {
    const Group group(w.layout, index);
    const float mean = w.centred ? w.mean[index] : 0.0f, inverse = w.inverse[index];
    const auto normal = [&](int64_t at) {
      return round_single(rounder, random_normal, at,
                          norms::normalised(load_float(w.x, at), mean, inverse));
    };
    float sum[2];
    block_sums(w.size, sum, [&](int64_t j, float(&v)[2]) {
      const Group::Element e = group.element(j);
      v[0] = load_float(w.grad, e.at) * w.weight.at(e.channel);
      v[1] = v[0] * normal(e.at);
    });
    const float mean_h = w.centred ? sum[0] * w.share : 0.0f, mean_hx = sum[1] * w.share;
    for (int64_t j = threadIdx.x; j < w.size; j += kThreads) {
      const Group::Element e = group.element(j);
      const float h = load_float(w.grad, e.at) * w.weight.at(e.channel);
      const float dx = norms::input_gradient(h, normal(e.at), mean_h, mean_hx, inverse);
      store_single(w.out, e.at, round_single(w.output, random, e.at, dx));
    }
  }
}

GroupWork group_work(const char* kernel, Stream stream, const Tensor& x, const NormLayout& l,
                     const NormInterior& interior, const Tensor& mean, const Tensor& weight) {
  ULP_CHECK(l.size() <= kMostGroup, "{}: statistics over at most {} elements, got {}", kernel,
            kMostGroup, l.size());
  GroupWork w{};
  w.x = source_of(x);
  w.layout = layout_of(kernel, l);
  w.statistics = l.statistics();
  w.size = l.size();
  w.count = static_cast<float>(w.size);
  w.share = static_cast<float>(1.0 / static_cast<double>(std::max<int64_t>(1, w.size)));
  w.interior = interior_of(kernel, stream, interior);
  w.centred = mean.defined();
  w.weight = channels_of(weight, 1);
  return w;
}

using GroupKernel = void (*)(GroupWork);

/// The kernels of one pass: a warp for each group where it can hold it, in quads if groups are rows and lie well; else a block.
struct GroupKernels {
  GroupKernel quads4, quads8, held4, held32, any;
};

void launch_groups(const char* kernel, Stream stream, const GroupWork& w, const GroupKernels& all) {
  const bool warps = w.layout.span == 1 && w.size <= 32 * kWarp;
  if (!warps) return launch(kernel, stream, blocks_for(w.statistics, 1), kThreads, all.any, w);
  const bool quads = w.layout.groups == 1 && w.size % kQuad == 0 && w.x.aligned &&
                     (w.grad.data == nullptr || w.grad.aligned);
  const GroupKernel few = quads ? all.quads4 : all.held4, many = quads ? all.quads8 : all.held32;
  const int64_t most_few = quads ? 4 * kRowStep : 4 * kWarp;
  launch(kernel, stream, blocks_for(w.statistics, kWarps), kThreads,
         w.size <= most_few ? few : many, w);
}

}  // namespace

void batch_statistics(Stream stream, const BatchStatisticsArgs& args) {
  constexpr const char* kName = "batch_statistics";
  check_batch_statistics(stream, args);
  check_no_f64(kName, args.x);
  const int64_t rows = args.x.size(0);
  SumWork w{};
  w.x = source_of(args.x);
  w.statistics.layout = layout_of(kName, batch_layout(args.x));
  w.interior = interior_of(kName, stream, args.interior);
  w.mean = written_floats(args.mean);
  w.inverse = written_floats(args.inverse_deviation);
  w.running_mean = written_floats(args.running_mean);
  w.running_variance = written_floats(args.running_variance);
  w.count = static_cast<float>(rows);
  w.eps = static_cast<float>(args.eps);
  w.keep = static_cast<float>(1 - args.momentum);
  w.momentum = static_cast<float>(args.momentum);
  w.unbiased = static_cast<float>(static_cast<double>(rows) /
                                  static_cast<double>(std::max<int64_t>(1, rows - 1)));
  if (args.evaluate)
    return launch(kName, stream, blocks_for(args.x.size(1), kThreads), kThreads,
                  running_statistics_kernel, w);
  if (rows <= kSumChunk) return sum_columns<Columns::Both>(kName, stream, w);
  sum_columns<Columns::Mean>(kName, stream, w);
  sum_columns<Columns::Variance>(kName, stream, w);
}

void norm_apply(Stream stream, const NormApplyArgs& args) {
  constexpr const char* kName = "norm_apply";
  check_norm_apply(stream, args);
  check_no_f64(kName, args.x);
  ApplyWork w{};
  w.x = source_of(args.x);
  w.statistics = statistics_of(kName, args.mean, args.inverse_deviation, args.layout);
  w.weight = channels_of(args.weight, 1);
  w.bias = channels_of(args.bias, 0);
  w.affine = args.weight.defined() || args.bias.defined();
  w.normal = interior_of(kName, stream, args.interior).at[3];
  w.output = make_elementwise_rounder(kName, stream.device, args.output, args.key);
  w.out = sink_of(args.out);
  w.n = args.x.numel();
  launch(kName, stream, quad_blocks(w.n), kThreads, apply_kernel, w);
}

void group_norm(Stream stream, const GroupNormArgs& args) {
  constexpr const char* kName = "group_norm";
  check_group_norm(stream, args);
  check_no_f64(kName, args.x);
  GroupWork w =
      group_work(kName, stream, args.x, args.layout, args.interior, args.mean, args.weight);
  w.bias = channels_of(args.bias, 0);
  w.affine = args.weight.defined() || args.bias.defined();
  w.eps = static_cast<float>(args.eps);
  w.mean = written_floats(args.mean);
  w.inverse = written_floats(args.inverse_deviation);
  w.output = make_elementwise_rounder(kName, stream.device, args.output, args.key);
  w.out = sink_of(args.out);
  launch_groups(kName, stream, w,
                {group_norm_quads_kernel<4>, group_norm_quads_kernel<8>, group_norm_held_kernel<4>,
                 group_norm_held_kernel<32>, group_norm_kernel});
}

void norm_sums(Stream stream, const NormSumsArgs& args) {
  constexpr const char* kName = "norm_sums";
  check_norm_sums(stream, args);
  check_no_f64(kName, args.x);
  SumWork w{};
  w.x = source_of(args.x);
  w.grad = source_of(args.grad);
  w.statistics = statistics_of(kName, args.mean, args.inverse_deviation, args.layout);
  w.interior = interior_of(kName, stream, args.interior);
  w.sum_grad = written_floats(args.sum_grad);
  w.sum_product = written_floats(args.sum_product);
  sum_columns<Columns::Pair>(kName, stream, w);
}

void batch_norm_backward(Stream stream, const BatchNormBackwardArgs& args) {
  constexpr const char* kName = "batch_norm_backward";
  check_batch_norm_backward(stream, args);
  check_no_f64(kName, args.x);
  ApplyWork w{};
  w.x = source_of(args.x);
  w.grad = source_of(args.grad);
  w.statistics = statistics_of(kName, args.mean, args.inverse_deviation, batch_layout(args.x));
  w.weight = channels_of(args.weight, 1);
  w.sum_grad = floats_of(args.sum_grad);
  w.sum_product = floats_of(args.sum_product);
  w.sums_aligned = aligned_floats(args.sum_grad) && aligned_floats(args.sum_product);
  w.share = static_cast<float>(1.0 / static_cast<double>(std::max<int64_t>(1, args.x.size(0))));
  w.normal = interior_of(kName, stream, args.interior).at[3];
  w.output = make_elementwise_rounder(kName, stream.device, args.output, args.key);
  w.out = sink_of(args.out);
  w.n = args.x.numel();
  launch(kName, stream, quad_blocks(w.n), kThreads, batch_norm_backward_kernel, w);
}

void group_norm_backward(Stream stream, const GroupNormBackwardArgs& args) {
  constexpr const char* kName = "group_norm_backward";
  check_group_norm_backward(stream, args);
  check_no_f64(kName, args.x);
  GroupWork w =
      group_work(kName, stream, args.x, args.layout, args.interior, args.mean, args.weight);
  w.grad = source_of(args.grad);
  w.mean = const_cast<float*>(floats_of(args.mean));
  w.inverse = const_cast<float*>(floats_of(args.inverse_deviation));
  w.output = make_elementwise_rounder(kName, stream.device, args.output, args.key);
  w.out = sink_of(args.out);
  launch_groups(kName, stream, w,
                {group_norm_backward_quads_kernel<4>, group_norm_backward_quads_kernel<8>,
                 group_norm_backward_held_kernel<4>, group_norm_backward_held_kernel<32>,
                 group_norm_backward_kernel});
}

}  // namespace ulp::cuda
