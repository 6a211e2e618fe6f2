#pragma once

#include "nn/batches.h"
#include "nn/module.h"

namespace ulp::nn {

/// Mean cross-entropy, and the fraction of samples whose largest logit is that of their label.
struct Score {
  double loss = 0;
  double accuracy = 0;
};

/// Adds up batches of one epoch.
class Tally {
 public:
  /// loss: the batch's mean loss (one value); logits: (N, C); labels: (N).
  void add(Run& run, const Tensor& loss, const Tensor& logits, const Tensor& labels);
  /// The batch's mean loss as added last.
  double last_loss() const { return last_loss_; }
  Score score() const { return {loss_ / samples_, correct_ / samples_}; }

 private:
  double loss_ = 0, correct_ = 0, samples_ = 0, last_loss_ = 0;
};

/// Scores a model over all samples without recording. Stochastic formats draw as of the current step; afterwards the run
/// stands at a fresh one. The loss is rounded as ops::cross_entropy does with `loss_formats`.
Score evaluate(Run& run, Module& model, const Batches& batches, const OpFormats& loss_formats = {});

}  // namespace ulp::nn
