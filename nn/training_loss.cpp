#include "nn/training_loss.h"

#include <iterator>

#include "autograd/losses.h"
#include "autograd/scaling.h"
#include "core/error.h"
#include "nn/unit_scaling.h"

namespace ulp::nn {

const char* to_string(LossKind kind) {
  return kind == LossKind::CrossEntropy ? "cross-entropy" : "sum-of-squares";
}

LossKind parse_loss(std::string_view text) {
  for (const LossKind kind : {LossKind::CrossEntropy, LossKind::SumOfSquares})
    if (text == to_string(kind)) return kind;
  throw_error("'{}' is no loss; there are cross-entropy and sum-of-squares", text);
}

Var TrainingLoss::of(Tape& tape, const Var& logits, const Tensor& labels) const {
  const RandomSite site(kLossPath);
  if (kind == LossKind::SumOfSquares)
    return ops::sum_of_squares(tape, logits, labels, formats, site);
  const Var loss = ops::cross_entropy(tape, logits, labels, formats, site);
  if (scheme != WeightScheme::Unit) return loss;
  return ops::scaling(tape, loss, 1, unit_loss_factor(labels.numel(), logits.shape()[1]));
}

Tensor TrainingLoss::mean(Run& run, const Var& loss, int64_t samples) const {
  if (kind == LossKind::CrossEntropy) return loss.value;
  Tape aside(run, Tape::Recording::Off);
  return ops::scale(aside, aside.constant(loss.value), 1.0 / static_cast<double>(samples)).value;
}

Layer loss_layer(TrainingLoss& loss) {
  if (loss.kind == LossKind::CrossEntropy)
    return {kLossPath,
            LayerType::Loss,
            {std::begin(kLossRoles), std::end(kLossRoles)},
            &loss.formats,
            loss.scheme == WeightScheme::Unit ? "cross-entropy, unit: dx × N·C/√(C − 1)"
                                              : "cross-entropy"};
  return {kLossPath, LayerType::Loss, {"grad_input"}, &loss.formats, "sum of squares"};
}

std::vector<Layer> layers_of(Module& model, TrainingLoss& loss) {
  std::vector<Layer> all = layers_of(model);
  all.push_back(loss_layer(loss));
  return all;
}

}  // namespace ulp::nn
