// Packed codes (core/packed.h). Whole segments of floats and integers of 4, 6, 8 and 16 bits, whose quads lie in one block
// each, are coded in short arithmetic; what that does not serve, and everything else, by the definition.

#include "core/packed.h"
#include "kernels/cuda/rounder.cuh"
#include "kernels/cuda/segment.cuh"
#include "kernels/cuda/short_float.cuh"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

constexpr int32_t kSegmentShift = 10;
static_assert(kSegment == 1 << kSegmentShift);

/// Where blocks lie. Runs: element i is in block i >> run_shift.
struct Places {
  BlockMap map;
  int32_t run_shift;  // −1: no such thing
  bool keeps_quads;   // four neighbours from a multiple of four on are in one block

  __device__ __forceinline__ int64_t block(int64_t i) const {
    return run_shift >= 0 ? i >> run_shift : far_block(i);
  }

 private:
  /// Out of line: divisions are long.
  __device__ __noinline__ int64_t far_block(int64_t i) const { return map.block_of(i); }
};

/// What codes mean.
struct Coding {
  CodeRule rule;
  Places places;
  PackedScale kind;
  const uint8_t* scales;  // codes of `numbers`
  const float* factors;   // Factor
  float factor;
  const float* device_factor;  // instead of `factor`, unless null
  float numbers[256];

  enum class Form : uint8_t { None, Half, Fields, Integer };
  Form packs, unpacks;       // the short forms that serve
  HalfFloat half;            // Half
  ShortFloat quick;          // Fields
  float unit, inverse_unit;  // Integer: numbers over integers, and back
};
using Form = Coding::Form;

struct ScaleOf {
  float scale, factor;
};

/// The scales of one block. numbers: coding.numbers, in shared memory.
__device__ __forceinline__ ScaleOf scale_of(const Coding& c, const float* numbers, int64_t block) {
  const float last = c.device_factor != nullptr ? *c.device_factor : c.factor;
  if (c.kind == PackedScale::None) return {1.0f, last};
  if (c.kind != PackedScale::Factor) return {numbers[c.scales[block]], last};
  const float factor = c.factors[block];
  return {factor != factor ? factor : 1.0f, factor};
}

__device__ __forceinline__ const float* shared_numbers(const Coding& c) {
  __shared__ float numbers[256];
  static_assert(kThreads == 256);
  numbers[threadIdx.x] = c.numbers[threadIdx.x];
  __syncthreads();
  return numbers;
}

// ---- by the definition ----------------------------------------------------------------------------------------------
constexpr int64_t kOctet = 8;  // elements: their codes fill whole bytes

__device__ __noinline__ uint32_t code_of(const CodeRule& rule, float value, float scale) {
  return encode_scaled(rule, value, scale);
}
__device__ __noinline__ float number_of(const CodeRule& rule, uint32_t code, float scale,
                                        float factor) {
  return decode_scaled(rule, code, scale, factor);
}

/// The code, or 0 after *no_code was told that there is none.
__device__ __forceinline__ uint32_t told_code(uint32_t code, int64_t i,
                                              unsigned long long* no_code) {
  if (code != kNoCode) return code;
  atomicMin(no_code, static_cast<unsigned long long>(i));
  return 0;
}

/// Elements from `first` on, a multiple of eight.
__global__ void __launch_bounds__(kThreads)
    pack_any_kernel(Source values, const __grid_constant__ Coding c, int64_t first, int64_t n,
                    uint8_t* codes, unsigned long long* no_code) {
  const float* numbers = shared_numbers(c);
  const int32_t bits = c.rule.bits;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kOctet;
  for (int64_t begin = first + (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kOctet;
       begin < n; begin += step) {
    uint8_t* out = codes + begin / kOctet * bits;
    uint64_t waiting = 0;
    int32_t count = 0;  // of bits waiting
    for (int64_t i = begin; i < min(begin + kOctet, n); ++i) {
      const ScaleOf s = scale_of(c, numbers, c.places.block(i));
      const float value = load_one(values.data, values.dtype, i);
      waiting |= uint64_t{told_code(code_of(c.rule, value, s.scale), i, no_code)} << count;
      for (count += bits; count >= 8; count -= 8, waiting >>= 8)
        *out++ = static_cast<uint8_t>(waiting);
    }
    if (count > 0) *out = static_cast<uint8_t>(waiting);
  }
}

__global__ void __launch_bounds__(kThreads)
    unpack_any_kernel(const uint8_t* codes, const __grid_constant__ Coding c, int64_t first,
                      int64_t n, float* values) {
  const float* numbers = shared_numbers(c);
  const int32_t bits = c.rule.bits;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = first + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += step) {
    const int64_t octet = i / kOctet;
    const int32_t at = static_cast<int32_t>(i % kOctet) * bits;
    uint64_t word = 0;
    for (int32_t byte = at / 8; byte <= (at + bits - 1) / 8; ++byte)
      word |= uint64_t{codes[octet * bits + byte]} << (8 * (byte - at / 8));
    const uint32_t code = static_cast<uint32_t>(word >> (at % 8)) & low_bits(bits);
    const ScaleOf s = scale_of(c, numbers, c.places.block(i));
    values[i] = number_of(c.rule, code, s.scale, s.factor);
  }
}

