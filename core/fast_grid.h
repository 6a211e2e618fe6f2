#pragma once

#include "core/grid.h"

namespace ulp {

/// quantise_value once more, shorter, for the two roundings that training lives on (nearest-even, and stochastic with 32
/// bits) on lattices whose numbers stay clear of fp32's ends. What does not depend on the value is worked out before.
/// Equal to quantise_value for every input and word; the tests compare them.
struct FastGrid {
  enum class Form : uint8_t {
    None,     // not possible: use quantise_value
    Spaced,   // the spacing near x follows from x's exponent, kept between `low` and `high`
    CutBits,  // the target has fp32's exponents: the same low bits of the pattern go, whatever x
  };
  Form form = Form::None;
  uint32_t low = 0, high = 0;  // Spaced: exponent fields in place (bits 23 … 30)
  uint32_t spread = 0;         // 23 − significand bits
  // Magnitudes for x ≥ 0; the flips (xor) make those of x < 0.
  uint32_t max = 0, max_flip = 0, overflow = 0, overflow_flip = 0, infinity = 0, infinity_flip = 0;
  uint32_t min_normal = 0;
  float zero = 0;  // −0 where the format has it: adding it keeps a zero's sign, adding +0 drops it
  enum class Bounds : uint8_t {
    Plain,   // the flips and min_normal are 0
    Signed,  // min_normal is 0
    Any,
  };
  Bounds bounds = Bounds::Any;
  int32_t least_shift = 0, most_shift = 0;  // blocks whose grid is this one times 2^shift
};

/// Of an element-wise quantizer's grid, or of a block's grid at shift 0.
FastGrid make_fast_grid(const Grid& grid);

/// Finite values never become NaN; they may become Inf.
inline bool makes_no_nan(const FastGrid& g) {
  return g.overflow <= kInfinityBits && (g.overflow ^ g.overflow_flip) <= kInfinityBits;
}

/// The grid of a power-of-two block is that of shift 0 times 2^shift: what set_block makes of amax, for all rules in one form.
struct BlockShift {
  float multiplier = 1;                     // of amax; not 1 where the quotient amax / max decides
  uint32_t add = 0, add_subnormal = 0;      // to the pattern: what rounds up to the next exponent
  int32_t offset = 0, least = 0, most = 0;  // to the exponent field; bounds of the sum
};
BlockShift make_block_shift(const BlockRule& rule);

/// amax_bits: finite. A block of zeros stays zero on any grid; 0 is a shift that the short forms take.
ULP_HD int32_t block_shift(const BlockShift& s, uint32_t amax_bits) {
  const uint32_t f = bits_of(float_of(amax_bits) * s.multiplier);
  const uint32_t add = f < 0x00800000u ? s.add_subnormal : s.add;
  const int32_t shift = static_cast<int32_t>((f + add) >> 23) + s.offset;
  return amax_bits == 0 ? 0 : max_of(min_of(shift, s.most), s.least);
}

/// The grid of every block with block_shift 0.
Grid make_block_grid(const Quantizer& quantizer, const BlockRule& rule);

namespace fast {

ULP_HD bool is_nan(float x) { return x != x; }

/// Whether the caller knows that there is neither Inf nor NaN, and that the grid makes none.
enum class Specials : bool { Absent, Possible };

/// Bounds, Inf, NaN and the sign. `a`: the magnitude that came, `y`: what it was rounded to. `up`: 2^shift as a number to add
/// to a pattern.
template <FastGrid::Bounds kBounds, Specials kSpecials>
ULP_HD float settle(uint32_t bits, uint32_t a, uint32_t y, const FastGrid& g, uint32_t up,
                    bool& clamped) {
  uint32_t limit = g.max + up, overflow = g.overflow, infinity = g.infinity;
  if (kBounds != FastGrid::Bounds::Plain) {
    const uint32_t negative = 0u - (bits >> 31);
    limit = (g.max ^ (g.max_flip & negative)) + up;
    overflow ^= g.overflow_flip & negative;
    infinity ^= g.infinity_flip & negative;
  }
  // Magnitudes are compared as floats: AVX2 has no unsigned comparison.
  if (kBounds == FastGrid::Bounds::Any) {
    const uint32_t flush = g.min_normal + (g.min_normal != 0 ? up : 0u);
    y = float_of(y) < float_of(flush) ? 0u : y;
  }
  const bool beyond = float_of(y) > float_of(limit);
  y = beyond ? overflow + up : y;
  if (kSpecials == Specials::Absent) {
    clamped = beyond;
  } else {
    const bool finite = float_of(a) < float_of(kInfinityBits);
    clamped = (static_cast<int>(beyond) & static_cast<int>(finite)) != 0;
    y = finite ? y : infinity;
    y = is_nan(float_of(a)) ? kNanBits : y;
  }
  const float number = float_of(y | (bits & kSignBit)) + g.zero;
  if (kSpecials == Specials::Absent) return number;
  return is_nan(number) ? float_of(kNanBits) : number;
}

/// The exponent that decides the spacing near a, in place.
ULP_HD uint32_t spacing_field(uint32_t a, const FastGrid& g, uint32_t up) {
  const uint32_t field = a & kInfinityBits, low = g.low + up, high = g.high + up;
  const uint32_t above = field > low ? field : low;
  return above < high ? above : high;
}

/// A power of two with this exponent field, times 2^(by >> 23): exact. GPUs multiply at twice the rate at which they add integers.
ULP_HD float raised(uint32_t field, uint32_t by) {
#if defined(__CUDA_ARCH__)
  return float_of(field) * float_of(by + (127u << 23));
#else
  return float_of(field + by);
#endif
}

template <FastGrid::Bounds kBounds, Specials kSpecials = Specials::Possible>
ULP_HD float nearest_spaced(float x, const FastGrid& g, int32_t shift, bool& clamped) {
  const uint32_t up = static_cast<uint32_t>(shift) << 23;
  const uint32_t bits = bits_of(x), a = bits & ~kSignBit;
  // Adding 2^(23 + quantum) leaves the sum no bits below the quantum, and the addition rounds to nearest even.
  const float magic = raised(spacing_field(a, g, up), g.spread << 23);
  const float y = (float_of(a) + magic) - magic;
  return settle<kBounds, kSpecials>(bits, a, bits_of(y), g, up, clamped);
}

/// A share of 2^32 as the number of words below it. Beyond the bounds a share is negative, huge or NaN, and the result does
/// not matter; but it must convert. Patterns are bounded as integers, in one instruction each; a GPU's conversion saturates.
ULP_HD uint32_t draw_threshold(float part) {
#if defined(__CUDA_ARCH__)
  return __float2uint_rz(part);
#else
  constexpr int32_t kMost = 0x4F7FFFFF;  // the float before 2^32
  const int32_t pattern = min_of(max_of(static_cast<int32_t>(bits_of(part)), 0), kMost);
  return static_cast<uint32_t>(float_of(static_cast<uint32_t>(pattern)));
#endif
}

/// ⌊a / quantum⌋ · quantum for magic = 2^23 · quantum > a ≥ 0; something beyond 2^23 quanta for larger a.
ULP_HD float floor_to(float a, float magic, [[maybe_unused]] float quantum) {
#if defined(__CUDA_ARCH__)
  return __fadd_rz(a, magic) - magic;
#else
  const float near = (a + magic) - magic;
  return near > a ? near - quantum : near;
#endif
}

template <FastGrid::Bounds kBounds, Specials kSpecials = Specials::Possible>
ULP_HD float stochastic_spaced(float x, const FastGrid& g, int32_t shift, uint32_t random,
                               bool& clamped) {
  const uint32_t up = static_cast<uint32_t>(shift) << 23;
  const uint32_t bits = bits_of(x), a = bits & ~kSignBit;
  const uint32_t field = spacing_field(a, g, up);
  const float magic = raised(field, g.spread << 23);  // 2^(23 + quantum)
  const float quantum = raised(field, (g.spread - 23u) << 23);
  const float whole = floor_to(float_of(a), magic, quantum);
  // ⌊(|x| − whole) / quantum · 2^32⌋
  const float part =
      (float_of(a) - whole) * float_of(((2u * 127u + 23u + 32u - g.spread) << 23) - field);
  const float y = random < draw_threshold(part) ? whole + quantum : whole;
  return settle<kBounds, kSpecials>(bits, a, bits_of(y), g, up, clamped);
}

template <FastGrid::Bounds kBounds, Specials kSpecials = Specials::Possible>
ULP_HD float nearest_cut(float x, const FastGrid& g, bool& clamped) {
  const uint32_t bits = bits_of(x), a = bits & ~kSignBit;
  const uint32_t half = (1u << (g.spread - 1)) - 1u;
  const uint32_t y = (a + half + (a >> g.spread & 1u)) & (~0u << g.spread);
  return settle<kBounds, kSpecials>(bits, a, y, g, 0, clamped);
}

template <FastGrid::Bounds kBounds, Specials kSpecials = Specials::Possible>
ULP_HD float stochastic_cut(float x, const FastGrid& g, uint32_t random, bool& clamped) {
  const uint32_t bits = bits_of(x), a = bits & ~kSignBit;
  // What is cut off, r, rises where random < r·2^(32−spread): where r and the complement of the word's first bits carry.
  const uint32_t complement = ~(~0u << g.spread) - (random >> (32 - g.spread));
  const uint32_t y = (a + complement) & (~0u << g.spread);
  return settle<kBounds, kSpecials>(bits, a, y, g, 0, clamped);
}

}  // namespace fast
}  // namespace ulp
