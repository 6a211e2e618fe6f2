#pragma once

// Losses. kernel.h says what a row means, kernels.h what element-wise kernels take. log_softmax and cross_entropy_backward, which
// cross-entropy without smoothing uses, are in kernels.h.

#include "kernels/kernels.h"

namespace ulp {

/// What rows of (N, C) with one label each are measured by, q being the label's distribution (LabelWeights). Gradients are toward
/// the input, or for CrossEntropy toward the logits that log_softmax made it of.
enum class LabelLoss : uint8_t {
  Nll,           // −Σ q·y,  −q
  CrossEntropy,  // −Σ q·y,  exp(y) − q
  Squares,       // ½ Σ (y − q)²,  y − q
};

/// q: `on` at the label, `off` elsewhere. Of smoothing s and C classes: 1 − s + s / C and s / C.
struct LabelWeights {
  double on = 1, off = 0;
  static LabelWeights of(double smoothing, int64_t classes) {
    const double off = smoothing / static_cast<double>(classes);
    return {1 - smoothing + off, off};
  }
};

/// losses[n] = the loss of row n, its sum in the order of core/sum.h; terms with q = 0 are left out where the loss has a product
/// with q. A label outside [0, C) makes NaN. in (N, C) F32, labels (N) I32, losses (N).
struct LabelLossArgs {
  Tensor in, labels, losses;
  LabelLoss loss = LabelLoss::Nll;
  LabelWeights weights;
};

/// out (N, C) = the gradient of the row's loss · (grad[0] · alpha).
struct LabelLossBackwardArgs {
  Tensor in, labels, grad, out;
  LabelLoss loss = LabelLoss::Nll;
  LabelWeights weights;
  double alpha = 1;
};

/// Cross-entropy that keeps two numbers a row: losses[n] = −(fl(x − m) − l) of the label's x, with the same bits as log_softmax
/// without an interior; sums[n] = (m, l), m the row's largest element and l = ln Σ exp(x − m). A label outside [0, C) makes NaN.
/// in (N, C) F32, labels (N) I32, losses (N), sums (N, 2).
struct LogSumArgs {
  Tensor in, labels, losses, sums;
};

/// out (N, C) = (exp(fl(x − m) − l) − onehot(labels)) · (grad[0] · alpha): cross_entropy_backward from the logits `in` and sums.
struct LogSumBackwardArgs {
  Tensor in, labels, sums, grad, out;
  double alpha = 1;
};

// clang-format off
#define ULP_LABEL_LOSS_KERNELS(X)                       \
  X(label_loss, LabelLossArgs)                          \
  X(label_loss_backward, LabelLossBackwardArgs)         \
  X(log_sum, LogSumArgs)                                \
  X(log_sum_backward, LogSumBackwardArgs)

/// X(name, functor, inputs): from functors of kernels/loss_functors.h.
#define ULP_ELEMENTWISE_LOSS_KERNELS(X)                 \
  X(smooth_l1, SmoothL1, 2)                             \
  X(smooth_l1_backward, SmoothL1Backward, 3)            \
  X(bce_logits, BceLogits, 2)                           \
  X(bce_logits_backward, BceLogitsBackward, 3)          \
  X(kl_divergence, KlDivergence, 2)                     \
  X(kl_divergence_target_backward, KlDivergenceTargetBackward, 3) \
  X(negated_product, NegatedProduct, 2)
// clang-format on

ULP_LABEL_LOSS_KERNELS(ULP_DECLARE_KERNEL)
ULP_ELEMENTWISE_LOSS_KERNELS(ULP_DECLARE_ELEMENTWISE)

/// Throw unless the arguments of a row are as it says.
void check_label_loss(Stream stream, const LabelLossArgs& args);
void check_label_loss_backward(Stream stream, const LabelLossBackwardArgs& args);
void check_log_sum(Stream stream, const LogSumArgs& args);
void check_log_sum_backward(Stream stream, const LogSumBackwardArgs& args);

}  // namespace ulp
