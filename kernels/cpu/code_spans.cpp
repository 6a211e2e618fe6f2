#include "kernels/cpu/code_spans.h"

#include <algorithm>
#include <array>

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/random_words.h"

#if defined(ULP_X86_ISA)
#include <immintrin.h>
#endif

namespace ulp::cpu {
namespace {

using ByteBuffer = std::array<uint8_t, kBlock>;

// fp16 as FastGrid has it: 23 less its significand bits; from its least normal number, 2^−14, to 1.
constexpr uint32_t kHalfSpread = 13, kHalfUp = 14u << 23;

/// body(begin, end, factor) for every run of n elements.
template <class Body>
ULP_HD void for_runs(int64_t n, RunFactors factors, const Body& body) {
  if (factors.run == 0) return body(0, n, 1.0f);
  for (int64_t begin = 0; begin < n; begin += factors.run) {
    const int64_t end = begin + factors.run;
    body(begin, end < n ? end : n, factors.each[begin / factors.run]);
  }
}

/// The roundings of FastCodes.
struct Way {
  bool cut, stochastic;
};

template <Way kWay>
ULP_HD uint32_t rounded_code(float x, const FastCodes& c, uint32_t word) {
  if constexpr (kWay.cut && kWay.stochastic) return fast::stochastic_cut_code(x, c, word);
  if constexpr (kWay.cut) return fast::nearest_cut_code(x, c);
  if constexpr (kWay.stochastic) return fast::stochastic_spaced_code(x, c, word);
  return fast::nearest_spaced_code(x, c);
}

template <Way kWay, class Code>
void write_as(const float* values, int64_t n, RunFactors factors, const FastCodes& given,
              const uint32_t* words, Code* out) {
  with_isa([=]() ULP_INLINE {
    const FastCodes codes = given;  // copies, which stores of bytes cannot change
    for_runs(n, factors, [=](int64_t begin, int64_t end, float factor) ULP_INLINE {
      const float* const x = values;
      const uint32_t* const word = words;
      Code* const to = out;
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i)
        to[i] = static_cast<Code>(
            rounded_code<kWay>(x[i] * factor, codes, kWay.stochastic ? word[i] : 0u));
    });
  });
}

template <class Code>
void write_spaced(const float* values, int64_t n, RunFactors factors, const FastCodes& codes,
                  const uint32_t* words, Code* out) {
  if (codes.stochastic)
    write_as<Way{false, true}>(values, n, factors, codes, words, out);
  else
    write_as<Way{false, false}>(values, n, factors, codes, words, out);
}

template <fast::Specials kSpecials, class Code>
ULP_HD void read_runs(const Code* in, int64_t n, RunFactors factors, const FastCodes& c,
                      float* out) {
  if (factors.run == 0) {
    for (int64_t i = 0; i < n; ++i) out[i] = fast::number_of_code<kSpecials>(in[i], c);
    return;
  }
  for_runs(n, factors, [=](int64_t begin, int64_t end, float factor) ULP_INLINE {
    for (int64_t i = begin; i < end; ++i)
      out[i] = fast::canonical(fast::number_of_code<kSpecials>(in[i], c) * factor);
  });
}

/// Whether there is a code of Inf or NaN.
template <class Code>
bool has_specials(const Code* in, int64_t n, const FastCodes& c) {
  Code most = 0;
  with_isa([=, magnitude = static_cast<Code>(c.sign - 1u), result = &most]() ULP_INLINE {
    Code found = 0;
    for (int64_t i = 0; i < n; ++i) {
      const auto code = static_cast<Code>(in[i] & magnitude);
      found = code > found ? code : found;
    }
    *result = found;
  });
  return most >= c.first_infinity || most >= c.first_nan;
}

#if defined(ULP_X86_ISA)
/// Finite numbers that are fp16's times a power of two: their codes become fp16 patterns, sixteen at a time, which processors
/// with AVX2 convert, subnormals too. n and runs are multiples of 16.
template <bool kScaled>
ULP_TARGET_AVX2 void read_halves(const uint8_t* in, int64_t n, RunFactors factors,
                                 const FastCodes& c, float* out) {
  const auto magnitude = _mm256_set1_epi16(static_cast<int16_t>(c.sign - 1u)),
             sign = _mm256_set1_epi16(static_cast<int16_t>(c.sign));
  const auto place = _mm_cvtsi32_si128(static_cast<int32_t>(c.grid.spread - kHalfSpread)),
             sign_place = _mm_cvtsi32_si128(static_cast<int32_t>(c.sign_place) - 16);
  const __m256 nan = _mm256_set1_ps(float_of(kNanBits)),
               up = _mm256_set1_ps(float_of(c.grid.low + kHalfUp));
  const int64_t run = kScaled ? factors.run : n;
  for (int64_t begin = 0; begin < n; begin += run) {
    const __m256 factor = _mm256_set1_ps(kScaled ? factors.each[begin / run] : 1.0f);
    const int64_t end = begin + run < n ? begin + run : n;
    for (int64_t i = begin; i < end; i += 16) {
      const __m256i code =
          _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
      const __m256i half =
          _mm256_or_si256(_mm256_sll_epi16(_mm256_and_si256(code, magnitude), place),
                          _mm256_sll_epi16(_mm256_and_si256(code, sign), sign_place));
      const __m128i parts[] = {_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)};
      for (int64_t part = 0; part < 2; ++part) {
        __m256 y = _mm256_mul_ps(_mm256_cvtph_ps(parts[part]), up);
        if (kScaled) {
          y = _mm256_mul_ps(y, factor);
          y = _mm256_blendv_ps(y, nan, _mm256_cmp_ps(y, y, _CMP_UNORD_Q));
        }
        _mm256_storeu_ps(out + i + 8 * part, y);
      }
    }
  }
}

