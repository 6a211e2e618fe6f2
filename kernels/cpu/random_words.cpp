#include "kernels/cpu/random_words.h"

#include "kernels/cpu/isa.h"

#if defined(ULP_X86_ISA)
#include <immintrin.h>
#endif

namespace ulp::cpu {
namespace {

void words_portable(const RandomSource& random, uint64_t first, int64_t groups, uint32_t* out) {
  for (int64_t g = 0; g < groups; ++g) {
    const PhiloxWords w = random.words(first + static_cast<uint64_t>(g));
    for (int k = 0; k < 4; ++k) out[4 * g + k] = w.word[k];
  }
}

#if defined(ULP_X86_ISA)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC bug 105593: its own AVX-512 header

// philox4x32 of core/random.h for as many counters as a register has 64-bit lanes: each lane holds one 32-bit word, and what
// stands above it is never read (the multiplication takes the lower halves only).

/// The keys of the ten rounds, one after the other, for both words they are xored into, each as often as a register has
/// lanes: the loops read them from the first-level cache, because broadcasting costs as much as the round.
template <int kLanes>
struct RoundKeys {
  alignas(8 * kLanes) uint64_t key[2][10][kLanes];
  ULP_INLINE explicit RoundKeys(const RandomSource& random) {
    for (uint32_t r = 0; r < 10; ++r)
      for (int l = 0; l < kLanes; ++l) {
        key[0][r][l] = random.key0 + r * 0x9E3779B9u;
        key[1][r][l] = random.key1 + r * 0xBB67AE85u;
      }
  }
};

ULP_TARGET_AVX512 void words_avx512(const RandomSource& random, uint64_t first, int64_t groups,
                                    uint32_t* out) {
  const RoundKeys<8> keys(random);
  const __m512i m0 = _mm512_set1_epi64(0xD2511F53), m1 = _mm512_set1_epi64(0xCD9E8D57);
  const __m512i low = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0),
                high = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
  const __m512i stream = _mm512_set1_epi64(random.stream), step = _mm512_set1_epi64(random.step);
  __m512i index = _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(first)),
                                   _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
  constexpr int kChains = 2;
  for (int64_t g = 0; g < groups; g += 8 * kChains) {
    __m512i c0[kChains], c1[kChains], c2[kChains], c3[kChains];
    for (int c = 0; c < kChains; ++c) {
      c0[c] = index;
      c1[c] = _mm512_srli_epi64(index, 32);
      c2[c] = stream;
      c3[c] = step;
      index = _mm512_add_epi64(index, _mm512_set1_epi64(8));
    }
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const __m512i key0 = _mm512_load_si512(keys.key[0][round]),
                    key1 = _mm512_load_si512(keys.key[1][round]);
#pragma GCC unroll 2
      for (int c = 0; c < kChains; ++c) {
        const __m512i p0 = _mm512_mul_epu32(c0[c], m0), p1 = _mm512_mul_epu32(c2[c], m1);
        c0[c] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1[c], key0, 0x96);
        c2[c] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c3[c], key1, 0x96);
        c1[c] = p1;
        c3[c] = p0;
      }
    }
    for (int c = 0; c < kChains; ++c) {
      const __m512i a = _mm512_mask_shuffle_epi32(c0[c], 0xAAAA, c1[c], _MM_PERM_CCAA);
      const __m512i b = _mm512_mask_shuffle_epi32(c2[c], 0xAAAA, c3[c], _MM_PERM_CCAA);
      uint32_t* to = out + 4 * (g + 8 * c);
      _mm512_storeu_si512(to, _mm512_permutex2var_epi64(a, low, b));
      _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi64(a, high, b));
    }
  }
}

ULP_TARGET_AVX2 void words_avx2(const RandomSource& random, uint64_t first, int64_t groups,
                                uint32_t* out) {
  const RoundKeys<4> keys(random);
  const __m256i m0 = _mm256_set1_epi64x(0xD2511F53), m1 = _mm256_set1_epi64x(0xCD9E8D57);
  const __m256i stream = _mm256_set1_epi64x(random.stream), step = _mm256_set1_epi64x(random.step);
  __m256i index = _mm256_add_epi64(_mm256_set1_epi64x(static_cast<int64_t>(first)),
                                   _mm256_set_epi64x(3, 2, 1, 0));
  constexpr int kChains = 2;
  for (int64_t g = 0; g < groups; g += 4 * kChains) {
    __m256i c0[kChains], c1[kChains], c2[kChains], c3[kChains];
    for (int c = 0; c < kChains; ++c) {
      c0[c] = index;
      c1[c] = _mm256_srli_epi64(index, 32);
      c2[c] = stream;
      c3[c] = step;
      index = _mm256_add_epi64(index, _mm256_set1_epi64x(4));
    }
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const auto* key0 = reinterpret_cast<const __m256i*>(keys.key[0][round]);
      const auto* key1 = reinterpret_cast<const __m256i*>(keys.key[1][round]);
#pragma GCC unroll 2
      for (int c = 0; c < kChains; ++c) {
        const __m256i p0 = _mm256_mul_epu32(c0[c], m0), p1 = _mm256_mul_epu32(c2[c], m1);
        const __m256i x0 = _mm256_xor_si256(c1[c], _mm256_load_si256(key0));
        const __m256i x2 = _mm256_xor_si256(c3[c], _mm256_load_si256(key1));
        c0[c] = _mm256_xor_si256(_mm256_srli_epi64(p1, 32), x0);
        c2[c] = _mm256_xor_si256(_mm256_srli_epi64(p0, 32), x2);
        c1[c] = p1;
        c3[c] = p0;
      }
    }
    for (int c = 0; c < kChains; ++c) {
      const __m256i a = _mm256_blend_epi32(c0[c], _mm256_slli_epi64(c1[c], 32), 0xAA);
      const __m256i b = _mm256_blend_epi32(c2[c], _mm256_slli_epi64(c3[c], 32), 0xAA);
      const __m256i even = _mm256_unpacklo_epi64(a, b), odd = _mm256_unpackhi_epi64(a, b);
      auto* to = reinterpret_cast<__m256i*>(out + 4 * (g + 4 * c));
      _mm256_storeu_si256(to, _mm256_permute2x128_si256(even, odd, 0x20));
      _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
    }
  }
}

#pragma GCC diagnostic pop
#endif

}  // namespace

const uint32_t* random_words(const RandomSource& random, int64_t index, int64_t n, uint32_t* out) {
  const uint64_t first = static_cast<uint64_t>(index) / 4;
  const int64_t groups = (index + n + 3) / 4 - index / 4;
  switch (current_isa()) {
#if defined(ULP_X86_ISA)
    case Isa::Avx512: words_avx512(random, first, groups, out); break;
    case Isa::Avx2: words_avx2(random, first, groups, out); break;
#endif
    default: words_portable(random, first, groups, out); break;
  }
  return out + index % 4;
}

}  // namespace ulp::cpu
