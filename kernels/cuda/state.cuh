#pragma once

// An optimizer's states as its kernel sees them. A warp takes tiles of 256 elements, two quads a thread: in two rows of 128,
// so that every access of the warp is one piece, or (octets) eight neighbours, whose codes fill whole bytes whatever their
// size. Groups of up to 256 elements lie in one tile.

#include "core/packed.h"
#include "kernels/cuda/quads.cuh"
#include "kernels/cuda/short_float.cuh"
#include "kernels/cuda/table_tree.cuh"
#include "kernels/state_code.h"

namespace ulp::cuda {

inline constexpr int kTileQuads = 2;
inline constexpr int64_t kTile = kTileQuads * kRow;
using Values = float[kTileQuads][kQuad];
using Codes = uint32_t[kTileQuads][kQuad];

/// What a state's bytes are, where state_short.cuh serves it: numbers of a native type or codes.
enum class StateBytes : uint8_t { None, F32, BF16, F16, E4M3, E5M2, Codes16, Codes8, Codes4 };

/// 2^this bytes hold a quad.
__host__ __device__ constexpr int8_t quad_shift(StateBytes bytes) {
  switch (bytes) {
    case StateBytes::F32: return 4;
    case StateBytes::BF16:
    case StateBytes::F16:
    case StateBytes::Codes16: return 3;
    case StateBytes::Codes4: return 1;
    default: return 2;
  }
}

__host__ __device__ constexpr StateBytes native_bytes(DType dtype) {
  switch (dtype) {
    case DType::F32: return StateBytes::F32;
    case DType::BF16: return StateBytes::BF16;
    case DType::F16: return StateBytes::F16;
    case DType::F8E4M3: return StateBytes::E4M3;
    case DType::F8E5M2: return StateBytes::E5M2;
    default: return StateBytes::None;
  }
}

/// How all states of one kind are rounded and kept, whatever parameter they belong to.
struct StateRule {
  Rounder rounder;       // its stream apart
  CodeRule code;         // bits 0: they are kept in a native type
  ShortFloat quick;      // of the code
  const float* numbers;  // of all codes of up to 8 bits
  TableSteps table;      // of tables, unless fewer bits than a word are drawn
  BlockRule block;       // of groups
  int32_t group;         // elements, a power of two; 0: no groups
  int32_t group_shift;   // its exponent

  // For state_short.cuh.
  StateBytes bytes;  // None: it has no short form
  int8_t shift;      // 2^shift bytes hold a quad of them
  bool as_is;        // one conversion makes numbers these bytes: it rounds, or nothing does
  bool converts;     // the hardware's rounding to the bytes' type is this rule's, within reach
  float reach;       // what multiplies a number out of fp32 if it is beyond
};

/// One state's memory. data: null where there is none.
struct StateArray {
  void* data;
  float* factors;
  uint32_t stream;  // with its ordinal
  DType dtype;
  bool aligned;
  uint16_t unused;  // no padding: parameters are compared byte by byte

  __device__ Source source() const { return {data, dtype, aligned}; }
  __device__ Sink sink() const { return {data, dtype, aligned}; }
};

/// What threads of a block look up of one state.
struct StateLookup {
  float numbers[256], steps[StepBuckets::kSteps];
  alignas(sizeof(uint32_t)) uint8_t starts[StepBuckets::kBuckets];

  /// Called by all threads of a block; they wait before they read.
  __device__ void load(const StateRule& rule) {
    const int i = static_cast<int>(threadIdx.x);
    static_assert(kThreads == 256);
    if (rule.code.bits == 0 || rule.code.bits > 8) return;
    const bool table = rule.code.kind == CodeRule::Kind::Table;
    if (i < (table ? rule.code.table_size : 1 << rule.code.bits)) numbers[i] = rule.numbers[i];
    static_assert(sizeof(starts) == kThreads * sizeof(uint32_t));
    if (rule.table.size == 0) return;
    steps[i] = rule.table.steps[i];
    reinterpret_cast<uint32_t*>(starts)[i] =
        reinterpret_cast<const uint32_t*>(rule.table.starts)[i];
  }
};

/// 256 elements of an array of n.
template <bool kOctets>
struct Tile {
  int64_t begin, n;