// ---- short forms ----------------------------------------------------------------------------------------------------
/// 1 / scale within a few units in the last place, exact for powers of two. What it makes is checked.
__device__ __forceinline__ float inverse_of(float scale) {
  float inverse;
  asm("rcp.approx.f32 %0, %1;" : "=f"(inverse) : "f"(scale));
  return inverse;
}

/// Four codes of kBits bits each in one piece of the stream; 6 bits: in bits 0 … 23.
template <int kBits>
__device__ __forceinline__ uint64_t piece_of(const uint32_t (&code)[kQuad]) {
  if constexpr (kBits == 16)
    return (code[0] | code[1] << 16) | uint64_t{code[2] | code[3] << 16} << 32;
  else
    return code[0] | code[1] << kBits | code[2] << (2 * kBits) | code[3] << (3 * kBits);
}

/// The scale of a quad's block, and what divides by it.
struct QuadScale {
  float scale, inverse;
};

/// Four codes in one piece of the stream (6 bits: in bits 0 … 23). `differs` gets bits, the sign apart, unless each value is
/// what its code means: values are scaled so that fp32's fields are the format's, rounded, because 1 / scale may be, kept in the
/// format and scaled back. Where it gets bits only the definition tells the codes.
template <int kBits>
__device__ __forceinline__ uint64_t short_float_piece(const ShortFloat& f, const QuadScale& s,
                                                      const float (&x)[kQuad], uint32_t& differs) {
  const uint32_t kept = ~0u << f.drop, half = 1u << f.drop >> 1, most = (f.limit - 1) << f.drop;
  const int32_t sign_way = 32 - f.drop - kBits;  // from fp32's sign to that beside the fields
  const uint32_t sign = f.sign << f.drop;
  uint32_t fields[kQuad];
  differs |= s.scale == 0;  // 0 · Inf means nothing
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    fields[k] = min((bits_of(fabsf(x[k]) * s.inverse * f.inverse_unit) + half) & kept, most);
    differs |= bits_of(float_of(fields[k]) * f.unit * s.scale) ^ bits_of(x[k]);
    fields[k] |= bits_of(x[k]) >> sign_way & sign;
    fields[k] >>= f.drop;
  }
  return piece_of<kBits>(fields);
}

/// The same by fp16, of which the code is a part; `beyond` gets one of the bits 15 and 31 where a magnitude is no finite number's.
/// s: of one in fp16.
template <int kBits>
__device__ __forceinline__ uint32_t half_float_piece(const HalfFloat& f, const QuadScale& s,
                                                     const float (&x)[kQuad], uint32_t& differs,
                                                     uint32_t& beyond) {
  uint32_t two[2];
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    const float low = x[2 * p], high = x[2 * p + 1];
    const uint32_t pair = half_pair(low * s.inverse, high * s.inverse);
    float low_back, high_back;
    floats_of_halves(pair, low_back, high_back);
    differs |= bits_of(low_back * s.scale) ^ bits_of(low);
    differs |= bits_of(high_back * s.scale) ^ bits_of(high);
    differs |= pair & f.low;
    beyond |= (pair & 0x7FFF7FFFu) + f.room;
    two[p] = (pair >> f.drop & f.magnitudes) | (pair >> f.sign_drop & f.signs);
  }
  if constexpr (kBits == 8) {
    return __byte_perm(two[0], two[1], 0x6420);
  } else {
    constexpr int kWay = 16 - kBits;  // from the upper half to beside the lower one
    return ((two[0] | two[0] >> kWay) & low_bits(2 * kBits)) |
           ((two[1] | two[1] >> kWay) & low_bits(2 * kBits)) << (2 * kBits);
  }
}

