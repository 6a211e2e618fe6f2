#pragma once

#include <string_view>

#include "nn/policy.h"
#include "nn/weight_scheme.h"

namespace ulp::nn {

/// CrossEntropy: the mean over the samples (ops::cross_entropy). SumOfSquares: ½ Σ (y − onehot)², a sum over the samples
/// (ops::sum_of_squares), the loss of WAGE.
enum class LossKind : uint8_t { CrossEntropy, SumOfSquares };
/// "cross-entropy", "sum-of-squares".
const char* to_string(LossKind kind);
/// Throws ulp::Error with the names there are.
LossKind parse_loss(std::string_view text);

/// Where the loss of a training draws random numbers, and for which roles; Module::initialise gives them to no layer.
inline constexpr const char* kLossPath = "loss";
inline constexpr const char* kLossRoles[] = {"interior", "grad_input"};

/// What a training minimises, and how it is rounded.
struct TrainingLoss {
  LossKind kind = LossKind::CrossEntropy;
  OpFormats formats{};
  /// Unit: the gradients of cross-entropy are multiplied by unit_loss_factor; its value and sums of squares stay as they are.
  WeightScheme scheme = WeightScheme::Standard;

  /// logits: (N, C), labels: (N) I32  →  one value.
  Var of(Tape& tape, const Var& logits, const Tensor& labels) const;
  /// That value as a mean over `samples`, which scores add up; nothing is recorded.
  Tensor mean(Run& run, const Var& loss, int64_t samples) const;
  /// The share of one of `batches` equal batches in the loss of all of them: 1 for a sum.
  double share(int64_t batches) const {
    return kind == LossKind::SumOfSquares ? 1.0 : 1.0 / static_cast<double>(batches);
  }
};

/// A layer of type and path "loss" with the roles of its op.
Layer loss_layer(TrainingLoss& loss);
/// layers_of, then the loss.
std::vector<Layer> layers_of(Module& model, TrainingLoss& loss);

}  // namespace ulp::nn