  __device__ bool whole() const { return begin + kTile <= n; }
  /// The first element of this thread's quad j.
  __device__ int64_t at(int j) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    return begin + (kOctets ? lane * kTileQuads * kQuad + j * kQuad : j * kRow + lane * kQuad);
  }
  __device__ int count(int j) const { return quad_count(at(j), n); }
};

/// Quads as they lie in memory: asked for first, so that no load waits for another one's numbers.
struct RawQuads {
  uint32_t word[kTileQuads][kQuad];
};

// ---- native types ---------------------------------------------------------------------------------------------------
template <bool kOctets>
__device__ __forceinline__ void fetch(const Source& s, const Tile<kOctets>& tile, RawQuads& raw) {
  if (!s.aligned || !tile.whole()) {
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        raw.word[j][k] =
            k < tile.count(j) ? bits_of(load_one(s.data, s.dtype, tile.at(j) + k)) : 0u;
    return;
  }
#pragma unroll
  for (int j = 0; j < kTileQuads; ++j) {
    const int64_t quad = tile.at(j) / kQuad;
    switch (size_of(s.dtype)) {
      case 4: {
        const uint4 w = reinterpret_cast<const uint4*>(s.data)[quad];
        raw.word[j][0] = w.x, raw.word[j][1] = w.y, raw.word[j][2] = w.z, raw.word[j][3] = w.w;
        break;
      }
      case 2: {
        const uint2 w = reinterpret_cast<const uint2*>(s.data)[quad];
        raw.word[j][0] = w.x, raw.word[j][1] = w.y;
        break;
      }
      default: raw.word[j][0] = reinterpret_cast<const uint32_t*>(s.data)[quad];
    }
  }
}

template <bool kOctets>
__device__ __forceinline__ void numbers_of(const Source& s, const Tile<kOctets>& tile,
                                           const RawQuads& raw, Values& x) {
  const DType dtype = s.aligned && tile.whole() ? s.dtype : DType::F32;
  for_type(dtype, [&]<DType kType>() {
    constexpr int kBits = 8 * static_cast<int>(size_of(kType)), kOfWord = 32 / kBits;
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        const uint32_t word = raw.word[j][k / kOfWord] >> (k % kOfWord * kBits);
        x[j][k] = decode(kBits == 32 ? word : word & ((1u << (kBits % 32)) - 1u), kType);
      }
  });
}

/// y: canonical.
template <bool kOctets>
__device__ __forceinline__ void store(const Sink& s, const Tile<kOctets>& tile, const Values& y) {
  if (!s.aligned || !tile.whole()) {
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        if (k < tile.count(j)) store_one(s.data, s.dtype, tile.at(j) + k, y[j][k]);
    return;
  }
  for_type(s.dtype, [&]<DType kType>() {
    auto* words = reinterpret_cast<QuadWords<size_of(kType)>*>(s.data);
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j) words[tile.at(j) / kQuad] = encode_quad<kType>(y[j]);
  });
}

// ---- rounding -------------------------------------------------------------------------------------------------------
/// Rounds quads, `step` elements apart, to a table's numbers and tells which they are.
template <int kCount>
__device__ __forceinline__ void round_to_table(const Rounder& rounder, const TableSteps& table,
                                               const StateLookup& lookup,
                                               const RandomSource& random, int64_t first,
                                               int64_t step, float (&x)[kCount][kQuad],
                                               uint32_t (&code)[kCount][kQuad]) {
  const bool stochastic = rounder.grid.rounding == Rounding::Stochastic;
  const int32_t last = table.size - 1;
  const float lowest = lookup.numbers[0], highest = lookup.numbers[last];
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    int32_t found[kQuad];
    table.buckets.find(lookup.steps, lookup.starts, x[j], found);
    PhiloxWords words{};
    if (stochastic) words = random.words(static_cast<uint64_t>(first + j * step) / kQuad);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const float value = x[j][k];
      int32_t at = found[k];
      if (stochastic) {
        at = min(at, last - 1);
        const float low = lookup.numbers[at];
        if (value > low && drawn_between(value, low, lookup.numbers[at + 1], words.word[k]) != low)
          ++at;
      }
      at = value <= lowest ? 0 : value >= highest ? last : at;
      const bool finite = (bits_of(value) & ~kSignBit) < kInfinityBits;
      x[j][k] = finite ? lookup.numbers[at] : float_of(kNanBits);
      code[j][k] = finite ? static_cast<uint32_t>(at) : 0u;
    }
  }
}

