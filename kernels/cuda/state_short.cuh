#pragma once

// Optimizer states in short forms, for whole, aligned tiles of finite numbers, in registers: little code, because a kernel that
// knows all formats waits for its instructions as much as for its numbers. What has no short form is the business of state.cuh.

#include "kernels/cuda/state.cuh"

namespace ulp::cuda {

/// Calls body.operator()<type>() for bytes that the hardware converts, and tells whether they are of that kind.
template <class Body>
__device__ __forceinline__ bool for_native(StateBytes bytes, const Body& body) {
  switch (bytes) {
    case StateBytes::F32: body.template operator()<DType::F32>(); return true;
    case StateBytes::BF16: body.template operator()<DType::BF16>(); return true;
    case StateBytes::F16: body.template operator()<DType::F16>(); return true;
    case StateBytes::E4M3: body.template operator()<DType::F8E4M3>(); return true;
    case StateBytes::E5M2: body.template operator()<DType::F8E5M2>(); return true;
    default: return false;
  }
}

/// max(most, |x|); NaN if one of them is.
__device__ __forceinline__ float larger_magnitude(float most, float x) {
#if __CUDA_ARCH__ >= 800
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(most), "f"(fabsf(x)));
  return larger;
#else
  return x != x || fabsf(x) > most ? fabsf(x) : most;
#endif
}
__device__ __forceinline__ float largest_magnitude(const Values& x) {
  float most = 0;
#pragma unroll
  for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) most = larger_magnitude(most, x[j][k]);
  return most;
}

/// A whole tile as a thread of its warp sees it.
struct ShortTile {
  int64_t quad;  // the number of this thread's first quad; the second is kWarp further on
  __device__ explicit ShortTile(int64_t begin)
      : quad(begin / kQuad + static_cast<int64_t>(threadIdx.x % kWarp)) {}
  __device__ int64_t at(int j) const { return (quad + j * kWarp) * kQuad; }
};

/// A state's bytes and factors, asked for before anything waits for them. All have values, or a compiler keeps registers for
/// those of the tile before.
struct ShortBytes {
  uint32_t word[kTileQuads][kQuad] = {};
  float factor[kTileQuads] = {};
};

/// data: aligned for quads of 2^shift bytes.
__device__ __forceinline__ void fetch_short(int shift, const void* data, ShortTile tile,
                                            ShortBytes& to) {
  const auto load = [&]<class Words>() {
    const auto* const at = static_cast<const Words*>(data) + tile.quad;
    const Words words[kTileQuads] = {at[0], at[kWarp]};
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j) {
      if constexpr (sizeof(Words) == 16)
        to.word[j][0] = words[j].x, to.word[j][1] = words[j].y, to.word[j][2] = words[j].z,
        to.word[j][3] = words[j].w;
      else if constexpr (sizeof(Words) == 8)
        to.word[j][0] = words[j].x, to.word[j][1] = words[j].y;
      else
        to.word[j][0] = words[j];
    }
  };
  switch (shift) {
    case 4: return load.template operator()<uint4>();
    case 3: return load.template operator()<uint2>();
    case 2: return load.template operator()<uint32_t>();
    default: return load.template operator()<uint16_t>();
  }
}
__device__ __forceinline__ void fetch_short(const StateRule& rule, const StateArray& s,
                                            ShortTile tile, ShortBytes& to) {
  fetch_short(rule.shift, s.data, tile, to);
  if (rule.group == 0) return;
#pragma unroll
  for (int j = 0; j < kTileQuads; ++j) to.factor[j] = s.factors[tile.at(j) >> rule.group_shift];
}

template <DType kType>
__device__ __forceinline__ QuadWords<size_of(kType)> quad_words(const uint32_t (&word)[kQuad]) {
  if constexpr (size_of(kType) == 4)
    return {make_uint4(word[0], word[1], word[2], word[3])};
  else if constexpr (size_of(kType) == 2)
    return {make_uint2(word[0], word[1])};
  else
    return {word[0]};
}

