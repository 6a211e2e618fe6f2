#include "nn/evaluate.h"

#include <algorithm>

#include "autograd/quantised.h"

namespace ulp::nn {

Score::Score(const ScoreTotals& totals)
    : loss(totals.loss / static_cast<double>(totals.samples)),
      accuracy(static_cast<double>(totals.correct) / static_cast<double>(totals.samples)) {}

Var logit_rows(Tape& tape, const Var& logits) {
  const int last = logits.shape().rank() - 1;
  if (last < 2) return logits;
  const int64_t classes = logits.shape()[last];
  return ops::reshape(tape, logits,
                      {logits.value.numel() / std::max<int64_t>(1, classes), classes});
}

Tally::Tally(Run& run)
    : run_(run),
      totals_(Tensor::empty({static_cast<int64_t>(sizeof(ScoreTotals))}, DType::U8, run.device())) {
  reset();
}

void Tally::reset() {
  const ScoreTotals none;
  copy_bytes(totals_.mutable_raw(), run_.device(), &none, kCpu, sizeof none);
}

void Tally::add(const Tensor& loss, const Tensor& logits, const Tensor& labels) {
  kernels::tally(run_.stream(), {loss, ops::wide(run_.stream(), logits), labels, totals_});
}

ScoreTotals Tally::totals() const {
  ScoreTotals totals;
  copy_bytes(&totals, kCpu, totals_.raw(), run_.device(), sizeof totals);
  return totals;
}

Score Tally::score() const { return Score(totals()); }

Score evaluate(Run& run, Module& model, BatchSource& batches, const TrainingLoss& loss) {
  Tape tape(run, Tape::Recording::Off);  // one tape: no random word repeats from batch to batch
  Tally tally(run);
  const EvaluationMode mode(model);
  for (const Batch& batch : batches.in_order()) {
    const Var logits = logit_rows(tape, model(tape, tape.constant(batch.inputs)));
    const Var value = loss.of(tape, logits, batch.labels);
    tally.add(loss.mean(run, value, batch.labels.numel()), logits.value, batch.labels);
  }
  StepState next = run.state();
  ++next.random_step;
  run.set_state(next);
  return tally.score();
}

}  // namespace ulp::nn
