#pragma once

#include <cstdint>

namespace ulp {

/// The arithmetic of an optimizer's update (kernels/functors.h). Sgd keeps no moment, Momentum and Lion one, Adam two.
enum class UpdateRule : uint8_t { Sgd, Momentum, Adam, Lion };

/// Whether gradients are multiplied before they are rounded to their format (QPyTorch's OptimLP) or afterwards: then the
/// format sees them as the backward pass left them, with the loss scale (QPyTorch#59).
enum class GradOrder : uint8_t { ScaleFirst, QuantiseFirst };

/// What gradients are divided by, parameter by parameter, when they are scaled. Shift: 2^round(log2 a) of the largest
/// magnitude a of the parameter's scaled gradient before it is rounded (1 where a is 0), so that it becomes one between √½
/// and √2.  Source: WAGE, arXiv 1802.04680, eq. 10.
enum class GradNormalisation : uint8_t { None, Shift };

/// What an update multiplies by, as it was asked for.
struct UpdateSettings {
  UpdateRule rule = UpdateRule::Sgd;
  GradOrder grad_order = GradOrder::ScaleFirst;
  GradNormalisation grad_normalisation = GradNormalisation::None;
  bool nesterov = false;   // Momentum
  bool decoupled = false;  // weight decay
  bool scaled =
      false;  // gradients come scaled: neither grad_scaling nor the state's grad_factor counts
  float grad_scaling = 1, lr_factor = 1, weight_decay = 0;
  float eps = 0;                // Adam
  double beta1 = 0, beta2 = 0;  // Momentum has beta1, Adam, Lion both; beta1 < 0: each rate's own
};

}  // namespace ulp
