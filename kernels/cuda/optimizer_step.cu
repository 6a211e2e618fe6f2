#include <type_traits>
#include <utility>
#include <vector>

#include "core/step_state.h"
#include "kernels/cuda/state_slot.cuh"
#include "kernels/functors.h"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

using functors::UpdateScalars;

/// What is kept of a parameter, by number.
enum StateIndex { kWeight, kMaster, kMoment1, kMoment2, kCompensation, kStates };

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

/// Up to so many elements what counts is that many threads begin at once, in little code.
constexpr int64_t kMostForQuads = int64_t{1} << 20;

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
  bool is_short;   // state_slot.cuh serves all of it
  int8_t slots, slot_of[kStates];  // the gradient has slot 0; −1: there is no such state
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
  const RandomSource random(w.key);
  RandomSource grad_random = random;
  grad_random.stream = p.grad_stream;
  const bool has_master = p.states[kMaster].data != nullptr;
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
    if (has_master)
      read_quad(w.rules[kMaster], p.states[kMaster], i, count, x);
    else
      load_quad(p.states[kWeight].source(), i, count, x);
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
    if (has_master)
      write_quad(w.rules[kMaster], p.states[kMaster], random, i, count, x);
    else
      write_quad(w.rules[kWeight], p.states[kWeight], random, i, count, x);
    if (kahan) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) owed[k] = functors::lost(old[k], owed[k], x[k]);
      write_quad(w.rules[kCompensation], p.states[kCompensation], random, i, count, owed);
    }
    if (has_master) write_quad(w.rules[kWeight], p.states[kWeight], random, i, count, x);
  }
}

// ---- tiles ----------------------------------------------------------------------------------------------------------
/// What a block knows while it goes through its tiles.
struct Walk {
  const BlockStart* start;
  const StateLookup* lookups;  // kStates
  RandomSource random, grad_random;
};

/// By the definition: groups, codes of every kind, Inf and NaN, ends and arrays that lie askew. kOctets: codes of any width.
template <bool kOctets>
__device__ __noinline__ void update_tile(const Work& w, const Walk& walk,
                                         const Tile<kOctets>& tile) {
  const UpdateScalars& s = walk.start->scalars;
  const Parameter& p = walk.start->parameter;
  const Source grad = gradient_of(*walk.start);
  const RandomSource& random = walk.random;
  const StateLookup* lookups = walk.lookups;
  const bool has_master = p.states[kMaster].data != nullptr;
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
  if (has_master)
    fetch_one(kMaster, raw_x);
  else
    fetch(p.states[kWeight].source(), tile, raw_x);
  if (has_moment1) fetch_one(kMoment1, raw_m);
  if (has_moment2) fetch_one(kMoment2, raw_v);
  if (kahan) fetch_one(kCompensation, raw_c);

  Values g, x, m = {}, v = {}, owed = {}, old;
  numbers_of(grad, tile, raw_g, g);
#pragma unroll
  for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) g[j][k] = canonical(g[j][k] * s.grad_scaling);
  round_quads(w.grad_rule, walk.grad_random, tile.at(0), tile.at(1) - tile.at(0), g);
  if (s.grad_scaling_after != 1.0f)
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) g[j][k] = canonical(g[j][k] * s.grad_scaling_after);
  if (has_master)
    read_one(kMaster, raw_x, x);
  else
    numbers_of(p.states[kWeight].source(), tile, raw_x, x);
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
  if (has_master)
    write_one(kMaster, x);
  else
    write_state(w.rules[kWeight], lookups, p.states[kWeight], random, tile, x);
  if (kahan) {
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        owed[j][k] = canonical(functors::lost(old[j][k], owed[j][k], x[j][k]));
    write_one(kCompensation, owed);
  }
  if (has_master) write_state(w.rules[kWeight], lookups, p.states[kWeight], random, tile, x);
}

