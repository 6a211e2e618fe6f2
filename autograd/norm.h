#pragma once

#include "autograd/ops.h"

namespace ulp::ops {

// Normalisation: y = weight·x̂ + bias, x̂ = (x − mean)·r, r = 1 / √(variance + eps), one fma for the scale and the bias. All of
// them: x (…, C), any float; weight and bias (C) or empty Vars (none, or one of them alone: then 1 and 0 serve for the other).
// Formats: input rounds x; interior (element-wise) rounds the named intermediates, with draws number 0 … 3 in turn of the stream
// "interior": mean, variance, r (word i for statistic i, channels or groups counted in order) and x̂ (word i for element i);
// output rounds y, grad_output_dx the gradient, grad_input dx. Groups of block formats run along C.
// Backward: with g rounded and the rounded x, mean, r and x̂, dweight = Σ g·x̂ and dbias = Σ g over all rows, unrounded, and with
// h = weight·g and averages over the elements that share a statistic dx = (h − mean(h) − x̂·mean(h·x̂))·r. Rounding is
// straight-through. All sums are in the order of core/sum.h. Kept: x in its narrow type, one mean and one r a statistic.
// Throws ulp::Error if shapes, element types or devices do not fit.

/// Statistics of batch normalisation that evaluation takes. F32, (C). Training changes them in place.
struct RunningStatistics {
  Tensor mean, variance;
};

struct BatchNormOptions {
  double eps = 1e-5;
  double momentum = 0.1;  // the part of the new in running ← (1 − momentum)·running + momentum·new
  bool training = true;
};

/// The statistics of each channel over all rows: of (N, H, W, C) over N·H·W, of (N, C) over N. In training they are those of x
/// (variance about the mean with 1/R; the running one gets that with 1/(R − 1), as PyTorch's does), at least two rows are wanted,
/// and the running ones change where there are some: on the device, in stream order, also in a recorded step and where the
/// optimizer skips the step. Else they are the running ones, and backward takes them for constants: dx = weight·r·g.
/// interior also rounds the statistics before they go into the running ones.
/// Source: Ioffe, Szegedy, arXiv 1502.03167.
Var batch_norm(Tape& tape, const Var& x, const Var& weight, const Var& bias,
               const RunningStatistics& running, const BatchNormOptions& options = {},
               const OpFormats& formats = {}, RandomSite site = {});

/// The statistics of each row of (…, C).  Source: Ba et al., arXiv 1607.06450.
Var layer_norm(Tape& tape, const Var& x, const Var& weight, const Var& bias, double eps = 1e-5,
               const OpFormats& formats = {}, RandomSite site = {});

/// Rows of (…, C) without a mean: x̂ = x·r, r = 1 / √(mean(x²) + eps); dx lacks mean(h).  Source: arXiv 1910.07467.
Var rms_norm(Tape& tape, const Var& x, const Var& weight, double eps = 1e-6,
             const OpFormats& formats = {}, RandomSite site = {});

/// The statistics of each sample over all its places and C / groups neighbouring channels: (N, …, C), rank at least 2.
/// Source: Wu, He, arXiv 1803.08494.
Var group_norm(Tape& tape, const Var& x, int64_t groups, const Var& weight, const Var& bias,
               double eps = 1e-5, const OpFormats& formats = {}, RandomSite site = {});

}  // namespace ulp::ops
