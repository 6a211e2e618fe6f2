#include "core/block_map.h"
#include "kernels/cuda/quantise.cuh"

namespace ulp::cuda {
namespace {

/// How the blocks of a segment's quads are rounded in short form: at `shift`; where scales are no powers of two (kScaled) times
/// `before` first, `after` and `last` in the end.
template <bool kScaled>
struct SegmentScales {
  int32_t shift[kRows];
  float before[kScaled ? kRows : 1], after[kScaled ? kRows : 1], last[kScaled ? kRows : 1];
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

/// What the kernel needs to know of all blocks beside their magnitudes.
struct Scaling {
  BlockRule rule;
  BlockShift shifts;
  bool apart;             // factors are kept apart
  const uint32_t* whole;  // E4M3Tensor: the largest magnitude of the tensor
  const float* delayed;   // the state of delayed scaling

  /// Values are multiplied before and after, beside the power of two.
  bool multiplies() const {
    return rule.kind == BlockRule::Kind::Scaled &&
           (rule.scale.kind != Scale::Kind::PowerOfTwo || rule.three_quarters);
  }
  __device__ float tensor() const { return whole == nullptr ? 1.0f : tensor_scale(rule, *whole); }

  __device__ BlockScale block(uint32_t amax, float tensor) const {
    if (delayed != nullptr) return {delayed[0], 1.0f, factor_of(delayed[0])};
    return block_scale(rule, amax, tensor);
  }

  /// What E4M3Tensor and the others multiply by in the end.
  __device__ float last(const BlockScale& scale) const { return apart ? 1.0f : scale.factor; }
  __device__ int32_t shift(uint32_t amax) const {
    return delayed != nullptr ? 0 : block_shift(shifts, amax);
  }
};

/// The short form serves a block with this largest magnitude.
__device__ __forceinline__ bool is_fast(const FastGrid& fast, uint32_t amax, int32_t shift) {
  return amax < kInfinityBits && shift >= fast.least_shift && shift <= fast.most_shift;
}

/// No element of a block with this largest magnitude becomes Inf or NaN on its way to its grid, or NaN behind it.
__device__ __forceinline__ bool stays_finite(uint32_t amax, const BlockScale& scale, float last) {
  return float_of(amax) * scale.before < 0x1p126f && fmaf(scale.after, 0.0f, last * 0.0f) == 0.0f;
}

/// One value on the grid of its block, from the definition.
__device__ __noinline__ Rounded round_in_block(float x, const Grid& element, const BlockRule& rule,
                                               uint32_t amax, uint32_t random) {
  Grid grid = element;
  set_block(grid, rule, amax);
  Rounded r;
  r.value = quantise_value(x, grid, grid.rounding, random, &r.clamped);
  return r;
}

/// most[j] = the largest |x| in the block of this thread's quad of row j.
__device__ __forceinline__ void find_amax(int64_t run, const Segment& x, uint32_t (&most)[kRows]) {
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    most[j] = 0;
#pragma unroll
    for (int k = 0; k < kQuad; ++k) most[j] = max(most[j], bits_of(x[j][k]) & ~kSignBit);
  }
  for (int lanes = 1; lanes < kWarp && lanes * kQuad < run; lanes *= 2)
#pragma unroll
    for (int j = 0; j < kRows; ++j)
      most[j] = max(most[j], __shfl_xor_sync(kFullWarp, most[j], lanes));
#pragma unroll
  for (int rows = 1; rows < kRows; rows *= 2) {
    if (run <= rows * kRow) break;
    uint32_t other[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j) other[j] = most[j ^ rows];
#pragma unroll
    for (int j = 0; j < kRows; ++j) most[j] = max(most[j], other[j]);
  }
}

/// Where a quad's largest magnitude comes from. Known ones are amax[block]; else blocks are runs of `run` elements, a power
/// of two from 4 to kSegment, and the warp finds it.
struct QuadBlocks {
  const uint32_t* amax;
  int64_t run;
  BlockMap map;
  bool narrow;  // indices fit 32 bits