/// The same for integers; `beyond` gets bits above a code's unless each fits. s: of one in fp32.
template <int kBits>
__device__ __forceinline__ uint64_t short_integer_piece(const CodeRule& rule, const QuadScale& s,
                                                        const float (&x)[kQuad], uint32_t& differs,
                                                        uint32_t& beyond) {
  constexpr float kMagic = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer
  uint32_t code[kQuad];
  differs |= s.scale == 0;  // 0 · Inf means nothing
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    const float near = fmaf(x[k], s.inverse, kMagic);
    code[k] = bits_of(near) - bits_of(kMagic);
    differs |= bits_of((near - kMagic) * s.scale + 0.0f) ^ bits_of(x[k]);  // no −0
    beyond |= code[k] + rule.sign;                                         // the least number is 0
    code[k] &= low_bits(kBits);
  }
  return piece_of<kBits>(code);
}

/// The pieces of a warp's row of 128 elements; `at`: the row's first byte.
template <int kBits>
__device__ __forceinline__ void store_pieces(uint8_t* at, uint64_t piece) {
  const uint32_t lane = threadIdx.x % kWarp, low = static_cast<uint32_t>(piece);
  if constexpr (kBits == 4) {
    reinterpret_cast<uint16_t*>(at)[lane] = static_cast<uint16_t>(low);
  } else if constexpr (kBits == 6) {  // four threads have three words
    const uint32_t next = __shfl_down_sync(kFullWarp, low, 1), part = lane % 4;
    if (part < 3)
      reinterpret_cast<uint32_t*>(at)[lane / 4 * 3 + part] =
          low >> (8 * part) | next << (24 - 8 * part);
  } else if constexpr (kBits == 8) {
    reinterpret_cast<uint32_t*>(at)[lane] = low;
  } else {
    reinterpret_cast<uint2*>(at)[lane] = make_uint2(low, static_cast<uint32_t>(piece >> 32));
  }
}

/// 6 bits: of four threads the first three have a word each, which part_of turns into pieces.
template <int kBits>
__device__ __forceinline__ uint64_t load_piece(const uint8_t* at) {
  const uint32_t lane = threadIdx.x % kWarp;
  if constexpr (kBits == 4) {
    return reinterpret_cast<const uint16_t*>(at)[lane];
  } else if constexpr (kBits == 6) {
    const uint32_t part = lane % 4;
    return part < 3 ? reinterpret_cast<const uint32_t*>(at)[lane / 4 * 3 + part] : 0u;
  } else if constexpr (kBits == 8) {
    return reinterpret_cast<const uint32_t*>(at)[lane];
  } else {
    const uint2 both = reinterpret_cast<const uint2*>(at)[lane];
    return both.x | uint64_t{both.y} << 32;
  }
}

template <int kBits>
__device__ __forceinline__ void codes_of(uint64_t piece, uint32_t (&code)[kQuad]) {
  auto own = static_cast<uint32_t>(piece);
  if constexpr (kBits == 6) {
    const uint32_t part = threadIdx.x % 4, before = __shfl_up_sync(kFullWarp, own, 1);
    own = part == 0 ? own : __funnelshift_r(before, own, 32 - 8 * part);
  }
#pragma unroll
  for (int k = 0; k < kQuad; ++k)
    code[k] = kBits == 16 ? static_cast<uint32_t>(piece >> (16 * k)) & 0xFFFFu
                          : own >> (k * kBits % 32) & low_bits(kBits);
}

/// What of_block(block) says of the blocks of a segment's quads. Called by whole warps.
template <class OfBlock>
__device__ __forceinline__ void of_segment(const Places& places, int64_t begin,
                                           const OfBlock& of_block, float (&scale)[kRows]) {
  const int32_t shift = places.run_shift;
  if (shift >= kSegmentShift) {
    const float all = of_block(begin >> shift);
#pragma unroll
    for (int j = 0; j < kRows; ++j) scale[j] = all;
    return;
  }
  if (shift < kSegmentShift - 5) {
#pragma unroll
    for (int j = 0; j < kRows; ++j) scale[j] = of_block(places.block(quad_at(begin, j)));
    return;
  }
  // Up to 32 blocks: a thread looks at one.
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % kWarp;
  const float own = lane < 1 << (kSegmentShift - shift) ? of_block((begin >> shift) + lane) : 1.0f;
#pragma unroll
  for (int j = 0; j < kRows; ++j)
    scale[j] =
        __shfl_sync(kFullWarp, own, (j * static_cast<int32_t>(kRow) + lane * kQuad) >> shift);
}

