#pragma once

// What the kernels of an optimizer's step share: their work, how a block begins, the update of one element. optimizer_step.cu
// launches them.

#include <type_traits>

#include "core/step_state.h"
#include "kernels/cuda/state.cuh"
#include "kernels/functors.h"
#include "kernels/kernels.h"

namespace ulp::cuda::optimizer {

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

/// What lies behind the last whole tile of n elements. Kernels of tiles give it a block of its own, a parameter's last one: it
/// costs more than others, and starts beside them so.
__host__ __device__ constexpr int32_t tail_of(int64_t n) { return static_cast<int32_t>(n % kTile); }

/// Gradients of one launch: as many as fit its 4 KB of arguments beside the rest. They lie elsewhere in every step that is
/// not recorded; everything else that belongs to a parameter stays where it is and is a table in the device's memory.
inline constexpr int kMost = 192;

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

using Kernel = void (*)(Work);

/// Raises Work::amax, zeros before, to the largest magnitude of each gradient, by the blocks that will update its parameter.
Kernel amax_kernel();
/// Element-wise states in native types or in codes that ShortFloat serves: a quad a thread.
Kernel quads_kernel();
/// Where state_short.cuh serves all states, but perhaps not every number and place. A block takes kTile elements a warp, as in
/// tiles_kernel.
Kernel short_kernel(UpdateRule rule, bool kahan);
/// All states. octets: some have codes of a width that has no piece.
Kernel tiles_kernel(bool octets);

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
__device__ inline int parameter_of(const Work& w, int32_t block) {
  int found = 0;
  for (int begin = 0; begin < w.count; begin += kWarp) {
    const int i = begin + static_cast<int>(threadIdx.x) % kWarp;
    found += __popc(__ballot_sync(kFullWarp, i < w.count && w.table[i].first_block <= block));
  }
  return found - 1;
}

/// A copy by the threads of a warp, word by word.
__device__ inline void copy_parameter(const Parameter& from, Parameter& to) {
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

}  // namespace ulp::cuda::optimizer
