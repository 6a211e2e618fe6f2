#pragma once

// The arithmetic of simulated accumulators (core/accumulator.h), the same on every device.
//
// A rounding F of an exact sum is that of F on the sum rounded to odd in fp32: toward zero, with the last bit set if
// anything was lost. That is one rounding of the exact value, ties included, where F has two bits fewer everywhere (S. Boldo,
// G. Melquiond, "When double rounding is odd", 2005), and sum_misfit refuses others; a stochastic one is off by less than the
// last bit of fp32.
// Sums in fp32 itself are rounded to nearest even, once.

#include "core/accumulator.h"
#include "core/bits.h"
#include "core/scalar_math.h"

namespace ulp {

/// The exact a·b + c, rounded to odd.
ULP_HD float fma_to_odd(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  const float below = __fmaf_rd(a, b, c), above = __fmaf_ru(a, b, c);
  if (!(below < above)) return above;  // exact, of −0 and +0 the one to nearest; or NaN
  return __uint_as_float(__float_as_uint(above > 0 ? below : above) | 1u);
#else
  const double product = static_cast<double>(a) * static_cast<double>(b), addend = c;  // exact
  const double sum = product + addend, back = sum - product;
  const double lost = (product - (sum - back)) + (addend - back);  // NaN where there are infinities
  uint64_t bits = __builtin_bit_cast(uint64_t, sum);
  const uint64_t inexact = static_cast<uint64_t>(lost < 0) | static_cast<uint64_t>(lost > 0);
  bits -= inexact & static_cast<uint64_t>((lost < 0) != (sum < 0));
  bits |= inexact;
  const double odd = __builtin_bit_cast(double, bits);
  const auto near = static_cast<float>(odd);
  const double wide = near;
  const double size = odd < 0 ? -odd : odd, wide_size = wide < 0 ? -wide : wide;
  const uint32_t other =
      static_cast<uint32_t>(wide_size < size) | static_cast<uint32_t>(wide_size > size);
  return float_of((bits_of(near) - static_cast<uint32_t>(wide_size > size)) | other);
#endif
}

/// The exact x + y, rounded to odd.
ULP_HD float add_to_odd(float x, float y) { return fma_to_odd(x, 1.0f, y); }

/// The sums of some outputs side by side, each an array: s the sums, t those of a chunk or what Kahan compensates, x and y what a
/// term needs, v what is rounded.
template <class Values>
struct SumState {
  Values s, t, x, y, v;
};

/// Adds a term, see Accumulator. `ops` has the term's a and b and the formats F of draws:
///   ops.fuse(r, v, c, negative)    v = F_r's exact argument a·b + c, or a·b − c, rounded to odd
///   ops.product(r, v)              of a·b
///   ops.add(r, v, p, q, negative)  of p + q, or p − q
///   ops.round(r, v)                v = F_r(v)
///   ops.move(p, v)                 p = v; v may be anything after
///   ops.clear(p)                   p = +0
/// ends: the term is the last of its chunk, or of all.
template <class Ops, class Values>
ULP_HD void add_term(Accumulator::Kind kind, uint32_t draws, Ops& ops, bool ends,
                     SumState<Values>& z) {
  using Kind = Accumulator::Kind;
  for (uint32_t r = 0; r < draws; ++r) {
    if (kind == Kind::Fused)
      ops.fuse(r, z.v, z.s, false);
    else if (kind == Kind::Rounded)
      r == 0 ? ops.product(r, z.v) : ops.add(r, z.v, z.x, z.s, false);
    else if (kind == Kind::Chunked)
      r == 0 ? ops.fuse(r, z.v, z.t, false) : ops.add(r, z.v, z.t, z.s, false);
    else if (r < 2)
      r == 0 ? ops.fuse(r, z.v, z.t, true) : ops.add(r, z.v, z.s, z.y, false);
    else
      r == 2 ? ops.add(r, z.v, z.x, z.s, true) : ops.add(r, z.v, z.t, z.y, true);
    ops.round(r, z.v);
    if (kind == Kind::Fused) {
      ops.move(z.s, z.v);
    } else if (kind == Kind::Rounded) {
      r == 0 ? ops.move(z.x, z.v) : ops.move(z.s, z.v);
    } else if (kind == Kind::Chunked) {
      r == 0 ? ops.move(z.t, z.v) : ops.move(z.s, z.v);
      if (!ends) return;
      if (r == 1) ops.clear(z.t);
    } else {
      if (r == 0) ops.move(z.y, z.v);
      if (r == 1) ops.move(z.x, z.v);
      if (r > 1) ops.move(z.t, z.v);
      if (r == 3) ops.move(z.s, z.x);
    }
  }
}

}  // namespace ulp