  /// most[j] = the largest magnitude in the block of this thread's quad of row j.
  __device__ __forceinline__ void find(int64_t begin, int64_t n, const Segment& x,
                                       uint32_t (&most)[kRows]) const {
    if (amax == nullptr) return find_amax(run, x, most);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t i = quad_at(begin, j);
      most[j] = map.blocks == 1 ? amax[0] : i < n ? amax[block(i)] : 0;
    }
  }

  /// Out of line: divisions are long.
  __device__ __noinline__ int64_t block(int64_t i) const {
    if (!narrow) return map.block_of(i);
    const auto u = [](int64_t value) { return static_cast<uint32_t>(value); };
    const uint32_t line = u(i) / u(map.inner), rest = u(i) % u(map.inner);
    const uint32_t outer = line / u(map.axis), at = line % u(map.axis);
    const uint32_t column = map.inner_step == 0 ? 0 : rest / u(map.columns);
    return outer * u(map.outer_step) + at / u(map.group) * u(map.group_step) + column;
  }
};

/// The scales of a thread's quads, and whether the short form serves the blocks that this thread looked at.
template <bool kScaled>
struct ScaleFinder {
  const Rounder& rounder;
  const QuadBlocks& blocks;
  const Scaling& scaling;
  float* factors;
  int64_t n;
  float tensor;

  /// `row`: of the segment; `lane`: the first of the block's threads there.
  __device__ __forceinline__ bool one(uint32_t amax, int64_t begin, int row, int lane,
                                      int32_t& shift, float& before, float& after,
                                      float& last) const {
    shift = scaling.shift(amax);
    const bool fast = is_fast(rounder.fast, amax, shift);
    if constexpr (!kScaled) return fast;
    const BlockScale scale = scaling.block(amax, tensor);
    before = scale.before;
    after = scale.after;
    last = scaling.last(scale);
    const int64_t i = begin + row * kRow + lane * kQuad;
    if (factors != nullptr && i < n && i % blocks.run == 0) factors[i / blocks.run] = scale.factor;
    return fast && stays_finite(amax, scale, last);
  }

  /// Each quad's own block.
  __device__ __forceinline__ bool each(int64_t begin, const uint32_t (&amax)[kRows],
                                       SegmentScales<kScaled>& scales) const {
    bool fast = true;
    float none = 0;
#pragma unroll
    for (int j = 0; j < kRows; ++j)
      fast &= one(amax[j], begin, j, static_cast<int>(threadIdx.x) % kWarp, scales.shift[j],
                  kScaled ? scales.before[j] : none, kScaled ? scales.after[j] : none,
                  kScaled ? scales.last[j] : none);
    return fast;
  }

  /// Where the threads of a block are kShare or more in every row: each works out the scales of 8 / kShare rows, and they tell
  /// each other.
  template <int kShare>
  __device__ __forceinline__ bool shared(int64_t begin, const uint32_t (&amax)[kRows],
                                         SegmentScales<kScaled>& scales) const {
    constexpr int kOwn = kRows / kShare;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t in_row = blocks.run < kRow ? blocks.run : kRow;
    const int first = lane & ~(static_cast<int>(in_row) / kQuad - 1);
    const int mine = (lane - first) % kShare * kOwn;
    bool fast = true;
    int32_t shift[kOwn];
    float before[kOwn], after[kOwn], last[kOwn];
#pragma unroll
    for (int t = 0; t < kOwn; ++t) {
      uint32_t most = amax[t];
#pragma unroll
      for (int j = 0; j < kRows; ++j) most = j == mine + t ? amax[j] : most;
      fast &= one(most, begin, mine + t, first, shift[t], before[t], after[t], last[t]);
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int from = first + j / kOwn, t = j % kOwn;
      scales.shift[j] = __shfl_sync(kFullWarp, shift[t], from);
      scales.before[j] = __shfl_sync(kFullWarp, before[t], from);
      scales.after[j] = __shfl_sync(kFullWarp, after[t], from);
      scales.last[j] = __shfl_sync(kFullWarp, last[t], from);
    }
    return fast;
  }

