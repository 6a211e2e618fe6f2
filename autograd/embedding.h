#pragma once

#include "autograd/tape.h"

namespace ulp::ops {

/// y[…, :] = table[tokens[…], :].  tokens: (…) I32 in [0, V), table: (V, D)  →  (…, D).
/// Formats: weight rounds the table (its rows are groups), output y; grad_output_dw rounds g (in groups along the tokens),
/// grad_weight the table's gradient.
/// Backward: dtable[v] = Σ g over the tokens that are v, in the order of core/sum.h, ascending; +0 where there are none.
/// Tokens are checked when they are on the CPU. Throws ulp::Error naming the token and its place, or the shape.
Var embedding(Tape& tape, const Tensor& tokens, const Var& table, const OpFormats& formats = {},
              RandomSite site = {});

/// y[n, t, :] = x[n, t, :] + table[offset + t, :].  x: (N, T, D), table: (C, D), 0 ≤ offset ≤ C − T  →  (N, T, D).
/// Formats: output; grad_input rounds dx, grad_weight the table's gradient.
/// Backward: dx = g; dtable[offset + t] = Σ_N g, in the order of core/sum.h, +0 elsewhere.
Var add_positions(Tape& tape, const Var& x, const Var& table, int64_t offset,
                  const OpFormats& formats = {}, RandomSite site = {});

}  // namespace ulp::ops
