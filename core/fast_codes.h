#pragma once

#include "core/codes.h"
#include "core/fast_grid.h"

namespace ulp {

/// Rounding straight to a small float's codes (fast_grid.h, then float_code), and back (decode_float). Codes count a lattice's
/// numbers upwards from zero without a gap, so a rounded magnitude is a code as it stands, bounds are one minimum, and no
/// number is made on the way. Equal to the definitions for every input, word and code; the tests compare them.
struct FastCodes {
  bool possible = false;  // else use number_code(quantise_value) and decode
  FastGrid grid;          // without blocks
  bool stochastic = false;
  int bits = 0;             // of a code, at most 16
  uint32_t sign = 0;        // bit of a code
  uint32_t sign_place = 0;  // how far that bit lies below a pattern's sign
  // What lies beyond the largest number has that one's code, or the next one, Inf: as if it had been this pattern.
  uint32_t limit = 0;
  uint32_t nan_from =
      0;  // patterns of magnitudes from here on are NaN: where Inf has no code, that of Inf
  uint32_t nan = 0;                            // 0 where NaN has no code (state_code.h)
  uint32_t first_normal = 0;                   // codes of magnitudes
  uint32_t first_infinity = 0, first_nan = 0;  // beyond all codes where there are none
};

/// For element-wise grids, and for blocks whose elements are multiplied and then lie on the element's own grid.
FastCodes make_fast_codes(const Grid& grid, const CodeRule& rule);

namespace fast {

/// ulp::canonical in the two instructions that AVX2 has for it.
ULP_HD float canonical(float x) { return is_nan(x) ? float_of(kNanBits) : x; }

/// The sign and NaN, of a magnitude's code.
ULP_HD uint32_t signed_code(uint32_t bits, uint32_t magnitude, const FastCodes& c) {
  const uint32_t number = magnitude | (bits >> c.sign_place & c.sign);
  // All patterns are below 2^31: AVX2 has no unsigned comparison.
  const auto a = static_cast<int32_t>(bits & ~kSignBit);
  return a >= static_cast<int32_t>(c.nan_from) ? c.nan : number;
}

ULP_HD uint32_t bounded(uint32_t bits, const FastCodes& c) {
  return static_cast<uint32_t>(
      min_of(static_cast<int32_t>(bits & ~kSignBit), static_cast<int32_t>(c.limit)));
}

/// The exponent that decides the spacing near a ≤ limit, in place.
ULP_HD uint32_t spacing_field(uint32_t a, const FastCodes& c) {
  const uint32_t field = a & kInfinityBits;
  return field > c.grid.low ? field : c.grid.low;
}

ULP_HD uint32_t nearest_spaced_code(float x, const FastCodes& c) {
  const uint32_t bits = bits_of(x), a = bounded(bits, c), field = spacing_field(a, c);
  const uint32_t magic = field + (c.grid.spread << 23);
  const uint32_t quanta = bits_of(float_of(a) + float_of(magic)) - magic;  // see nearest_spaced
  return signed_code(bits, quanta + ((field - c.grid.low) >> c.grid.spread), c);
}

ULP_HD uint32_t stochastic_spaced_code(float x, const FastCodes& c, uint32_t random) {
  const uint32_t bits = bits_of(x), a = bounded(bits, c), field = spacing_field(a, c);
  const float magic = float_of(field + (c.grid.spread << 23));
  const float quantum = float_of(field - ((23u - c.grid.spread) << 23));
  const float whole = floor_to(float_of(a), magic, quantum);
  // ⌊(|x| − whole) / quantum · 2^32⌋, below 2^32 for a bounded x
  const float part =
      (float_of(a) - whole) * float_of(((2u * 127u + 23u + 32u - c.grid.spread) << 23) - field);
  const uint32_t up = random < static_cast<uint32_t>(part) ? 1u : 0u;
  const uint32_t quanta = bits_of(whole + magic) - bits_of(magic);
  return signed_code(bits, quanta + up + ((field - c.grid.low) >> c.grid.spread), c);
}

ULP_HD uint32_t nearest_cut_code(float x, const FastCodes& c) {
  const uint32_t bits = bits_of(x), a = bounded(bits, c), spread = c.grid.spread;
  const uint32_t half = (1u << (spread - 1)) - 1u;
  return signed_code(bits, (a + half + (a >> spread & 1u)) >> spread, c);
}

ULP_HD uint32_t stochastic_cut_code(float x, const FastCodes& c, uint32_t random) {
  const uint32_t bits = bits_of(x), a = bounded(bits, c), spread = c.grid.spread;
  const uint32_t complement = ~(~0u << spread) - (random >> (32 - spread));  // see stochastic_cut
  return signed_code(bits, (a + complement) >> spread, c);
}

/// kSpecials: whether the caller knows that the code is neither Inf nor NaN.
template <Specials kSpecials = Specials::Possible>
ULP_HD float number_of_code(uint32_t code, const FastCodes& c) {
  constexpr uint32_t kExponentStep = 1u << 23;
  const auto magnitude = static_cast<int32_t>(code & (c.sign - 1u));
  // Exponent and fraction are in place, once the exponent is biased as fp32's. Below the least normal number they are those
  // of a fraction beyond it.
  const uint32_t above = (static_cast<uint32_t>(magnitude) << c.grid.spread) + c.grid.low;
  const uint32_t below = bits_of(float_of(above) - float_of(c.grid.low));
  uint32_t y = magnitude < static_cast<int32_t>(c.first_normal) ? below : above - kExponentStep;
  if (kSpecials == Specials::Possible)
    y = magnitude >= static_cast<int32_t>(c.first_infinity) ? kInfinityBits : y;
  y |= (code & c.sign) << c.sign_place;
  if (kSpecials == Specials::Possible)
    y = magnitude >= static_cast<int32_t>(c.first_nan) ? kNanBits : y;
  return float_of(y);
}

}  // namespace fast
}  // namespace ulp
