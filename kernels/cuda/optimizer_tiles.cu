// Tiles of a warp: any states, and short forms of many.

#include "kernels/cuda/optimizer.cuh"
#include "kernels/cuda/state_short.cuh"

namespace ulp::cuda::optimizer {
namespace {

/// The random words of a step.
struct Randoms {
  RandomSource states, grad;  // states: each has its own stream

  __device__ Randoms(const Work& w, const BlockStart& start)
      : states(random_of(w, start, 0)), grad(random_of(w, start, start.parameter.grad_stream)) {}
};

/// What a block knows while it goes through its tiles.
struct Walk {
  const BlockStart* start;
  const StateLookup* lookups;  // kStates
  Randoms random;
};

/// By the definition: groups, codes of every kind, Inf and NaN, ends and arrays that lie askew. kOctets: codes of any width.
template <bool kOctets>
__device__ __noinline__ void update_tile(const Work& w, const Walk& walk,
                                         const Tile<kOctets>& tile) {
  const UpdateScalars& s = walk.start->scalars;
  const Parameter& p = walk.start->parameter;
  const Source grad = gradient_of(*walk.start);
  const RandomSource& random = walk.random.states;
  const StateLookup* lookups = walk.lookups;
  const bool has_copy = p.states[kCopy].data != nullptr;
  const bool has_moment1 = p.states[kMoment1].data != nullptr;
  const bool has_moment2 = p.states[kMoment2].data != nullptr;
  const bool kahan = p.states[kCompensation].data != nullptr;
  const auto fetch_one = [&](StateIndex i, RawQuads& raw) {
    fetch_state(w.rules[i], p.states[i], tile, raw);
  };
  const auto read_one = [&](StateIndex i, const RawQuads& raw, Values& x) {
    read_state(w.rules[i], &lookups[i], p.states[i], tile, raw, x);
  };
  const auto write_one = [&](StateIndex i, Values& x) {
    write_state(w.rules[i], &lookups[i], p.states[i], random, tile, x);
  };
  RawQuads raw_g, raw_x, raw_m, raw_v, raw_c;
  fetch(grad, tile, raw_g);
  fetch_one(kKept, raw_x);
  if (has_moment1) fetch_one(kMoment1, raw_m);
  if (has_moment2) fetch_one(kMoment2, raw_v);
  if (kahan) fetch_one(kCompensation, raw_c);

  Values g, x, m = {}, v = {}, owed = {}, old;
  numbers_of(grad, tile, raw_g, g);
#pragma unroll
  for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) g[j][k] = canonical(g[j][k] * s.grad_scaling);
  round_quads(w.grad_rule, walk.random.grad, tile.at(0), tile.at(1) - tile.at(0), g);
  if (s.grad_scaling_after != 1.0f)
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) g[j][k] = canonical(g[j][k] * s.grad_scaling_after);
  read_one(kKept, raw_x, x);
  if (has_moment1) read_one(kMoment1, raw_m, m);
  if (has_moment2) read_one(kMoment2, raw_v, v);
  if (kahan) read_one(kCompensation, raw_c, owed);
  for_rule(s.rule, [&]<UpdateRule kRule>() {
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        old[j][k] = x[j][k];
        update_one<kRule>(s, kahan, g[j][k], x[j][k], m[j][k], v[j][k], owed[j][k]);
        x[j][k] = canonical(x[j][k]);
        m[j][k] = canonical(m[j][k]);
        v[j][k] = canonical(v[j][k]);
      }
  });
  if (has_moment1) write_one(kMoment1, m);
  if (has_moment2) write_one(kMoment2, v);
  write_one(kKept, x);
  if (kahan) {
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        owed[j][k] = canonical(functors::lost(old[j][k], owed[j][k], x[j][k]));
    write_one(kCompensation, owed);
  }
  if (has_copy) write_one(kCopy, x);
}

