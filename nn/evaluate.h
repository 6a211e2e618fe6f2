#pragma once

#include <map>
#include <string>

#include "nn/batches.h"
#include "nn/module.h"
#include "nn/training_loss.h"

namespace ulp::nn {

/// The mean loss of a sample, and the fraction of samples whose largest logit is that of their label.
struct Score {
  double loss = 0;
  double accuracy = 0;

  Score() = default;
  explicit Score(const ScoreTotals& totals);
};

/// Logits (…, C) as cross-entropy takes them: (N, C), a row for each label of a batch.
Var logit_rows(Tape& tape, const Var& logits);

/// Adds up batches on the run's device. Nothing waits for the device before totals() or score().
class Tally {
 public:
  explicit Tally(Run& run);
  void reset();
  /// loss: the batch's mean loss (one value); logits: (N, C); labels: (N).
  void add(const Tensor& loss, const Tensor& logits, const Tensor& labels);
  ScoreTotals totals() const;
  Score score() const;
  /// For checkpoints: the memory itself.
  std::map<std::string, Tensor> tensors() const { return {{"tally.totals", totals_}}; }

 private:
  Run& run_;
  Tensor totals_;  // U8, sizeof(ScoreTotals)
};

/// Scores a model over all samples without recording. Stochastic formats draw as of the current step; afterwards the run
/// stands at a fresh one.
Score evaluate(Run& run, Module& model, BatchSource& batches, const TrainingLoss& loss = {});

}  // namespace ulp::nn
