#include "kernels/cuda/rounder.cuh"
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

/// Where the blocks lie in a tensor seen as (outer, axis, inner): element (o, a, r) belongs to block
/// o·outer_step + (a / group)·group_step + (r / columns)·inner_step.
struct BlockMap {
  int64_t axis = 1, inner = 1, group = 1, columns = 1;
  int64_t outer_step = 0, group_step = 0, inner_step = 0;
  int64_t blocks = 1;
};

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

__global__ void __launch_bounds__(kThreads)
    quantise_blocks_kernel(Work w, BlockMap map, BlockRule rule, const uint32_t* amax) {
  const RandomSource random = w.rounder.random();
  const bool stochastic = w.rounder.grid.rounding == Rounding::Stochastic;
  for_packs(w.n, [&](int64_t i, int count) {
    float values[kPack];
    load_pack(w.in, i, count, values);
    uint32_t words[kPack] = {};
    if (stochastic) random_words(random, i, words);
    BlockCursor cursor(map, i);
    Grid grid = w.rounder.grid;
    int64_t block = -1;
    bool finite = false;
    uint32_t clamped = 0;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      if (k >= count) break;
      if (cursor.block() != block) {
        block = cursor.block();
        finite = amax[block] < kInfinityBits;
        grid = w.rounder.grid;
        set_block(grid, rule, finite ? amax[block] : 0u);
      }
      const Rounded r = round_with(w.rounder.how, grid, values[k], words[k]);
      values[k] = finite ? r.value : float_of(kNanBits);
      clamped |= static_cast<uint32_t>(r.clamped && finite) << k;
      cursor.next();
    }
    store_pack(w.out, i, count, values);
    store_mask(w, i, count, clamped);
  });
}

BlockMap map_blocks(const QuantiseArgs& args) {
  const Block& block = args.quantizer.block;
  const Shape& shape = args.in.shape();
  BlockMap map;
  if (block.kind == Block::Kind::Tensor) {
    map.inner = shape.numel();
    return map;
  }
  if (block.kind == Block::Kind::Tile) {
    const int rank = shape.rank();
    map.inner = rank == 0 ? 1 : shape[rank - 1];
    map.axis = rank < 2 ? 1 : shape[rank - 2];
    map.group = block.rows;
    map.columns = block.columns;
    const int64_t across = (map.inner + map.columns - 1) / map.columns;
    const int64_t bands = (map.axis + map.group - 1) / map.group;
    map.inner_step = 1;
    map.group_step = across;
    map.outer_step = bands * across;
    const int64_t plane = map.axis * map.inner;
    map.blocks = (plane == 0 ? 0 : shape.numel() / plane) * map.outer_step;
    return map;
  }
  const int axis = block.kind == Block::Kind::Axis ? block.axis : args.group_axis;
  ULP_CHECK(axis >= 0 && axis < shape.rank(),
            "quantise: {} needs axis {}, but the tensor has shape {}", args.quantizer, axis, shape);
  int64_t outer = 1;
  for (int i = 0; i < axis; ++i) outer *= shape[i];
  for (int i = axis + 1; i < shape.rank(); ++i) map.inner *= shape[i];
  map.axis = shape[axis];
  if (block.kind == Block::Kind::Axis) {
    map.group_step = 1;
    map.blocks = map.axis;
    return map;
  }
  map.group = block.columns;
  const int64_t groups = (map.axis + map.group - 1) / map.group;
  map.outer_step = groups * map.inner;
  map.group_step = map.inner;
  map.inner_step = 1;
  map.blocks = outer * groups * map.inner;
  return map;
}

void quantise_blocks(Stream stream, const QuantiseArgs& args, const Work& w) {
  const BlockMap map = map_blocks(args);
  if (w.n == 0) return;
  Tensor amax_tensor = Tensor::empty({map.blocks}, DType::I32, stream.device);
  auto* amax = static_cast<uint32_t*>(amax_tensor.mutable_raw());
  ULP_CUDA_CHECK(cudaSetDevice(stream.device.index));
  ULP_CUDA_CHECK(cudaMemsetAsync(amax, 0, static_cast<size_t>(amax_tensor.bytes()),
                                 static_cast<cudaStream_t>(stream.handle)));
  launch("quantise", stream, pack_blocks(w.n), kThreads, amax_kernel, w.in, w.n, map, amax);
  launch("quantise", stream, pack_blocks(w.n), kThreads, quantise_blocks_kernel, w, map,
         make_block_rule(args.quantizer, args.out.dtype()), static_cast<const uint32_t*>(amax));
}

}  // namespace

void quantise(Stream stream, const QuantiseArgs& args) {
  const Quantizer& q = args.quantizer;
  check_kernel_tensor("quantise", stream, args.in, args.in.shape());
  check_kernel_tensor("quantise", stream, args.out, args.in.shape());
  check_float("quantise", args.in);
  check_output("quantise", args.out, q);
  Work w{};
  w.n = args.in.numel();
  w.in = source_of(args.in);
  w.out = sink_of(args.out);
  w.rounder = make_rounder("quantise", stream.device, q, args.key);
  if (args.mask.defined()) {
    check_kernel_tensor("quantise", stream, args.mask, args.in.shape());
    check_type("quantise", args.mask, DType::U8);
    w.mask = static_cast<uint8_t*>(written(args.mask));
    w.mask_aligned = is_aligned(w.mask, DType::U8);
  }
  const bool blocks = q.block.kind != Block::Kind::None;
  if (blocks && !q.is_identity()) return quantise_blocks(stream, args, w);
  launch("quantise", stream, pack_blocks(w.n), kThreads, quantise_kernel, w);
}

}  // namespace ulp::cuda
