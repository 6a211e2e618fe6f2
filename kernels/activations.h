#pragma once

// Activations and softmax. kernel.h says what a row means, kernels.h what element-wise kernels take.

#include "kernels/kernels.h"

namespace ulp {

/// Rows of (N, C) → out = exp(in − max) / Σ exp(in − max). NaN in a row makes the row NaN, as does a largest element that is
/// infinite. interior (element-wise) rounds the difference, its exp and their sum; draws number 0 … 2 in turn of `key`. trace: (N, C),
/// (N, C) and (N).
struct SoftmaxArgs {
  Tensor in, out;
  Quantizer interior;
  RandomKey key;
  InteriorTrace trace{};
};

/// out = y · (grad − Σ_row grad · y), for y = softmax output (N, C).
struct SoftmaxBackwardArgs {
  Tensor grad, y, out;
};

// clang-format off
#define ULP_SOFTMAX_KERNELS(X)                          \
  X(softmax, SoftmaxArgs)                               \
  X(softmax_backward, SoftmaxBackwardArgs)

/// X(name, functor, inputs): from functors of kernels/activation_functors.h. Backward takes x, then g.
#define ULP_ACTIVATION_KERNELS(X)                       \
  X(hardtanh, Hardtanh, 1)                              \
  X(hardtanh_backward, HardtanhBackward, 2)             \
  X(clip_backward, ClipBackward, 2)                     \
  X(leaky_relu, LeakyRelu, 1)                           \
  X(leaky_relu_backward, LeakyReluBackward, 2)          \
  X(elu, Elu, 1)                                        \
  X(elu_backward, EluBackward, 2)                       \
  X(sigmoid, Sigmoid, 1)                                \
  X(sigmoid_backward, SigmoidBackward, 2)               \
  X(tanh, Tanh, 1)                                      \
  X(tanh_backward, TanhBackward, 2)                     \
  X(silu, Silu, 1)                                      \
  X(silu_backward, SiluBackward, 2)                     \
  X(softplus, Softplus, 1)                              \
  X(softplus_backward, SoftplusBackward, 2)
// clang-format on

ULP_SOFTMAX_KERNELS(ULP_DECLARE_KERNEL)
ULP_ACTIVATION_KERNELS(ULP_DECLARE_ELEMENTWISE)

}  // namespace ulp
