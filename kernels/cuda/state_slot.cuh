#pragma once

// Optimizer states in short forms, for whole, aligned pieces of 512 finite numbers a warp. Numbers wait in a slot of shared
// memory, so that one piece of code serves all states, whatever their formats, and little of it is in a thread's registers.
// What has no short form is the business of state.cuh.

#include <cuda_pipeline_primitives.h>

#include "kernels/cuda/state.cuh"

namespace ulp::cuda {

inline constexpr int kSlotQuads = 4;
inline constexpr int64_t kSlot = kSlotQuads * kRow;  // elements
using SlotValues = float[kSlotQuads][kQuad];

/// A warp's slot: quad j of a lane, elements j·128 + 4·lane …, is at[32 j + lane].
struct Slot {
  float4* at;

  __device__ float4* own() const { return at + threadIdx.x % kWarp; }
  __device__ void load(SlotValues& x) const {
#pragma unroll
    for (int j = 0; j < kSlotQuads; ++j) load(j, x[j]);
  }
  __device__ void store(const SlotValues& x) const {
#pragma unroll
    for (int j = 0; j < kSlotQuads; ++j) store(j, x[j]);
  }
  __device__ void load(int j, float (&x)[kQuad]) const {
    const float4 quad = own()[j * kWarp];
    x[0] = quad.x, x[1] = quad.y, x[2] = quad.z, x[3] = quad.w;
  }
  __device__ void store(int j, const float (&x)[kQuad]) const {
    own()[j * kWarp] = make_float4(x[0], x[1], x[2], x[3]);
  }
};

/// Calls body(j, k) for all elements of a thread.
template <class Body>
__device__ __forceinline__ void for_slot(const Body& body) {
#pragma unroll
  for (int j = 0; j < kSlotQuads; ++j)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) body(j, k);
}

/// zero, or NaN unless all are finite and stay so times `reach`.
template <int kCount>
__device__ __forceinline__ float beyond_reach(float reach, const float (&x)[kCount][kQuad],
                                              float zero) {
#pragma unroll
  for (int j = 0; j < kCount; ++j)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) zero = fmaf(x[j][k] * reach, 0.0f, zero);
  return zero;
}

/// What a state's bytes are: U8 for codes that are no native type's.
__device__ __forceinline__ DType kept_as(const StateRule& rule, const StateArray s) {
  return s.dtype == DType::U8 ? rule.native : s.dtype;
}
__device__ __forceinline__ int32_t kept_bits(const StateRule& rule, const StateArray s) {
  return s.dtype == DType::U8 ? rule.code.bits : 8 * static_cast<int32_t>(size_of(s.dtype));
}

/// Asks for the bytes of elements begin … begin + 511, as they lie in memory, at the slot's start. data: 16-byte aligned.
__device__ __forceinline__ void fetch_bytes(const void* data, int32_t bits, int64_t begin,
                                            Slot slot) {
  const char* from = static_cast<const char*>(data) + begin / 8 * bits;
  const int32_t bytes = static_cast<int32_t>(kSlot) / 8 * bits;
  for (int32_t at = static_cast<int32_t>(threadIdx.x) % kWarp * 16; at < bytes; at += kWarp * 16)
    __pipeline_memcpy_async(reinterpret_cast<char*>(slot.at) + at, from + at, 16);
}
__device__ __forceinline__ void fetch_slot(const StateRule& rule, const StateArray s, int64_t begin,
                                           Slot slot) {
  fetch_bytes(s.data, kept_bits(rule, s), begin, slot);
  if (rule.group != 0)
    asm volatile("prefetch.global.L1 [%0];" ::"l"(s.factors + (begin >> rule.group_shift)));
}

/// The words of this thread's quads, as fetch_bytes put them.
template <int kBits>
__device__ __forceinline__ void slot_words(Slot slot,
                                           uint32_t (&words)[kSlotQuads][kBits == 16 ? 2 : 1]) {
  const uint32_t lane = threadIdx.x % kWarp;
#pragma unroll
  for (int j = 0; j < kSlotQuads; ++j) {
    const uint32_t quad = static_cast<uint32_t>(j) * kWarp + lane;
    if constexpr (kBits == 16) {
      const uint2 both = reinterpret_cast<const uint2*>(slot.at)[quad];
      words[j][0] = both.x, words[j][1] = both.y;
    } else if constexpr (kBits == 8) {
      words[j][0] = reinterpret_cast<const uint32_t*>(slot.at)[quad];
    } else {
      words[j][0] = reinterpret_cast<const uint16_t*>(slot.at)[quad];
    }
  }
  __syncwarp();  // before anybody writes numbers there
}