/// Gradients, weights, moments: 512 elements a warp in short forms, each in its slot. False, and nothing is written, where these
/// do not serve. Called by whole warps.
template <bool kKahan>
__device__ __forceinline__ bool update_slots(const Work& w, const Walk& walk, int64_t begin,
                                             float4* slots) {
  // Copies: what is written to slots might be what they refer to, for all that the compiler knows.
  const UpdateScalars s = walk.start->scalars;
  const RandomSource random = walk.random;
  const DType grad_type = walk.start->parameter.grad_type;
  const auto array = [&](int i) -> StateArray { return walk.start->parameter.states[i]; };
  const auto has = [&](int i) { return w.slot_of[i] >= 0; };
  const auto slot_of = [&](int i) { return Slot{slots + w.slot_of[i] * (kSlot / kQuad)}; };
  const StateIndex kept = has(kMaster) ? kMaster : kWeight;
  const Slot grad{slots}, numbers = slot_of(kept);

  __syncwarp();
  fetch_bytes(walk.start->grad, 8 * static_cast<int32_t>(size_of(grad_type)), begin, grad);
#pragma unroll 1
  for (int i = kept; i < kStates; ++i)
    if (has(i)) fetch_slot(w.rules[i], array(i), begin, slot_of(i));
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncwarp();

  bool special = false;
  decode_native(grad_type, grad);
#pragma unroll 1
  for (int i = kept; i < kStates; ++i)
    if (has(i)) special |= decode_slot(w.rules[i], walk.lookups[i], array(i), begin, slot_of(i));

  float zero = 0;
  if (w.grad_rule.how != Rounder::How::Copy) {
    SlotValues g;
    grad.load(g);
    for_slot([&](int j, int k) { g[j][k] *= s.grad_scaling; });
    grad.store(g);
    zero = beyond_reach(1, g, zero);
    round_slot(w.grad_rule, walk.grad_random, begin, grad);
  }
  const float scaling = w.grad_rule.how != Rounder::How::Copy ? 1.0f : s.grad_scaling;
  const float weight_reach = w.rules[kWeight].reach * (kept == kMaster ? 2.0f : 1.0f);
  constexpr int kAtOnce = 2;  // quads
  using Values = float[kAtOnce][kQuad];
  for_rule(s.rule, [&]<UpdateRule kRule>() {
#pragma unroll 1
    for (int first = 0; first < kSlotQuads; first += kAtOnce) {
      const auto load = [&](Slot slot, Values& to) {
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) slot.load(first + j, to[j]);
      };
      const auto store = [&](Slot slot, const Values& from) {
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) slot.store(first + j, from[j]);
      };
      constexpr bool kMoment = kRule != UpdateRule::Sgd, kTwo = kRule == UpdateRule::Adam;
      Values g, x, m = {}, v = {}, owed = {};
      load(grad, g);
      load(numbers, x);
      if constexpr (kMoment) load(slot_of(kMoment1), m);
      if constexpr (kTwo) load(slot_of(kMoment2), v);
      if constexpr (kKahan) {
        load(slot_of(kCompensation), owed);
        // What will be lost is less than this many times these.
        constexpr float kRoom = 0x1p8f;
        zero = beyond_reach(w.rules[kCompensation].reach * kRoom, x, zero);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
#pragma unroll
        for (int k = 0; k < kQuad; ++k) {
          const float scaled = (g[j][k] * scaling) * s.grad_scaling_after;
          if constexpr (kKahan) g[j][k] = x[j][k];  // the old one: its slot is free now
          update_one<kRule>(s, kKahan, scaled, x[j][k], m[j][k], v[j][k], owed[j][k]);
        }
      if constexpr (kKahan) {
        store(grad, g);
        store(slot_of(kCompensation), owed);
        zero = beyond_reach(w.rules[kCompensation].reach * 0x1p8f, owed, zero);
      }
      store(numbers, x);
      zero = beyond_reach(weight_reach, x, zero);
      if (kept == kMaster) zero = beyond_reach(w.rules[kMaster].reach, x, zero);
      if constexpr (kMoment) {
        store(slot_of(kMoment1), m);
        zero = beyond_reach(w.rules[kMoment1].reach, m, zero);
      }
      if constexpr (kTwo) {
        store(slot_of(kMoment2), v);
        zero = beyond_reach(w.rules[kMoment2].reach, v, zero);
      }
    }
  });
  if (__any_sync(kFullWarp, special || !(zero == 0))) return false;

    // The master before the weight, which is made of it; the compensation last.
