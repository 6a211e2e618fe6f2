#pragma once

#include "nn/evaluate.h"

namespace ulp::nn {

/// Forward and backward pass of one batch: the loss is its mean cross-entropy and goes into `tally`; the model's parameters get
/// their gradients.
inline void train_batch(Run& run, Module& model, const Batch& batch, Tally& tally) {
  Tape tape(run);
  const Var logits = logit_rows(tape, model(tape, tape.constant(batch.inputs)));
  const Var loss = ops::cross_entropy(tape, logits, batch.labels);
  tally.add(loss.value, logits.value, batch.labels);
  tape.backward(loss);
}

}  // namespace ulp::nn