/// most[j]: that of quad j → that of its group. Called by whole warps.
template <bool kOctets>
__device__ __forceinline__ void join_groups(int32_t group, uint32_t (&most)[kTileQuads]) {
  const auto join = [&] { most[0] = most[1] = max(most[0], most[1]); };
  constexpr int kOfLane = kOctets ? kTileQuads * kQuad : kQuad;
  if (kOctets && group >= kOfLane) join();
  if (!kOctets && group == kTile) join();
  for (int lanes = 1; lanes < kWarp && lanes * kOfLane < group; lanes *= 2)
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j)
      most[j] = max(most[j], __shfl_xor_sync(kFullWarp, most[j], lanes));
}

/// most[j] = the largest |x| in the group of quad j. Called by whole warps.
template <bool kOctets>
__device__ __forceinline__ void group_amax(int32_t group, const Tile<kOctets>& tile,
                                           const Values& x, uint32_t (&most)[kTileQuads]) {
#pragma unroll
  for (int j = 0; j < kTileQuads; ++j) {
    most[j] = 0;
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      most[j] = max(most[j], k < tile.count(j) ? bits_of(x[j][k]) & ~kSignBit : 0u);
  }
  join_groups<kOctets>(group, most);
}
static_assert(kTileQuads == 2);

// ---- codes ----------------------------------------------------------------------------------------------------------
/// Widths whose quads fill whole bytes of their own, in pieces that one access moves.
__host__ __device__ inline bool has_piece(int32_t bits) {
  return bits == 4 || bits == 8 || bits == 16;
}

template <bool kOctets>
__device__ __forceinline__ void fetch_pieces(const StateArray& s, int32_t bits,
                                             const Tile<kOctets>& tile, RawQuads& raw) {
  const bool quick = s.aligned && tile.whole();
#pragma unroll
  for (int j = 0; j < kTileQuads; ++j) {
    const uint8_t* at = static_cast<const uint8_t*>(s.data) + tile.at(j) / kQuad * bits / 2;
    raw.word[j][0] = raw.word[j][1] = 0;
    if (!quick) {
      uint64_t piece = 0;
      for (int byte = 0; byte < (tile.count(j) * bits + 7) / 8; ++byte)
        piece |= uint64_t{at[byte]} << (8 * byte);
      raw.word[j][0] = static_cast<uint32_t>(piece);
      raw.word[j][1] = static_cast<uint32_t>(piece >> 32);
    } else if (bits == 8) {
      raw.word[j][0] = *reinterpret_cast<const uint32_t*>(at);
    } else if (bits == 4) {
      raw.word[j][0] = *reinterpret_cast<const uint16_t*>(at);
    } else {
      const uint2 both = *reinterpret_cast<const uint2*>(at);
      raw.word[j][0] = both.x, raw.word[j][1] = both.y;
    }
  }
}

