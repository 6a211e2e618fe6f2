#pragma once

#include <utility>

#include "autograd/ops.h"

namespace ulp::ops {

// Pooling of images (N, H, W, C), and of sequences (N, L, C) in the 1d forms.
// Formats: input rounds x, output y, grad_output_dx the gradient, grad_input dx. Groups of block formats run along C.
// An axis of length L has ⌊(L + 2·padding − kernel) / stride⌋ + 1 windows; `ceil`: ⌈…⌉ + 1, less a last one that would begin
// beyond the input and the padding before it, as in PyTorch. Padding is at most half a kernel.
// Throws ulp::Error if the shapes do not fit or there would be no window.

struct PoolOptions {
  std::pair<int64_t, int64_t> kernel{2, 2};
  std::pair<int64_t, int64_t> stride{0, 0};  // 0: the kernel's
  std::pair<int64_t, int64_t> padding{0, 0};
  bool ceil = false;          // the last window may reach beyond the image
  bool count_padding = true;  // averages: padding counts in the divisor
};

/// The largest value of each window; NaN if there is one. dx gets each gradient where that value stood, the first of equal ones.
/// Kept: its place in the window, one byte a result for windows of at most 256.
Var max_pool2d(Tape& tape, const Var& x, const PoolOptions& options, const OpFormats& formats = {},
               RandomSite site = {});
/// The mean of each window: one fp32 accumulator in row-major order, then a division.
Var avg_pool2d(Tape& tape, const Var& x, const PoolOptions& options, const OpFormats& formats = {},
               RandomSite site = {});
/// (N, H, W, C), or (N, L, C), → (N, C): the mean over all places, the sum in the order of core/sum.h times 1 / (H·W).
Var global_avg_pool(Tape& tape, const Var& x, const OpFormats& formats = {}, RandomSite site = {});

/// The first of each pair of the options serves.
Var max_pool1d(Tape& tape, const Var& x, const PoolOptions& options, const OpFormats& formats = {},
               RandomSite site = {});
Var avg_pool1d(Tape& tape, const Var& x, const PoolOptions& options, const OpFormats& formats = {},
               RandomSite site = {});

}  // namespace ulp::ops