/// A tile in short forms. False, and nothing is written, where these do not serve. Called by whole warps.
template <UpdateRule kRule, bool kKahan>
__device__ __forceinline__ bool update_short(const Work& w, const BlockStart& start,
                                             const StateLookup (&lookups)[kStates],
                                             ShortTile tile) {
  constexpr bool kMoment = kRule != UpdateRule::Sgd, kTwo = kRule == UpdateRule::Adam;
  const UpdateScalars& s = start.scalars;
  const Parameter& p = start.parameter;
  const bool has_copy = p.states[kCopy].data != nullptr;
  const StateBytes grad_bytes = start.grad_bytes;

  Values g = {};
  // Not finite after any of this: NaN.
  float beyond = 0;
  const auto within = [&](float reach, const Values& x) {
    beyond = larger_magnitude(beyond, largest_magnitude(x) * reach);
  };
  const auto scale = [&](float factor) {
    if (factor == 1.0f) return;
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) g[j][k] *= factor;
  };
  // What rounds has no registers left for other states' bytes.
  const bool rounds = w.grad_rule.how != Rounder::How::Copy;
  ShortBytes bytes_g, bytes_x, bytes_m, bytes_v, bytes_c;
  fetch_short(start.grad_shift, start.grad, tile, bytes_g);
  if (rounds) {
    decode_native(grad_bytes, bytes_g, g);
    scale(s.grad_scaling);
    within(1, g);
    round_short(w.grad_rule, random_of(w, start, p.grad_stream), tile, g);
  }
  const auto fetch = [&](StateIndex i, ShortBytes& to) {
    fetch_short(w.rules[i], p.states[i], tile, to);
  };
  fetch(kKept, bytes_x);
  if constexpr (kMoment) fetch(kMoment1, bytes_m);
  if constexpr (kTwo) fetch(kMoment2, bytes_v);
  if constexpr (kKahan) fetch(kCompensation, bytes_c);

  if (!rounds) {
    decode_native(grad_bytes, bytes_g, g);
    scale(s.grad_scaling);
  }
  scale(s.grad_scaling_after);
  Values x = {}, m = {}, v = {}, owed = {};
  const auto decode = [&](StateIndex i, const ShortBytes& from, Values& to) {
    decode_short(w.rules[i], lookups[i], from, to);
  };
  decode(kKept, bytes_x, x);
  if constexpr (kMoment) decode(kMoment1, bytes_m, m);
  if constexpr (kTwo) decode(kMoment2, bytes_v, v);
  if constexpr (kKahan) decode(kCompensation, bytes_c, owed);
  // What will be lost is less than this many times what is there, or the least number of the kept format (followers_fit).
  const float lost_reach = kKahan ? w.rules[kCompensation].reach * 0x1p8f : 0.0f;
  if constexpr (kKahan) within(lost_reach, x);
#pragma unroll
  for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const float old = x[j][k];
      update_one<kRule>(s, kKahan, g[j][k], x[j][k], m[j][k], v[j][k], owed[j][k]);
      if constexpr (kKahan) g[j][k] = old;
    }
  if constexpr (kKahan) within(lost_reach, owed);
  // A copy is made of a master that rounding may have doubled.
  const float copy_reach = has_copy ? 2 * w.rules[kCopy].reach : 0.0f;
  within(max(w.rules[kKept].reach, copy_reach), x);
  if constexpr (kMoment) within(w.rules[kMoment1].reach, m);
  if constexpr (kTwo) within(w.rules[kMoment2].reach, v);
  if (__any_sync(kFullWarp, !(beyond <= kMaxFloat))) return false;

#pragma unroll 1
  for (int i = kMoment ? kMoment1 : kKept; i <= kCopy; ++i) {
    const bool is_there = i == kMoment2        ? kTwo
                          : i == kCompensation ? kKahan
                          : i == kCopy         ? has_copy
                                               : true;
    if (!is_there) continue;
    Values y = {};
    if (kMoment && i == kMoment1) {
      copy(m, y);
    } else if (kTwo && i == kMoment2) {
      copy(v, y);
    } else if (kKahan && i == kCompensation) {
#pragma unroll
      for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
        for (int k = 0; k < kQuad; ++k) y[j][k] = functors::lost(g[j][k], owed[j][k], x[j][k]);
    } else {
      copy(x, y);
    }
    keep_short(w.rules[i], lookups[i], p.states[i], random_of(w, start, p.states[i].stream), tile,
               i == kKept, y);
    if (i == kKept) copy(y, x);
  }
  return true;
}

/// The block's part of the launch: its lookups; false if there is nothing to do. Called by all threads.
__device__ __forceinline__ bool begin_tiles(const Work& w, BlockStart& start,
                                            StateLookup (&lookups)[kStates]) {
  begin_block(w, start);
#pragma unroll
  for (int s = 0; s < kStates; ++s) lookups[s].load(w.rules[s]);
  __syncthreads();
  if (start.grad == nullptr) return false;
  normalise(w, start);
  return true;
}

/// True for the block of a parameter's tail.
__device__ __forceinline__ bool is_of_tail(const BlockStart& start) {
  return tail_of(start.parameter.n) != 0 && static_cast<int32_t>(blockIdx.x) == start.end - 1;
}

/// Calls body(begin) for the tiles that are this warp's.
template <class Body>
__device__ __forceinline__ void for_tiles(const BlockStart& start, const Body& body) {
  constexpr int kWarps = kThreads / kWarp;
  const Parameter& p = start.parameter;
  const int tail = tail_of(p.n) != 0 ? 1 : 0;
  const int block = static_cast<int>(blockIdx.x) - p.first_block,
            blocks = start.end - p.first_block - tail;
  const bool last = block == blocks;  // that of the tail
  const int64_t whole = p.n / kTile, end = last ? whole + 1 : whole;
  for (int64_t tile = (last ? whole : block * kWarps) + static_cast<int>(threadIdx.x) / kWarp;
       tile < end; tile += last ? kWarps : blocks * kWarps)
    body(tile * kTile);
}