/// Bytes of a native type → numbers; NaN of any kind.
__device__ __forceinline__ bool decode_native(StateBytes bytes, const ShortBytes& from, Values& x) {
  return for_native(bytes, [&]<DType kType>() {
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j) convert_back<kType>(quad_words<kType>(from.word[j]), x[j]);
  });
}

/// What fetch_short brought → numbers. Codes of Inf and NaN become Inf or NaN, of one kind or another.
__device__ __forceinline__ void decode_short(const StateRule& rule, const StateLookup& lookup,
                                             const ShortBytes& from, Values& x) {
  if (!decode_native(rule.bytes, from, x)) {
    if (rule.bytes == StateBytes::Codes16) {
      const ShortFloat& quick = rule.quick;
      uint32_t most = 0;
#pragma unroll
      for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
        for (int k = 0; k < kQuad; ++k) {
          const uint32_t code = from.word[j][k / 2] >> (16 * (k % 2)) & 0xFFFFu;
          const uint32_t magnitude = code & (quick.sign - 1);
          most = max(most, magnitude);
          x[j][k] =
              float_of(bits_of(quick.scaled(magnitude) * quick.unit) | quick.float_sign(code));
        }
      if (most >= quick.limit) x[0][0] = float_of(kNanBits);  // one is enough to be noticed
    } else {
      const int32_t bits = rule.bytes == StateBytes::Codes4 ? 4 : 8;
#pragma unroll
      for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
        for (int k = 0; k < kQuad; ++k)
          x[j][k] = lookup.numbers[from.word[j][0] >> (k * bits) & low_bits(bits)];
    }
  }
  if (rule.group == 0) return;
#pragma unroll
  for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[j][k] *= from.factor[j];
}

/// The same words; their schedule of keys is computed where they are drawn instead of kept in registers, which it would fill.
__device__ __forceinline__ RandomSource opaque(RandomSource random) {
  asm volatile("" : "+r"(random.key0), "+r"(random.key1));
  return random;
}

template <class T>
__device__ __forceinline__ void copy(const T (&from)[kTileQuads][kQuad],
                                     T (&to)[kTileQuads][kQuad]) {
#pragma unroll
  for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) to[j][k] = from[j][k];
}

/// Calls body(j, quad) for the quads one after the other: half the code, and half the registers.
template <class Body>
__device__ __forceinline__ void in_turn(Values& x, const Body& body) {
  static_assert(kTileQuads == 2);
#pragma unroll 1
  for (int j = 0; j < kTileQuads; ++j) {
    float quad[1][kQuad] = {};
#pragma unroll
    for (int k = 0; k < kQuad; ++k) quad[0][k] = x[0][k];
    body(j, quad);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[0][k] = x[1][k], x[1][k] = quad[0][k];
  }
}

/// Rounds finite numbers.
__device__ __forceinline__ void round_short(const Rounder& rounder, RandomSource random,
                                            ShortTile tile, Values& x) {
  random = opaque(random);
  in_turn(x, [&](int j, float(&quad)[1][kQuad]) {
    round_quads_short(rounder, random, tile.at(j), kRow, quad);
  });
}

/// Where a quad's bytes are.
template <class Words>
__device__ __forceinline__ Words& quad_bytes(const StateArray& s, int64_t quad) {
  return static_cast<Words*>(s.data)[quad];
}

/// Finite numbers, within the rule's reach, as bytes of a native type: one conversion each. They become what is stored if
/// `values`.
__device__ __forceinline__ void store_as_is(const StateRule& rule, const StateArray& s,
                                            ShortTile tile, bool values, Values& x) {
  for_native(rule.bytes, [&]<DType kType>() {
    using Words = QuadWords<size_of(kType)>;
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j) {
      Words words;
      if constexpr (kRounds<kType>)
        words = convert_quad<kType>(x[j]);
      else
        words = encode_quad<kType>(x[j]);
      quad_bytes<Words>(s, tile.quad + j * kWarp) = words;
      if (values && kType != DType::F32) convert_back<kType>(words, x[j]);
    }
  });
}

