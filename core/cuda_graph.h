#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"

namespace ulp {

/// One kernel, copy or fill of a graph, and what it adds to the time of one launch.
struct GraphNode {
  std::string name;
  double microseconds;
};

/// Work of a CUDA device's stream, recorded once and queued again as one piece. Tensors made while it is recorded get
/// memory that belongs to the graph, at the same addresses in every launch: they may be read until the next one.
class CudaGraph {
 public:
  CudaGraph();
  ~CudaGraph();
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  /// Records what `work` queues on the stream; nothing runs yet. One recording a device at a time. Throws what `work`
  /// throws, and ulp::Error where it waits for the device or exchanges data with the host; then nothing is recorded.
  void record(Stream stream, const std::function<void()>& work);
  bool recorded() const { return recorded_ != nullptr; }
  /// Queues the recorded work.
  void launch();
  void clear();
  /// Kernels, copies and fills of one launch.
  int64_t nodes() const;
  /// Launches the first node alone, the first two, … and compares; `before` is called before each of these measurements,
  /// each of which launches once to warm up and then `repeats` times.
  std::vector<GraphNode> measure(const std::function<void()>& before, int repeats) const;

 private:
  struct Recorded;
  std::unique_ptr<Recorded> recorded_;
};

}  // namespace ulp
