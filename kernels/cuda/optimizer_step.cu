#include <cmath>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/codebook.h"
#include "core/step_state.h"
#include "kernels/cuda/state_short.cuh"
#include "kernels/functors.h"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

using functors::UpdateScalars;

/// What is kept of a parameter, in the order in which it is written: the numbers that an update changes are the master's, or
/// the weight's where it has none; kCopy is the weight that is made of a master.
enum StateIndex { kMoment1, kMoment2, kKept, kCompensation, kCopy, kStates };

/// One parameter's memory, gradient apart, and the blocks that work on it: from first_block to the next one's.
struct Parameter {
  StateArray states[kStates];
  int64_t n;
  int32_t first_block;
  uint32_t grad_stream;
  DType grad_type;
  uint8_t unused[7];
};
static_assert(std::has_unique_object_representations_v<Parameter>);  // compared byte by byte

/// Gradients of one launch: as many as fit its 4 KB of arguments beside the rest. They lie elsewhere in every step that is
/// not recorded; everything else that belongs to a parameter stays where it is and is a table in the device's memory.
constexpr int kMost = 192;

/// Up to so many elements, and where no short form serves, a thread takes a quad: many begin at once, in little code.
constexpr int64_t kMostForQuads = int64_t{1} << 20;
int64_t most_for_quads = kMostForQuads;

/// Blocks for one parameter: a few of a GPU's worth, so that what each reads before it starts counts little.
constexpr int64_t kMostBlocks = 2112;

struct Work {
  const Parameter* table;  // null: there is only one parameter
  Parameter only;
  int32_t count, blocks;
  Rounder grad_rule;
  StateRule rules[kStates];
  UpdateSettings settings;
  RandomKey key;  // its stream apart
  const float* rates;
  int64_t rate_count;
  const int32_t *updates, *steps;
  const StepState* state;
  uint32_t* amax;  // of each gradient, as bits, where the settings ask for it; else null
  const void* grads[kMost];
};
static_assert(sizeof(Work) <= 4096);

template <class Call>
__device__ __forceinline__ void for_rule(UpdateRule rule, const Call& call) {
  switch (rule) {
    case UpdateRule::Sgd: return call.template operator()<UpdateRule::Sgd>();
    case UpdateRule::Momentum: return call.template operator()<UpdateRule::Momentum>();
    case UpdateRule::Adam: return call.template operator()<UpdateRule::Adam>();
    case UpdateRule::Lion: return call.template operator()<UpdateRule::Lion>();
  }
}

/// One element's new numbers, unrounded. With Kahan `owed` becomes what is added to x.
template <UpdateRule kRule>
__device__ __forceinline__ void update_one(const UpdateScalars& s, bool kahan, float g, float& x,
                                           float& m, float& v, float& owed) {
  const float d = functors::decayed_gradient(s, x, g);
  const float u = functors::direction_of<kRule>(s, d, m, v);
  if (kahan) {
    owed = functors::owed(s, x, u, owed);
    x = x + owed;
  } else {
    x = functors::moved(s, x, u);
  }
}

/// The last parameter whose blocks begin at `block` or before. Called by a whole warp.
__device__ int parameter_of(const Work& w, int32_t block) {
  int found = 0;
  for (int begin = 0; begin < w.count; begin += kWarp) {
    const int i = begin + static_cast<int>(threadIdx.x) % kWarp;
    found += __popc(__ballot_sync(kFullWarp, i < w.count && w.table[i].first_block <= block));
  }
  return found - 1;
}

/// A copy by the threads of a warp, word by word.
__device__ void copy_parameter(const Parameter& from, Parameter& to) {
  static_assert(sizeof(Parameter) % sizeof(uint32_t) == 0);
  const auto* words = reinterpret_cast<const uint32_t*>(&from);
  for (int i = static_cast<int>(threadIdx.x) % kWarp;
       i < static_cast<int>(sizeof(Parameter) / sizeof(uint32_t)); i += kWarp)
    reinterpret_cast<uint32_t*>(&to)[i] = words[i];
}