  __device__ __forceinline__ bool find(int64_t begin, const Segment& x,
                                       SegmentScales<kScaled>& scales) const {
    uint32_t amax[kRows];
    blocks.find(begin, n, x, amax);
    if constexpr (kScaled) {
      if (blocks.amax == nullptr && blocks.run >= 8 * kQuad) return shared<8>(begin, amax, scales);
      if (blocks.amax == nullptr && blocks.run == 4 * kQuad) return shared<4>(begin, amax, scales);
    }
    return each(begin, amax, scales);
  }
};

template <bool kScaled, bool kTell>
__global__ void __launch_bounds__(kThreads, kScaled || kTell ? 2 : 3)
    quantise_quads_kernel(const __grid_constant__ QuantiseWork w,
                          const __grid_constant__ QuadBlocks blocks,
                          const __grid_constant__ Scaling scaling, float* factors) {
  using How = Rounder::How;
  const RandomSource random = w.rounder.random();
  const float tensor = kScaled ? scaling.tensor() : 1.0f;
  const ScaleFinder<kScaled> finder{w.rounder, blocks, scaling, factors, w.n, tensor};
  quantise_segments<kTell>(w, [&](int64_t begin, Segment& x, uint32_t(&clamped)[kRows]) {
    SegmentScales<kScaled> scales;
    bool fast = finder.find(begin, x, scales) && is_lattice(w.rounder.how);
    fast = __all_sync(kFullWarp, fast);
    for_how(fast ? w.rounder.how : How::Any, [&]<How kHow>() {
      if constexpr (kHow == How::Any) {
        uint32_t found[kRows], amax[kRows];
        blocks.find(begin, w.n, x, found);
#pragma unroll
        for (int j = 0; j < kRows; ++j) amax[j] = found[j];
        round_slowly(w.rounder, random, begin, x, clamped, [&](int j, float value, uint32_t word) {
          const BlockScale scale = scaling.block(amax[j], tensor);
          Rounded r = round_in_block(value * scale.before, w.rounder.grid, scaling.rule,
                                     scaling.delayed != nullptr ? 0u : amax[j], word);
          r.value = canonical(r.value * scale.after * scaling.last(scale));
          return r;
        });
      } else if constexpr (is_lattice(kHow) && kHow != How::Copy) {
        round_fast_segment<kHow>(random, begin, x, clamped, [&](int j, float value, uint32_t word) {
          using fast::Specials;
          if constexpr (!kScaled)
            return round_fast<kHow, Specials::Absent>(value, w.rounder, scales.shift[j], word);
          Rounded r = round_fast<kHow, Specials::Absent>(value * scales.before[j], w.rounder,
                                                         scales.shift[j], word);
          r.value = r.value * scales.after[j] * scales.last[j];
          return r;
        });
      }
    });
  });
}

// ---- columns --------------------------------------------------------------------------------------------------------
/// Blocks that are pieces of columns: (outer, axis, inner) with one block for each `group` of the axis and each column. A
/// warp takes strips of up to kStripRows rows and 128 columns, four a thread.
constexpr int64_t kStripRows = 64;

struct Columns {
  BlockMap map;
  int64_t rows, strips, groups,
      sides;  // of a strip; in a group; in the axis; strips beside each other

  explicit Columns(const BlockMap& m) : map(m) {
    rows = std::min(map.group, kStripRows);
    strips = (map.group + rows - 1) / rows;
    groups = (map.axis + map.group - 1) / map.group;
    sides = (map.inner + kRow - 1) / kRow;
  }
  int64_t count() const { return map.outer * groups * strips * sides; }

  /// Calls body(first, rows, block) for this warp's strips: this thread's elements are first … first + 3 and those in the
  /// rows below, `inner` apart; their blocks block … block + 3. No rows: the thread has no columns there.
  template <class Body>
  __device__ __forceinline__ void for_strips(const Body& body) const {
    const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
    const int64_t total = map.outer * groups * strips * sides;
    for (int64_t s = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp; s < total;
         s += warps) {
      const int64_t column = s % sides * kRow + threadIdx.x % kWarp * kQuad;
      const int64_t line = s / sides, group = line / strips % groups;
      const int64_t outer = line / strips / groups;
      const int64_t row = group * map.group + line % strips * rows;
      const int64_t end = min(min(row + rows, (group + 1) * map.group), map.axis);
      const int64_t left = column < map.inner ? max(end - row, int64_t{0}) : 0;
      body((outer * map.axis + row) * map.inner + column, static_cast<int>(left),
           outer * map.outer_step + group * map.group_step + column);
    }
  }
};

__device__ __forceinline__ void strip_amax(const Source& in, int64_t first, int rows, int64_t inner,
                                           uint32_t (&most)[kQuad]) {
#pragma unroll 4
  for (int r = 0; r < rows; ++r) {
    float x[kQuad];
    load_quad(in, first + r * inner, x);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) most[k] = max(most[k], bits_of(x[k]) & ~kSignBit);
  }
}

