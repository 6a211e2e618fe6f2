#pragma once

#include "core/bits.h"
#include "core/posit.h"
#include "core/quantizer.h"

namespace ulp {

/// How a grid's numbers are given.
enum class GridKind : uint8_t {
  Lattice,  // everything below
  OneBit,  // the same, significand_bits = 0, where a number is odd if its exponent makes its code so (P3109)
  Posit,  // posit_bits, posit_exponent_bits
  Table,  // table, table_size
};

/// A quantizer's numbers as kernels read them: the spacing of its values near x is 2^max(exponent(x) − significand_bits,
/// min_quantum), and everything beyond max_bits is decided by one table look-up. Index 0: x ≥ 0, index 1: x < 0.
struct Grid {
  GridKind kind;
  int8_t posit_bits, posit_exponent_bits;
  int32_t table_size;
  const float* table;         // ascending, in the memory of the device that reads it
  int32_t significand_bits;   // kUniform: the same spacing everywhere (fixed point, one block)
  int32_t min_quantum;        // exponent of the smallest spacing, ≥ −149
  uint32_t max_bits[2];       // magnitude of the largest value
  uint32_t overflow_bits[2];  // what a rounded value beyond it becomes, sign included
  uint32_t infinity_bits[2];  // what ±Inf becomes, sign included
  uint32_t min_normal_bits;   // results below it become zero; 0 keeps subnormals
  uint32_t zero_sign;         // kSignBit where −0 exists, else 0
  Rounding rounding;
  RandomBits bits;
  int8_t wrap_bits;  // > 0: two's complement of that many bits instead of bounds
  bool wrap_unsigned;
};

inline constexpr int32_t kUniform = 1 << 20;

/// The grid of an element-wise quantizer. Throws for block formats: their grid depends on the data (set_block).
Grid make_grid(const Quantizer& quantizer);

/// How a block's grid follows from its largest magnitude. Made once a quantizer and output type (make_block_rule).
struct BlockRule {
  enum class Kind : uint8_t { BlockFloat, Hbfp, Scaled };
  Kind kind;
  Scale scale;          // Scaled, as the rest
  int32_t word_bits;    // BlockFloat, Hbfp
  int32_t emax;         // exponent of the element's largest number
  int32_t precision;    // significant bits of an element
  float max;            // the element's largest magnitude
  float inverse_max;    // fl(1 / max)
  bool three_quarters;  // elements are multiplied by 3/4 first
  int32_t least_scale;  // biased; what the output type can follow
  int32_t most_scale;   // biased; 254, or less where the element's step would pass 2^127
};

/// Element x of a block becomes quantise_value(x · before) · after on the block's grid, times `factor`, which is kept apart
/// for a GEMM. x · before and the multiplication by the factor round to fp32; the one by `after` is exact. A block that
/// holds Inf or NaN has before = NaN.
struct BlockScale {
  float before = 1, after = 1, factor = 1;
};

/// `out`: the type that the values will be stored in. BF16's grid ends at 2^−133, so scales stop where an element's smallest
/// step would fall below; every other type takes all scales from 2^−127.
BlockRule make_block_rule(const Quantizer& quantizer, DType out);

/// Added to the pattern of a positive number it raises the exponent where the number is √2 times a power of two or more, so
/// that the exponent becomes log2 of the number, rounded. Subnormal numbers below √2 · 2^−127 keep the exponent field 0.
ULP_HD uint32_t shift_up(bool subnormal) { return subnormal ? 0x00257D86u : 0x004AFB0Cu; }

/// The biased exponent X of a block's power-of-two scale 2^(X−127), 0 … 254. amax is finite; zeros have the least scale.
/// Source: the four rules of torchao's MX formats; RoundCeil multiplies by fl(1/max) as TransformerEngine does; Shift: WAGE.
ULP_HD int32_t scale_exponent(const BlockRule& rule, uint32_t amax_bits) {
  const int32_t e = static_cast<int32_t>(amax_bits >> 23);
  const uint32_t m = amax_bits & 0x007FFFFFu;
  int32_t x = e - rule.emax;
  switch (rule.scale.rule) {
    case Scale::Rule::Ceil: x += m != 0 ? 1 : 0; break;
    case Scale::Rule::Even:
      x = static_cast<int32_t>((amax_bits + (1u << (23 - rule.precision))) >> 23) - rule.emax;
      break;
    case Scale::Rule::RoundCeil: {
      const uint32_t f = bits_of(float_of(amax_bits) * rule.inverse_max);
      const int32_t fe = static_cast<int32_t>(f >> 23);
      const uint32_t fm = f & 0x007FFFFFu;
      x = fe + (fm != 0 && fe != 254 && !(fe == 0 && fm <= 0x00400000u) ? 1 : 0);
      break;
    }
    case Scale::Rule::Shift:
      x = static_cast<int32_t>((amax_bits + shift_up(amax_bits < 0x00800000u)) >> 23);
      break;
    default: break;
  }
  return max_of(min_of(amax_bits == 0 ? 0 : x, rule.most_scale), rule.least_scale);
}

/// x · 2^exponent for a finite x ≥ 0 and |exponent| ≤ 254; beyond fp32 it is Inf.
ULP_HD float scaled(float x, int32_t exponent) {
  const int32_t half = exponent >> 1;
  return (x * pow2(half)) * pow2(exponent - half);
}

/// What values are multiplied by so that amax becomes `max`: fl(max / amax), at most FLT_MAX; 1 if amax is 0, or if the
/// quotient is. Source: TransformerEngine's scaling factors.
ULP_HD float scale_to(float max, float amax) {
  const float s = max / amax;
  const float bounded = s < kMaxFloat ? s : kMaxFloat;
  return s > 0 && amax > 0 ? bounded : 1.0f;  // amax = Inf is the caller's business
}

/// 1 / scale, at most FLT_MAX.
ULP_HD float factor_of(float scale) {
  const float f = 1.0f / scale;
  return f < kMaxFloat ? f : kMaxFloat;
}

/// E4M3Tensor: the factor S of a whole tensor, from its largest magnitude. 1 for every other rule, NaN if there is Inf or
/// NaN in the tensor.
ULP_HD float tensor_scale(const BlockRule& rule, uint32_t amax_bits) {
  if (rule.scale.kind != Scale::Kind::E4M3Tensor) return 1.0f;
  if (amax_bits >= kInfinityBits) return float_of(kNanBits);
  return scale_to(448.0f * rule.max, float_of(amax_bits));
}

/// Nearest e4m3 number, ties to even, at most 448, for a finite x ≥ 0.
ULP_HD float nearest_e4m3(float x) {
  const float within = x < 448.0f ? x : 448.0f;
  const int32_t field = max_of(static_cast<int32_t>(bits_of(within) >> 23), 127 - 6);
  const float magic = float_of(static_cast<uint32_t>(field - 3 + 23) << 23);
  return (within + magic) - magic;
}

/// The state of delayed scaling after a call: `state` holds the scale and the last `history` magnitudes, newest first. A
/// call with Inf or NaN is forgotten, and zeros leave the scale as it is. Source: TransformerEngine, DelayedScaling with amax_compute_algo "max", margin 0.
ULP_HD void update_delayed(const BlockRule& rule, float* state, uint32_t amax_bits) {
  if (amax_bits >= kInfinityBits) return;
  float most = float_of(amax_bits);
  for (int32_t i = rule.scale.history; i > 1; --i) {
    state[i] = state[i - 1];
    most = state[i] > most ? state[i] : most;
  }
  state[1] = float_of(amax_bits);
  if (most > 0) state[0] = scale_to(rule.max, most);
}

/// The scales of a block that are no power of two.
ULP_HD BlockScale block_scale(const BlockRule& rule, uint32_t amax_bits, float tensor) {
  BlockScale result;
  if (rule.three_quarters) {
    result.before = 0.75f;
    result.factor = 4.0f / 3.0f;
  }
  const float amax = float_of(amax_bits);
  if (rule.kind == BlockRule::Kind::Scaled && rule.scale.kind == Scale::Kind::F32) {
    result.before = scale_to(rule.max, amax);
    result.factor = factor_of(result.before);
  } else if (rule.kind == BlockRule::Kind::Scaled && rule.scale.kind >= Scale::Kind::E4M3 &&
             rule.scale.kind <= Scale::Kind::E4M3Tensor) {
    const float d = nearest_e4m3(amax * (tensor * rule.inverse_max));
    const float r = tensor / d;
    result.before = r < kMaxFloat ? r : kMaxFloat;
    result.after = d;
    result.factor = factor_of(tensor);
  }
  if (amax_bits >= kInfinityBits || !(tensor > 0)) {
    result.before = float_of(kNanBits);
    if (rule.scale.kind != Scale::Kind::PowerOfTwo) result.factor = float_of(kNanBits);
  }
  return result;
}

/// Turns a quantizer's grid (make_grid) into that of one block, and tells its other scales. amax_bits: the largest magnitude
/// in it, `tensor` what tensor_scale says.
///  BlockFloat  E = max(exponent of amax, −126), step 2^(E+2−W), at least 2^−149, bounds ±(2^(E+1) − step), no −0.
///              Source: QPyTorch's block quantiser, with a floor under E.
///  Hbfp        E = ⌈log2 amax⌉, at least −126, step 2^(E−M), at least 2^−149, bounds ±(2^E − step), no −0.
///              Source: Drumond et al., "Training DNNs with Hybrid Block Floating Point", arXiv 1804.01526.
///  PowerOfTwo  the element's grid times 2^(X−127), X by scale_exponent. Source: OCP MX specification 1.0, §6.3.
///  F32         before = S = scale_to(max, amax), factor 1/S.
///  E4M3        d = e4m3(amax · fl(S · fl(1/max))), before = min(fl(S/d), FLT_MAX), after = d, with S = 1.
///  E4M3Tensor  the same with S = tensor_scale, factor 1/S. Source: NVFP4 in TransformerEngine.
ULP_HD BlockScale set_block(Grid& grid, const BlockRule& rule, uint32_t amax_bits,
                            float tensor = 1.0f) {
  const BlockScale scale = block_scale(rule, amax_bits, tensor);
  if (amax_bits >= kInfinityBits) return scale;
  if (rule.kind == BlockRule::Kind::Scaled) {
    if (rule.scale.kind != Scale::Kind::PowerOfTwo) return scale;
    const int32_t shift = scale_exponent(rule, amax_bits) - 127;
    grid.min_quantum += shift;
    for (int s = 0; s < 2; ++s) {
      const uint32_t sign = grid.overflow_bits[s] & kSignBit;
      grid.max_bits[s] = bits_of(scaled(float_of(grid.max_bits[s]), shift));
      grid.overflow_bits[s] = grid.max_bits[s] | sign;
    }
    if (grid.min_normal_bits != 0)
      grid.min_normal_bits = bits_of(scaled(float_of(grid.min_normal_bits), shift));
    return scale;
  }
  const int32_t e = static_cast<int32_t>(amax_bits >> 23) - 127;
  int32_t top = e + 1;  // values stay below 2^top
  if (rule.kind == BlockRule::Kind::Hbfp) top = e + ((amax_bits & 0x007FFFFFu) != 0 ? 1 : 0);
  top = max_of(top, rule.kind == BlockRule::Kind::Hbfp ? -126 : -125);
  const int32_t quantum = max_of(top + 1 - rule.word_bits, -149);
  // 2^top − step without overflow at top = 128.
  const float max = (pow2(top - 1) - pow2(quantum)) + pow2(top - 1);
  grid.min_quantum = quantum;
  const uint32_t bits = bits_of(max);
  grid.max_bits[0] = bits;
  grid.max_bits[1] = bits;
  grid.overflow_bits[0] = bits;
  grid.overflow_bits[1] = bits | kSignBit;
  return scale;
}

/// Does the magnitude's dropped part r (of `shift` bits, shift ≥ 0) round up under stochastic rounding with word R?
ULP_HD uint32_t stochastic_up(uint32_t r, int32_t shift, uint32_t random) {
  const uint32_t left = r << (static_cast<uint32_t>(32 - shift) & 31u);
  const uint32_t right = r >> static_cast<uint32_t>(min_of(max_of(shift - 32, 0), 31));
  return random < select_bits(shift <= 32, left, right) ? 1u : 0u;
}

/// The same with `count` < 32 bits or another variant. Source: gfloat SRFF, SRF, SRC.
ULP_HD uint32_t few_bits_up(uint32_t r, int32_t shift, uint32_t random, RandomBits bits) {
  const uint64_t n = bits.count;
  const uint64_t word = random >> (32 - n);
  const uint64_t one = uint64_t{1} << n;
  const auto scaled = [&](int32_t extra) {  // floor(r / 2^shift · 2^(n + extra))
    const int32_t by = static_cast<int32_t>(n) + extra - shift;
    return by >= 0 ? uint64_t{r} << min_of(by, 40) : (by <= -32 ? 0 : uint64_t{r} >> -by);
  };
  switch (bits.variant) {
    case RandomBits::Variant::Plain: return scaled(0) + word >= one ? 1u : 0u;
    case RandomBits::Variant::Centred: return scaled(1) + 2 * word + 1 >= 2 * one ? 1u : 0u;
    case RandomBits::Variant::Nearest: {
      const int32_t drop = shift - static_cast<int32_t>(n);
      uint64_t fraction = scaled(0);
      if (drop > 0) {
        const uint64_t rest = drop > 32 ? r : r & ((uint64_t{1} << drop) - 1);
        const uint64_t half = drop > 32 ? UINT64_MAX : uint64_t{1} << (drop - 1);
        if (rest > half || (rest == half && (fraction & 1) != 0)) ++fraction;
      }
      return fraction + word >= one ? 1u : 0u;
    }
  }
  return 0;
}

/// Stochastic rounding between two listed numbers: up iff the word lies below the fraction T / 2^32 of the way.
ULP_HD uint32_t between_up(uint32_t t, uint32_t random, RandomBits bits) {
  const uint64_t n = bits.count;
  const uint64_t word = random >> (32 - n), one = uint64_t{1} << n;
  switch (bits.variant) {
    case RandomBits::Variant::Plain:
      return n == 32 ? (random < t ? 1u : 0u) : ((t >> (32 - n)) + word >= one ? 1u : 0u);
    case RandomBits::Variant::Centred:
      return (uint64_t{t} << 1 >> (32 - n)) + 2 * word + 1 >= 2 * one ? 1u : 0u;
    case RandomBits::Variant::Nearest: {
      if (n == 32) return t + word >= one ? 1u : 0u;
      const uint64_t half = uint64_t{1} << (31 - n), rest = t & (2 * half - 1);
      uint64_t fraction = t >> (32 - n);
      if (rest > half || (rest == half && (fraction & 1) != 0)) ++fraction;
      return fraction + word >= one ? 1u : 0u;
    }
  }
  return 0;
}

/// ⌊(x − low) / (high − low) · 2^32⌋ for low ≤ x < high.
ULP_HD uint32_t fraction_between(float x, float low, float high) {
  const double part = (static_cast<double>(x) - static_cast<double>(low)) /
                      (static_cast<double>(high) - static_cast<double>(low));
  const double scaled_part = part * 4294967296.0;
  const double least = scaled_part > 0 ? scaled_part : 0.0;
  return floor_of(least < 4294967295.0 ? least : 4294967295.0);
}

/// Where a posit's bit string is cut. The pattern of a float, its exponent counted from a multiple of 2^es, holds the posit's
/// exponent and fraction bits in its low end, so cutting the bit string is cutting `shift` bits of that pattern.
struct PositCut {
  uint32_t pattern;  // |x|'s bits, the exponent field one higher
  int32_t k;         // regime
  int32_t shift;     // 10 … 26
  uint32_t lsb;      // the last bit that is kept
};

ULP_HD PositCut posit_cut(uint32_t magnitude_bits, int32_t n, int32_t es) {
  PositCut cut{};
  cut.pattern = magnitude_bits + 0x00800000u;
  cut.k = (static_cast<int32_t>(magnitude_bits >> 23) - 127) >> es;
  const int32_t regime = (cut.k ^ (cut.k >> 31)) + 2;  // k + 2, or 1 − k below 0
  const int32_t kept = max_of(n - 1 - regime, 0);      // exponent and fraction bits
  cut.shift = 23 + es - kept;
  cut.lsb = select_bits(kept == 0, static_cast<uint32_t>(cut.k < 0), cut.pattern >> cut.shift) & 1u;
  return cut;
}

/// Posits: never to zero and never to NaR except from NaN and Inf; beyond maxpos it is maxpos, below minpos minpos (biased
/// under stochastic rounding). Nearest modes cut the bit string, stochastic rounding is linear in value.
/// `*uneven`, where given, tells that the neighbours differ in exponent by more than one under a stochastic rounding; the
/// result is then not the right one (a loop that vectorises asks again, without `uneven`). It stands for 32 random bits.
ULP_HD float quantise_posit(float x, const Grid& grid, Rounding mode, uint32_t random,
                            bool* clamped, bool* uneven = nullptr) {
  const uint32_t a = bits_of(x) & ~kSignBit, sign = bits_of(x) & kSignBit;
  const bool negative = sign != 0;
  const int32_t n = grid.posit_bits, es = grid.posit_exponent_bits;
  const PositCut cut = posit_cut(a, n, es);
  const uint32_t tail = (1u << cut.shift) - 1u, rest = cut.pattern & tail, half = tail >> 1;
  uint32_t add = 0;
  switch (mode) {
    case Rounding::NearestEven: add = half + cut.lsb; break;
    case Rounding::NearestAway: add = half + 1; break;
    case Rounding::NearestUp: add = half + static_cast<uint32_t>(!negative); break;
    case Rounding::TowardZero: break;
    case Rounding::Up: add = select_bits(negative, 0u, tail); break;
    case Rounding::Down: add = select_bits(negative, tail, 0u); break;
    case Rounding::Odd: add = select_bits(rest != 0 && cut.lsb == 0, tail, 0u); break;
    case Rounding::Stochastic: {
      uint32_t t = rest << ((32 - cut.shift) & 31);
      if (uneven != nullptr) {
        *uneven = (static_cast<int>(cut.shift > 23) & static_cast<int>(cut.k < n - 2) &
                   static_cast<int>(cut.k >= 2 - n)) != 0;
      } else if (cut.shift > 23) {
        const uint32_t low = cut.pattern - rest;
        t = fraction_between(float_of(a), float_of(low - 0x00800000u),
                             float_of(low + tail + 1u - 0x00800000u));
      }
      const bool plain = uneven != nullptr || grid.bits == RandomBits{};
      uint32_t up = static_cast<uint32_t>(random < t);
      if (!plain) up = rest != 0 ? between_up(t, random, grid.bits) : 0u;
      add = select_bits(up != 0, tail + 1u - rest, 0u);
      break;
    }
  }
  const uint32_t inside = ((cut.pattern + add) & ~tail) - 0x00800000u;
  const int32_t top = (n - 2) * (1 << es);
  const uint32_t most = static_cast<uint32_t>(127 + top) << 23,
                 least = static_cast<uint32_t>(127 - top) << 23;
  const bool beyond = cut.k >= n - 2;
  if (clamped != nullptr) *clamped = a > most && a < kInfinityBits;
  uint32_t y = select_bits(cut.k < 2 - n, least, inside);
  y = select_bits(beyond, most, y) | sign;
  y = select_bits(a == 0, 0u, y);
  return float_of(select_bits(a >= kInfinityBits, kNanBits, y));
}

/// Any list of numbers: nearest by exact distance (ties to the even index), directed, odd index, or stochastic and linear in
/// value. Beyond the ends it is the end; Inf and NaN are NaN.
ULP_HD float quantise_table(float x, const Grid& grid, Rounding mode, uint32_t random,
                            bool* clamped) {
  if (clamped != nullptr) *clamped = false;
  if ((bits_of(x) & ~kSignBit) >= kInfinityBits) return float_of(kNanBits);
  const float* v = grid.table;
  const int32_t last = grid.table_size - 1;
  if (x <= v[0] || x >= v[last]) {
    if (clamped != nullptr) *clamped = x < v[0] || x > v[last];
    return x <= v[0] ? v[0] : v[last];
  }
  int32_t low = 0, high = last;  // v[low] ≤ x < v[high]
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    if (v[middle] <= x)
      low = middle;
    else
      high = middle;
  }
  if (v[low] == x) return v[low];
  const double below = static_cast<double>(x) - static_cast<double>(v[low]);
  const double above = static_cast<double>(v[high]) - static_cast<double>(x);
  bool up = false;
  switch (mode) {
    case Rounding::NearestEven: up = below > above || (below == above && (low & 1) != 0); break;
    case Rounding::NearestAway: up = below > above || (below == above && x > 0); break;
    case Rounding::NearestUp: up = below >= above; break;
    case Rounding::TowardZero: up = x < 0; break;
    case Rounding::Up: up = true; break;
    case Rounding::Down: break;
    case Rounding::Odd: up = (low & 1) == 0; break;
    case Rounding::Stochastic:
      up = between_up(fraction_between(x, v[low], v[high]), random, grid.bits) != 0;
      break;
  }
  return v[up ? high : low];
}

