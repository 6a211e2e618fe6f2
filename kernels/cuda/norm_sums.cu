#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/sum.cuh"
#include "kernels/norm_math.h"

// Sums and statistics of columns.
namespace ulp::cuda {
namespace {

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

struct SumWork : NormInput {
  Statistics statistics;  // batch statistics: its layout only
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

template <class Args>
SumWork sum_work(const char* kernel, Stream stream, const Args& args, const Statistics& s) {
  auto w = norm_work<SumWork>(kernel, stream, args);
  w.statistics = s;
  w.interior = interior_of(kernel, stream, args.interior);
  return w;
}

}  // namespace

void batch_statistics(Stream stream, const BatchStatisticsArgs& args) {
  constexpr const char* kName = "batch_statistics";
  check_batch_statistics(stream, args);
  const int64_t rows = args.x.size(0);
  SumWork w = sum_work(kName, stream, args, statistics_of(kName, {}, {}, batch_layout(args.x)));
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

void norm_sums(Stream stream, const NormSumsArgs& args) {
  constexpr const char* kName = "norm_sums";
  check_norm_sums(stream, args);
  SumWork w = sum_work(kName, stream, args,
                       statistics_of(kName, args.mean, args.inverse_deviation, args.layout));
  w.sum_grad = written_floats(args.sum_grad);
  w.sum_product = written_floats(args.sum_product);
  sum_columns<Columns::Pair>(kName, stream, w);
}

}  // namespace ulp::cuda
