#pragma once

// 1024 consecutive elements a warp, 32 of them in each thread's registers: eight rows of 128, in each of which a thread has
// four neighbours, so that every access of a warp is one piece and one call of Philox serves one of its quads.

#include "kernels/cuda/pack.cuh"

namespace ulp::cuda {

inline constexpr int kQuad = 4, kRows = 8;
inline constexpr int64_t kRow = kWarp * kQuad, kSegment = kRows * kRow;
using Segment = float[kRows][kQuad];

/// The first element of this thread's quad in row j of the segment that begins at `begin`.
__device__ __forceinline__ int64_t quad_at(int64_t begin, int j) {
  return begin + j * kRow + threadIdx.x % kWarp * kQuad;
}

/// 0 if neither Inf nor NaN is among the values, else NaN. Sums of products with zero need no comparison for each.
__device__ __forceinline__ float zero_of(const float (&x)[kQuad], float zero = 0.0f) {
#pragma unroll
  for (int k = 0; k < kQuad; ++k) zero = fmaf(x[k], 0.0f, zero);
  return zero;
}
__device__ __forceinline__ bool all_finite(const float (&x)[kQuad]) { return zero_of(x) == 0; }
__device__ __forceinline__ bool all_finite(const Segment& x) {
  float zero = 0;
#pragma unroll
  for (int j = 0; j < kRows; ++j) zero = zero_of(x[j], zero);
  return zero == 0;
}

/// How many of the quad's elements there are.
__device__ __forceinline__ int quad_count(int64_t i, int64_t n) {
  return i >= n ? 0 : n - i < kQuad ? static_cast<int>(n - i) : kQuad;
}

/// Calls body(begin) for the segments of [0, n) that are this warp's.
template <class Body>
__device__ __forceinline__ void for_segments(int64_t n, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp) * kSegment;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  for (int64_t begin = warp * kSegment; begin < n; begin += step) body(begin);
}

inline int64_t segment_blocks(int64_t n) { return blocks_for(n, kThreads / kWarp * kSegment); }

/// Calls body.operator()<type>() for a float type: one branch for all that the body unrolls.
template <class Body>
__device__ __forceinline__ void for_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::BF16: return body.template operator()<DType::BF16>();
    case DType::F16: return body.template operator()<DType::F16>();
    case DType::F8E4M3: return body.template operator()<DType::F8E4M3>();
    case DType::F8E5M2: return body.template operator()<DType::F8E5M2>();
    default: return body.template operator()<DType::F32>();
  }
}

/// Four neighbours of a type, as they lie in memory.
template <int kBytes>
struct QuadWords;
template <>
struct QuadWords<4> {
  uint4 words;
  __device__ uint32_t operator[](int k) const {
    return k == 0 ? words.x : k == 1 ? words.y : k == 2 ? words.z : words.w;
  }
};
template <>
struct QuadWords<2> {
  uint2 words;
  __device__ uint32_t operator[](int k) const {
    return (k < 2 ? words.x : words.y) >> (16 * (k % 2)) & 0xFFFFu;
  }
};
template <>
struct QuadWords<1> {
  uint32_t words;
  __device__ uint32_t operator[](int k) const { return words >> (8 * k) & 0xFFu; }
};

/// Two values that fp16 holds, `low` in the lower half.
__device__ __forceinline__ uint32_t half_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

/// Takes `less` from the lanes of w that are all ones below their sign. kTop: the signs, kShift above kOnes.
template <uint32_t kTop, uint32_t kOnes, int kShift>
__device__ __forceinline__ uint32_t replace_nan(uint32_t w, uint32_t less) {
  const uint32_t is_nan = ((w & ~kTop) + kOnes) & kTop;  // all ones below the sign carry into it
  return w - (is_nan >> kShift) * less;
}

