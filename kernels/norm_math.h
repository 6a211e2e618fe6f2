#pragma once

// The scalar mathematics of the norms, shared by both devices. T is float (the bit contract) or double (gradient checks).

#include "core/macros.h"
#include "core/scalar_math.h"

namespace ulp::norms {

/// 1 / √(variance + eps): a correctly rounded root and a division.
template <class T>
ULP_HD T inverse_deviation(T variance, T eps) {
  return T(1) / sqrt_of(variance + eps);
}

/// x̂ = (x − mean)·r
template <class T>
ULP_HD T normalised(T x, T mean, T r) {
  return (x - mean) * r;
}

template <class T>
ULP_HD T square_about(T x, T mean) {
  const T d = x - mean;
  return d * d;
}

/// y = weight·x̂ + bias, one rounding.
template <class T>
ULP_HD T scaled(T x_hat, T weight, T bias) {
  return fma_of(x_hat, weight, bias);
}

/// dx = (h − (mean_h + x̂·mean_hx))·factor, h being the gradient toward x̂ (or a multiple of it), mean_h and mean_hx the means of
/// h and h·x̂ over the elements that share a statistic.
template <class T>
ULP_HD T input_gradient(T h, T x_hat, T mean_h, T mean_hx, T factor) {
  return (h - fma_of(x_hat, mean_hx, mean_h)) * factor;
}

/// running ← (1 − momentum)·running + momentum·now
template <class T>
ULP_HD T moving(T running, T now, T keep, T momentum) {
  return fma_of(keep, running, momentum * now);
}

}  // namespace ulp::norms