template <bool kOctets>
__device__ __forceinline__ void store_pieces(const StateArray& s, int32_t bits,
                                             const Tile<kOctets>& tile, const Codes& code) {
  const bool quick = s.aligned && tile.whole();
#pragma unroll
  for (int j = 0; j < kTileQuads; ++j) {
    uint8_t* at = static_cast<uint8_t*>(s.data) + tile.at(j) / kQuad * bits / 2;
    const uint32_t(&c)[kQuad] = code[j];
    if (!quick) {
      uint64_t piece = 0;
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        if (k < tile.count(j)) piece |= uint64_t{c[k]} << (k * bits);
      for (int byte = 0; byte < (tile.count(j) * bits + 7) / 8; ++byte)
        at[byte] = static_cast<uint8_t>(piece >> (8 * byte));
    } else if (bits == 8) {
      *reinterpret_cast<uint32_t*>(at) = c[0] | c[1] << 8 | c[2] << 16 | c[3] << 24;
    } else if (bits == 4) {
      *reinterpret_cast<uint16_t*>(at) =
          static_cast<uint16_t>(c[0] | c[1] << 4 | c[2] << 8 | c[3] << 12);
    } else {
      *reinterpret_cast<uint2*>(at) = make_uint2(c[0] | c[1] << 16, c[2] | c[3] << 16);
    }
  }
}

/// Codes of any width: the eight elements of a thread, byte by byte.
__device__ __noinline__ inline uint32_t code_at(const uint8_t* octet, int32_t first_bit,
                                                int32_t bits) {
  uint64_t word = 0;
  const int32_t begin = first_bit / 8, end = (first_bit + bits - 1) / 8;
  for (int32_t byte = begin; byte <= end; ++byte)
    word |= uint64_t{octet[byte]} << (8 * (byte - begin));
  return static_cast<uint32_t>(word >> (first_bit % 8)) & low_bits(bits);
}

__device__ __forceinline__ void fetch_octet(const StateArray& s, int32_t bits,
                                            const Tile<true>& tile, RawQuads& raw) {
  const uint8_t* octet = static_cast<const uint8_t*>(s.data) + tile.at(0) / 8 * bits;
#pragma unroll
  for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      raw.word[j][k] = k < tile.count(j) ? code_at(octet, (j * kQuad + k) * bits, bits) : 0u;
}

__device__ __forceinline__ void store_octet(const StateArray& s, int32_t bits,
                                            const Tile<true>& tile, const Codes& code) {
  uint8_t* out = static_cast<uint8_t*>(s.data) + tile.at(0) / 8 * bits;
  uint64_t waiting = 0;
  int32_t count = 0;  // of bits waiting
#pragma unroll
  for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      if (k >= tile.count(j)) break;
      waiting |= uint64_t{code[j][k]} << count;
      for (count += bits; count >= 8; count -= 8, waiting >>= 8)
        *out++ = static_cast<uint8_t>(waiting);
    }
  if (count > 0) *out = static_cast<uint8_t>(waiting);
}

__device__ __noinline__ inline uint32_t code_of_any(const CodeRule& rule, float y) {
  return number_code(rule, y);
}
__device__ __noinline__ inline float number_of_any(const CodeRule& rule, uint32_t code) {
  return decode(rule, code);
}

// ---- states ---------------------------------------------------------------------------------------------------------
template <bool kOctets>
__device__ __forceinline__ void fetch_state(const StateRule& rule, const StateArray& s,
                                            const Tile<kOctets>& tile, RawQuads& raw) {
  if (s.dtype == DType::U8) {
    if constexpr (kOctets) {
      if (!has_piece(rule.code.bits)) return fetch_octet(s, rule.code.bits, tile, raw);
    }
    return fetch_pieces(s, rule.code.bits, tile, raw);
  }
  fetch(s.source(), tile, raw);
}

