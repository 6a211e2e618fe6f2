#pragma once

#include "autograd/product_factors.h"
#include "autograd/tape.h"

/// One function per differentiable op, its backward beside its forward. Tensors may have any strides. `site` names the
/// op's random streams, one a role. Element types: F32; linear and quantize also take the narrower floats that parameters
/// and quantised activations are stored in; F64 everywhere for gradient checks (with no formats set).
/// Rounding is straight-through: gradients are those of the op at its quantised operands.
namespace ulp::ops {

/// y = x wᵀ + b.            x: (…, In)  w: (Out, In)  b: (Out) or an empty Var  →  y: (…, Out)
/// Formats: input, weight, output forward; grad_output_dx, weight_dx, grad_input and grad_output_dw, input_dw, grad_weight
/// backward. Groups run along In, Out and the batch N in turn. Two uses of a tensor with equal quantizers share one tensor
/// and one draw, unless their groups run differently. The bias is added in fp32 before output rounding.
/// Backward: dx = g w, dw = gᵀ x, db = Σ_N g (the unrounded g, in the order of core/sum.h).
/// Error: products of ≤ 12-bit significands are exact; the sum's bound is 2·In·2⁻²⁴·Σ|x||w|.
/// `factors` multiply y before the bias, dx, dw and db (autograd/product_factors.h).
/// Throws ulp::Error if shapes or devices do not fit.
Var linear(Tape& tape, const Var& x, const Var& w, const Var& b, const OpFormats& formats = {},
           RandomSite site = {}, const ProductFactors& factors = {});

/// a + b, a − b, a · b for equal shapes.  Formats: output; grad_input rounds both gradients, b's with the draws of the
/// stream "grad_input2".
Var add(Tape& tape, const Var& a, const Var& b, const OpFormats& formats = {},
        RandomSite site = {});
Var subtract(Tape& tape, const Var& a, const Var& b, const OpFormats& formats = {},
             RandomSite site = {});
Var multiply(Tape& tape, const Var& a, const Var& b, const OpFormats& formats = {},
             RandomSite site = {});
/// a · factor.
Var scale(Tape& tape, const Var& a, double factor, const OpFormats& formats = {},
          RandomSite site = {});
/// a².
Var square(Tape& tape, const Var& a, const OpFormats& formats = {}, RandomSite site = {});

/// Activations, y = f(x).  Formats: input rounds x, output y, grad_output_dx g, grad_input dx.
/// max(x, 0): NaN stays NaN.
Var relu(Tape& tape, const Var& x, const OpFormats& formats = {}, RandomSite site = {});
enum class Gelu : uint8_t { Erf, Tanh };
/// Source: arXiv 1606.08415; Erf is the definition, Tanh its approximation.
Var gelu(Tape& tape, const Var& x, Gelu form = Gelu::Erf, const OpFormats& formats = {},
         RandomSite site = {});

/// y = f(x + b), f an activation: one pass over x.  x: (…, C)  b: (C).  Formats: those of the activations, input rounds x only.
/// Backward: dx = f'(x + b)·g, rounded by grad_input; db = Σ dx over the rows, of the unrounded dx, in the order of core/sum.h.
/// Throws ulp::Error if the shapes do not fit.
Var bias_relu(Tape& tape, const Var& x, const Var& b, const OpFormats& formats = {},
              RandomSite site = {});
Var bias_gelu(Tape& tape, const Var& x, const Var& b, Gelu form = Gelu::Erf,
              const OpFormats& formats = {}, RandomSite site = {});

/// y = forward(x); the gradient is rounded by `backward`, then zeroed where clamp_mask is on and the rounded value of a
/// finite x lay beyond the format's bounds (WAGE). Groups run along the last axis.
struct QuantizeFormats {
  Quantizer forward, backward;
  bool clamp_mask = false;
};
Var quantize(Tape& tape, const Var& x, const QuantizeFormats& formats, RandomSite site = {});

/// The same elements in another shape.
Var reshape(Tape& tape, const Var& x, const Shape& shape);

/// Σ of all elements → one value (shape ()), in the order of core/sum.h.
Var sum(Tape& tape, const Var& x);
/// Their mean: the sum times 1/n. Throws if there are none.
Var mean(Tape& tape, const Var& x);

/// x − max − ln Σ exp(x − max) along the rows of (…, C).  Formats: interior rounds the four intermediates, output, grad_input.
Var log_softmax(Tape& tape, const Var& x, const OpFormats& formats = {}, RandomSite site = {});

/// Mean over N of −log_softmax(logits)[n, labels[n]].  logits: (N, C), labels: (N) I32 in [0, C)  →  one value.
/// Formats: interior as in log_softmax, grad_input rounds the gradient. Labels are checked when they are on the CPU.
Var cross_entropy(Tape& tape, const Var& logits, const Tensor& labels,
                  const OpFormats& formats = {}, RandomSite site = {});

/// Mean of (prediction − target)² over all elements → one value.  Formats: those of the difference (see subtract).
Var mse(Tape& tape, const Var& prediction, const Var& target, const OpFormats& formats = {},
        RandomSite site = {});

}  // namespace ulp::ops