/// Calls body.operator()<bits>() for the widths that are pieces.
template <class Body>
__device__ __forceinline__ void for_piece(int32_t bits, const Body& body) {
  if (bits == 8) return body.template operator()<8>();
  if (bits == 4) return body.template operator()<4>();
  body.template operator()<16>();
}
template <int kBits>
__device__ __forceinline__ uint32_t code_in(const uint32_t (&words)[kBits == 16 ? 2 : 1], int k) {
  constexpr int kOfWord = kBits == 16 ? 2 : 4;
  return words[k / kOfWord] >> (k % kOfWord * kBits) & low_bits(kBits);
}

/// Bytes of a narrow native type → numbers.
__device__ __forceinline__ void decode_native(DType dtype, Slot slot) {
  for_type(dtype, [&]<DType kType>() {
    if constexpr (size_of(kType) < 4) {
      uint32_t words[kSlotQuads][size_of(kType)];
      slot_words<8 * static_cast<int>(size_of(kType))>(slot, words);
#pragma unroll
      for (int j = 0; j < kSlotQuads; ++j) {
        QuadWords<size_of(kType)> quad;
        if constexpr (size_of(kType) == 2)
          quad = {make_uint2(words[j][0], words[j][1])};
        else
          quad = {words[j][0]};
        float x[kQuad];
        decode_quad<kType>(quad, x);
        slot.store(j, x);
      }
    }
  });
}

/// What fetch_slot brought → numbers. True for codes of Inf and NaN, which make wrong ones; native types have the right ones.
__device__ __forceinline__ bool decode_slot(const StateRule& rule, const StateLookup& lookup,
                                            StateArray s, int64_t begin, Slot slot) {
  const DType dtype = kept_as(rule, s);
  bool special = false;
  if (dtype != DType::U8) {
    decode_native(dtype, slot);
  } else {
    for_piece(rule.code.bits, [&]<int kBits>() {
      uint32_t words[kSlotQuads][kBits == 16 ? 2 : 1];
      slot_words<kBits>(slot, words);
      const bool table = rule.tree.size != 0;
      const ShortFloat quick = rule.quick;
      uint32_t most = 0;
#pragma unroll
      for (int j = 0; j < kSlotQuads; ++j) {
        float x[kQuad];
#pragma unroll
        for (int k = 0; k < kQuad; ++k) {
          const uint32_t code = code_in<kBits>(words[j], k);
          if (table) {
            x[k] = lookup.numbers[code & 0xFFu];
          } else {
            const uint32_t magnitude = code & (quick.sign - 1);
            most = max(most, magnitude);
            x[k] = float_of(bits_of(quick.scaled(magnitude) * quick.unit) | quick.float_sign(code));
          }
        }
        slot.store(j, x);
      }
      special = !table && most >= quick.limit;
    });
  }
  if (rule.group == 0) return special;
  const int64_t first = begin + static_cast<int64_t>(threadIdx.x) % kWarp * kQuad;
  float factor[kSlotQuads];
#pragma unroll
  for (int j = 0; j < kSlotQuads; ++j)
    factor[j] = s.factors[(first + j * kRow) >> rule.group_shift];
  SlotValues x;
  slot.load(x);
  for_slot([&](int j, int k) { x[j][k] *= factor[j]; });
  slot.store(x);
  return special;
}

/// Rounds what a slot holds, finite numbers.
__device__ __noinline__ inline void round_slot(const Rounder& rounder, const RandomSource& random,
                                               int64_t begin, Slot slot) {
  SlotValues x;
  slot.load(x);
  round_quads_short(rounder, random, begin + static_cast<int64_t>(threadIdx.x) % kWarp * kQuad,
                    kRow, x);
  slot.store(x);
}

/// most[j] = the largest |x| in the group of quad j. Called by whole warps.
__device__ __forceinline__ void slot_amax(int32_t group, const SlotValues& x,
                                          uint32_t (&most)[kSlotQuads]) {
#pragma unroll
  for (int j = 0; j < kSlotQuads; ++j) {
    most[j] = bits_of(x[j][0]) & ~kSignBit;
#pragma unroll
    for (int k = 1; k < kQuad; ++k) most[j] = max(most[j], bits_of(x[j][k]) & ~kSignBit);
  }
  if (group == 2 * kRow) {
#pragma unroll
    for (int j = 0; j < kSlotQuads; j += 2) most[j] = most[j + 1] = max(most[j], most[j + 1]);
  }
  for (int lanes = 1; lanes < kWarp && lanes * kQuad < group; lanes *= 2)
#pragma unroll
    for (int j = 0; j < kSlotQuads; ++j)
      most[j] = max(most[j], __shfl_xor_sync(kFullWarp, most[j], lanes));
}

