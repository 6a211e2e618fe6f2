#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "autograd/run.h"
#include "core/op_formats.h"
#include "core/tensor.h"

namespace ulp {

class Tape;

/// Where something with that path draws its random numbers. Streams are 32-bit hashes of names; one that would draw those of
/// another has a number above 0, its twin, which makes it another name (Module::initialise).
inline RandomSite site_of(const std::string& path, int32_t twin) {
  return RandomSite(twin == 0 ? path : path + "#" + std::to_string(twin));
}

/// A trained tensor and its gradient. `value` has the type its format is stored in; `grad` is F32 and undefined until a
/// backward pass reaches the parameter.
struct Parameter {
  std::string path;
  Tensor value;
  Tensor grad;
  int32_t twin = 0;  // see site_of

  RandomSite site() const { return site_of(path, twin); }
};

/// A tensor in a computation. node < 0: nothing is recorded for it, no gradient flows to it.
struct Var {
  Tensor value;
  Tape* tape = nullptr;
  int32_t node = -1;
  int32_t output = 0;

  bool needs_grad() const { return node >= 0; }
  const Shape& shape() const { return value.shape(); }
};

/// Which inputs of an op want a gradient.
class Needs {
 public:
  explicit Needs(uint64_t mask) : mask_(mask) {}
  bool operator[](int input) const { return (mask_ >> input & 1) != 0; }

 private:
  uint64_t mask_;
};

/// Gradients of an op's outputs → gradients of its inputs. `grads[k]` is undefined if nothing depends on output k. Pure: it
/// returns one tensor an input, undefined where it is not needed; the tape alone adds them up.
using Backward = std::function<std::vector<Tensor>(std::span<const Tensor> grads, Needs needs)>;

struct Node {
  struct Input {
    int32_t node, output;
  };
  const char* op;
  std::vector<Input> inputs;
  int32_t outputs;
  OpFormats formats;
  Backward backward;               // empty for leaves
  Parameter* parameter = nullptr;  // of a leaf, if it is one
};

/// A tensor kept for the backward pass. Reading it throws, naming the op, if its storage was written to meanwhile.
class Saved {
 public:
  Saved() = default;
  const Tensor& get() const;

 private:
  friend class Tape;
  Saved(const char* op, Tensor tensor)
      : op_(op), tensor_(std::move(tensor)), version_(tensor_.version()) {}

  const char* op_ = "";
  Tensor tensor_;
  uint32_t version_ = 0;
};

/// The ops of one step in execution order; its reverse is a topological order. Gradients are added in fp32 (fp64 in
/// gradient checks), in the order of the sweep. One tape serves one backward pass.
class Tape {
 public:
  enum class Recording : uint8_t { On, Off };
  explicit Tape(Run& run, Recording recording = Recording::On)
      : run_(run), recording_(recording == Recording::On) {}
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  Run& run() const { return run_; }
  Stream stream() const { return run_.stream(); }
  bool recording() const { return recording_; }

  /// A tensor that gets no gradient: data, labels.
  Var constant(Tensor value) { return {std::move(value), this, -1, 0}; }
  /// A tensor whose gradient can be read with grad() after backward.
  Var leaf(Tensor value);
  /// A parameter; backward adds to parameter.grad. Watching it again gives the same node.
  Var watch(Parameter& parameter);

  /// Keeps a tensor for the backward pass of an op.
  Saved save(const char* op, Tensor tensor);
  /// Bytes of all that was kept so far, each storage counted once; parameters that an op reads as they are, too.
  int64_t saved_bytes() const { return saved_bytes_; }

  /// Adds an op. The outputs are recorded if any input needs a gradient.
  std::vector<Var> record(const char* op, const OpFormats& formats, std::span<const Var> inputs,
                          std::vector<Tensor> outputs, Backward backward);
  Var record(const char* op, const OpFormats& formats, std::initializer_list<Var> inputs,
             Tensor output, Backward backward);

  /// Sweeps from `loss` (one value), whose gradient is the step state's loss_scale times its share in the step's loss: with
  /// 1 / N, N tapes one after another add up to the gradients of one batch of all their samples (ops take means).
  void backward(const Var& loss, double share = 1);
  /// Sweeps from any output with its gradient.
  void backward(const Var& output, Tensor grad);
  /// The gradient of a leaf after backward; undefined if the result does not depend on it.
  const Tensor& grad(const Var& leaf) const;

  const std::vector<Node>& nodes() const { return nodes_; }

 private:
  Tensor add(const Tensor& a, const Tensor& b) const;
  void sweep_node(size_t index);

  Run& run_;
  bool recording_;
  bool swept_ = false;
  std::vector<Node> nodes_;
  std::vector<std::vector<Tensor>> grads_;  // [node][output]
  std::unordered_map<const Parameter*, Var> watched_;
  std::unordered_set<const void*> saved_;  // storages
  int64_t saved_bytes_ = 0;
};

}  // namespace ulp