/// A segment by the definition, out of line. Called by whole warps.
template <int kBits>
__device__ __noinline__ void pack_segment_slowly(const Source& values, const Coding& c,
                                                 const float* numbers, int64_t begin,
                                                 uint8_t* codes, unsigned long long* no_code) {
  for (int j = 0; j < kRows; ++j) {
    const int64_t i = quad_at(begin, j);
    const float scale = scale_of(c, numbers, c.places.block(i)).scale;
    uint32_t code[kQuad];
    for (int k = 0; k < kQuad; ++k) {
      const float value = load_one(values.data, values.dtype, i + k);
      code[k] = told_code(code_of(c.rule, value, scale), i + k, no_code);
    }
    store_pieces<kBits>(codes + (begin + j * kRow) / kOctet * kBits, piece_of<kBits>(code));
  }
}

/// Segments [0, segments).
template <Form kForm, int kBits>
__global__ void __launch_bounds__(kThreads, 4)
    pack_segments_kernel(const __grid_constant__ Source values, const __grid_constant__ Coding c,
                         int64_t segments, uint8_t* codes, unsigned long long* no_code) {
  const float* numbers = shared_numbers(c);
  for_segments(segments * kSegment, [&](int64_t begin) {
    Segment x;
    load_segment(values, begin, segments * kSegment, x);
    float scale[kRows];
    of_segment(
        c.places, begin, [&](int64_t block) { return scale_of(c, numbers, block).scale; }, scale);
    uint32_t differs = 0, beyond = 0;
    float least = 1;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const QuadScale s{scale[j], inverse_of(scale[j])};
      uint64_t piece;
      if constexpr (kForm == Form::Half) {
        const QuadScale of_half{s.scale * c.half.unit, s.inverse * c.half.inverse_unit};
        least = fminf(least, of_half.scale);
        piece = half_float_piece<kBits>(c.half, of_half, x[j], differs, beyond);
      } else if constexpr (kForm == Form::Fields) {
        piece = short_float_piece<kBits>(c.quick, s, x[j], differs);
      } else {
        piece = short_integer_piece<kBits>(c.rule, {s.scale * c.unit, s.inverse * c.inverse_unit},
                                           x[j], differs, beyond);
      }
      store_pieces<kBits>(codes + (begin + j * kRow) / kOctet * kBits, piece);
    }
    bool fails = differs != 0;
    if constexpr (kForm == Form::Half)  // a subnormal scale is rounded twice
      fails = fails || (beyond & 0x80008000u) != 0 || least < 0x1p-126f;
    if constexpr (kForm == Form::Fields) fails = differs << 1 != 0;
    if constexpr (kForm == Form::Integer) fails = fails || beyond >> kBits != 0;
    if (__any_sync(kFullWarp, fails))
      pack_segment_slowly<kBits>(values, c, numbers, begin, codes, no_code);
  });
}

template <Form kForm, int kBits>
__global__ void __launch_bounds__(kThreads, 3)
    unpack_segments_kernel(const uint8_t* codes, const __grid_constant__ Coding c, int64_t segments,
                           Sink values) {
  const float* numbers = shared_numbers(c);
  const bool is_factor = c.kind == PackedScale::Factor;
  const float last = is_factor ? 1.0f : c.device_factor != nullptr ? *c.device_factor : c.factor;
  for_segments(segments * kSegment, [&](int64_t begin) {
    uint64_t piece[kRows];
    float scale[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j)
      piece[j] = load_piece<kBits>(codes + (begin + j * kRow) / kOctet * kBits);
    // Of a scale and a factor of blocks there is one.
    of_segment(
        c.places, begin,
        [&](int64_t block) {
          const ScaleOf s = scale_of(c, numbers, block);
          return is_factor ? s.factor : s.scale;
        },
        scale);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      uint32_t code[kQuad];
      codes_of<kBits>(piece[j], code);
      float y[kQuad];
      uint32_t most = 0;
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        if (kForm == Form::Fields) {
          const uint32_t magnitude = code[k] & (c.quick.sign - 1);
          most = max(most, magnitude);
          y[k] = float_of(bits_of(c.quick.scaled(magnitude) * c.quick.unit) |
                          c.quick.float_sign(code[k]));
        } else {
          y[k] = decode_integer(c.rule, code[k]);
        }
        y[k] = y[k] * scale[j] * last;
      }
      if (!(all_finite(y)) || (kForm == Form::Fields && most >= c.quick.limit)) {
        const ScaleOf s = scale_of(c, numbers, c.places.block(quad_at(begin, j)));
#pragma unroll
        for (int k = 0; k < kQuad; ++k) y[k] = number_of(c.rule, code[k], s.scale, s.factor);
      }
      store_quad(values, quad_at(begin, j), y);
    }
  });
}