/// Rounds a quad of finite numbers, element `first` on, and stores it; it becomes what is stored.
__device__ __forceinline__ void store_rounded(const StateRule& rule, const StateLookup& lookup,
                                              const StateArray& s, const RandomSource& random,
                                              int64_t first, float (&x)[1][kQuad]) {
  const bool search = rule.table.size != 0;
  uint32_t code[1][kQuad] = {};
  uint32_t(&c)[kQuad] = code[0];
  if (search) {
    round_to_table(rule.rounder, rule.table, lookup, random, first, kRow, x, code);
  } else {
    round_quads_short(rule.rounder, random, first, kRow, x);
  }
  const int64_t quad = first / kQuad;
  const bool native = for_native(rule.bytes, [&]<DType kType>() {
    quad_bytes<QuadWords<size_of(kType)>>(s, quad) = encode_quad<kType>(x[0]);
  });
  if (native) return;
  if (!search) {
    const ShortFloat& quick = rule.quick;
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      // Inf has the first code that is no number's.
      const uint32_t scaled = bits_of(fabsf(x[0][k]) * quick.inverse_unit);
      c[k] = min(scaled >> quick.drop, quick.limit) | quick.sign_of(x[0][k]);
    }
  }
  if (rule.bytes == StateBytes::Codes16)
    quad_bytes<uint2>(s, quad) = make_uint2(c[0] | c[1] << 16, c[2] | c[3] << 16);
  else if (rule.bytes == StateBytes::Codes8)
    quad_bytes<uint32_t>(s, quad) = c[0] | c[1] << 8 | c[2] << 16 | c[3] << 24;
  else
    quad_bytes<uint16_t>(s, quad) =
        static_cast<uint16_t>(c[0] | c[1] << 4 | c[2] << 8 | c[3] << 12);
}

/// Rounds finite numbers, within the rule's reach, and stores them; they become what is stored if `values`. Called by whole
/// warps, and from one place: it is much code.
__device__ __forceinline__ void keep_short(const StateRule& rule, const StateLookup& lookup,
                                           const StateArray& s, RandomSource random, ShortTile tile,
                                           bool values, Values& x) {
  float factor[kTileQuads] = {};
  if (rule.group != 0) {
    uint32_t amax[kTileQuads];
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j) {
      amax[j] = bits_of(x[j][0]) & ~kSignBit;
#pragma unroll
      for (int k = 1; k < kQuad; ++k) amax[j] = max(amax[j], bits_of(x[j][k]) & ~kSignBit);
    }
    join_groups<false>(rule.group, amax);
    BlockScale scale;
#pragma unroll 1
    for (int j = 0; j < kTileQuads; ++j) {
      // Quads of one group have one scale.
      if (j == 0 || rule.group != kTile) scale = block_scale(rule.block, amax[0], 1.0f);
      if ((static_cast<int32_t>(tile.at(j)) & (rule.group - 1)) == 0)
        s.factors[tile.at(j) >> rule.group_shift] = scale.factor;
#pragma unroll  // in turn: the second comes to the first one's place
      for (int k = 0; k < kQuad; ++k) {
        const float scaled = x[0][k] * scale.before;
        x[0][k] = x[1][k], x[1][k] = scaled;
      }
      amax[0] = amax[1];
      factor[0] = factor[1], factor[1] = scale.factor;
    }
  }
  if (rule.as_is) {
    store_as_is(rule, s, tile, values, x);
  } else {
    random = opaque(random);
    in_turn(x, [&](int j, float(&quad)[1][kQuad]) {
      store_rounded(rule, lookup, s, random, tile.at(j), quad);
    });
  }
  if (!values || rule.group == 0) return;
#pragma unroll
  for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[j][k] *= factor[j];
}

}  // namespace ulp::cuda