/// What the threads of a block share: the parameter that it works on, and the scalars of the step.
struct BlockStart {
  UpdateScalars scalars;
  Parameter parameter;
  const void* grad;  // null: there is nothing to do
  int32_t end;       // the block behind the parameter's last one
  int32_t which;     // of the launch's parameters
  uint32_t random_step;
  StateBytes grad_bytes;
  int8_t grad_shift;
};

/// Called by all threads of a block, who wait for each other afterwards. Two warps work apart: what they read from afar they wait
/// for together.
__device__ __forceinline__ void begin_block(const Work& w, BlockStart& start) {
  const auto block = static_cast<int32_t>(blockIdx.x);
  if (threadIdx.x == 0) {
    start.scalars =
        functors::scalars_of(w.settings, w.rates, w.rate_count, *w.updates, *w.steps, *w.state);
  } else if (threadIdx.x / kWarp == 1) {
    const bool skipped = w.state->found_inf != 0;
    const int which = w.table == nullptr ? 0 : parameter_of(w, block);
    copy_parameter(w.table == nullptr ? w.only : w.table[which], start.parameter);
    if (threadIdx.x % kWarp == 0) {
      start.grad = skipped ? nullptr : w.grads[which];
      start.end = which + 1 < w.count ? w.table[which + 1].first_block : w.blocks;
      start.which = which;
      start.grad_bytes = native_bytes((w.table == nullptr ? w.only : w.table[which]).grad_type);
      start.grad_shift = quad_shift(start.grad_bytes);
      start.random_step = w.key.state == nullptr ? 0u : w.key.state->random_step;
    }
  }
}

/// The scalars of the parameter, behind the threads' wait; they wait again where there is something to change.
__device__ __forceinline__ void normalise(const Work& w, BlockStart& start) {
  if (w.amax == nullptr) return;
  if (threadIdx.x == 0)
    start.scalars = functors::normalised(start.scalars, w.settings, w.amax[start.which]);
  __syncthreads();
}

/// A stream's random words.
__device__ __forceinline__ RandomSource random_of(const Work& w, const BlockStart& start,
                                                  uint32_t stream) {
  RandomSource random;
  random.key0 = static_cast<uint32_t>(w.key.seed);
  random.key1 = static_cast<uint32_t>(w.key.seed >> 32);
  random.stream = stream;
  random.step = start.random_step;
  return random;
}

__device__ __forceinline__ Source gradient_of(const BlockStart& start) {
  const DType dtype = start.parameter.grad_type;
  return {start.grad, dtype, is_aligned_for_quads(start.grad, dtype)};
}

// ---- quads ----------------------------------------------------------------------------------------------------------
/// Element-wise states in native types or in codes of small floats: a quad a thread, in little code, because a step of a small
/// network waits for instructions too.
__device__ __forceinline__ void read_quad(const StateRule& rule, const StateArray& s, int64_t i,
                                          int count, float (&x)[kQuad]) {
  if (s.dtype != DType::U8) return load_quad(s.source(), i, count, x);
  const int32_t bits = rule.code.bits;
  const uint8_t* at = static_cast<const uint8_t*>(s.data) + i / 2 * bits / 4;
  uint64_t piece = 0;
  if (!s.aligned || count < kQuad) {
    for (int byte = 0; byte < (count * bits + 7) / 8; ++byte)
      piece |= uint64_t{at[byte]} << (8 * byte);
  } else if (bits == 16) {
    piece = *reinterpret_cast<const uint64_t*>(at);
  } else {
    piece =
        bits == 8 ? *reinterpret_cast<const uint32_t*>(at) : *reinterpret_cast<const uint16_t*>(at);
  }
  const ShortFloat& quick = rule.quick;
  bool finite = true;
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    const uint32_t code = static_cast<uint32_t>(piece >> (k * bits)) & low_bits(bits);
    const uint32_t magnitude = code & (quick.sign - 1);
    finite = finite && magnitude < quick.limit;
    x[k] = float_of(bits_of(quick.scaled(magnitude) * quick.unit) | quick.float_sign(code));
  }
  if (!finite) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      x[k] = number_of_any(rule.code, static_cast<uint32_t>(piece >> (k * bits)) & low_bits(bits));
  }