__global__ void __launch_bounds__(kThreads)
    column_amax_kernel(const __grid_constant__ Source in, const __grid_constant__ Columns columns,
                       uint32_t* amax) {
  columns.for_strips([&](int64_t first, int rows, int64_t block) {
    uint32_t most[kQuad] = {};
    strip_amax(in, first, rows, columns.map.inner, most);
    for (int k = 0; rows > 0 && k < kQuad; ++k) raise(amax, block + k, most[k]);
  });
}

/// amax: known magnitudes of the blocks, or null: each block is one strip, which is read twice. factors: null, or one for
/// each of such blocks.
template <bool kScaled>
__global__ void __launch_bounds__(kThreads)
    quantise_columns_kernel(const __grid_constant__ QuantiseWork w,
                            const __grid_constant__ Columns columns,
                            const __grid_constant__ Scaling scaling, const uint32_t* amax,
                            float* factors) {
  using How = Rounder::How;
  const RandomSource random = w.rounder.random();
  const float tensor = kScaled ? scaling.tensor() : 1.0f;
  const int64_t inner = columns.map.inner;
  columns.for_strips([&](int64_t first, int rows, int64_t block) {
    if (rows == 0) return;
    uint32_t most[kQuad] = {};
    if (amax == nullptr)
      strip_amax(w.in, first, rows, inner, most);
    else
      for (int k = 0; k < kQuad; ++k) most[k] = amax[block + k];
    int32_t shift[kQuad];
    BlockScale scale[kScaled ? kQuad : 1];
    bool fast = is_lattice(w.rounder.how);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      shift[k] = scaling.shift(most[k]);
      fast = fast && is_fast(w.rounder.fast, most[k], shift[k]);
      if constexpr (kScaled) {
        scale[k] = scaling.block(most[k], tensor);
        if (factors != nullptr) factors[block + k] = scale[k].factor;
      }
    }
    for_how(fast ? w.rounder.how : How::Any, [&]<How kHow>() {
      constexpr bool kSome = kHow == How::Any || (is_lattice(kHow) && kHow != How::Copy);
      for (int r = 0; kSome && r < rows; ++r) {
        const int64_t i = first + r * inner;
        float x[kQuad];
        load_quad(w.in, i, x);
        PhiloxWords words{};
        if (Rounder::draws(kHow) ||
            (kHow == How::Any && w.rounder.grid.rounding == Rounding::Stochastic))
          words = random.words(static_cast<uint64_t>(i) / kQuad);
        uint32_t clamped = 0;
#pragma unroll
        for (int k = 0; k < kQuad; ++k) {
          Rounded one;
          if constexpr (kHow == How::Any) {
            const BlockScale own = scaling.block(most[k], tensor);
            one = round_in_block(x[k] * own.before, w.rounder.grid, scaling.rule, most[k],
                                 words.word[k]);
            one.value = canonical(one.value * own.after * scaling.last(own));
          } else if constexpr (kScaled) {
            one = round_fast<kHow>(x[k] * scale[k].before, w.rounder, shift[k], words.word[k]);
            one.value = canonical(one.value * scale[k].after * scaling.last(scale[k]));
          } else {
            one =
                round_fast<kHow, fast::Specials::Absent>(x[k], w.rounder, shift[k], words.word[k]);
          }
          x[k] = one.value;
          clamped |= static_cast<uint32_t>(one.clamped) << k;
        }
        store_quad(w.out, i, x);
        if (w.mask != nullptr) store_mask(w, i, kQuad, clamped);
      }
    });
  });
}

