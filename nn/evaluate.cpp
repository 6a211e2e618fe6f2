#include "nn/evaluate.h"

namespace ulp::nn {

void Tally::add(Run& run, const Tensor& loss, const Tensor& logits, const Tensor& labels) {
  const int64_t n = labels.numel();
  Tensor each = Tensor::empty({n}, DType::F32, run.device());
  kernels::correct(run.stream(), {logits, labels, each});
  Tensor hits = Tensor::empty({}, DType::F32, run.device());
  kernels::sum(run.stream(), {each, hits, 1, n, 1});
  last_loss_ = loss.item();
  loss_ += last_loss_ * static_cast<double>(n);
  correct_ += hits.item();
  samples_ += static_cast<double>(n);
}

Score evaluate(Run& run, Module& model, const Batches& batches, const OpFormats& loss_formats) {
  Tape tape(run, Tape::Recording::Off);  // one tape: no random word repeats from batch to batch
  Tally tally;
  for (const Batch& batch : batches.in_order()) {
    const Var logits = model(tape, tape.constant(batch.images));
    const Var loss =
        ops::cross_entropy(tape, logits, batch.labels, loss_formats, RandomSite("loss"));
    tally.add(run, loss.value, logits.value, batch.labels);
  }
  StepState next = run.state();
  ++next.random_step;
  run.set_state(next);
  return tally.score();
}

}  // namespace ulp::nn