#pragma unroll
  for (int k = 0; k < kQuad; ++k)
    if (k >= count) x[k] = 0;
}

/// Rounds x, which becomes what is stored, and stores it.
__device__ __forceinline__ void write_quad(const StateRule& rule, const StateArray& s,
                                           RandomSource random, int64_t i, int count,
                                           float (&x)[kQuad]) {
  random.stream = s.stream;
  round_quad(rule.rounder, random, i, x);
  if (s.dtype != DType::U8) return store_quad(s.sink(), i, count, x);
  const int32_t bits = rule.code.bits;
  uint8_t* at = static_cast<uint8_t*>(s.data) + i / 2 * bits / 4;
  const ShortFloat& quick = rule.quick;
  uint32_t code[kQuad];
  bool finite = true;
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    const uint32_t magnitude = quick.magnitude(fabsf(x[k]) * quick.inverse_unit);
    finite = finite && magnitude < quick.limit;
    code[k] = magnitude | quick.sign_of(x[k]);
  }
  if (!finite) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const uint32_t own = code_of_any(rule.code, x[k]);
      code[k] = own == kNoCode ? 0u : own;
    }
  }
  uint64_t piece = 0;
#pragma unroll
  for (int k = 0; k < kQuad; ++k)
    if (k < count) piece |= uint64_t{code[k]} << (k * bits);
  if (!s.aligned || count < kQuad) {
    for (int byte = 0; byte < (count * bits + 7) / 8; ++byte)
      at[byte] = static_cast<uint8_t>(piece >> (8 * byte));
  } else if (bits == 16) {
    *reinterpret_cast<uint64_t*>(at) = piece;
  } else if (bits == 8) {
    *reinterpret_cast<uint32_t*>(at) = static_cast<uint32_t>(piece);
  } else {
    *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(piece);
  }
}

/// Raises w.amax, zeros before, to the largest magnitude of each gradient, by the blocks that will update its parameter.
__global__ void __launch_bounds__(kThreads) gradient_amax_kernel(const __grid_constant__ Work w) {
  __shared__ BlockStart start;
  begin_block(w, start);
  __syncthreads();
  if (start.grad == nullptr) return;
  const Source grad = gradient_of(start);
  const Parameter& p = start.parameter;
  const int64_t first = static_cast<int64_t>(blockIdx.x) - p.first_block,
                blocks = start.end - p.first_block;
  uint32_t most = 0;
  for (int64_t i = (first * kThreads + threadIdx.x) * kQuad; i < p.n;
       i += blocks * kThreads * kQuad) {
    float g[kQuad];
    load_quad(grad, i, quad_count(i, p.n), g);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) most = max(most, bits_of(g[k]) & ~kSignBit);
  }
  most = __reduce_max_sync(kFullWarp, most);
  if (threadIdx.x % kWarp == 0) atomicMax(w.amax + start.which, most);
}

