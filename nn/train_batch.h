#pragma once

#include "nn/evaluate.h"

namespace ulp::nn {

/// Forward and backward pass of one batch: the loss is its mean cross-entropy and goes into `tally`; the model's parameters get
/// their gradients. The loss is rounded as ops::cross_entropy does with `loss_formats`.
inline void train_batch(Run& run, Module& model, const Batch& batch, Tally& tally,
                        const OpFormats& loss_formats = {}) {
  Tape tape(run);
  const Var logits = logit_rows(tape, model(tape, tape.constant(batch.inputs)));
  const Var loss = ops::cross_entropy(tape, logits, batch.labels, loss_formats, RandomSite("loss"));
  tally.add(loss.value, logits.value, batch.labels);
  tape.backward(loss);
}

}  // namespace ulp::nn
