#pragma once

#include "autograd/ops.h"

// Losses: each gives one value. ops.h has cross_entropy without smoothing and mse. Sums are in the order of core/sum.h, and means
// are sums times 1/n. Formats: grad_input rounds the gradient toward the prediction (the target's, where it gets one, with the
// draws of the stream "grad_input2"); interior as said below. All throw, naming both shapes, where shapes do not fit, and where a
// mean has no elements.
namespace ulp::ops {

/// Cross-entropy toward (1 − s)·onehot(labels) + s/C, s = label_smoothing in [0, 1]: the mean over N of
/// −Σ_j q[n, j]·log_softmax(logits)[n, j].  logits: (N, C), labels: (N) I32 in [0, C)  →  one value.
/// With s = 0 it is cross_entropy of ops.h, bit for bit. Formats: interior as in log_softmax. Backward: (softmax − q) / N.
/// Source: Szegedy et al., arXiv 1512.00567, section 7.
Var cross_entropy(Tape& tape, const Var& logits, const Tensor& labels, double label_smoothing,
                  const OpFormats& formats = {}, RandomSite site = {});

/// The mean over N of −log_probs[n, labels[n]]; no other element of a row counts.  log_probs: (N, C), labels: (N) I32 in [0, C).
/// No interior. Backward: −onehot / N.
Var nll(Tape& tape, const Var& log_probs, const Tensor& labels, const OpFormats& formats = {},
        RandomSite site = {});

/// ½ Σ (y − onehot(labels))² over the samples and the classes: the loss of WAGE. It is a sum, not a mean: the gradient of a sample
/// is its error y − onehot however large the batch is, which WAGE's quantiser of errors (grad_input) then scales.
/// y: (N, C), labels: (N) I32 in [0, C). No interior. Of no samples it is 0.  Source: Wu et al., arXiv 1802.04680, section 3.2.
Var sum_of_squares(Tape& tape, const Var& y, const Tensor& labels, const OpFormats& formats = {},
                   RandomSite site = {});

// Element by element, for a prediction and a target of one shape; interior rounds each element's loss before the sum. Targets get
// gradients too where they are no constants.

/// Mean of |x − t|.  Backward: sign(x − t) / n, 0 where they are equal.
Var l1(Tape& tape, const Var& prediction, const Var& target, const OpFormats& formats = {},
       RandomSite site = {});

/// Mean of d²/(2·beta) where |d| < beta, else |d| − beta/2; d = x − t. beta ≥ 0, 0 gives l1.  Source: arXiv 1504.08083, eq. 3.
Var smooth_l1(Tape& tape, const Var& prediction, const Var& target, double beta = 1,
              const OpFormats& formats = {}, RandomSite site = {});

/// Mean of d²/2 where |d| < delta, else delta·(|d| − delta/2): delta · smooth_l1 with beta = delta > 0; interior rounds the
/// latter's elements.  Source: Huber, Ann. Math. Statist. 35 (1964).
Var huber(Tape& tape, const Var& prediction, const Var& target, double delta = 1,
          const OpFormats& formats = {}, RandomSite site = {});

/// Mean of −t·ln σ(x) − (1 − t)·ln(1 − σ(x)), x the logits, t in [0, 1] probabilities; it overflows for no x, and is 0 for an
/// infinite x that agrees with t.  Backward: (σ(x) − t) / n, and −x / n toward t.
Var bce_with_logits(Tape& tape, const Var& logits, const Var& target, const OpFormats& formats = {},
                    RandomSite site = {});

/// Σ t·(ln t − x) / N, N the first extent: x are log-probabilities, t probabilities. A term with t = 0 is 0, whatever number x is;
/// one with t < 0 is NaN.  Backward: −t / N, and (ln t + 1 − x) / N toward t, of t = 0 −x / N.
Var kl_divergence(Tape& tape, const Var& log_probs, const Var& target,
                  const OpFormats& formats = {}, RandomSite site = {});

}  // namespace ulp::ops
