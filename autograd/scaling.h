#pragma once

#include "autograd/tape.h"

namespace ulp::ops {

/// y = forward · x, dx = backward · g: what is multiplied on its way back otherwise than on its way there. x: any shape  →  the
/// same shape; x itself where forward is 1, g itself where backward is. Factors are rounded to fp32 for F32 tensors.
/// Source: Blake, Orr, Luschi, arXiv 2303.11257 (scaled ops).
Var scaling(Tape& tape, const Var& x, double forward, double backward);

}  // namespace ulp::ops
