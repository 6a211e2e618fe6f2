#pragma once

#include "core/quantizer.h"
#include "core/random.h"

namespace ulp {

// Random Hadamard rotation along the axis of a reduction: each full group of n = 16 or 32 elements x becomes
// H·(s ∘ x) · 2^exponent, with H the ±1 Walsh–Hadamard matrix; a shorter tail stays as it is. Two operands rotated with the
// same signs have the product they had before once 1/n is in their exponents. Source: Tseng et al., "Training LLMs with
// MXFP4", arXiv 2502.20586, §3.2; the signs are one fixed draw of the seed, as in NVIDIA's recipe (arXiv 2509.25149, §4.2).

inline constexpr int kMostHadamard = 32;

/// Which operand of a product. What is looked at alone is a left one.
enum class Side : uint8_t { Left, Right };

/// The power of two that a rotation is multiplied by: 1/n = 2^left · 2^right.
constexpr int rotation_exponent(int n, Side side) {
  return n == 32 && side == Side::Right ? -3 : -2;
}

/// What the signs are drawn with: the seed, nothing that changes from step to step.
inline RandomSource rotation_source(uint64_t seed) {
  return RandomSource(RandomKey{seed, fnv1a32("rht"), 0, nullptr});
}
/// True if element k of the axis changes its sign.
ULP_HD bool is_flipped(uint32_t word) { return word >> 31 != 0; }

/// (a, b) → (a + b, a − b) for pairs at distance 1, 2 … n/2, in that order.
template <class Add>
ULP_HD void walsh_hadamard(int n, const Add& butterfly) {
  for (int h = 1; h < n; h *= 2)
    for (int i = 0; i < n; ++i)
      if ((i & h) == 0) butterfly(i, i + h);
}

}  // namespace ulp
