#include "autograd/step_graph.h"

#include <exception>

#include "core/storage.h"

namespace ulp {

StepGraph::StepGraph(Run& run, Use use)
    : run_(run),
      // Guard bytes are painted and looked at from the host.
      enabled_(use == Use::Auto && run.device().type == DeviceType::Cuda && !kGuardBytes) {}

void StepGraph::reset() {
  graph_.clear();
  changes_.clear();
  warm_ = false;
}

void StepGraph::record(const std::function<void()>& step) {
  changes_.clear();
  run_.recording_ = &changes_;
  try {
    graph_.record(run_.stream(), step);
    ULP_CHECK(run_.fresh(), "it ends within a step; let it end with the optimizer's step");
  } catch (const std::exception& error) {
    run_.recording_ = nullptr;
    run_.ordinals_.clear();
    reset();
    throw_error("step graph: the step cannot be recorded: {}", error.what());
  }
  run_.recording_ = nullptr;
  replaced_ = run_.replaced();
}

void StepGraph::run(const std::function<void()>& step) {
  if (!enabled_) return step();
  if (replaced_ != run_.replaced()) reset();
  if (!warm_ || !run_.fresh()) {
    step();
    warm_ = true;
    replaced_ = run_.replaced();
    return;
  }
  if (!graph_.recorded()) record(step);
  for (const Run::Change& change : changes_) change();
  graph_.launch();
}

}  // namespace ulp
