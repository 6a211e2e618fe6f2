#pragma once

#include "autograd/tape.h"

namespace ulp::ops {

inline constexpr double kRotaryBase = 10000;

/// Turns elements i and i + D/2 of each head by (offset + t)·base^(−2i/D), the angle of their position.
/// x: (N, T, H, D), D even, offset ≥ 0  →  the same shape. Cosines and sines are computed in fp64 on the host and rounded to
/// fp32, once for each device, base and D.
/// Formats: input, output, grad_output_dx, grad_input.  Backward: the opposite turn of g.
/// Source: Su et al., arXiv 2104.09864, eq. 34, with the pairs of elements that GPT-NeoX has.
Var rotary(Tape& tape, const Var& x, int64_t offset, double base = kRotaryBase,
           const OpFormats& formats = {}, RandomSite site = {});

/// y = silu(a)·b, a the first and b the second half of the last axis.  x: (…, 2·C)  →  (…, C).  Formats: input rounds x (groups
/// run along the whole axis), output y, grad_output_dx g, grad_input dx.  Source: Shazeer, arXiv 2002.05202.
Var swiglu(Tape& tape, const Var& x, const OpFormats& formats = {}, RandomSite site = {});

}  // namespace ulp::ops
