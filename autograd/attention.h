#pragma once

#include "autograd/tape.h"

namespace ulp::ops {

/// The formats of an attention: two products and the softmax between them.
///  qk       scores = q kᵀ: input q, weight k, output the scores (before the scale); grad_output_dx and grad_output_dw the
///           gradient of the scores, weight_dx k for dq, input_dw q for dk; grad_input dq, grad_weight dk
///  softmax  interior: see kernels/attention.h
///  pv       y = p v: input p, the probabilities, weight v, output y; grad_output_dx and grad_output_dw the gradient of y,
///           weight_dx v for dp, input_dw p for dv; grad_input dp, grad_weight dv
/// Groups run along what a product sums over: the width of a head, the keys, or the queries. Formats with fp32 factors,
/// rotations too, are applied as values: the products of such operands are those of fp32 numbers.
struct AttentionFormats {
  OpFormats qk, softmax, pv;
};

/// What an operand of the two products is, in whatever math: its type, F32 without a format; and, of F32, whether tf32 holds it.
struct AttentionOperand {
  DType type = DType::F32;
  bool fits_tf32 = false;
};
AttentionOperand attention_operand(const Quantizer& quantizer);

/// Where the parts stand in a model, for their random streams.
struct AttentionSites {
  RandomSite qk, softmax, pv;
  AttentionSites() = default;
  /// path.qk, path.softmax, path.pv.
  explicit AttentionSites(const std::string& path)
      : qk(path + ".qk"), softmax(path + ".softmax"), pv(path + ".pv") {}
};

struct AttentionOptions {
  int64_t heads = 1;
  /// Query t of T sees the first S − T + t + 1 of S keys, the T queries being the last of the sequence.
  bool causal = false;
  /// I32 (N): sequence n has so many keys, the others are padding. Undefined: all of them.
  Tensor lengths{};
  double scale = 0;  // of the scores; 0: 1/√width of a head
  /// Unit scaling: how many keys a query sees; 0: none. The probabilities and the gradients of the scores are multiplied by
  /// keys/√e before they are rounded, the sums y, dq, dk and dv by keys^−½: all of them √(keys/e) times what they are without.
  double keys = 0;
};

/// e^z/Σ e^z of independent normal z over `keys` keys has the size √e/keys, and sums of so many terms that of √keys of them.
/// Source: the factor √(keys/e) of scaled_dot_product_attention in graphcore-research/unit-scaling, functional.py.
struct AttentionGains {
  double probabilities = 1, sums = 1;
};
AttentionGains attention_gains(double keys);

/// y = softmax(scale · q kᵀ) v for each head.  q: (N, T, H·D)  k: (N, S, H·D)  v: (N, S, H·E)  →  y: (N, T, H·E).
/// A query that sees no key gets 0. Masked keys have the probability 0, and no part in anything if they are finite: formats with
/// groups or a scale of the tensor see 0 in their place.
/// Never are the scores of all heads in memory at once, but where a format needs a number of the whole tensor (delayed or tensor
/// scales): a chunk of heads at a time, as many as have 2^23 scores or less, and the backward pass makes the probabilities
/// again from what it keeps, q, k and v as the products read them. The chunks follow from T and S alone, and each has draws of
/// its own.
/// Source: Vaswani et al., "Attention is all you need", arXiv 1706.03762, §3.2; memory: Rabe and Staats, arXiv 2112.05682.
/// Throws ulp::Error if shapes do not fit.
Var attention(Tape& tape, const Var& q, const Var& k, const Var& v, const AttentionOptions& options,
              const AttentionFormats& formats = {}, const AttentionSites& sites = {});

/// The same of q, k and v side by side: qkv (N, T, 3·W) → (N, T, W).
Var self_attention(Tape& tape, const Var& qkv, const AttentionOptions& options,
                   const AttentionFormats& formats = {}, const AttentionSites& sites = {});

/// Why a row's result could depend on keys behind those that it sees, or on how many rows are computed at once; empty if it does
/// not: then queries may come piece by piece.
std::string attention_obstacle(const AttentionFormats& formats);

}  // namespace ulp::ops
