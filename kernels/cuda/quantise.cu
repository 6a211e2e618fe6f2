#include "core/block_map.h"
#include "kernels/cuda/rounder.cuh"
#include "kernels/cuda/sum.cuh"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

struct Work {
  Source in;
  Sink out;
  uint8_t* mask;
  bool mask_aligned;
  Rounder rounder;
  int64_t n;
};

/// mask[i + k] = bit k of `clamped`, for k < count.
__device__ __forceinline__ void store_mask(const Work& w, int64_t i, int count, uint32_t clamped) {
  if (w.mask == nullptr) return;
  if (w.mask_aligned && count == kPack) {
    uint32_t words[2] = {};
#pragma unroll
    for (int k = 0; k < kPack; ++k) words[k / 4] |= (clamped >> k & 1u) << (8 * (k % 4));
    *reinterpret_cast<uint2*>(w.mask + i) = make_uint2(words[0], words[1]);
    return;
  }
  for (int k = 0; k < count; ++k) w.mask[i + k] = static_cast<uint8_t>(clamped >> k & 1u);
}

__global__ void __launch_bounds__(kThreads) quantise_kernel(Work w) {
  const RandomSource random = w.rounder.random();
  for_packs(w.n, [&](int64_t i, int count) {
    float values[kPack];
    load_pack(w.in, i, count, values);
    const uint32_t clamped = round_pack(w.rounder, random, i, values);
    store_pack(w.out, i, count, values);
    store_mask(w, i, count, clamped);
  });
}

/// Walks through consecutive elements without a division for each.
struct BlockCursor {
  const BlockMap& map;
  int64_t outer, at, in_group, group, rest;

  __device__ BlockCursor(const BlockMap& m, int64_t i) : map(m) {
    rest = i % m.inner;
    at = i / m.inner % m.axis;
    outer = i / m.inner / m.axis;
    group = at / m.group;
    in_group = at % m.group;
  }
  __device__ int64_t block() const {
    return outer * map.outer_step + group * map.group_step +
           (map.columns == 1 ? rest : rest / map.columns) * map.inner_step;
  }
  __device__ void next() {
    if (++rest < map.inner) return;
    rest = 0;
    if (++at == map.axis) {
      at = in_group = group = 0;
      ++outer;
    } else if (++in_group == map.group) {
      in_group = 0;
      ++group;
    }
  }
};

/// The plain read may be stale; then the atomic is merely superfluous, because amax only grows.
__device__ __forceinline__ void raise(uint32_t* amax, int64_t block, uint32_t bits) {
  if (bits > *const_cast<const volatile uint32_t*>(amax + block)) atomicMax(amax + block, bits);
}

/// amax[block] = max(amax[block], |in| as bits). Integer maxima: exact in any order.
__global__ void __launch_bounds__(kThreads)
    amax_kernel(Source in, int64_t n, BlockMap map, uint32_t* amax) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kPack;
  // All lanes of a warp make the same number of rounds, so that they can speak to each other.
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kThreads * kPack; base < n; base += step) {
    const int64_t i = base + static_cast<int64_t>(threadIdx.x) * kPack;
    int64_t block = -1;
    uint32_t most = 0;
    if (i < n) {
      const int count = n - i < kPack ? static_cast<int>(n - i) : kPack;
      float values[kPack];
      load_pack(in, i, count, values);
      BlockCursor cursor(map, i);
      block = cursor.block();
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        if (k >= count) break;
        const int64_t own = cursor.block();
        if (own != block) {
          raise(amax, block, most);
          block = own;
          most = 0;
        }
        most = max(most, bits_of(values[k]) & ~kSignBit);
        cursor.next();
      }
    }
    const int64_t first =
        __shfl_sync(kFullWarp, block, 0);  // −1 only if the whole warp is beyond n
    if (__all_sync(kFullWarp, block == first || block == -1)) {
      const uint32_t all = __reduce_max_sync(kFullWarp, most);
      if (threadIdx.x % kWarp == 0 && first >= 0) raise(amax, first, all);
    } else if (block >= 0) {
      raise(amax, block, most);
    }
  }
}

