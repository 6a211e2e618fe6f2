#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/ops.h"
#include "nn/init.h"

namespace ulp::nn {

/// What kind of layer a module is, for policies. Container: none of its own.
enum class LayerType : uint8_t {
  Container,
  Conv,
  Linear,
  Pool,
  Pad,
  Activation,
  Normalization,
  Dropout,
  Loss,
  Attention,
  Recurrent,
  Embedding,
};

/// Layers such as dropout and batch normalisation do different things in training and in evaluation.
enum class Mode : uint8_t { Train, Evaluate };

/// What a layer keeps beside its parameters and changes itself, such as running statistics. F32, saved with the model.
struct Buffer {
  std::string path;
  Tensor value;
};

/// The products of a layer in one step: y = x wᵀ of x (rows, in) and w (out, in), dx = g w and dw = gᵀ x of g (rows, out).
struct ProductShapes {
  enum class Repeat : uint8_t {
    Once,
    /// `count` times each, side by side, of matrices of their own that are all activations: as ops::attention multiplies.
    Matrices,
    /// y `count` times, one after another, with one w; dx so for every step but the first, dw once over the rows of all steps: as
    /// ops::lstm and ops::gru multiply their states.
    Steps,
  };
  int64_t rows, out, in;
  DType weight = DType::F32;  // as it is stored
  Repeat repeat = Repeat::Once;
  int64_t count = 1;
  bool turned = false;  // w is kept as (in, out), and dw made so
};

struct UnitPlace;

/// A layer or a network of layers. Before its first use a model is initialised once, which gives every module its path
/// ("features.conv1"), every role its random stream, and every parameter its values.
class Module {
 public:
  Module() = default;
  virtual ~Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  virtual Var forward(Tape& tape, const Var& x) = 0;
  /// forward(), which the observer sees; an error begins with the path of the layer that throws it. Containers call their
  /// children so.
  Var operator()(Tape& tape, const Var& x);
  using Observer = std::function<void(Module& module, const Var& x, const Var& y)>;
  /// Of the whole tree: called after every forward pass of a module, inner ones first. Without a function: no more. y is
  /// undefined for a part whose result its layer keeps to itself.
  void observe(const Observer& observer);

  /// One line for people: "Linear 64 → 32".
  virtual std::string describe() const = 0;
  virtual LayerType type() const { return LayerType::Container; }
  /// The formats of the module's own op; null if it has none. To be changed before the first forward pass, or where
  /// whatever was recorded (StepGraph) is made anew.
  virtual OpFormats* formats() { return nullptr; }
  /// The roles of formats() that the op uses.
  virtual std::vector<const char*> roles() const { return {}; }

  /// The products of the module's own op, of an x and a y that it was observed with; none if it has none. By default those of the
  /// first parameter that is a matrix or more, (out, …): one row for each place of y.
  virtual std::optional<ProductShapes> product_shapes(const Shape& x, const Shape& y) const;

  struct Child {
    std::string name;
    Module* module;
  };
  virtual std::vector<Child> children() { return {}; }

  /// The layer's rule of unit scaling (nn/unit_scaling.h), before it is initialised. False: it has none, and nothing has changed.
  /// What has neither parameters nor formats has nothing to scale.
  virtual bool unit_scale(const UnitPlace&) { return slots_.empty() && formats() == nullptr; }
  /// describe(), and how the layer is scaled: "Linear 64 → 32, unit: y × 0.125, dx × 0.177".
  std::string description() const { return describe() + scaled_; }

  /// Names, checks and fills the whole tree below this module. `path` is the root's own, usually empty. Every role gets a
  /// random stream of its own: that of its name or, where the training's loss (kLossPath) or an earlier one of the model has
  /// the same by chance (32 bits, so in models with hundreds of layers), another one, the same in every run. Throws if two
  /// modules have the same path, or two parameters.
  void initialise(Run& run, const std::string& path = "");

  const std::string& path() const { return path_; }
  /// Where the module's own op draws random numbers.
  RandomSite site() const { return site_of(path_, twin_); }
  /// Own parameters, then those of the children, in order.
  std::vector<Parameter*> parameters();
  /// The same for buffers.
  std::vector<Buffer*> buffers();
  /// This module and all below it, outer before inner, in order.
  std::vector<Module*> modules();

  /// Of the whole tree; Train at first.
  void set_mode(Mode mode);
  Mode mode() const { return mode_; }

  /// For layers that run a child otherwise than by calling it: what its observer sees.
  void show(const Var& x, const Var& y) {
    if (observer_) observer_(*this, x, y);
  }

 protected:
  /// For constructors. The name ends the parameter's path.
  Parameter& add_parameter(std::string name, Shape shape, Initialiser init);
  /// The same for a buffer that begins as `value` everywhere.
  Buffer& add_buffer(std::string name, Shape shape, float value);
  /// Other first values of one of the module's own parameters, before it is initialised.
  void set_initialiser(const Parameter& parameter, const Initialiser& init);
  /// What description() adds: "y × 0.125".
  void set_scaled(const std::string& text) { scaled_ = ", unit: " + text; }

 private:
  struct Slot {
    std::string name;
    Shape shape;
    Initialiser init;
    Parameter parameter;
  };
  struct BufferSlot {
    std::string name;
    Shape shape;
    float first;
    Buffer buffer;
  };
  void assign_paths(const std::string& path);

  std::string path_;
  int32_t twin_ = 0;
  Mode mode_ = Mode::Train;
  Observer observer_;
  std::string scaled_;
  std::deque<Slot> slots_;  // addresses stay
  std::deque<BufferSlot> buffers_;
};

/// Evaluation mode for a while; afterwards the mode is what the root's was.
class EvaluationMode {
 public:
  explicit EvaluationMode(Module& model) : model_(model), before_(model.mode()) {
    model_.set_mode(Mode::Evaluate);
  }
  ~EvaluationMode() { model_.set_mode(before_); }
  EvaluationMode(const EvaluationMode&) = delete;
  EvaluationMode& operator=(const EvaluationMode&) = delete;

 private:
  Module& model_;
  Mode before_;
};

/// "a.b"; "b" below an empty root.
std::string join_path(const std::string& parent, const std::string& name);

}  // namespace ulp::nn
