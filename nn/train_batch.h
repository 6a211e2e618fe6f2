#pragma once

#include "nn/evaluate.h"

namespace ulp::nn {

/// Forward and backward pass of one batch: its mean loss goes into `tally`; the model's parameters get their gradients.
inline void train_batch(Run& run, Module& model, const Batch& batch, Tally& tally,
                        const TrainingLoss& loss = {}) {
  Tape tape(run);
  const Var logits = logit_rows(tape, model(tape, tape.constant(batch.inputs)));
  const Var value = loss.of(tape, logits, batch.labels);
  tally.add(loss.mean(run, value, batch.labels.numel()), logits.value, batch.labels);
  tape.backward(value);
}

}  // namespace ulp::nn
