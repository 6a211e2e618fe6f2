#pragma once

// Kernels of batch, layer, group and root-mean-square normalisation. kernel.h says what a row means.

#include "core/quantizer.h"
#include "kernels/interior.h"

namespace ulp {

/// A normalised tensor is (rows, channels); which of its elements share a statistic: those of `span` neighbouring rows and of one
/// of `groups` equal ranges of channels. Element (r, c) belongs to statistic (r / span)·groups + c / (channels / groups).
///  batch norm  (N·H·W, C): span N·H·W, groups C
///  group norm  (N·S, C): span S, groups G
///  layer norm, RMS norm  (N, C): span 1, groups 1
struct NormLayout {
  int64_t rows = 0, channels = 1, span = 1, groups = 1;

  int64_t statistics() const { return rows == span ? groups : rows / span * groups; }
  int64_t width() const { return channels / groups; }  // channels of a group
  int64_t size() const { return span * width(); }      // elements that share a statistic
  bool per_channel() const { return rows == span && groups == channels; }
};

/// The format that rounds the named intermediates of a norm, element-wise, and its draws: number 0 … 3 in turn of `key` for the
/// mean (word i for statistic i), the variance, the inverse deviation (the same) and the normalised value (word i for element i).
/// The backward pass takes the same rounded numbers. trace: batch_statistics leaves draws 0 … 2 there, norm_apply draw 3, group_norm
/// all of them (without a mean not draw 0); the others nothing.
struct NormInterior {
  Quantizer format;
  RandomKey key;
  InteriorTrace trace{};
};

/// The statistics of each channel of x (R, C), any float: mean = Σx / R, variance = Σ(x − mean)² / R, sums in the order of
/// core/sum.h; mean and inverse_deviation = 1 / √(variance + eps) are (C). With running statistics (F32, (C)) also
/// running ← (1 − momentum)·running + momentum·now, where now's variance is that of R − 1: variance·fl(R / (R − 1)); R ≥ 2.
/// evaluate: mean and variance are the running ones, which stay; x is not looked at.
struct BatchStatisticsArgs {
  Tensor x, mean, inverse_deviation;
  Tensor running_mean{}, running_variance{};
  double eps = 1e-5, momentum = 0.1;
  bool evaluate = false;
  NormInterior interior{};
};

/// out = weight·(x − mean)·inverse_deviation + bias of (rows, channels), then `output` (element-wise) rounds. mean: undefined is
/// zero; weight, bias (C), any float: undefined are one and zero.
struct NormApplyArgs {
  Tensor x, mean, inverse_deviation, weight, bias, out;
  NormLayout layout;
  NormInterior interior{};
  Quantizer output{};
  RandomKey key{};
};

/// The statistics over each group, which go to mean and inverse_deviation (one a statistic), and with them what norm_apply does.
/// Elements of a group are summed in row-major order, in the order of core/sum.h. mean undefined: the mean is not taken, and the
/// variance is Σx² / n (RMS norm).
struct GroupNormArgs {
  Tensor x, weight, bias, out, mean, inverse_deviation;
  NormLayout layout;
  double eps = 1e-5;
  NormInterior interior{};
  Quantizer output{};
  RandomKey key{};
};

/// Gradients of bias and weight: sum_grad (C) = Σ_rows g, sum_product (C) = Σ_rows g·x̂, in the order of core/sum.h.
struct NormSumsArgs {
  Tensor x, grad, mean, inverse_deviation, sum_grad, sum_product;
  NormLayout layout;
  NormInterior interior{};
};

/// out = (g − (Σg/R + x̂·Σgx̂/R))·(weight·inverse_deviation), the sums those of norm_sums; without sums (statistics that do not
/// depend on x) g·(weight·inverse_deviation). `output` (element-wise) rounds. Divisions by R are products with fl(1/R).
struct BatchNormBackwardArgs {
  Tensor x, grad, mean, inverse_deviation, weight, sum_grad, sum_product, out;
  NormInterior interior{};
  Quantizer output{};
  RandomKey key{};
};

/// With h = weight·g: out = (h − (Σh/n + x̂·Σhx̂/n))·inverse_deviation, sums over the n elements of a group in the order of
/// core/sum.h; without a mean Σh is left out. `output` (element-wise) rounds. Divisions are products with fl(1/n).
struct GroupNormBackwardArgs {
  Tensor x, grad, mean, inverse_deviation, weight, out;
  NormLayout layout;
  NormInterior interior{};
  Quantizer output{};
  RandomKey key{};
};

// clang-format off
#define ULP_NORM_KERNELS(X)                             \
  X(batch_statistics, BatchStatisticsArgs)              \
  X(norm_apply, NormApplyArgs)                          \
  X(group_norm, GroupNormArgs)                          \
  X(norm_sums, NormSumsArgs)                            \
  X(batch_norm_backward, BatchNormBackwardArgs)         \
  X(group_norm_backward, GroupNormBackwardArgs)
// clang-format on

ULP_NORM_KERNELS(ULP_DECLARE_KERNEL)

/// Throw unless the arguments of a row are as it says.
void check_batch_statistics(Stream stream, const BatchStatisticsArgs& args);
void check_norm_apply(Stream stream, const NormApplyArgs& args);
void check_group_norm(Stream stream, const GroupNormArgs& args);
void check_norm_sums(Stream stream, const NormSumsArgs& args);
void check_batch_norm_backward(Stream stream, const BatchNormBackwardArgs& args);
void check_group_norm_backward(Stream stream, const GroupNormBackwardArgs& args);

/// (R, C) as the layout of a batch norm.
inline NormLayout batch_layout(const Tensor& x) {
  return {x.size(0), x.size(1), x.size(0), x.size(1)};
}

}  // namespace ulp