bool are_halves(const FastCodes& c) {
  constexpr uint32_t kHalfInfinity = 0x7C00;
  const uint32_t finite = std::min(c.first_infinity, c.first_nan);
  return c.grid.form == FastGrid::Form::Spaced && c.grid.spread >= kHalfSpread &&
         (finite - 1u) << (c.grid.spread - kHalfSpread) < kHalfInfinity &&
         c.grid.low + kHalfUp < kInfinityBits;
}
#endif

template <class Code>
void read_as(const Code* in, int64_t n, RunFactors factors, const FastCodes& codes, float* out) {
  if (has_specials(in, n, codes))
    return with_isa([=]() ULP_INLINE {
      const FastCodes c = codes;
      read_runs<fast::Specials::Possible>(in, n, factors, c, out);
    });
#if defined(ULP_X86_ISA)
  if constexpr (sizeof(Code) == 1)
    if (current_isa() == Isa::Avx2 && n % 16 == 0 && factors.run % 16 == 0 && are_halves(codes))
      return factors.run == 0 ? read_halves<false>(in, n, factors, codes, out)
                              : read_halves<true>(in, n, factors, codes, out);
#endif
  with_isa([=]() ULP_INLINE {
    const FastCodes c = codes;
    read_runs<fast::Specials::Absent>(in, n, factors, c, out);
  });
}

void write_nibbles(const uint8_t* codes, int64_t n, uint8_t* out) {
  with_isa([=]() ULP_INLINE {
    const uint8_t* const from = codes;
    uint8_t* const to = out;
    const int64_t count = (n + 1) / 2;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i)
      to[i] = static_cast<uint8_t>(from[2 * i] | from[2 * i + 1] << 4);
  });
}

void read_nibbles(const uint8_t* in, int64_t n, uint8_t* codes) {
  with_isa([=]() ULP_INLINE {
    const uint8_t* const from = in;
    uint8_t* const to = codes;
    const int64_t count = (n + 1) / 2;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      to[2 * i] = from[i] & 15u;
      to[2 * i + 1] = from[i] >> 4;
    }
  });
}

}  // namespace

void write_rounded(const float* values, int64_t n, RunFactors factors, const FastCodes& codes,
                   const RandomSource& random, int64_t index, uint8_t* out) {
  std::array<uint32_t, kBlock + kWordSlack> buffer;
  const uint32_t* words =
      codes.stochastic ? random_words(random, index, n, buffer.data()) : nullptr;
  if (codes.bits == 16) {
    auto* const to = reinterpret_cast<uint16_t*>(out);
    if (codes.grid.form != FastGrid::Form::CutBits)
      return write_spaced(values, n, factors, codes, words, to);
    return codes.stochastic ? write_as<Way{true, true}>(values, n, factors, codes, words, to)
                            : write_as<Way{true, false}>(values, n, factors, codes, words, to);
  }
  if (codes.bits == 8) return write_spaced(values, n, factors, codes, words, out);
  ByteBuffer bytes;
  write_spaced(values, n, factors, codes, words, bytes.data());
  if (n < kBlock) bytes[static_cast<size_t>(n)] = 0;
  write_nibbles(bytes.data(), n, out);
}

void read_numbers(const uint8_t* in, int64_t n, RunFactors factors, const FastCodes& codes,
                  float* out) {
  if (codes.bits == 16)
    return read_as(reinterpret_cast<const uint16_t*>(in), n, factors, codes, out);
  if (codes.bits == 8) return read_as(in, n, factors, codes, out);
  ByteBuffer bytes;
  read_nibbles(in, n, bytes.data());
  read_as(bytes.data(), n, factors, codes, out);
}

void multiply_runs(float* values, int64_t n, RunFactors factors) {
  with_isa([=]() ULP_INLINE {
    for_runs(n, factors, [=](int64_t begin, int64_t end, float factor) ULP_INLINE {
      for (int64_t i = begin; i < end; ++i) values[i] = fast::canonical(values[i] * factor);
    });
  });
}

}  // namespace ulp::cpu
