#include "tools/preflight.h"

#include <algorithm>

#include "core/memory_error.h"
#include "nn/evaluate.h"

namespace ulp::tools {
namespace {

/// The steps of a training on the CPU, without an optimizer.
class Rehearsal {
 public:
  Rehearsal(const Experiment& e, const nn::Dataset& data)
      : e_(e), run_(kCpu, e.seed), model_(make_model(e, data)), loss_{e.loss, {}, e.init} {
    model_->initialise(run_);
    layers_ = nn::layers_of(*model_, loss_);
    nn::check(e.policy, layers_, e.epochs);
    const int64_t samples = std::min<int64_t>(e.batch_size, 2);
    const int64_t values = data.sample_shape.numel();  // of a text: tokens, and as many labels
    inputs_ = Tensor::zeros({samples, values}, data.is_text() ? DType::I32 : DType::F32, kCpu);
    labels_ = Tensor::zeros({data.is_text() ? samples * values : samples}, DType::I32, kCpu);
  }

  void run() {
    for (const int64_t epoch : nn::phases(e_.policy, e_.epochs)) {
      nn::apply(e_.policy, layers_, epoch);
      try {
        step();
      } catch (const MemoryError&) {
        throw;
      } catch (const Error& error) {
        if (epoch == 1) throw;
        throw_error("from epoch {} on: {}", epoch, error.what());
      }
    }
  }

 private:
  void step() {
    Tape tape(run_);
    const Var logits = nn::logit_rows(tape, (*model_)(tape, tape.constant(inputs_)));
    tape.backward(loss_.of(tape, logits, labels_));
    for (Parameter* p : model_->parameters()) p->grad = {};
  }

  const Experiment& e_;
  Run run_;
  std::unique_ptr<nn::Sequential> model_;
  nn::TrainingLoss loss_;
  std::vector<nn::Layer> layers_;
  Tensor inputs_, labels_;
};

}  // namespace

void preflight(const Experiment& e, const nn::Dataset& data) {
  with_memory_for("a step of --model " + e.model, [&] { Rehearsal(e, data).run(); });
}

}  // namespace ulp::tools