__global__ void __launch_bounds__(kThreads) optimizer_quads_kernel(const __grid_constant__ Work w) {
  __shared__ BlockStart start;
  begin_block(w, start);
  __syncthreads();
  if (start.grad == nullptr) return;
  normalise(w, start);
  const UpdateScalars s = start.scalars;
  const Parameter& p = start.parameter;
  const Source grad = gradient_of(start);
  const RandomSource random = random_of(w, start, 0),
                     grad_random = random_of(w, start, p.grad_stream);
  const bool has_copy = p.states[kCopy].data != nullptr;
  const bool has_moment1 = p.states[kMoment1].data != nullptr;
  const bool has_moment2 = p.states[kMoment2].data != nullptr;
  const bool kahan = p.states[kCompensation].data != nullptr;
  const int64_t first = static_cast<int64_t>(blockIdx.x) - p.first_block,
                blocks = start.end - p.first_block;
  for (int64_t i = (first * kThreads + threadIdx.x) * kQuad; i < p.n;
       i += blocks * kThreads * kQuad) {
    const int count = quad_count(i, p.n);
    float g[kQuad], x[kQuad], m[kQuad] = {}, v[kQuad] = {}, owed[kQuad] = {}, old[kQuad];
    load_quad(grad, i, count, g);
    read_quad(w.rules[kKept], p.states[kKept], i, count, x);
    if (has_moment1) read_quad(w.rules[kMoment1], p.states[kMoment1], i, count, m);
    if (has_moment2) read_quad(w.rules[kMoment2], p.states[kMoment2], i, count, v);
    if (kahan) read_quad(w.rules[kCompensation], p.states[kCompensation], i, count, owed);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) g[k] = g[k] * s.grad_scaling;
    round_quad(w.grad_rule, grad_random, i, g);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) g[k] = g[k] * s.grad_scaling_after;
    for_rule(s.rule, [&]<UpdateRule kRule>() {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        old[k] = x[k];
        update_one<kRule>(s, kahan, g[k], x[k], m[k], v[k], owed[k]);
      }
    });
    if (has_moment1) write_quad(w.rules[kMoment1], p.states[kMoment1], random, i, count, m);
    if (has_moment2) write_quad(w.rules[kMoment2], p.states[kMoment2], random, i, count, v);
    write_quad(w.rules[kKept], p.states[kKept], random, i, count, x);
    if (kahan) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) owed[k] = functors::lost(old[k], owed[k], x[k]);
      write_quad(w.rules[kCompensation], p.states[kCompensation], random, i, count, owed);
    }
    if (has_copy) write_quad(w.rules[kCopy], p.states[kCopy], random, i, count, x);
  }
}

// ---- tiles ----------------------------------------------------------------------------------------------------------
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

/// Calls body(begin) for the tiles that are this warp's.
template <class Body>
__device__ __forceinline__ void for_tiles(const BlockStart& start, const Body& body) {
  constexpr int kWarps = kThreads / kWarp;
  const int first = static_cast<int>(blockIdx.x) - start.parameter.first_block;
  for (int64_t tile = first * kWarps + static_cast<int>(threadIdx.x) / kWarp;
       tile * kTile < start.parameter.n; tile += (start.end - start.parameter.first_block) * kWarps)
    body(tile * kTile);
}

/// Where state_short.cuh serves all states, but perhaps not every number and place.
template <UpdateRule kRule, bool kKahan>
__global__ void __launch_bounds__(kThreads, kKahan || kRule == UpdateRule::Adam ? 3 : 4)
    optimizer_short_kernel(const __grid_constant__ Work w) {
  __shared__ BlockStart start;
  __shared__ StateLookup lookups[kStates];
  if (!begin_tiles(w, start, lookups)) return;
  const auto lies_well = [](const void* data) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0;
  };
  bool is_short = lies_well(start.grad);
  for (const StateArray& state : start.parameter.states)
    is_short = is_short && lies_well(state.data);
  for_tiles(start, [&](int64_t begin) {
    if (is_short && begin + kTile <= start.parameter.n &&
        update_short<kRule, kKahan>(w, start, lookups, ShortTile(begin)))
      return;
    update_tile(w, Walk{&start, lookups, Randoms(w, start)}, Tile<false>{begin, start.parameter.n});
  });
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

// ---- calls ----------------------------------------------------------------------------------------------------------
/// The native type whose numbers are the format's; U8 if there is none.
DType native_type(const Format& format) {
  static const std::pair<Format, DType> kAll[] = {{Quantizer::parse("bf16").format, DType::BF16},
                                                  {Quantizer::parse("fp16").format, DType::F16},
                                                  {Quantizer::parse("e4m3").format, DType::F8E4M3},
                                                  {Quantizer::parse("e5m2").format, DType::F8E5M2}};
  for (const auto& [own, dtype] : kAll)
    if (own == format) return dtype;
  return DType::U8;
}