#pragma unroll 1
  for (int turn = -1; turn < kStates; ++turn) {
    const int i = turn < 0 ? kept : turn;
    if (!has(i) || turn == kept) continue;
    if (kKahan && i == kCompensation) {
      SlotValues old, owed, x;
      grad.load(old);
      slot_of(i).load(owed);
      numbers.load(x);
      for_slot([&](int j, int k) { owed[j][k] = functors::lost(old[j][k], owed[j][k], x[j][k]); });
      slot_of(i).store(owed);
    }
    const bool values = i == kMaster || (kKahan && i == kept);
    keep_slot(w.rules[i], walk.lookups[i], array(i), random, begin, values, slot_of(i));
  }
  return true;
}

/// What a launch of optimizer_tiles_kernel meets: states with compensation, codes of any width.
enum class Tiles : uint8_t { Plain, Kahan, Octets };

/// Each warp has w.slots slots of dynamic shared memory.
size_t slot_bytes(int slots) {
  return static_cast<size_t>(slots) * (kThreads / kWarp) * kSlot * sizeof(float);
}

template <Tiles kTiles>
__global__ void __launch_bounds__(kThreads, kTiles == Tiles::Plain ? 3 : 2)
    optimizer_tiles_kernel(const __grid_constant__ Work w) {
  __shared__ BlockStart start;
  __shared__ StateLookup lookups[kStates];
  begin_block(w, start);
#pragma unroll
  for (int s = 0; s < kStates; ++s) lookups[s].load(w.rules[s]);
  __syncthreads();
  if (start.grad == nullptr) return;
  normalise(w, start);

  const Parameter& p = start.parameter;
  Walk walk{&start, lookups, RandomSource(w.key), RandomSource(w.key)};
  walk.grad_random.stream = p.grad_stream;
  const auto lies_well = [](const void* data) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0;
  };
  bool is_short = w.is_short && lies_well(start.grad);
  for (const StateArray& state : p.states) is_short = is_short && lies_well(state.data);
  extern __shared__ float4 slots[];
  constexpr int kWarps = kThreads / kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  float4* const own = slots + warp * w.slots * (kSlot / kQuad);
  const int64_t step = static_cast<int64_t>(start.end - p.first_block) * kWarps * kSlot;
  const int64_t first =
      (static_cast<int64_t>(static_cast<int32_t>(blockIdx.x) - p.first_block) * kWarps + warp) *
      kSlot;
  for (int64_t begin = first; begin < p.n; begin += step) {
    if constexpr (kTiles != Tiles::Octets) {
      if (is_short && begin + kSlot <= p.n &&
          update_slots<kTiles == Tiles::Kahan>(w, walk, begin, own))
        continue;
    }
    for (int64_t at = begin; at < min(begin + kSlot, p.n); at += kTile)
      update_tile(w, walk, Tile<kTiles == Tiles::Octets>{at, p.n});
  }
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

/// packed: some state of the rule is kept as codes.
StateRule rule_of(Device device, const Quantizer& q, const RandomKey& key, bool packed) {
  StateRule rule{};
  if (q.is_elementwise()) {
    rule.rounder = make_rounder(device, q, key);
  } else {
    rule.block = make_block_rule(q, DType::F32);
    rule.group = q.block.columns;
    while (1 << rule.group_shift < rule.group) ++rule.group_shift;
    rule.rounder = make_rounder(device, q, key, make_block_grid(q, rule.block));
  }
  if (rule.rounder.how == Rounder::How::NearestPosit ||
      rule.rounder.how == Rounder::How::StochasticPosit)
    rule.rounder.how = Rounder::How::Any;
  using How = Rounder::How;
  const Rounder& r = rule.rounder;
  rule.is_short = r.how == How::Copy || (r.how != How::Any && r.stays_a_number);
  rule.native = native_type(q.format);
  rule.converts = rule.native != DType::U8 && (r.how == How::Nearest || r.how == How::NearestCut);
  rule.reach = 1;
  if (rule.converts && rule.group == 0) rule.reach = 0x1.FFFFEp127f / float_of(r.fast.max);
  if (!packed) return rule;
  rule.code = make_code_rule(q.format);
  rule.quick = make_short_float(rule.code);
  if (rule.code.kind == CodeRule::Kind::Table) rule.code.table = table_on(device, q.format.table);
  if (rule.code.bits <= 8) {
    rule.numbers = rule.code.kind == CodeRule::Kind::Table ? rule.code.table
                                                           : code_numbers_on(device, q.format);
    if (rule.code.kind == CodeRule::Kind::Table && q.bits == RandomBits{})
      rule.tree = tree_on(device, q);
  }
  const bool has_short = rule.native != DType::U8 || rule.quick.serves;
  rule.is_short =
      has_piece(rule.code.bits) && (rule.tree.size != 0 || (rule.is_short && has_short));
  return rule;
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
  p.states[kWeight] = array_of({from.weight}, from.weight_key);
  p.states[kMaster] = array_of(from.master, from.master_key);
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

void launch_optimizer(Stream stream, const Work& w, Tiles tiles, bool quads) {
  launch({"optimizer_step", quads ? 0 : slot_bytes(w.slots)}, stream, w.blocks, kThreads,
         quads                   ? optimizer_quads_kernel
         : tiles == Tiles::Plain ? optimizer_tiles_kernel<Tiles::Plain>
         : tiles == Tiles::Kahan ? optimizer_tiles_kernel<Tiles::Kahan>
                                 : optimizer_tiles_kernel<Tiles::Octets>,
         w);
}

}  // namespace