/// The bytes of four values that the type holds exactly; y: canonical. The conversions of the hardware are exact then, and have
/// their own NaN, which has all ones below the sign.
template <DType kType>
__device__ __forceinline__ QuadWords<size_of(kType)> encode_quad(const float (&y)[kQuad]) {
  if constexpr (kType == DType::F32) {
    return {make_uint4(bits_of(y[0]), bits_of(y[1]), bits_of(y[2]), bits_of(y[3]))};
  } else if constexpr (kType == DType::BF16) {
    return {make_uint2(__byte_perm(bits_of(y[0]), bits_of(y[1]), 0x7632),
                       __byte_perm(bits_of(y[2]), bits_of(y[3]), 0x7632))};
  } else if constexpr (kType == DType::F16) {
    const auto halves = [](float low, float high) {  // 0x7FFF → 0x7E00
      return replace_nan<0x80008000u, 0x00010001u, 15>(half_pair(low, high), 0x1FFu);
    };
    return {make_uint2(halves(y[0], y[1]), halves(y[2], y[3]))};
  } else if constexpr (kType == DType::F8E5M2) {
    // e5m2 is the upper half of fp16. 0x7F → 0x7E
    const uint32_t bytes = __byte_perm(half_pair(y[0], y[1]), half_pair(y[2], y[3]), 0x7531);
    return {replace_nan<0x80808080u, 0x01010101u, 7>(bytes, 1u)};
  } else {
    static_assert(kType == DType::F8E4M3);
#if __CUDA_ARCH__ >= 890
    uint16_t low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(y[1]), "f"(y[0]));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(y[3]), "f"(y[2]));
    return {static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16};
#else
    uint32_t words[kQuad];
#pragma unroll
    for (int k = 0; k < kQuad; ++k) words[k] = float_to_e4m3(y[k]);
    return {words[0] | words[1] << 8 | words[2] << 16 | words[3] << 24};
#endif
  }
}

/// Two fp16 values as fp32.
__device__ __forceinline__ void floats_of_halves(uint32_t pair, float& low, float& high) {
  asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }"
      : "=f"(low), "=f"(high)
      : "r"(pair));
}

/// Four values of their bytes, by the conversions of the hardware, which are exact and have NaN of many kinds.
template <DType kType>
__device__ __forceinline__ void convert_back(const QuadWords<size_of(kType)>& words,
                                             float (&x)[kQuad]) {
  if constexpr (kType == DType::F32 || kType == DType::BF16) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[k] = decode(words[k], kType);
  } else if constexpr (kType == DType::F16) {
    floats_of_halves(words.words.x, x[0], x[1]);
    floats_of_halves(words.words.y, x[2], x[3]);
  } else if constexpr (kType == DType::F8E5M2) {
    floats_of_halves(__byte_perm(words.words, 0, 0x1404), x[0], x[1]);
    floats_of_halves(__byte_perm(words.words, 0, 0x3424), x[2], x[3]);
  } else {
    static_assert(kType == DType::F8E4M3);
#if __CUDA_ARCH__ >= 890
    uint32_t low, high;
    asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.rn.f16x2.e4m3x2 %0, a; cvt.rn.f16x2.e4m3x2 %1, "
        "b; }"
        : "=r"(low), "=r"(high)
        : "r"(words.words));
    floats_of_halves(low, x[0], x[1]);
    floats_of_halves(high, x[2], x[3]);
#else
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[k] = decode(words[k], kType);
#endif
  }
}

/// The same with the one NaN.
template <DType kType>
__device__ __forceinline__ void decode_quad(const QuadWords<size_of(kType)>& words,
                                            float (&x)[kQuad]) {
  convert_back<kType>(words, x);
  if constexpr (kType == DType::F32 || kType == DType::BF16) return;
  if (!all_finite(x)) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[k] = canonical(x[k]);
  }
}

/// Whether the hardware rounds fp32 to a type.
template <DType kType>
constexpr bool kRounds = kType == DType::BF16 || kType == DType::F16
#if __CUDA_ARCH__ >= 890
                         || kType == DType::F8E4M3 || kType == DType::F8E5M2
#endif
    ;

