#include "nn/running_statistics.h"

#include <utility>

namespace ulp::nn {
namespace {

std::vector<BatchNorm*> batch_norms(Module& model) {
  std::vector<BatchNorm*> norms;
  for (Module* module : model.modules())
    if (auto* norm = dynamic_cast<BatchNorm*>(module)) norms.push_back(norm);
  return norms;
}

/// Mode::Train and zeros for statistics; afterwards mode and momenta are what they were.
class Recomputing {
 public:
  Recomputing(Stream stream, Module& model, std::vector<BatchNorm*> norms)
      : model_(model), before_(model.mode()), norms_(std::move(norms)) {
    model_.set_mode(Mode::Train);
    for (BatchNorm* norm : norms_) {
      momenta_.push_back(norm->momentum());
      for (const Buffer* buffer : norm->running_statistics())  // 0 times a NaN is one
        kernels::copy(stream, {Tensor::zeros(buffer->value.shape(), DType::F32, stream.device),
                               buffer->value});
    }
  }
  ~Recomputing() {
    model_.set_mode(before_);
    for (size_t i = 0; i < norms_.size(); ++i) norms_[i]->set_momentum(momenta_[i]);
  }
  Recomputing(const Recomputing&) = delete;
  Recomputing& operator=(const Recomputing&) = delete;

  /// Of the next forward pass: its part in the mean of all so far.
  void take_next() {
    ++taken_;
    for (BatchNorm* norm : norms_) norm->set_momentum(1.0 / static_cast<double>(taken_));
  }

 private:
  Module& model_;
  Mode before_;
  std::vector<BatchNorm*> norms_;
  std::vector<double> momenta_;
  int64_t taken_ = 0;
};

}  // namespace

void recompute_running_statistics(Run& run, Module& model, BatchSource& batches, int64_t epoch) {
  const std::vector<BatchNorm*> norms = batch_norms(model);
  if (norms.empty()) return;
  Recomputing recomputing(run.stream(), model, norms);
  Tape tape(run, Tape::Recording::Off);  // one tape: no random word repeats from batch to batch
  for (const Batch& batch : batches.shuffled(epoch)) {
    recomputing.take_next();
    model(tape, tape.constant(batch.inputs));
  }
  StepState next = run.state();
  ++next.random_step;
  run.set_state(next);
}

RunningStatistics::RunningStatistics(Run& run, Module& model) {
  for (const BatchNorm* norm : batch_norms(model))
    for (Buffer* buffer : norm->running_statistics()) {
      const Tensor& first = buffer->value;
      all_.push_back({buffer, Tensor::empty(first.shape(), first.dtype(), run.device())});
      kernels::copy(run.stream(), {first, all_.back().value});
    }
}

std::map<std::string, Tensor> RunningStatistics::tensors() const {
  std::map<std::string, Tensor> named;
  for (const Second& one : all_) named[one.buffer->path + ".average"] = one.value;
  return named;
}

void RunningStatistics::exchange() {
  for (Second& one : all_) std::swap(one.buffer->value, one.value);
}

}  // namespace ulp::nn