/// What the kernel needs to know of all blocks beside their magnitudes.
struct Scaling {
  BlockRule rule;
  bool apart;             // factors are kept apart
  const uint32_t* whole;  // E4M3Tensor: the largest magnitude of the tensor
  const float* delayed;   // the state of delayed scaling

  __device__ float tensor() const { return whole == nullptr ? 1.0f : tensor_scale(rule, *whole); }
  /// The block's grid and scales; `last` is what E4M3Tensor multiplies by at the end.
  __device__ BlockScale set(Grid& grid, uint32_t amax, float tensor, float& last) const {
    if (delayed != nullptr) {
      const BlockScale scale{delayed[0], 1.0f, factor_of(delayed[0])};
      last = apart ? 1.0f : scale.factor;
      return scale;
    }
    const BlockScale scale = set_block(grid, rule, amax, tensor);
    last = apart ? 1.0f : scale.factor;
    return scale;
  }
};

__global__ void __launch_bounds__(kThreads)
    quantise_blocks_kernel(Work w, BlockMap map, Scaling scaling, const uint32_t* amax) {
  const RandomSource random = w.rounder.random();
  const bool stochastic = w.rounder.grid.rounding == Rounding::Stochastic;
  const float tensor = scaling.tensor();
  for_packs(w.n, [&](int64_t i, int count) {
    float values[kPack];
    load_pack(w.in, i, count, values);
    uint32_t words[kPack] = {};
    if (stochastic) random_words(random, i, words);
    BlockCursor cursor(map, i);
    Grid grid = w.rounder.grid;
    BlockScale scale;
    float last = 1;
    int64_t block = -1;
    uint32_t clamped = 0;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      if (k >= count) break;
      if (cursor.block() != block) {
        block = cursor.block();
        grid = w.rounder.grid;
        scale = scaling.set(grid, amax[block], tensor, last);
      }
      const Rounded r = round_with(w.rounder.how, grid, values[k] * scale.before, words[k]);
      values[k] = canonical(r.value * scale.after * last);
      clamped |= static_cast<uint32_t>(r.clamped) << k;
      cursor.next();
    }
    store_pack(w.out, i, count, values);
    store_mask(w, i, count, clamped);
  });
}

__global__ void max_kernel(const uint32_t* values, int64_t n, uint32_t* most) {
  uint32_t own = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    own = max(own, values[i]);
  own = __reduce_max_sync(kFullWarp, own);
  if (threadIdx.x % kWarp == 0) atomicMax(most, own);
}

/// factors[b] of `count` blocks.
__global__ void factors_kernel(Scaling scaling, const uint32_t* amax, int64_t count,
                               float* factors) {
  const float tensor = scaling.tensor();
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; b < count;
       b += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    Grid grid{};
    float last = 1;
    factors[b] = scaling.set(grid, amax[b], tensor, last).factor;
  }
}

__global__ void update_delayed_kernel(BlockRule rule, float* state, const uint32_t* amax) {
  update_delayed(rule, state, *amax);
}

__global__ void fill_kernel(float* values, int64_t n, float value) {
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) values[i] = value;
}

// ---- statistics -----------------------------------------------------------------------------------------------------
/// The halving tree over kStatsLanes sums, of which thread t holds lanes 8t … 8t + 7; valid in thread 0.
__device__ __forceinline__ float sum_stats_lanes(float (&lane)[kPack]) {
#pragma unroll
  for (int k = 0; k < kPack; ++k)
#pragma unroll
    for (int width = kWarp / 2; width > 0; width /= 2)
      lane[k] += __shfl_down_sync(kFullWarp, lane[k], width);
#pragma unroll
  for (int width = kPack / 2; width > 0; width /= 2)
#pragma unroll
    for (int k = 0; k < width; ++k) lane[k] += lane[k + width];
  return lane[0];
}