void optimizer_step(Stream stream, const OptimizerArgs& args) {
  check_optimizer_step(stream, args);
  if (args.parameters.empty()) return;
  const Device device = stream.device;
  const OptimizerParameter& one = args.parameters.front();
  const auto packed = [&](auto member) {
    for (const OptimizerParameter& p : args.parameters)
      if ((p.*member).defined() && (p.*member).data.dtype() == DType::U8) return true;
    return false;
  };
  Work w{};
  w.grad_rule = make_elementwise_rounder("optimizer_step", device, args.grad_format, one.grad_key);
  if (w.grad_rule.how == Rounder::How::NearestPosit ||
      w.grad_rule.how == Rounder::How::StochasticPosit)
    w.grad_rule.how = Rounder::How::Any;
  w.rules[kWeight] = rule_of(device, args.weight_format, one.weight_key, false);
  const auto set_rule = [&](StateIndex i, const Quantizer& q, auto member) {
    w.rules[i] = rule_of(device, q, one.weight_key, packed(member));
  };
  set_rule(kMaster, args.master_format, &OptimizerParameter::master);
  set_rule(kMoment1, args.moment1_format, &OptimizerParameter::moment1);
  set_rule(kMoment2, args.moment2_format, &OptimizerParameter::moment2);
  set_rule(kCompensation, args.compensation_format, &OptimizerParameter::compensation);
  w.settings = args.settings;
  w.key = one.weight_key;
  w.rates = args.rates.data<float>();
  w.rate_count = args.rates.numel();
  w.updates = args.updates.data<int32_t>();
  w.steps = args.steps.data<int32_t>();
  w.state = args.state;

  const Rounder& g = w.grad_rule;
  w.is_short = w.rules[kWeight].is_short &&
               (g.how == Rounder::How::Copy || (g.how != Rounder::How::Any && g.stays_a_number));
  for (const StateRule& rule : w.rules) w.is_short = w.is_short && rule.is_short;
  Tiles tiles = one.compensation.defined() ? Tiles::Kahan : Tiles::Plain;
  for (const StateRule& rule : w.rules)
    if (rule.code.bits != 0 && !has_piece(rule.code.bits)) tiles = Tiles::Octets;
  w.slots = 1;
  const auto take_slot = [&](StateIndex i, bool needed) {
    w.slot_of[i] = needed ? w.slots++ : int8_t{-1};
  };
  take_slot(kWeight, true);
  w.slot_of[kMaster] = one.master.defined() ? w.slot_of[kWeight] : int8_t{-1};
  take_slot(kMoment1, one.moment1.defined());
  take_slot(kMoment2, one.moment2.defined());
  take_slot(kCompensation, one.compensation.defined());
  int64_t elements = 0;
  for (const OptimizerParameter& from : args.parameters) elements += from.weight.numel();
  // Where nothing is rounded but the weight, memory is what takes time.
  bool rounds = false;
  for (int i = kMaster; i < kStates; ++i) rounds |= w.rules[i].rounder.how != Rounder::How::Copy;
  const bool quads = takes_quads(w) && (elements <= kMostForQuads || !w.is_short || !rounds);
  const int64_t per_block = quads ? kThreads * kQuad : kThreads / kWarp * kSlot;
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
    launch_optimizer(stream, w, tiles, quads);
  }
}

}  // namespace ulp::cuda