// ---- any blocks -----------------------------------------------------------------------------------------------------
/// Blocks of any shape, whose magnitudes are known.
__global__ void __launch_bounds__(kThreads)
    quantise_blocks_kernel(const __grid_constant__ QuantiseWork w,
                           const __grid_constant__ BlockMap map,
                           const __grid_constant__ Scaling scaling, const uint32_t* amax) {
  const RandomSource random = w.rounder.random();
  const bool stochastic = w.rounder.grid.rounding == Rounding::Stochastic;
  const float tensor = scaling.tensor();
  for_packs(w.n, [&](int64_t i, int count) {
    float values[kPack];
    load_pack(w.in, i, count, values);
    uint32_t words[kPack] = {};
    if (stochastic) random_words(random, i, words);
    BlockCursor cursor(map, i);
    BlockScale scale;
    int64_t block = -1;
    uint32_t clamped = 0;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      if (k >= count) break;
      if (cursor.block() != block) {
        block = cursor.block();
        scale = scaling.block(amax[block], tensor);
      }
      const Rounded r = round_in_block(values[k] * scale.before, w.rounder.grid, scaling.rule,
                                       scaling.delayed != nullptr ? 0u : amax[block], words[k]);
      values[k] = canonical(r.value * scale.after * scaling.last(scale));
      clamped |= static_cast<uint32_t>(r.clamped) << k;
      cursor.next();
    }
    store_pack(w.out, i, count, values);
    if (w.mask != nullptr) {
      store_mask(w, i, min(count, kQuad), clamped & 15u);
      store_mask(w, i + kQuad, max(count - kQuad, 0), clamped >> kQuad);
    }
  });
}

/// amax[block] = max(amax[block], |in| as bits) where every quad lies in one block.
__global__ void __launch_bounds__(kThreads)
    quads_amax_kernel(const __grid_constant__ Source in, int64_t n,
                      const __grid_constant__ QuadBlocks blocks, uint32_t* amax) {
  for_segments(n, [&](int64_t begin) {
    Segment x;
    load_segment(in, begin, n, x);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t i = quad_at(begin, j), block = i < n ? blocks.block(i) : -1;
      uint32_t most = 0;
#pragma unroll
      for (int k = 0; k < kQuad; ++k) most = max(most, bits_of(x[j][k]) & ~kSignBit);
      const int64_t first = __shfl_sync(kFullWarp, block, 0);
      if (__all_sync(kFullWarp, block == first || block == -1)) {
        most = __reduce_max_sync(kFullWarp, most);
        if (threadIdx.x % kWarp == 0 && first >= 0) raise(amax, first, most);
      } else if (block >= 0) {
        raise(amax, block, most);
      }
    }
  });
}

/// most = the largest magnitude of a tensor.
__global__ void __launch_bounds__(kThreads)
    whole_amax_kernel(const __grid_constant__ Source in, int64_t n, uint32_t* most) {
  uint32_t own = 0;
  for_segments(n, [&](int64_t begin) {
    Segment x;
    load_segment(in, begin, n, x);
#pragma unroll
    for (int j = 0; j < kRows; ++j)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) own = max(own, bits_of(x[j][k]) & ~kSignBit);
  });
  own = __reduce_max_sync(kFullWarp, own);
  if (threadIdx.x % kWarp == 0) raise(most, 0, own);
}

__global__ void max_kernel(const uint32_t* values, int64_t n, uint32_t* most) {
  uint32_t own = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    own = max(own, values[i]);
  own = __reduce_max_sync(kFullWarp, own);
  if (threadIdx.x % kWarp == 0) atomicMax(most, own);
}

/// factors[b] of `count` blocks. amax null: one factor, which depends on no block.
__global__ void factors_kernel(Scaling scaling, const uint32_t* amax, int64_t count,
                               float* factors) {
  const float tensor = scaling.tensor();
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; b < count;
       b += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    factors[b] = scaling.block(amax == nullptr ? 0 : amax[b], tensor).factor;
  }
}

__global__ void update_delayed_kernel(BlockRule rule, float* state, const uint32_t* amax) {
  update_delayed(rule, state, *amax);
}

__global__ void fill_kernel(float* values, int64_t n, float value) {
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) values[i] = value;
}