template <bool kOctets>
__device__ __noinline__ void read_state(const StateRule& rule, const StateLookup* lookup,
                                        const StateArray& s, const Tile<kOctets>& tile,
                                        const RawQuads& raw, Values& x) {
  if (s.dtype == DType::U8) {
    const int32_t bits = rule.code.bits;
#pragma unroll
    for (int j = 0; j < kTileQuads; ++j) {
      uint32_t code[kQuad];
      if (!has_piece(bits)) {
#pragma unroll
        for (int k = 0; k < kQuad; ++k) code[k] = raw.word[j][k];
      } else {
        const uint64_t piece = raw.word[j][0] | uint64_t{raw.word[j][1]} << 32;
#pragma unroll
        for (int k = 0; k < kQuad; ++k)
          code[k] = static_cast<uint32_t>(piece >> (k * bits)) & low_bits(bits);
      }
      bool finite = rule.quick.serves;
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        const uint32_t magnitude = code[k] & (rule.quick.sign - 1);
        finite = finite && magnitude < rule.quick.limit;
        x[j][k] = float_of(bits_of(rule.quick.scaled(magnitude) * rule.quick.unit) |
                           rule.quick.float_sign(code[k]));
      }
      if (!finite) {
#pragma unroll
        for (int k = 0; k < kQuad; ++k)
          x[j][k] = bits <= 8 ? lookup->numbers[code[k]] : number_of_any(rule.code, code[k]);
      }
      if (rule.group != 0) {
        const int64_t i = tile.at(j);
        const float factor = i < tile.n ? s.factors[i >> rule.group_shift] : 1.0f;
#pragma unroll
        for (int k = 0; k < kQuad; ++k) x[j][k] = grouped_number(x[j][k], factor);
      }
      // What is not there is zero, whatever the code 0 stands for.
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        if (k >= tile.count(j)) x[j][k] = 0;
    }
    return;
  }
  numbers_of(s.source(), tile, raw, x);
}

/// Rounds x, which becomes what is stored, and stores it. Called by whole warps.
template <bool kOctets>
__device__ __noinline__ void write_state(const StateRule& rule, const StateLookup* lookup,
                                         const StateArray& s, RandomSource random,
                                         const Tile<kOctets>& tile, Values& x) {
  random.stream = s.stream;
  if (s.dtype == DType::U8) {
    float factor[kTileQuads];
    if (rule.group != 0) {
      uint32_t amax[kTileQuads];
      group_amax(rule.group, tile, x, amax);
#pragma unroll
      for (int j = 0; j < kTileQuads; ++j) {
        const BlockScale scale = block_scale(rule.block, amax[j], 1.0f);
        factor[j] = scale.factor;
        const int64_t i = tile.at(j);
        if (i < tile.n && (i & (rule.group - 1)) == 0)
          s.factors[i >> rule.group_shift] = scale.factor;
#pragma unroll
        for (int k = 0; k < kQuad; ++k) x[j][k] *= scale.before;
      }
    }
    Codes code;
    const int32_t bits = rule.code.bits;
    if (rule.table.size != 0) {
      round_to_table(rule.rounder, rule.table, *lookup, random, tile.at(0), tile.at(1) - tile.at(0),
                     x, code);
    } else {
      round_quads(rule.rounder, random, tile.at(0), tile.at(1) - tile.at(0), x);
#pragma unroll
      for (int j = 0; j < kTileQuads; ++j) {
        bool finite = rule.quick.serves;
#pragma unroll
        for (int k = 0; k < kQuad; ++k) {
          const uint32_t magnitude = rule.quick.magnitude(fabsf(x[j][k]) * rule.quick.inverse_unit);
          finite = finite && magnitude < rule.quick.limit;
          code[j][k] = magnitude | rule.quick.sign_of(x[j][k]);
        }
        if (!finite) {
#pragma unroll
          for (int k = 0; k < kQuad; ++k) {
            const uint32_t own = code_of_any(rule.code, x[j][k]);
            code[j][k] = own == kNoCode ? 0u : own;
          }
        }
      }
    }
    if (rule.group != 0) {
#pragma unroll
      for (int j = 0; j < kTileQuads; ++j)
#pragma unroll
        for (int k = 0; k < kQuad; ++k) {
          code[j][k] = grouped_code(code[j][k], factor[j]);
          x[j][k] = grouped_number(x[j][k], factor[j]);
        }
    }
    if constexpr (kOctets) {
      if (!has_piece(bits)) return store_octet(s, bits, tile, code);
    }
    return store_pieces(s, bits, tile, code);
  }
  round_quads(rule.rounder, random, tile.at(0), tile.at(1) - tile.at(0), x);
  store(s.sink(), tile, x);
}

}  // namespace ulp::cuda
