#pragma once

#include <functional>

#include "autograd/run.h"
#include "core/cuda_graph.h"

namespace ulp {

/// A training step that is recorded once as a CUDA graph and then launched as one piece, with the same bits:
///   StepGraph graph(run);
///   for (…) graph.run([&] {
///     const nn::Batch batch = batches.next();
///     Tape tape(run);
///     … tape.backward(loss);
///     sgd.step();
///   });
/// The first call runs the step as it is, so that whatever is made once exists; the second records it; from then on the
/// function is not called any more. So it must do the same work every time: shapes, formats and models are fixed, a change
/// wants reset(). Whatever changes from step to step lives in device memory (StepState, learning rates, the epoch's order).
/// A step is whole: it starts without gradients and ends with the optimizer's step; results are read between steps. Where
/// random numbers were drawn since the step began, and on the CPU, the function is called.
class StepGraph {
 public:
  enum class Use : uint8_t { Auto, Off };  // Auto: on CUDA, in builds without guard bytes
  explicit StepGraph(Run& run, Use use = Use::Auto);

  /// Throws what the step throws. A step that cannot be recorded, because it waits for the device or exchanges data with
  /// the host, is one error that says so; the run is then where it was before the call, gradients apart.
  void run(const std::function<void()>& step);
  /// Forgets the recorded step: the next call is like the first.
  void reset();

  bool enabled() const { return enabled_; }
  /// Of the recorded step; 0 while there is none.
  int64_t nodes() const { return graph_.nodes(); }
  /// What each node of the recorded step adds to its time, see CudaGraph::measure. The run is of no further use: steps were
  /// made in parts.
  std::vector<GraphNode> measure(const std::function<void()>& before, int repeats) const {
    return graph_.measure(before, repeats);
  }

 private:
  void record(const std::function<void()>& step);

  Run& run_;
  bool enabled_;
  bool warm_ = false;
  uint64_t replaced_ = 0;
  CudaGraph graph_;
  std::vector<Run::Change> changes_;  // what the host does before each launch
};

}  // namespace ulp