/// How states of this rule are moved in short forms; dtype: theirs.
StateBytes short_bytes(const StateRule& rule, const Quantizer& q, DType dtype) {
  using How = Rounder::How;
  const Rounder& r = rule.rounder;
  const bool rounds = r.how == How::Copy || (r.how != How::Any && r.makes_no_nan);
  if (dtype != DType::U8) return rounds ? native_bytes(dtype) : StateBytes::None;
  const DType native = native_type(q.format);
  if (rounds && native != DType::U8) return native_bytes(native);
  if (rule.tree.size == 0 && !(rounds && rule.quick.serves)) return StateBytes::None;
  switch (rule.code.bits) {
    case 16: return StateBytes::Codes16;
    case 8: return StateBytes::Codes8;
    case 4: return StateBytes::Codes4;
    default: return StateBytes::None;
  }
}

/// dtype: of the states that are kept, U8 for codes.
StateRule rule_of(Device device, const Quantizer& q, const RandomKey& key, DType dtype) {
  using How = Rounder::How;
  StateRule rule{};
  if (q.is_elementwise()) {
    rule.rounder = make_rounder(device, q, key);
  } else {
    rule.block = make_block_rule(q, DType::F32);
    rule.group = q.block.columns;
    while (1 << rule.group_shift < rule.group) ++rule.group_shift;
    rule.rounder = make_rounder(device, q, key, make_block_grid(q, rule.block));
  }
  How& how = rule.rounder.how;
  if (how == How::NearestPosit || how == How::StochasticPosit) how = How::Any;
  if (dtype == DType::U8) {
    rule.code = make_code_rule(q.format);
    rule.quick = make_short_float(rule.code);
    const bool table = rule.code.kind == CodeRule::Kind::Table;
    if (table) rule.code.table = table_on(device, q.format.table);
    if (rule.code.bits <= 8)
      rule.numbers = table ? rule.code.table : code_numbers_on(device, q.format);
    if (rule.code.bits <= 8 && table && q.bits == RandomBits{}) rule.tree = tree_on(device, q);
  }
  rule.bytes = short_bytes(rule, q, dtype);
  rule.converts = rule.bytes != StateBytes::None && rule.bytes != StateBytes::F32 &&
                  rule.bytes == native_bytes(native_type(q.format)) &&
                  (how == How::Nearest || how == How::NearestCut);
  rule.shift = quad_shift(rule.bytes);
  rule.as_is = rule.converts || (how == How::Copy && rule.bytes == StateBytes::F32);
  // Inf of the format's own comes of a number beyond its bounds, a bit more for the product with this.
  const FastGrid& fast = rule.rounder.fast;
  const bool to_infinity =
      fast.overflow == kInfinityBits || (fast.overflow ^ fast.overflow_flip) == kInfinityBits;
  rule.reach = 1;
  if (rule.group == 0 && (rule.converts || to_infinity)) {
    const float most = std::min(float_of(fast.max), float_of(fast.max ^ fast.max_flip));
    rule.reach = kMaxFloat / most * (to_infinity ? 1 + 0x1p-20f : 1.0f);
  }
  return rule;
}

/// What rounding can make of a number near zero.
float least_step(const StateRule& rule, const Quantizer& q) {
  const FastGrid& fast = rule.rounder.fast;
  if (rule.tree.size != 0)
    return std::max(std::abs(codebook(q.format.table).values.front()),
                    std::abs(codebook(q.format.table).values.back()));
  if (fast.form != FastGrid::Form::Spaced) return 0;
  return std::ldexp(float_of(fast.low), static_cast<int>(fast.spread) - 23);
}

/// What is made of numbers after they were rounded stays within the reach of its own format if they were within theirs.
bool followers_fit(const StateRule& kept, const Quantizer& q, const StateRule* copy,
                   const StateRule* compensation) {
  if (copy == nullptr && compensation == nullptr) return true;
  const float step = least_step(kept, q);
  return kept.group == 0 && (copy == nullptr || 2 * step * copy->reach <= kMaxFloat) &&
         (compensation == nullptr || 0x1p8f * step * compensation->reach <= kMaxFloat);
}

StateArray array_of(const StoredState& state, const RandomKey& key) {
  if (!state.defined()) return {};
  StateArray array{};
  array.data = written(state.data);
  if (state.scales.defined()) array.factors = static_cast<float*>(written(state.scales));
  array.stream = key.counted_stream();
  array.dtype = state.data.dtype();
  array.aligned = is_aligned(array.data, array.dtype);
  return array;
}