/// What the value x becomes. `random` is this element's word and matters to stochastic rounding only; `mode` is
/// grid.rounding, passed apart so that a loop can fix it at compile time. NaN stays NaN; zero keeps its sign where the
/// format has −0. One rounding, in integers, from the exact value. Sets *clamped if the rounded value lay beyond the bounds.
///
/// Source: design rules of the OCP 8-bit and MX specifications; equal to ml_dtypes and Eigen where they define a cast.
ULP_HD float quantise_value(float x, const Grid& grid, Rounding mode, uint32_t random,
                            bool* clamped = nullptr) {
  if (grid.kind == GridKind::Posit) return quantise_posit(x, grid, mode, random, clamped);
  if (grid.kind == GridKind::Table) return quantise_table(x, grid, mode, random, clamped);
  const uint32_t a = bits_of(x) & ~kSignBit;
  const uint32_t sign = bits_of(x) & kSignBit;
  const bool negative = sign != 0;

  // |x| = m · 2^(e−23) with 2^23 ≤ m < 2^24 (or m = 0); fp32 subnormals are first scaled up by 2^24, exactly.
  const uint32_t subnormal = 0u - static_cast<uint32_t>(a < 0x00800000u);
  const uint32_t n = bits_of(float_of(a) * float_of(0x3F800000u + (subnormal & (24u << 23))));
  const int32_t e = static_cast<int32_t>(n >> 23) - 127 - static_cast<int32_t>(subnormal & 24u);
  const uint32_t m = ((n & 0x007FFFFFu) | 0x00800000u) & (0u - static_cast<uint32_t>(a != 0));

  const int32_t quantum = max_of(max_of(e - grid.significand_bits, grid.min_quantum), e - 23);
  const int32_t shift = quantum - (e - 23);  // bits to drop, ≥ 0
  const int32_t cut =
      min_of(shift, 26);  // beyond 26 nothing of m is left, but a lost tail must be seen
  const uint32_t tail = (1u << cut) - 1u;
  const uint32_t odd_code = grid.kind == GridKind::OneBit
                                ? ~static_cast<uint32_t>(quantum - grid.min_quantum)
                                : ~0u;  // code 1 has the least exponent
  const uint32_t lsb = (m >> cut) & odd_code & 1u;
  const uint32_t some = static_cast<uint32_t>(cut > 0);

  uint32_t k = 0;  // |x| in units of 2^quantum, rounded
  switch (mode) {
    case Rounding::NearestEven: k = (m + (tail >> 1) + (lsb & some)) >> cut; break;
    case Rounding::NearestAway: k = (m + (tail >> 1) + some) >> cut; break;
    case Rounding::NearestUp:
      k = (m + (tail >> 1) + (static_cast<uint32_t>(!negative) & some)) >> cut;
      break;
    case Rounding::TowardZero: k = m >> cut; break;
    case Rounding::Up: k = (m + select_bits(negative, 0u, tail)) >> cut; break;
    case Rounding::Down: k = (m + select_bits(negative, tail, 0u)) >> cut; break;
    case Rounding::Odd: k = (m >> cut) + (static_cast<uint32_t>((m & tail) != 0) & ~lsb); break;
    case Rounding::Stochastic: {
      const uint32_t r = m & tail;
      const uint32_t up = grid.bits.count == 32 && grid.bits.variant == RandomBits::Variant::Plain
                              ? stochastic_up(r, shift, random)
                              : few_bits_up(r, shift, random, grid.bits);
      k = (m >> cut) + up;
      break;
    }
  }

  uint32_t y = bits_of(static_cast<float>(static_cast<int32_t>(k)) * pow2(min_of(quantum, 127)));
  y = select_bits(y < grid.min_normal_bits, 0u, y);
  const uint32_t signed_y = y | (sign & select_bits(y == 0, grid.zero_sign, kSignBit));
  const bool beyond = y > select_bits(negative, grid.max_bits[1], grid.max_bits[0]);
  if (clamped != nullptr) *clamped = beyond && a < kInfinityBits;
  uint32_t result = select_bits(
      beyond, select_bits(negative, grid.overflow_bits[1], grid.overflow_bits[0]), signed_y);
  if (grid.wrap_bits > 0) {
    // Two's complement: keep the low bits of the signed integer, sign-extended unless unsigned.
    const int32_t up = quantum - grid.min_quantum;
    const uint32_t low = up >= 32 ? 0u : k << up;
    const uint32_t word = negative ? 0u - low : low;
    const int32_t spare = 32 - grid.wrap_bits;
    const float value = grid.wrap_unsigned
                            ? static_cast<float>((word << spare) >> spare)
                            : static_cast<float>(static_cast<int32_t>(word << spare) >> spare);
    const float wrapped = value * pow2(grid.min_quantum);
    if (clamped != nullptr) *clamped = wrapped != float_of(signed_y) && a < kInfinityBits;
    result = bits_of(wrapped);
  }
  result = select_bits(a >= kInfinityBits,
                       select_bits(negative, grid.infinity_bits[1], grid.infinity_bits[0]), result);
  return float_of(select_bits(a > kInfinityBits, kNanBits, result));
}

ULP_HD float quantise_value(float x, const Grid& grid, uint32_t random) {
  return quantise_value(x, grid, grid.rounding, random);
}

}  // namespace ulp
