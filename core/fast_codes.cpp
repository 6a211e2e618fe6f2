#include "core/fast_codes.h"

namespace ulp {

FastCodes make_fast_codes(const Grid& grid, const CodeRule& rule) {
  FastCodes c;
  c.grid = make_fast_grid(grid);
  if (c.grid.form == FastGrid::Form::None || c.grid.bounds != FastGrid::Bounds::Plain) return c;
  if (rule.kind != CodeRule::Kind::Float || rule.sign == 0 || rule.minus_zero_is_nan) return c;
  if (rule.bits > 16 || grid.zero_sign == 0) return c;
  // The codes may be those of a type that holds numbers between the grid's.
  if (grid.significand_bits != rule.significand_bits || grid.min_quantum != rule.quantum) return c;
  if (c.grid.form == FastGrid::Form::CutBits) c.grid.low = 1u << 23;
  const auto code_of = [&](uint32_t bits) { return float_code(rule, float_of(bits)); };
  const uint32_t largest = code_of(c.grid.max);
  const uint32_t top = code_of(c.grid.overflow);
  if (c.grid.overflow > kInfinityBits || (top != largest && top != largest + 1)) return c;
  c.first_normal = 1u << rule.significand_bits;
  if (top < c.first_normal) return c;
  c.limit = (top << c.grid.spread) + c.grid.low - (1u << 23);
  const bool infinity_is_nan = c.grid.infinity > kInfinityBits;
  if (!infinity_is_nan && code_of(c.grid.infinity) != top) return c;
  c.nan_from = kInfinityBits + (infinity_is_nan ? 0u : 1u);
  c.nan = rule.nan == kNoCode ? 0u : rule.nan;
  c.stochastic = grid.rounding == Rounding::Stochastic;
  c.bits = rule.bits;
  c.sign = rule.sign;
  c.sign_place = 32u - static_cast<uint32_t>(rule.bits);
  c.first_infinity = rule.first_infinity == kNoCode ? rule.sign : rule.first_infinity;
  c.first_nan = rule.first_nan == kNoCode ? rule.sign : rule.first_nan;
  c.possible = true;
  return c;
}

}  // namespace ulp