// ---- calls ----------------------------------------------------------------------------------------------------------
/// The length of a tensor's blocks if they are runs that a warp can hold, else 0.
int64_t run_of(const BlockMap& map) {
  int64_t run = 0;
  if (map.inner == 1 && map.axis % map.group == 0 && (map.outer_step != 0 || map.outer == 1))
    run = map.group;
  else if (map.inner_step == 0 && map.outer == 1 && map.group == 1)
    run = map.inner;
  const bool fits_warp = run >= kQuad && run <= kSegment && (run & (run - 1)) == 0;
  return fits_warp && map.blocks > 1 ? run : 0;
}

/// Four elements from a multiple of four on always lie in one block.
bool keeps_quads(const BlockMap& map) {
  if (map.blocks == 1) return true;
  if (map.inner == 1)
    return map.axis % kQuad == 0 && (map.group % kQuad == 0 || map.group >= map.axis);
  return map.inner % kQuad == 0 && (map.inner_step == 0 || map.columns % kQuad == 0);
}

/// One block for each index of the last axis: columns as long as the tensor.
BlockMap with_columns(const BlockMap& map) {
  if (map.inner != 1 || map.group != 1 || map.outer_step != 0 || map.outer == 1) return map;
  BlockMap m = map;
  m.outer = 1;
  m.axis = m.group = map.outer;
  m.inner = map.axis;
  m.columns = 1;
  m.group_step = map.axis;
  m.inner_step = 1;
  return m;
}

/// Every column has blocks of its own, and quads lie in rows.
bool has_columns(const BlockMap& map, const QuantiseWork& w) {
  return map.inner > 1 && map.inner_step != 0 && map.columns == 1 && map.inner % kQuad == 0 &&
         w.in.aligned && w.out.aligned && (w.mask == nullptr || w.mask_aligned);
}

/// Integer maxima of all blocks, and behind them that of the tensor.
Tensor find_amax(Stream stream, const QuantiseWork& w, const BlockMap& map, bool whole) {
  Tensor tensor = Tensor::empty({map.blocks + 1}, DType::I32, stream.device);
  auto* amax = static_cast<uint32_t*>(tensor.mutable_raw());
  ULP_CUDA_CHECK(cudaSetDevice(stream.device.index));
  ULP_CUDA_CHECK(cudaMemsetAsync(amax, 0, static_cast<size_t>(tensor.bytes()),
                                 static_cast<cudaStream_t>(stream.handle)));
  if (keeps_quads(map))
    launch("quantise", stream, segment_blocks(w.n), kThreads, quads_amax_kernel, w.in, w.n,
           QuadBlocks{nullptr, 0, map, w.n <= INT32_MAX}, amax);
  else if (has_columns(map, w))
    launch("quantise", stream, blocks_for(Columns(map).count(), kThreads / kWarp), kThreads,
           column_amax_kernel, w.in, Columns(map), amax);
  else
    launch("quantise", stream, pack_blocks(w.n), kThreads, amax_kernel, w.in, w.n, map, amax);
  if (whole)
    launch("quantise", stream, std::min<int64_t>(blocks_for(map.blocks, kThreads), 1024), kThreads,
           max_kernel, static_cast<const uint32_t*>(amax), map.blocks, amax + map.blocks);
  return tensor;
}

/// The largest magnitude of the whole tensor, alone.
Tensor find_whole_amax(Stream stream, const QuantiseWork& w) {
  Tensor tensor = Tensor::empty({1}, DType::I32, stream.device);
  auto* amax = static_cast<uint32_t*>(tensor.mutable_raw());
  ULP_CUDA_CHECK(cudaSetDevice(stream.device.index));
  ULP_CUDA_CHECK(
      cudaMemsetAsync(amax, 0, sizeof(uint32_t), static_cast<cudaStream_t>(stream.handle)));
  launch("quantise", stream, segment_blocks(w.n), kThreads, whole_amax_kernel, w.in, w.n, amax);
  return tensor;
}

void quantise_quads(Stream stream, const QuantiseWork& w, const QuadBlocks& blocks,
                    const Scaling& scaling, float* factors) {
  const bool scaled = scaling.multiplies(), tell = tells(w);
  auto* kernel =
      scaled ? (tell ? quantise_quads_kernel<true, true> : quantise_quads_kernel<true, false>)
             : (tell ? quantise_quads_kernel<false, true> : quantise_quads_kernel<false, false>);
  launch("quantise", stream, segment_blocks(w.n), kThreads, kernel, w, blocks, scaling, factors);
}