/// Calls call.operator()<form, bits>() for a coding's short form.
template <class Call>
void for_form(Form form, int32_t bits, const Call& call) {
  const auto with_bits = [&]<Form kForm>() {
    switch (bits) {
      case 4: return call.template operator()<kForm, 4>();
      case 6: return call.template operator()<kForm, 6>();
      default: return call.template operator()<kForm, 8>();
    }
  };
  if (form == Form::Half) return with_bits.template operator()<Form::Half>();
  if (form == Form::Fields)
    return bits == 16 ? call.template operator()<Form::Fields, 16>()
                      : with_bits.template operator()<Form::Fields>();
  bits == 16 ? call.template operator()<Form::Integer, 16>()
             : with_bits.template operator()<Form::Integer>();
}

// ---- scales ---------------------------------------------------------------------------------------------------------
/// amax[block] = max(amax[block], |x| as bits). Threads that share a run agree first.
__global__ void __launch_bounds__(kThreads)
    packed_amax_kernel(Source x, const __grid_constant__ Places places, int64_t n, uint32_t* amax) {
  for_segments(n, [&](int64_t begin) {
    Segment values;
    load_segment(x, begin, n, values);
    if (!places.keeps_quads) {
#pragma unroll
      for (int j = 0; j < kRows; ++j)
#pragma unroll
        for (int k = 0; k < kQuad; ++k) {
          const int64_t i = quad_at(begin, j) + k;
          if (i < n) atomicMax(amax + places.block(i), bits_of(values[j][k]) & ~kSignBit);
        }
      return;
    }
    uint32_t most[kRows], all = 0;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      most[j] = 0;
#pragma unroll
      for (int k = 0; k < kQuad; ++k) most[j] = max(most[j], bits_of(values[j][k]) & ~kSignBit);
      all = max(all, most[j]);
    }
    if (places.run_shift >= kSegmentShift) {  // the whole segment
      all = __reduce_max_sync(kFullWarp, all);
      uint32_t* own = amax + places.block(begin);
      // The plain read may be stale; then the atomic is merely superfluous, because amax only grows.
      if (threadIdx.x % kWarp == 0 && all > *const_cast<const volatile uint32_t*>(own))
        atomicMax(own, all);
      return;
    }
    const int32_t threads = places.run_shift < 0 ? 1 : min((1 << places.run_shift) / kQuad, kWarp);
    for (int32_t other = 1; other < threads; other *= 2)
#pragma unroll
      for (int j = 0; j < kRows; ++j)
        most[j] = max(most[j], __shfl_xor_sync(kFullWarp, most[j], other));
    if (threadIdx.x % kWarp % threads != 0) return;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t i = quad_at(begin, j);
      if (i < n) atomicMax(amax + places.block(i), most[j]);
    }
  });
}

/// Blocks of 4 … 128 elements in a row, whose scales follow from nothing else: one pass. n: a multiple of a block.
__global__ void __launch_bounds__(kThreads, 4)
    block_scales_kernel(const __grid_constant__ Source x, const __grid_constant__ ScaleRule rule,
                        int32_t run_shift, int64_t n, void* scales, float* factor) {
  const int32_t threads = (1 << run_shift) / kQuad;
  for_segments(n, [&](int64_t begin) {
    Segment values;
    load_segment(x, begin, n, values);
    uint32_t most[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      most[j] = bits_of(values[j][0]) & ~kSignBit;
#pragma unroll
      for (int k = 1; k < kQuad; ++k) most[j] = max(most[j], bits_of(values[j][k]) & ~kSignBit);
    }
    for (int32_t other = 1; other < threads; other *= 2)
#pragma unroll
      for (int j = 0; j < kRows; ++j)
        most[j] = max(most[j], __shfl_xor_sync(kFullWarp, most[j], other));
    // Row j's scales are the business of every thread whose number within its block is j, so that all work.
    const auto own = static_cast<int32_t>(threadIdx.x) % kWarp % threads;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t i = quad_at(begin, j);
      if (own == j % threads && i < n) {
        const int64_t block = i >> run_shift;
        if (rule.kind == PackedScale::Factor)
          static_cast<float*>(scales)[block] = block_scale(rule.block, most[j], 1.0f).factor;
        else
          static_cast<uint8_t*>(scales)[block] =
              static_cast<uint8_t>(scale_code(rule, most[j], 1.0f));
      }
    }
  });
  if (blockIdx.x == 0 && threadIdx.x == 0) *factor = tensor_factor(rule, 1.0f);
}

