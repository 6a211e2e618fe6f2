#pragma once

#include "autograd/activations.h"  // clip
#include "autograd/ops.h"          // reshape, add

// Ops that move values. Slices and transposes are views; the others copy. Gradients are moved the other way, exactly: what an op
// left out gets 0. Any float, F64 in gradient checks; a copy of narrow floats together with others is F32. Empty tensors may go
// anywhere. All throw, naming the shapes and the rule, where shapes do not fit.
namespace ulp::ops {

/// How much is added to an axis.
struct PadAxis {
  int64_t before = 0, after = 0;
};

/// x with `value` around it: `axes` has one entry for each axis of x, none negative.  (…, n, …) → (…, before + n + after, …).
/// Formats: output rounds the result, the value too; grad_input the gradient.
Var pad(Tape& tape, const Var& x, const std::vector<PadAxis>& axes, double value = 0,
        const OpFormats& formats = {}, RandomSite site = {});

/// The inputs one after another along `axis`; all other extents are alike. From 1 to 64 inputs; of different dtypes: F32.
Var concat(Tape& tape, std::span<const Var> inputs, int axis);

/// Elements begin, begin + step … below end of an axis; 0 ≤ begin ≤ end ≤ its extent, step ≥ 1. A view.
Var slice(Tape& tape, const Var& x, int axis, int64_t begin, int64_t end, int64_t step = 1);

/// Two axes exchanged. A view.
Var transpose(Tape& tape, const Var& x, int axis_a, int axis_b);

/// Axis k of the result is axis order[k] of x; order holds each axis of x once. A view.
Var permute(Tape& tape, const Var& x, const std::vector<int>& order);

/// (A, B, …) → (A, B·…): all axes from `first` on become one. A tensor of `first` axes gets one of extent 1.
Var flatten(Tape& tape, const Var& x, int first = 1);

}  // namespace ulp::ops