/// A warp counts a run of kStatsRun elements; sums[k · runs + run] are its three sums.
__global__ void __launch_bounds__(kThreads)
    stats_kernel(Source in, Source out, const uint8_t* mask, int64_t n, QuantiseStats* stats,
                 double* sums) {
  static_assert(kStatsLanes == kWarp * kPack);
  constexpr int kRows = kStatsRun / kStatsLanes;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int64_t runs = (n + kStatsRun - 1) / kStatsRun;
  for (int64_t run = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
       run < runs; run += warps) {
    float x[kRows][kPack], e[kRows][kPack];
    uint32_t overflow = 0, underflow = 0, nan = 0, infinite = 0, finite = 0, amax = 0;
    uint32_t most_x = 0, most_error = 0;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int64_t i = run * kStatsRun + row * kStatsLanes + threadIdx.x % kWarp * kPack;
      const int count = i >= n ? 0 : n - i < kPack ? static_cast<int>(n - i) : kPack;
      float y[kPack];
      load_pack(in, i, count, x[row]);
      load_pack(out, i, count, y);
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        const uint32_t a = bits_of(x[row][k]) & ~kSignBit, b = bits_of(y[k]) & ~kSignBit;
        e[row][k] = y[k] - x[row][k];
        const bool has_share = (bits_of(e[row][k]) & ~kSignBit) < kInfinityBits;
        if (k < count) {
          overflow += mask[i + k];
          underflow += a != 0 && b == 0;
          nan += a > kInfinityBits;
          infinite += a == kInfinityBits;
          finite += has_share;
          if (a < kInfinityBits) amax = max(amax, a);
        }
        if (!has_share) x[row][k] = e[row][k] = 0;
        most_x = max(most_x, bits_of(x[row][k]) & ~kSignBit);
        most_error = max(most_error, bits_of(e[row][k]) & ~kSignBit);
      }
    }
    most_x = __reduce_max_sync(kFullWarp, most_x);
    most_error = __reduce_max_sync(kFullWarp, most_error);
    const float scale = stats_scale(most_x), error_scale = stats_scale(most_error);
    float error[kPack], square_error[kPack], square[kPack];
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      StatsSums lane;
#pragma unroll
      for (int row = 0; row < kRows; ++row) lane.add(x[row][k] * scale, e[row][k] * error_scale);
      error[k] = lane.error;
      square_error[k] = lane.square_error;
      square[k] = lane.square;
    }
    const StatsSums all{sum_stats_lanes(error), sum_stats_lanes(square_error),
                        sum_stats_lanes(square)};
    const uint32_t counts[5] = {overflow, underflow, nan, infinite, finite};
    int64_t* totals[5] = {&stats->overflow, &stats->underflow, &stats->nan, &stats->infinite,
                          &stats->finite};
    for (int k = 0; k < 5; ++k) {
      const uint32_t total = __reduce_add_sync(kFullWarp, counts[k]);
      if (threadIdx.x % kWarp == 0 && total != 0)
        atomicAdd(reinterpret_cast<unsigned long long*>(totals[k]), total);
    }
    amax = __reduce_max_sync(kFullWarp, amax);
    if (threadIdx.x % kWarp == 0) {
      atomicMax(&stats->amax_bits, amax);
      const double unit = stats_unit(most_x), error_unit = stats_unit(most_error);
      sums[run] = all.error * error_unit;
      sums[runs + run] = all.square_error * (error_unit * error_unit);
      sums[2 * runs + run] = all.square * (unit * unit);
    }
  }
}

__global__ void stats_total_kernel(QuantiseStats* stats, const double* sums, int64_t runs,
                                   int64_t n) {
  double* totals[3] = {&stats->error, &stats->square_error, &stats->square};
  for (int k = 0; k < 3; ++k) {
    const double sum = warp_sum<double>(runs, [&](int64_t i) { return sums[k * runs + i]; });
    if (threadIdx.x == 0) *totals[k] = sum;
  }
  if (threadIdx.x == 0) stats->count = n;
}

void count_stats(Stream stream, const QuantiseArgs& args, const uint8_t* mask) {
  const int64_t n = args.in.numel(), runs = (n + kStatsRun - 1) / kStatsRun;
  auto* stats = static_cast<QuantiseStats*>(written(args.stats));
  ULP_CUDA_CHECK(cudaSetDevice(stream.device.index));
  ULP_CUDA_CHECK(
      cudaMemsetAsync(stats, 0, sizeof(QuantiseStats), static_cast<cudaStream_t>(stream.handle)));
  if (n == 0) return;
  Tensor sums =
      Tensor::empty({3 * runs * static_cast<int64_t>(sizeof(double))}, DType::U8, stream.device);
  auto* at = static_cast<double*>(sums.mutable_raw());
  launch("quantise", stream, blocks_for(runs, kThreads / kWarp), kThreads, stats_kernel,
         source_of(args.in), source_of(args.out), mask, n, stats, at);
  launch("quantise", stream, 1, kWarp, stats_total_kernel, stats, static_cast<const double*>(at),
         runs, n);
}