__global__ void packed_whole_kernel(const uint32_t* amax, int64_t blocks, uint32_t* whole) {
  uint32_t most = 0;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < blocks;
       b += static_cast<int64_t>(gridDim.x) * kThreads)
    most = max(most, amax[b]);
  most = __reduce_max_sync(kFullWarp, most);
  if (threadIdx.x % kWarp == 0) atomicMax(whole, most);
}

__global__ void scales_kernel(const __grid_constant__ ScaleRule rule, const uint32_t* amax,
                              int64_t blocks, const uint32_t* whole, void* scales, float* factor) {
  const float tensor = tensor_scale(rule.block, *whole);
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; b < blocks;
       b += static_cast<int64_t>(gridDim.x) * kThreads) {
    if (rule.kind == PackedScale::Factor)
      static_cast<float*>(scales)[b] = block_scale(rule.block, amax[b], tensor).factor;
    else
      static_cast<uint8_t*>(scales)[b] = static_cast<uint8_t>(scale_code(rule, amax[b], tensor));
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *factor = tensor_factor(rule, tensor);
}

__global__ void set_kernel(unsigned long long* to, unsigned long long value) { *to = value; }

// ---- calls ----------------------------------------------------------------------------------------------------------
Places make_places(const Quantizer& how, const Shape& shape, int group_axis) {
  Places p{};
  p.map = make_block_map(how, shape, group_axis);
  p.run_shift = -1;
  const BlockMap& m = p.map;
  if (m.blocks == 1) {
    p.run_shift = 62;
    p.keeps_quads = true;
  } else if (m.inner == 1) {
    const bool flat = m.outer_step != 0 && m.axis % m.group == 0;
    p.keeps_quads = m.group % kQuad == 0 && (flat || m.axis % kQuad == 0);
    if (flat && p.keeps_quads && (m.group & (m.group - 1)) == 0)
      while (int64_t{1} << (p.run_shift + 1) <= m.group) ++p.run_shift;
  } else {
    p.keeps_quads = m.inner % kQuad == 0 && (m.inner_step == 0 || m.columns % kQuad == 0);
  }
  return p;
}

Coding make_coding(Device device, const Quantizer& how, const Tensor& scales, const Shape& shape,
                   int group_axis) {
  Coding c{};
  c.rule = make_code_rule(how.format);
  if (c.rule.kind == CodeRule::Kind::Table) c.rule.table = table_on(device, how.format.table);
  c.places = make_places(how, shape, group_axis);
  c.kind = packed_scale(how);
  c.factor = 1;
  if (c.kind == PackedScale::Factor) {
    c.factors = scales.data<float>();
  } else if (c.kind != PackedScale::None) {
    c.scales = scales.data<uint8_t>();
    for (uint32_t code = 0; code < 256; ++code) c.numbers[code] = scale_of_code(how, code);
  }
  const CodeRule& r = c.rule;
  const bool has_width = r.bits == 4 || r.bits == 6 || r.bits == 8 || r.bits == 16;
  if (!has_width || !c.places.keeps_quads) return c;
  if (r.kind == CodeRule::Kind::Integer && r.quantum >= -126 && r.quantum <= 126) {
    c.packs = c.unpacks = Form::Integer;
    c.unit = pow2(r.quantum);
    c.inverse_unit = pow2(-r.quantum);
  }
  c.quick = make_short_float(r);
  if (c.quick.serves) c.packs = c.unpacks = Form::Fields;
  c.half = make_half_float(r);
  if (c.half.serves) c.packs = Form::Half;
  ULP_ASSERT(r.bits != 4 || c.packs != Form::Fields);  // fp16 has room for all floats of 4 bits
  return c;
}

