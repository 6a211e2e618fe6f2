#include "core/cuda_graph.h"

#include "core/error.h"

#if defined(ULP_HAS_CUDA)
#include "core/arena.h"
#include "core/cuda_check.h"
#endif

namespace ulp {

#if defined(ULP_HAS_CUDA)

struct CudaGraph::Recorded {
  Stream stream;
  std::shared_ptr<Arena> arena;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  size_t nodes = 0;

  ~Recorded() {
    if (exec != nullptr) cudaGraphExecDestroy(exec);
    if (graph != nullptr) cudaGraphDestroy(graph);
  }
};

void CudaGraph::record(Stream stream, const std::function<void()>& work) {
  recorded_ = nullptr;
  auto made = std::make_unique<Recorded>();
  made->stream = stream;
  made->arena = std::make_shared<Arena>(stream.device);
  const auto handle = static_cast<cudaStream_t>(stream.handle);
  synchronize(stream);  // what was freed before is free
  {
    const ArenaScope scope(stream.device, made->arena);
    // Relaxed: the arena asks the device for memory meanwhile.
    ULP_CUDA_CHECK(cudaStreamBeginCapture(handle, cudaStreamCaptureModeRelaxed));
    try {
      work();
    } catch (...) {
      cudaStreamEndCapture(handle, &made->graph);
      cudaGetLastError();
      throw;
    }
    ULP_CUDA_CHECK(cudaStreamEndCapture(handle, &made->graph));
  }
  ULP_CUDA_CHECK(cudaGraphInstantiate(&made->exec, made->graph, 0));
  ULP_CUDA_CHECK(cudaGraphGetNodes(made->graph, nullptr, &made->nodes));
  recorded_ = std::move(made);
}

void CudaGraph::launch() {
  ULP_ASSERT(recorded_ != nullptr);
  ULP_CUDA_CHECK(cudaSetDevice(recorded_->stream.device.index));
  ULP_CUDA_CHECK(
      cudaGraphLaunch(recorded_->exec, static_cast<cudaStream_t>(recorded_->stream.handle)));
}

int64_t CudaGraph::nodes() const {
  return recorded_ == nullptr ? 0 : static_cast<int64_t>(recorded_->nodes);
}

namespace {

/// The nodes of a graph that is one chain, in order.
std::vector<cudaGraphNode_t> chain_of(cudaGraph_t graph) {
  size_t count = 0;
  ULP_CUDA_CHECK(cudaGraphGetRootNodes(graph, nullptr, &count));
  ULP_ASSERT(count == 1);
  cudaGraphNode_t node = nullptr;
  ULP_CUDA_CHECK(cudaGraphGetRootNodes(graph, &node, &count));
  std::vector<cudaGraphNode_t> chain;
  while (true) {
    chain.push_back(node);
#if CUDART_VERSION >= 13000
    ULP_CUDA_CHECK(cudaGraphNodeGetDependentNodes(node, nullptr, nullptr, &count));
    if (count == 0) return chain;
    ULP_ASSERT(count == 1);
    cudaGraphEdgeData edge{};
    ULP_CUDA_CHECK(cudaGraphNodeGetDependentNodes(chain.back(), &node, &edge, &count));
#else
    ULP_CUDA_CHECK(cudaGraphNodeGetDependentNodes(node, nullptr, &count));
    if (count == 0) return chain;
    ULP_ASSERT(count == 1);
    ULP_CUDA_CHECK(cudaGraphNodeGetDependentNodes(chain.back(), &node, &count));
#endif
  }
}

std::string name_of(cudaGraphNode_t node) {
  cudaGraphNodeType type{};
  ULP_CUDA_CHECK(cudaGraphNodeGetType(node, &type));
  if (type == cudaGraphNodeTypeMemcpy) return "copy";
  if (type == cudaGraphNodeTypeMemset) return "fill";
#if CUDART_VERSION >= 12030
  cudaKernelNodeParams params{};
  const char* name = nullptr;
  if (type == cudaGraphNodeTypeKernel &&
      cudaGraphKernelNodeGetParams(node, &params) == cudaSuccess &&
      cudaFuncGetName(&name, params.func) == cudaSuccess)
    return name;
  cudaGetLastError();
#endif
  return "kernel";
}

}  // namespace

namespace {

class Event {
 public:
  Event() { ULP_CUDA_CHECK(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

std::vector<GraphNode> CudaGraph::measure(const std::function<void()>& before, int repeats) const {
  ULP_ASSERT(recorded_ != nullptr);
  const auto stream = static_cast<cudaStream_t>(recorded_->stream.handle);
  const std::vector<cudaGraphNode_t> chain = chain_of(recorded_->graph);
  const Event begin_event, end_event;
  const cudaEvent_t begin = begin_event.get(), end = end_event.get();
  std::vector<GraphNode> nodes;
  double last = 0;
  for (size_t length = 1; length <= chain.size(); ++length) {
    Recorded part;
    ULP_CUDA_CHECK(cudaGraphClone(&part.graph, recorded_->graph));
    for (size_t i = chain.size(); i-- > length;) {
      cudaGraphNode_t node = nullptr;
      ULP_CUDA_CHECK(cudaGraphNodeFindInClone(&node, chain[i], part.graph));
      ULP_CUDA_CHECK(cudaGraphDestroyNode(node));
    }
    ULP_CUDA_CHECK(cudaGraphInstantiate(&part.exec, part.graph, 0));
    before();
    ULP_CUDA_CHECK(cudaGraphLaunch(part.exec, stream));
    ULP_CUDA_CHECK(cudaEventRecord(begin, stream));
    for (int i = 0; i < repeats; ++i) ULP_CUDA_CHECK(cudaGraphLaunch(part.exec, stream));
    ULP_CUDA_CHECK(cudaEventRecord(end, stream));
    ULP_CUDA_CHECK(cudaEventSynchronize(end));
    float milliseconds = 0;
    ULP_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    const double now = 1e3 * static_cast<double>(milliseconds) / repeats;
    nodes.push_back({name_of(chain[length - 1]), now - last});
    last = now;
  }
  return nodes;
}

#else

struct CudaGraph::Recorded {};

void CudaGraph::record(Stream stream, const std::function<void()>&) {
  throw_error("{}: {}; graphs are for CUDA", stream.device, cuda_missing_reason());
}
void CudaGraph::launch() {}
int64_t CudaGraph::nodes() const { return 0; }
std::vector<GraphNode> CudaGraph::measure(const std::function<void()>&, int) const { return {}; }

#endif

CudaGraph::CudaGraph() = default;
CudaGraph::~CudaGraph() = default;
void CudaGraph::clear() { recorded_ = nullptr; }

}  // namespace ulp
