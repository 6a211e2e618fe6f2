#pragma once

#include "autograd/pair.h"
#include "autograd/product_factors.h"
#include "autograd/tape.h"

/// Convolutions: products of quantised operands, whose windows are gathered inside the kernels (kernels/conv.h). Images are
/// channels-last, weights (Out, KH, KW, In/groups) whatever the direction. Tensors may have any strides; element types as in ops.h.
///
/// Formats, of all of them: input, weight, output forward; grad_output_dx, weight_dx, grad_input and grad_output_dw, input_dw,
/// grad_weight backward. Images and weights are rounded where they lie, before any window is gathered: an element has one draw
/// and one value, however many windows read it. Two uses of a tensor with equal quantizers share one tensor and one draw,
/// unless their groups run differently. Blocks:
///  groups (-gN, mx…, rows, tiles) lie in the matrix (pixels, channels) of an image and (Out, KH·KW·In/groups) of a weight.
///    They run along the channels of x and along the rows of w forward; along Out for dx, of the gradient's channels and of w's
///    rows; along the pixels (n, h, w in turn) for dw; results' along their last axis (of dw: along the matrix's rows).
///  -axisK counts the axes of the tensor itself: -axis0 is one block an image, or one for each of a weight's outputs.
/// A factor of a whole tensor (+scale=current, +scale=delayedN, nvfp4, +q34) goes into the sums. Factors of single blocks
/// (-scalef32 with groups or tiles) and rotations (+rhtN) need an operand that is one matrix: kernels of one pixel with stride
/// 1, no padding and one group take them as linear does; for others ulp::Error names the role.
///
/// Sums in strict math: in the order of core/sum.h over k = (kh, kw, c) forward, (kh, kw, out) for dx, (n, oh, ow) for dw,
/// where padding and the gaps of strides are terms with an operand +0: exactly matmul of the windows' matrix. The bias is added
/// in fp32 before output rounding.
/// Backward: dx is the adjoint operator at (grad_output_dx, weight_dx), dw = gᵀ · windows of (grad_output_dw, input_dw),
/// db = Σ g over all pixels (the unrounded g, in the order of core/sum.h). `factors` multiply y before the bias, dx, dw and db
/// (autograd/product_factors.h).
/// Error: products of ≤ 12-bit significands are exact; the sum's bound is 2·K·2⁻²⁴·Σ|x||w|, K = KH·KW·In/groups.
/// Throws ulp::Error if shapes, devices or options do not fit.
namespace ulp::ops {

struct ConvOptions {
  Pair stride = 1, padding = 0, dilation = 1;
  int64_t groups = 1;
};

/// y[n, oh, ow] = Σ w[kh, kw] x[n, oh·stride − padding + kh·dilation, …] + b.   x: (N, H, W, In)  w: (Out, KH, KW, In/groups)
/// b: (Out) or an empty Var  →  y: (N, OH, OW, Out),  OH = ⌊(H + 2·padding − dilation·(KH − 1) − 1)/stride⌋ + 1. Padding is
/// with zeros. Group g of In/groups channels makes outputs g·Out/groups and on; groups = In: depthwise.
Var conv2d(Tape& tape, const Var& x, const Var& w, const Var& b, const ConvOptions& options = {},
           const OpFormats& formats = {}, RandomSite site = {}, const ProductFactors& factors = {});

struct ConvTransposeOptions {
  Pair stride = 1, padding = 0, output_padding = 0, dilation = 1;
  int64_t groups = 1;
};

/// The adjoint of conv2d in x: y[n, h·stride − padding + kh·dilation, …] += w[kh, kw] x[n, h, w], then + b.  Shapes as conv2d's,
/// OH = (H − 1)·stride − 2·padding + dilation·(KH − 1) + output_padding + 1; output_padding, less than stride or dilation, adds
/// rows and columns at the end. Sums over (kh, kw, in) and, for dw, over the output's pixels.
Var conv_transpose2d(Tape& tape, const Var& x, const Var& w, const Var& b,
                     const ConvTransposeOptions& options = {}, const OpFormats& formats = {},
                     RandomSite site = {}, const ProductFactors& factors = {});

struct Conv1dOptions {
  int64_t stride = 1, padding = 0, dilation = 1, groups = 1;
};

/// conv2d of one axis.  x: (N, L, In)  w: (Out, K, In/groups)  b: (Out) or an empty Var  →  y: (N, OL, Out).
Var conv1d(Tape& tape, const Var& x, const Var& w, const Var& b, const Conv1dOptions& options = {},
           const OpFormats& formats = {}, RandomSite site = {}, const ProductFactors& factors = {});

}  // namespace ulp::ops