Parameter make_parameter(const OptimizerParameter& from) {
  Parameter p{};
  const StateArray weight = array_of({from.weight}, from.weight_key);
  const bool has_master = from.master.defined();
  p.states[kKept] = has_master ? array_of(from.master, from.master_key) : weight;
  if (has_master) p.states[kCopy] = weight;
  p.states[kMoment1] = array_of(from.moment1, from.moment1_key);
  p.states[kMoment2] = array_of(from.moment2, from.moment2_key);
  p.states[kCompensation] = array_of(from.compensation, from.compensation_key);
  p.n = from.weight.numel();
  p.grad_stream = from.grad_key.counted_stream();
  p.grad_type = DType::F32;
  return p;
}

/// The parameters in the device's memory. Made anew where something changed, which no recorded step can do.
const Parameter* table_of(Stream stream, ParameterTable& table,
                          const std::vector<Parameter>& parameters) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(parameters.data());
  const std::vector<unsigned char> now(bytes, bytes + parameters.size() * sizeof(Parameter));
  if (table.on_host != now) {
    const auto size = static_cast<int64_t>(now.size());
    if (!table.on_device.defined() || table.on_device.numel() != size)
      table.on_device = Tensor::empty({size}, DType::U8, stream.device);
    table.on_host.clear();  // a copy that fails leaves no table
    copy_bytes(table.on_device.mutable_raw(), stream.device, now.data(), kCpu, now.size());
    table.on_host = now;
  }
  return static_cast<const Parameter*>(table.on_device.raw());
}

/// What optimizer_quads_kernel serves.
bool takes_quads(const Work& w) {
  for (const StateRule& rule : w.rules) {
    const bool coded = rule.code.bits != 0;
    if (rule.group != 0 || (coded && !(rule.quick.serves && has_piece(rule.code.bits))))
      return false;
  }
  return true;
}

using OptimizerKernel = void (*)(Work);

template <UpdateRule kRule>
OptimizerKernel short_kernel(bool kahan) {
  return kahan ? optimizer_short_kernel<kRule, true> : optimizer_short_kernel<kRule, false>;
}

OptimizerKernel short_kernel(UpdateRule rule, bool kahan) {
  switch (rule) {
    case UpdateRule::Sgd: return short_kernel<UpdateRule::Sgd>(kahan);
    case UpdateRule::Momentum: return short_kernel<UpdateRule::Momentum>(kahan);
    case UpdateRule::Adam: return short_kernel<UpdateRule::Adam>(kahan);
    default: return short_kernel<UpdateRule::Lion>(kahan);
  }
}

}  // namespace

void set_most_for_quads(int64_t elements) {
  most_for_quads = elements < 0 ? kMostForQuads : elements;
}