bool is_aligned_for_words(const void* codes) {
  return reinterpret_cast<uintptr_t>(codes) % sizeof(uint64_t) == 0;
}

}  // namespace

void pack_scales(Stream stream, const PackScalesArgs& args) {
  const Places places = make_places(args.how, args.x.shape(), args.group_axis);
  const ScaleRule rule = make_scale_rule(args.how, args.stored);
  const int64_t n = args.x.numel(), blocks = places.map.blocks;
  const bool apart =
      rule.block.scale.kind != Scale::Kind::E4M3Tensor;  // no scale needs another one's block
  if (apart && places.keeps_quads && places.run_shift >= 2 && places.run_shift <= 7 && n > 0) {
    launch("pack_scales", stream, segment_blocks(n), kThreads, block_scales_kernel,
           source_of(args.x), rule, places.run_shift, n, written(args.scales),
           static_cast<float*>(written(args.factor)));
    return;
  }
  Tensor found = Tensor::empty({blocks + 1}, DType::I32, stream.device);
  auto* amax = static_cast<uint32_t*>(found.mutable_raw());
  ULP_CUDA_CHECK(cudaSetDevice(stream.device.index));
  ULP_CUDA_CHECK(cudaMemsetAsync(amax, 0, static_cast<size_t>(found.bytes()),
                                 static_cast<cudaStream_t>(stream.handle)));
  launch("pack_scales", stream, segment_blocks(n), kThreads, packed_amax_kernel, source_of(args.x),
         places, n, amax);
  uint32_t* whole = amax + blocks;
  launch("pack_scales", stream, std::min<int64_t>(blocks_for(blocks, kThreads), 1024), kThreads,
         packed_whole_kernel, static_cast<const uint32_t*>(amax), blocks, whole);
  launch("pack_scales", stream, std::max<int64_t>(1, blocks_for(blocks, kThreads)), kThreads,
         scales_kernel, rule, static_cast<const uint32_t*>(amax), blocks,
         static_cast<const uint32_t*>(whole), written(args.scales),
         static_cast<float*>(written(args.factor)));
}

void pack_codes(Stream stream, const PackCodesArgs& args) {
  const int64_t n = args.values.numel();
  const Coding c =
      make_coding(stream.device, args.how, args.scales, args.values.shape(), args.group_axis);
  const Source values = source_of(args.values);
  auto* codes = static_cast<uint8_t*>(written(args.codes));
  auto* no_code = static_cast<unsigned long long*>(written(args.no_code));
  launch("pack_codes", stream, 1, 1, set_kernel, no_code, static_cast<unsigned long long>(n));
  int64_t done = 0;
  if (c.packs != Form::None && values.aligned && is_aligned_for_words(codes)) {
    done = n / kSegment * kSegment;
    for_form(c.packs, c.rule.bits, [&]<Form kForm, int kBits>() {
      if constexpr (kForm != Form::Fields || kBits != 4)
        launch("pack_codes", stream, segment_blocks(done), kThreads,
               pack_segments_kernel<kForm, kBits>, values, c, n / kSegment, codes, no_code);
    });
  }
  launch("pack_codes", stream, blocks_for(n - done, kThreads * kOctet), kThreads, pack_any_kernel,
         values, c, done, n, codes, no_code);
}

void unpack_codes(Stream stream, const UnpackCodesArgs& args) {
  const int64_t n = args.values.numel();
  Coding c =
      make_coding(stream.device, args.how, args.scales, args.values.shape(), args.group_axis);
  c.factor = args.factor;
  const auto* codes = static_cast<const uint8_t*>(args.codes.raw());
  const Sink values = sink_of(args.values);
  if (args.device_factor.defined()) c.device_factor = args.device_factor.data<float>();
  int64_t done = 0;
  if (c.unpacks != Form::None && values.aligned && is_aligned_for_words(codes)) {
    done = n / kSegment * kSegment;
    for_form(c.unpacks, c.rule.bits, [&]<Form kForm, int kBits>() {
      if constexpr (kForm != Form::Half)
        launch("unpack_codes", stream, segment_blocks(done), kThreads,
               unpack_segments_kernel<kForm, kBits>, codes, c, n / kSegment, values);
    });
  }
  launch("unpack_codes", stream, blocks_for(n - done, kThreads), kThreads, unpack_any_kernel, codes,
         c, done, n, static_cast<float*>(values.data));
}

}  // namespace ulp::cuda