/// A parameter's tail with zeros behind it, so that it is a whole tile, in the memory of its block.
struct Tail {
  alignas(16) unsigned char bytes[kStates + 1][kTile * sizeof(float)];  // of the gradient last
  void* states[kStates];  // where the parameter's data are

  __device__ static int size_of(int8_t shift) { return (1 << shift) / kQuad; }

  /// True if whole bytes hold each element, and zeros beside it change nothing.
  __device__ static bool serves(const Work& w, const Parameter& p) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < kStates; ++i)
      all =
          all && (p.states[i].data == nullptr || (w.rules[i].group == 0 && w.rules[i].shift >= 2));
    return all;
  }

  /// Brings the tail here and lets `start` point to it. Called by all threads.
  __device__ __noinline__ void take(const Work& w, BlockStart& start) {
    Parameter& p = start.parameter;
    const int64_t begin = p.n - tail_of(p.n);
    const auto fill = [&](int i, const void* data, int size) {
      const auto* const from = static_cast<const unsigned char*>(data) + begin * size;
      for (int b = static_cast<int>(threadIdx.x); b < kTile * size; b += kThreads)
        bytes[i][b] = b < tail_of(p.n) * size ? from[b] : 0;
    };
    for (int i = 0; i < kStates; ++i)
      if (p.states[i].data != nullptr) fill(i, p.states[i].data, size_of(w.rules[i].shift));
    fill(kStates, start.grad, size_of(start.grad_shift));
    __syncthreads();
    const int i = static_cast<int>(threadIdx.x);
    if (i < kStates) {
      states[i] = p.states[i].data;
      if (states[i] != nullptr) p.states[i].data = bytes[i] - begin * size_of(w.rules[i].shift);
    } else if (i == kStates) {
      start.grad = bytes[i] - begin * size_of(start.grad_shift);
    }
    __syncthreads();
  }

  /// Brings what became of it back. Called by all threads.
  __device__ __noinline__ void give(const Work& w, const Parameter& p) const {
    __syncthreads();
    const int64_t begin = p.n - tail_of(p.n);
    for (int i = 0; i < kStates; ++i) {
      if (states[i] == nullptr) continue;
      const int size = size_of(w.rules[i].shift);
      auto* const to = static_cast<unsigned char*>(states[i]) + begin * size;
      for (int b = static_cast<int>(threadIdx.x); b < tail_of(p.n) * size; b += kThreads)
        to[b] = bytes[i][b];
    }
  }
};

template <UpdateRule kRule, bool kKahan>
__global__ void __launch_bounds__(kThreads, kKahan || kRule == UpdateRule::Adam ? 3 : 4)
    optimizer_short_kernel(const __grid_constant__ Work w) {
  __shared__ BlockStart start;
  __shared__ StateLookup lookups[kStates];
  __shared__ Tail tail;
  if (!begin_tiles(w, start, lookups)) return;
  const auto lies_well = [](const void* data) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0;
  };
  bool is_short = lies_well(start.grad);
  for (const StateArray& state : start.parameter.states)
    is_short = is_short && lies_well(state.data);
  const bool apart = is_of_tail(start) && is_short && Tail::serves(w, start.parameter);
  if (apart)
    tail.take(w, start);
  else
    is_short = is_short && !is_of_tail(start);
  for_tiles(start, [&](int64_t begin) {
    if (is_short && update_short<kRule, kKahan>(w, start, lookups, ShortTile(begin))) return;
    update_tile(w, Walk{&start, lookups, Randoms(w, start)}, Tile<false>{begin, start.parameter.n});
  });
  if (apart) tail.give(w, start.parameter);
}

template <bool kOctets>
__global__ void __launch_bounds__(kThreads, 2)
    optimizer_tiles_kernel(const __grid_constant__ Work w) {
  __shared__ BlockStart start;
  __shared__ StateLookup lookups[kStates];
  if (!begin_tiles(w, start, lookups)) return;
  const Walk walk{&start, lookups, Randoms(w, start)};
  for_tiles(start, [&](int64_t begin) {
    update_tile(w, walk, Tile<kOctets>{begin, start.parameter.n});
  });
}

template <UpdateRule kRule>
Kernel short_kernel(bool kahan) {
  return kahan ? optimizer_short_kernel<kRule, true> : optimizer_short_kernel<kRule, false>;
}

}  // namespace

Kernel short_kernel(UpdateRule rule, bool kahan) {
  switch (rule) {
    case UpdateRule::Sgd: return short_kernel<UpdateRule::Sgd>(kahan);
    case UpdateRule::Momentum: return short_kernel<UpdateRule::Momentum>(kahan);
    case UpdateRule::Adam: return short_kernel<UpdateRule::Adam>(kahan);
    default: return short_kernel<UpdateRule::Lion>(kahan);
  }
}

Kernel tiles_kernel(bool octets) {
  return octets ? optimizer_tiles_kernel<true> : optimizer_tiles_kernel<false>;
}

}  // namespace ulp::cuda::optimizer
