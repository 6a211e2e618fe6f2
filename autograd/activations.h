#pragma once

#include "autograd/tape.h"

// More activations: see ops::relu. For all but softmax y = f(x) for every element. Formats: input rounds x, output y,
// grad_output_dx g, grad_input dx. Backward: dx = f'(x)·g at the rounded x. A NaN gives NaN. Scalars are rounded to fp32.
namespace ulp::ops {

/// min(max(x, 0), 6). Backward: g where 0 < x < 6.
Var relu6(Tape& tape, const Var& x, const OpFormats& formats = {}, RandomSite site = {});

/// x, or slope·x where x ≤ 0 (f' = slope at 0). Throws unless the slope is finite.
Var leaky_relu(Tape& tape, const Var& x, double slope = 0.01, const OpFormats& formats = {},
               RandomSite site = {});

/// x, or alpha·(e^x − 1) where x ≤ 0; −alpha below −17.4. Throws unless alpha is finite.  Source: arXiv 1511.07289.
Var elu(Tape& tape, const Var& x, double alpha = 1, const OpFormats& formats = {},
        RandomSite site = {});

/// min(max(x, low), high). Backward: g where low < x < high. Throws unless low ≤ high.
Var hardtanh(Tape& tape, const Var& x, double low = -1, double high = 1,
             const OpFormats& formats = {}, RandomSite site = {});
/// The same; either bound may be infinite.
Var clip(Tape& tape, const Var& x, double low, double high, const OpFormats& formats = {},
         RandomSite site = {});

/// 1 / (1 + e^−x): exactly 1 from 17.33 on, 0 below −103.98. Backward: g·e / (1 + e)², e = exp(−|x|).
Var sigmoid(Tape& tape, const Var& x, const OpFormats& formats = {}, RandomSite site = {});
/// ±1 from ±9.1 on.
Var tanh(Tape& tape, const Var& x, const OpFormats& formats = {}, RandomSite site = {});
/// x·σ(x), 0 at −Inf.  Source: arXiv 1702.03118.
Var silu(Tape& tape, const Var& x, const OpFormats& formats = {}, RandomSite site = {});

/// ln(1 + e^(beta·x)) / beta, or x (with f' = 1) where beta·x > threshold; it overflows under no threshold.
/// Throws unless beta is finite and not 0.
Var softplus(Tape& tape, const Var& x, double beta = 1, double threshold = 20,
             const OpFormats& formats = {}, RandomSite site = {});

/// exp(x − max) / Σ exp(x − max) along the rows of (…, C); a row that holds NaN or +Inf becomes NaN.
/// Formats: interior rounds difference, exp and sum; output, grad_input.
/// Backward: dx = y·(g − Σ g·y) at the unrounded y. Throws unless x has two axes at least and C ≥ 1.
Var softmax(Tape& tape, const Var& x, const OpFormats& formats = {}, RandomSite site = {});

}  // namespace ulp::ops
