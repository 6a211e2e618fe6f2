#pragma once

#include "autograd/ops.h"

namespace ulp::ops {

/// In training each element becomes 0 with probability p and is multiplied by 1 / (1 − p) else; element i is kept where word i of
/// the stream "mask" is at least p·2³². NaN stays NaN. Else y = x.
/// Formats: input rounds x, output y, grad_output_dx the gradient, grad_input dx; groups run along the last axis.
/// Backward: the same mask, drawn again: nothing is kept but its key, which refers to the step on the device, so that a recorded
/// step draws anew each time.  Throws unless 0 ≤ p < 1.   Source: Srivastava et al., JMLR 15 (2014).
Var dropout(Tape& tape, const Var& x, double p, bool training, const OpFormats& formats = {},
            RandomSite site = {});

}  // namespace ulp::ops
