#pragma once

#include "core/bits.h"

namespace ulp {

// Posits of n ≤ 16 bits with es ≤ 3 exponent bits. A magnitude's code has n − 1 bits: regime, exponent, fraction, cut where
// the bits end. Zero and NaR are no magnitudes. Source: Posit Standard (2022) §3, with es free.

ULP_HD int32_t leading_zeros(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return __clz(static_cast<int>(x));
#else
  return x == 0 ? 32 : __builtin_clz(x);
#endif
}

/// The number of a magnitude's code, 1 … 2^(n−1) − 1.
ULP_HD float posit_value(uint32_t code, int32_t n, int32_t es) {
  const uint32_t w = code << (33 - n);
  const bool ones = (w & kSignBit) != 0;
  const int32_t run = leading_zeros(ones ? ~w : w);
  const int32_t k = ones ? run - 1 : -run;
  const uint32_t rest = run + 1 < 32 ? w << (run + 1) : 0u;
  const int32_t e = es == 0 ? 0 : static_cast<int32_t>(rest >> (32 - es));
  const uint32_t fraction = (rest << es) >> 9;
  return float_of((static_cast<uint32_t>(k * (1 << es) + e + 127) << 23) | fraction);
}

/// Where |x| lies among the magnitudes: code ≤ |x|, and what was cut off behind it, left-aligned; `sticky` if more was.
struct PositPlace {
  uint32_t code, rest;
  bool sticky;
};

/// |x| = 2^e · (1 + fraction·2^−23) within [minpos, maxpos).
ULP_HD PositPlace posit_place(int32_t e, uint32_t fraction, int32_t n, int32_t es) {
  const int32_t k = e >> es;
  const uint32_t low = static_cast<uint32_t>(e - k * (1 << es));
  const uint32_t body = ((low << 23) | fraction) << (9 - es);
  const int32_t regime = k >= 0 ? k + 2 : 1 - k;
  const uint32_t head = k >= 0 ? 0xFFFFFFFFu << (31 - k) : 1u << (31 + k);
  const uint32_t w = head | (body >> regime);
  return {w >> (33 - n), w << (n - 1), (body & ((1u << regime) - 1u)) != 0};
}

}  // namespace ulp