/// Integer maxima of all blocks, and behind them that of the tensor.
Tensor find_amax(Stream stream, const Work& w, const BlockMap& map, bool whole) {
  Tensor tensor = Tensor::empty({map.blocks + 1}, DType::I32, stream.device);
  auto* amax = static_cast<uint32_t*>(tensor.mutable_raw());
  ULP_CUDA_CHECK(cudaSetDevice(stream.device.index));
  ULP_CUDA_CHECK(cudaMemsetAsync(amax, 0, static_cast<size_t>(tensor.bytes()),
                                 static_cast<cudaStream_t>(stream.handle)));
  launch("quantise", stream, pack_blocks(w.n), kThreads, amax_kernel, w.in, w.n, map, amax);
  if (whole)
    launch("quantise", stream, std::min<int64_t>(blocks_for(map.blocks, kThreads), 1024), kThreads,
           max_kernel, static_cast<const uint32_t*>(amax), map.blocks, amax + map.blocks);
  return tensor;
}

void quantise_blocks(Stream stream, const QuantiseArgs& args, const Work& w) {
  const Quantizer& q = args.quantizer;
  const BlockMap map = make_block_map(q, args.in.shape(), args.group_axis);
  float* factors = args.factors.defined() ? static_cast<float*>(written(args.factors)) : nullptr;
  if (w.n == 0) {
    if (factors != nullptr && args.factors.numel() > 0)
      launch("quantise", stream, 1, kThreads, fill_kernel, factors, args.factors.numel(), 1.0f);
    return;
  }
  Scaling scaling{make_block_rule(q, args.out.dtype()), factors != nullptr, nullptr, nullptr};
  const bool two_levels = q.scale.kind == Scale::Kind::E4M3Tensor;
  const Tensor amax_tensor = find_amax(stream, w, map, two_levels);
  const auto* amax = static_cast<const uint32_t*>(amax_tensor.raw());
  if (two_levels) scaling.whole = amax + map.blocks;
  float* state = nullptr;
  if (q.scale.kind == Scale::Kind::Delayed) {
    state = static_cast<float*>(written(args.scaling));
    scaling.delayed = state;
  }
  launch("quantise", stream, pack_blocks(w.n), kThreads, quantise_blocks_kernel, w, map, scaling,
         amax);
  if (factors != nullptr)
    launch("quantise", stream, blocks_for(args.factors.numel(), kThreads), kThreads, factors_kernel,
           scaling, amax, args.factors.numel(), factors);
  if (state != nullptr && !args.frozen)
    launch("quantise", stream, 1, 1, update_delayed_kernel, scaling.rule, state, amax);
}

}  // namespace

void quantise(Stream stream, const QuantiseArgs& args) {
  const Quantizer& q = args.quantizer;
  check_quantise(stream, args);
  Work w{};
  w.n = args.in.numel();
  w.in = source_of(args.in);
  w.out = sink_of(args.out);
  w.rounder = make_rounder(stream.device, q, args.key);
  Tensor mask = args.mask;
  if (args.stats.defined() && !mask.defined())
    mask = Tensor::empty(args.in.shape(), DType::U8, stream.device);
  if (mask.defined()) {
    check_type("quantise", mask, DType::U8);
    w.mask = static_cast<uint8_t*>(written(mask));
    w.mask_aligned = is_aligned(w.mask, DType::U8);
  }
  if (q.block.kind != Block::Kind::None && !q.is_identity())
    quantise_blocks(stream, args, w);
  else
    launch("quantise", stream, pack_blocks(w.n), kThreads, quantise_kernel, w);
  if (args.stats.defined()) count_stats(stream, args, w.mask);
}

}  // namespace ulp::cuda