/// Neighbours lie in different blocks; statistics are a pass of their own. amax null: of columns that one strip holds.
void quantise_any_blocks(Stream stream, const QuantiseArgs& args, QuantiseWork w,
                         const BlockMap& map, const Scaling& scaling, const uint32_t* amax,
                         float* factors) {
  Tensor mask, in = args.in;
  if (w.stats.total != nullptr) {
    if (w.mask == nullptr) {
      mask = Tensor::empty(in.shape(), DType::U8, stream.device);
      w.mask = static_cast<uint8_t*>(written(mask));
      w.mask_aligned = is_aligned(w.mask, DType::U8);
    }
    if (args.in.raw() == args.out.raw()) {
      in = Tensor::empty(in.shape(), in.dtype(), stream.device);
      copy(stream, {args.in, in});
    }
  }
  if (has_columns(map, w))
    launch("quantise", stream, blocks_for(Columns(map).count(), kThreads / kWarp), kThreads,
           scaling.multiplies() ? quantise_columns_kernel<true> : quantise_columns_kernel<false>, w,
           Columns(map), scaling, amax, factors);
  else
    launch("quantise", stream, pack_blocks(w.n), kThreads, quantise_blocks_kernel, w, map, scaling,
           amax);
  if (w.stats.total != nullptr)
    count_quantised(stream, w.stats, source_of(in), source_of(args.out), w.mask, w.n);
}

}  // namespace

void quantise_blocks(Stream stream, const QuantiseArgs& args, const QuantiseWork& w,
                     const BlockRule& rule) {
  const Quantizer& q = args.quantizer;
  const BlockMap map = with_columns(make_block_map(q, args.in.shape(), args.group_axis));
  float* factors = args.factors.defined() ? static_cast<float*>(written(args.factors)) : nullptr;
  if (w.n == 0) {
    if (factors != nullptr && args.factors.numel() > 0)
      launch("quantise", stream, 1, kThreads, fill_kernel, factors, args.factors.numel(), 1.0f);
    return;
  }
  Scaling scaling{rule, make_block_shift(rule), factors != nullptr, nullptr, nullptr};
  const bool two_levels = q.scale.kind == Scale::Kind::E4M3Tensor;
  const bool columns = has_columns(map, w);
  QuadBlocks quads{nullptr, run_of(map), map, w.n <= INT32_MAX};
  if (quads.run != 0 || (columns && map.group <= kStripRows)) {  // blocks are measured on the way
    Tensor whole;
    if (two_levels) {
      whole = find_whole_amax(stream, w);
      scaling.whole = static_cast<const uint32_t*>(whole.raw());
    }
    float* each = factors != nullptr && args.factors.numel() == map.blocks ? factors : nullptr;
    if (quads.run != 0)
      quantise_quads(stream, w, quads, scaling, each);
    else
      quantise_any_blocks(stream, args, w, map, scaling, nullptr, each);
    if (factors != nullptr && each == nullptr)
      launch("quantise", stream, 1, kThreads, factors_kernel, scaling,
             static_cast<const uint32_t*>(nullptr), int64_t{1}, factors);
    return;
  }
  const Tensor amax_tensor =
      map.blocks == 1 ? find_whole_amax(stream, w) : find_amax(stream, w, map, two_levels);
  const auto* amax = static_cast<const uint32_t*>(amax_tensor.raw());
  if (two_levels) scaling.whole = map.blocks == 1 ? amax : amax + map.blocks;
  float* state = nullptr;
  if (q.scale.kind == Scale::Kind::Delayed) {
    state = static_cast<float*>(written(args.scaling));
    scaling.delayed = state;
  }
  quads.amax = amax;
  if (keeps_quads(map))
    quantise_quads(stream, w, quads, scaling, nullptr);
  else
    quantise_any_blocks(stream, args, w, map, scaling, amax, nullptr);
  if (factors != nullptr)
    launch("quantise", stream, blocks_for(args.factors.numel(), kThreads), kThreads, factors_kernel,
           scaling, amax, args.factors.numel(), factors);
  if (state != nullptr && !args.frozen)
    launch("quantise", stream, 1, 1, update_delayed_kernel, scaling.rule, state, amax);
}

}  // namespace ulp::cuda