/// Where a state's bytes of this thread's quad j are.
template <class Words>
__device__ __forceinline__ Words* bytes_of(const StateArray s, int64_t begin, int j) {
  return static_cast<Words*>(s.data) + begin / kQuad + j * kWarp + threadIdx.x % kWarp;
}

/// Rounds the finite numbers of a slot, within the rule's reach, and stores them; they become what is stored if `values`.
/// Called by whole warps.
__device__ __forceinline__ void keep_slot(const StateRule& rule, const StateLookup& lookup,
                                          const StateArray s, RandomSource random, int64_t begin,
                                          bool values, Slot slot) {
  random.stream = s.stream;
  const DType dtype = kept_as(rule, s);
  const int64_t first = begin + static_cast<int64_t>(threadIdx.x) % kWarp * kQuad;
  float factor[kSlotQuads];
  if (rule.group != 0) {
    SlotValues x;
    slot.load(x);
    uint32_t amax[kSlotQuads];
    slot_amax(rule.group, x, amax);
#pragma unroll
    for (int j = 0; j < kSlotQuads; ++j) {
      const BlockScale scale = block_scale(rule.block, amax[j], 1.0f);
      factor[j] = scale.factor;
      if ((static_cast<int32_t>(first + j * kRow) & (rule.group - 1)) == 0)
        s.factors[(first + j * kRow) >> rule.group_shift] = scale.factor;
#pragma unroll
      for (int k = 0; k < kQuad; ++k) x[j][k] *= scale.before;
    }
    slot.store(x);
  }
  bool done = false;
  if (rule.converts && dtype == rule.native) {
    for_type(dtype, [&]<DType kType>() {
      if constexpr (kRounds<kType>) {
        done = true;
#pragma unroll
        for (int j = 0; j < kSlotQuads; ++j) {
          float x[kQuad];
          slot.load(j, x);
          const auto words = convert_quad<kType>(x);
          *bytes_of<QuadWords<size_of(kType)>>(s, begin, j) = words;
          if (!values) continue;
          decode_quad<kType>(words, x);
          slot.store(j, x);
        }
      }
    });
  }
  if (!done && dtype != DType::U8) {
    if (rule.rounder.how != Rounder::How::Copy) round_slot(rule.rounder, random, begin, slot);
    for_type(dtype, [&]<DType kType>() {
#pragma unroll
      for (int j = 0; j < kSlotQuads; ++j) {
        float x[kQuad];
        slot.load(j, x);
        *bytes_of<QuadWords<size_of(kType)>>(s, begin, j) = encode_quad<kType>(x);
      }
    });
  } else if (!done) {
    SlotValues x;
    uint32_t code[kSlotQuads][kQuad];
    if (rule.tree.size != 0) {
      TableTree tree = rule.tree;
      tree.steps = lookup.steps;
      tree.numbers = lookup.numbers;
      slot.load(x);
      round_to_table(rule.rounder, tree, random, first, kRow, x, code);
      if (values) slot.store(x);
    } else {
      round_slot(rule.rounder, random, begin, slot);
      slot.load(x);
      const ShortFloat quick = rule.quick;
      for_slot([&](int j, int k) {
        // Inf has the first code that is no number's.
        const uint32_t scaled = bits_of(fabsf(x[j][k]) * quick.inverse_unit);
        code[j][k] = min(scaled >> quick.drop, quick.limit) | quick.sign_of(x[j][k]);
      });
    }
    for_piece(rule.code.bits, [&]<int kBits>() {
#pragma unroll
      for (int j = 0; j < kSlotQuads; ++j) {
        const uint32_t(&c)[kQuad] = code[j];
        if constexpr (kBits == 16)
          *bytes_of<uint2>(s, begin, j) = make_uint2(c[0] | c[1] << 16, c[2] | c[3] << 16);
        else if constexpr (kBits == 8)
          *bytes_of<uint32_t>(s, begin, j) = c[0] | c[1] << 8 | c[2] << 16 | c[3] << 24;
        else
          *bytes_of<uint16_t>(s, begin, j) =
              static_cast<uint16_t>(c[0] | c[1] << 4 | c[2] << 8 | c[3] << 12);
      }
    });
  }
  if (!values || rule.group == 0) return;
  SlotValues x;
  slot.load(x);
  for_slot([&](int j, int k) { x[j][k] *= factor[j]; });
  slot.store(x);
}

}  // namespace ulp::cuda