/// The bytes of four finite values, rounded to nearest even; none is beyond the type's largest number.
template <DType kType>
__device__ __forceinline__ QuadWords<size_of(kType)> convert_quad(const float (&y)[kQuad]) {
  static_assert(kRounds<kType>);
  if constexpr (kType == DType::BF16) {
    uint32_t low, high;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(low) : "f"(y[1]), "f"(y[0]));
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(high) : "f"(y[3]), "f"(y[2]));
    return {make_uint2(low, high)};
  } else if constexpr (kType == DType::F16) {
    return {make_uint2(half_pair(y[0], y[1]), half_pair(y[2], y[3]))};
  } else if constexpr (kType == DType::F8E5M2) {
    uint16_t low, high;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(low) : "f"(y[1]), "f"(y[0]));
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(high) : "f"(y[3]), "f"(y[2]));
    return {static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16};
  } else {
    return encode_quad<kType>(y);
  }
}

/// Four neighbours of an aligned array; i is a multiple of four.
__device__ __forceinline__ void load_quad(const Source& s, int64_t i, float (&x)[kQuad]) {
  for_type(s.dtype, [&]<DType kType>() {
    using Words = QuadWords<size_of(kType)>;
    decode_quad<kType>(reinterpret_cast<const Words*>(s.data)[i / kQuad], x);
  });
}
__device__ __forceinline__ void store_quad(const Sink& s, int64_t i, const float (&y)[kQuad]) {
  for_type(s.dtype, [&]<DType kType>() {
    reinterpret_cast<QuadWords<size_of(kType)>*>(s.data)[i / kQuad] = encode_quad<kType>(y);
  });
}

/// A segment that ends early or lies askew, element by element: out of line, in memory.
__device__ __noinline__ inline void load_slowly(const Source& s, int64_t begin, int64_t n,
                                                float* x) {
  for (int e = 0; e < kRows * kQuad; ++e) {
    const int64_t i = quad_at(begin, e / kQuad) + e % kQuad;
    x[e] = i < n ? load_as_float(s.data, s.dtype, i) : 0.0f;
  }
}
__device__ __noinline__ inline void store_slowly(const Sink& s, int64_t begin, int64_t n,
                                                 const float* y) {
  for (int e = 0; e < kRows * kQuad; ++e) {
    const int64_t i = quad_at(begin, e / kQuad) + e % kQuad;
    if (i < n) store_float(s.data, s.dtype, i, y[e]);
  }
}

/// 0 beyond n.
__device__ __forceinline__ void load_segment(const Source& s, int64_t begin, int64_t n,
                                             Segment& x) {
  if (!s.aligned || begin + kSegment > n) {
    float values[kRows * kQuad];
    load_slowly(s, begin, n, values);
#pragma unroll
    for (int e = 0; e < kRows * kQuad; ++e) x[e / kQuad][e % kQuad] = values[e];
    return;
  }
  for_type(s.dtype, [&]<DType kType>() {
    constexpr int kBytes = size_of(kType);
    using Words = QuadWords<kBytes>;
    const char* at = static_cast<const char*>(s.data) + quad_at(begin, 0) * kBytes;
    Words words[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j)
      words[j] = *reinterpret_cast<const Words*>(at + j * kRow * kBytes);
#pragma unroll
    for (int j = 0; j < kRows; ++j) decode_quad<kType>(words[j], x[j]);
  });
}

/// y: canonical.
__device__ __forceinline__ void store_segment(const Sink& s, int64_t begin, int64_t n,
                                              const Segment& y) {
  if (!s.aligned || begin + kSegment > n) {
    float values[kRows * kQuad];
#pragma unroll
    for (int e = 0; e < kRows * kQuad; ++e) values[e] = y[e / kQuad][e % kQuad];
    store_slowly(s, begin, n, values);
    return;
  }
  for_type(s.dtype, [&]<DType kType>() {
    constexpr int kBytes = size_of(kType);
    char* at = static_cast<char*>(s.data) + quad_at(begin, 0) * kBytes;
#pragma unroll
    for (int j = 0; j < kRows; ++j)
      *reinterpret_cast<QuadWords<kBytes>*>(at + j * kRow * kBytes) = encode_quad<kType>(y[j]);
  });
}

}  // namespace ulp::cuda
