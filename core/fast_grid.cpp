#include "core/fast_grid.h"

namespace ulp {
namespace {

constexpr int32_t kMinExponent = -126;

uint32_t in_place(int32_t exponent) { return static_cast<uint32_t>(exponent + 127) << 23; }

}  // namespace

FastGrid make_fast_grid(const Grid& grid) {
  const bool stochastic = grid.rounding == Rounding::Stochastic && grid.bits == RandomBits{};
  FastGrid fast;
  if (grid.kind != GridKind::Lattice || grid.wrap_bits > 0) return fast;
  if (grid.rounding != Rounding::NearestEven && !stochastic) return fast;
  fast.max = grid.max_bits[0];
  fast.max_flip = grid.max_bits[0] ^ grid.max_bits[1];
  fast.overflow = grid.overflow_bits[0] & ~kSignBit;
  fast.overflow_flip = fast.overflow ^ (grid.overflow_bits[1] & ~kSignBit);
  fast.infinity = grid.infinity_bits[0] & ~kSignBit;
  fast.infinity_flip = fast.infinity ^ (grid.infinity_bits[1] & ~kSignBit);
  fast.min_normal = grid.min_normal_bits;
  fast.zero = grid.zero_sign != 0 ? -0.0f : 0.0f;
  const bool even = fast.max_flip == 0 && fast.overflow_flip == 0 && fast.infinity_flip == 0;
  if (fast.min_normal == 0) fast.bounds = even ? FastGrid::Bounds::Plain : FastGrid::Bounds::Signed;
  const uint32_t most = grid.max_bits[0] > grid.max_bits[1] ? grid.max_bits[0] : grid.max_bits[1];
  const int32_t emax = static_cast<int32_t>(most >> 23) - 127, quantum = grid.min_quantum;
  const bool uniform = grid.significand_bits == kUniform;
  if (!uniform && grid.significand_bits < 23 && quantum + grid.significand_bits == kMinExponent) {
    fast.form = FastGrid::Form::CutBits;
    fast.spread = static_cast<uint32_t>(23 - grid.significand_bits);
    return fast;
  }
  // Spaced needs: the largest number below 2^23 quanta; room for 2^(23 + quantum) at the top; quanta that are normal numbers,
  // for stochastic rounding so large that a subnormal x has no chance of 2^−32 to reach one.
  const int32_t least_quantum = stochastic ? -94 : kMinExponent;
  if (most >= kInfinityBits || (uniform && emax >= quantum + 23)) return fast;
  const int32_t bits = uniform ? 0 : grid.significand_bits;
  if (bits > 22) return fast;
  const int32_t low = quantum + bits, high = uniform ? low : emax + 1;
  if (high < low) return fast;
  fast.least_shift = least_quantum - quantum;
  const int32_t most_place =
      uniform ? 126 : 127;  // a sum with 2^(23 + quantum) is up to twice that
  fast.most_shift = min_of(most_place - 23 + bits - high, 127 - emax);
  const bool one_sided =
      grid.max_bits[0] == 0 || grid.max_bits[1] == 0;  // 0 · 2^shift is no pattern + shift
  if (fast.least_shift > 0 || fast.most_shift < 0) return fast;
  if (one_sided) fast.least_shift = fast.most_shift = 0;
  fast.form = FastGrid::Form::Spaced;
  fast.spread = static_cast<uint32_t>(23 - bits);
  fast.low = in_place(low);
  fast.high = in_place(high);
  return fast;
}

BlockShift make_block_shift(const BlockRule& rule) {
  constexpr uint32_t kUp = 0x007FFFFF;  // any fraction raises the exponent
  BlockShift s;
  if (rule.kind == BlockRule::Kind::Scaled) {
    if (rule.scale.kind != Scale::Kind::PowerOfTwo) return s;  // always 0
    s.least = rule.least_scale - 127;
    s.most = rule.most_scale - 127;
    s.offset = -127 - rule.emax;
    switch (rule.scale.rule) {
      case Scale::Rule::Ceil: s.add = s.add_subnormal = kUp; break;
      case Scale::Rule::Even: s.add = s.add_subnormal = 1u << (23 - rule.precision); break;
      case Scale::Rule::RoundCeil:
        s.multiplier = rule.inverse_max;
        s.add = kUp;
        s.add_subnormal = 0x003FFFFF;  // half of the least normal number and less keeps exponent 0
        s.offset = -127;
        break;
      case Scale::Rule::Shift:
        s.add = shift_up(false);
        s.add_subnormal = shift_up(true);
        s.offset = -127;
        break;
      default: break;
    }
    return s;
  }
  s.least = -254;  // no bounds
  s.most = 254;
  s.offset = -127;
  if (rule.kind == BlockRule::Kind::Hbfp) s.add = s.add_subnormal = kUp;
  return s;
}

Grid make_block_grid(const Quantizer& quantizer, const BlockRule& rule) {
  Grid grid = make_grid(quantizer);
  if (rule.kind != BlockRule::Kind::Scaled) set_block(grid, rule, bits_of(1.0f));
  return grid;
}

}  // namespace ulp