void optimizer_step(Stream stream, const OptimizerArgs& args) {
  check_optimizer_step(stream, args);
  if (args.parameters.empty()) return;
  const Device device = stream.device;
  const OptimizerParameter& one = args.parameters.front();
  Work w{};
  w.grad_rule = make_elementwise_rounder("optimizer_step", device, args.grad_format, one.grad_key);
  Rounder::How& grad_how = w.grad_rule.how;
  if (grad_how == Rounder::How::NearestPosit || grad_how == Rounder::How::StochasticPosit)
    grad_how = Rounder::How::Any;
  bool is_short =
      grad_how == Rounder::How::Copy || (grad_how != Rounder::How::Any && w.grad_rule.makes_no_nan);
  const auto set_rule = [&](StateIndex i, const Quantizer& q, const auto& state_of) {
    const Tensor first = state_of(one);
    w.rules[i] = rule_of(device, q, one.weight_key, first.defined() ? first.dtype() : DType::F32);
    if (!first.defined()) return;
    is_short = is_short && w.rules[i].bytes != StateBytes::None;
    for (const OptimizerParameter& p : args.parameters)
      is_short = is_short && state_of(p).dtype() == first.dtype();
  };
  using P = OptimizerParameter;
  const auto weight_of = [](const P& p) { return p.weight; };
  if (one.master.defined()) {
    set_rule(kKept, args.master_format, [](const P& p) { return p.master.data; });
    set_rule(kCopy, args.weight_format, weight_of);
  } else {
    set_rule(kKept, args.weight_format, weight_of);
  }
  set_rule(kMoment1, args.moment1_format, [](const P& p) { return p.moment1.data; });
  set_rule(kMoment2, args.moment2_format, [](const P& p) { return p.moment2.data; });
  set_rule(kCompensation, args.compensation_format, [](const P& p) { return p.compensation.data; });
  w.settings = args.settings;
  w.key = one.weight_key;
  w.rates = args.rates.data<float>();
  w.rate_count = args.rates.numel();
  w.updates = args.updates.data<int32_t>();
  w.steps = args.steps.data<int32_t>();
  w.state = args.state;

  is_short =
      is_short &&
      followers_fit(w.rules[kKept], one.master.defined() ? args.master_format : args.weight_format,
                    one.master.defined() ? &w.rules[kCopy] : nullptr,
                    one.compensation.defined() ? &w.rules[kCompensation] : nullptr);
  bool octets = false;
  for (const StateRule& rule : w.rules)
    octets = octets || (rule.code.bits != 0 && !has_piece(rule.code.bits));
  int64_t elements = 0;
  for (const OptimizerParameter& from : args.parameters) elements += from.weight.numel();
  const bool quads = takes_quads(w) && (elements <= most_for_quads || !is_short);
  const OptimizerKernel kernel = quads ? optimizer_quads_kernel
                                 : is_short
                                     ? short_kernel(args.settings.rule, one.compensation.defined())
                                 : octets ? optimizer_tiles_kernel<true>
                                          : optimizer_tiles_kernel<false>;
  const int64_t per_block = kThreads * kQuad * (quads ? 1 : kTileQuads);
  std::vector<Parameter> parameters;
  std::vector<int32_t> blocks(1, 0);  // of each launch
  for (const OptimizerParameter& from : args.parameters) {
    if (!parameters.empty() && parameters.size() % kMost == 0) blocks.push_back(0);
    Parameter p = make_parameter(from);
    if (from.grad.defined()) p.grad_type = from.grad.dtype();
    p.first_block = blocks.back();
    blocks.back() += static_cast<int32_t>(std::min(blocks_for(p.n, per_block), kMostBlocks));
    parameters.push_back(p);
  }
  ParameterTable of_call;
  const Parameter* table = nullptr;
  if (parameters.size() > 1)
    table = table_of(stream, args.table != nullptr ? *args.table : of_call, parameters);
  Tensor amax;
  if (args.settings.grad_normalisation != GradNormalisation::None) {
    amax = Tensor::empty({static_cast<int64_t>(parameters.size())}, DType::I32, device);
    ULP_CUDA_CHECK(cudaSetDevice(device.index));
    ULP_CUDA_CHECK(cudaMemsetAsync(written(amax), 0, parameters.size() * sizeof(uint32_t),
                                   static_cast<cudaStream_t>(stream.handle)));
  }
  for (size_t begin = 0; begin < parameters.size(); begin += kMost) {
    const size_t count = std::min<size_t>(kMost, parameters.size() - begin);
    w.table = table == nullptr ? nullptr : table + begin;
    w.only = parameters[begin];
    w.count = static_cast<int32_t>(count);
    w.blocks = blocks[begin / kMost];
    for (size_t i = 0; i < count; ++i) {
      const Tensor& grad = args.parameters[begin + i].grad;
      w.grads[i] = grad.defined() ? grad.raw() : nullptr;
    }
    if (amax.defined()) {
      w.amax = static_cast<uint32_t*>(written(amax)) + begin;
      launch("optimizer_step", stream, w.blocks, kThreads, gradient_amax_kernel, w);
    }
    launch("optimizer_step", stream, w.blocks, kThreads, kernel, w);
  }
}

}  // namespace ulp::cuda
