#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/ops.h"
#include "nn/init.h"

namespace ulp::nn {

/// A layer or a network of layers. Before its first use a model is initialised once, which gives every module its path
/// ("features.conv1"), every role its random stream, and every parameter its values.
class Module {
 public:
  Module() = default;
  virtual ~Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  virtual Var forward(Tape& tape, const Var& x) = 0;
  Var operator()(Tape& tape, const Var& x) { return forward(tape, x); }

  /// One line for people: "Linear 64 → 32".
  virtual std::string describe() const = 0;
  /// The formats of the module's own op; null if it has none.
  virtual const OpFormats* formats() const { return nullptr; }
  /// The roles of formats() that the op uses.
  virtual std::vector<const char*> roles() const { return {}; }

  struct Child {
    std::string name;
    Module* module;
  };
  virtual std::vector<Child> children() { return {}; }

  /// Names, checks and fills the whole tree below this module. `path` is the root's own, usually empty.
  /// Throws if two random streams of the model coincide; renaming one of the modules mends that.
  void initialise(Run& run, const std::string& path = "");

  const std::string& path() const { return path_; }
  /// Own parameters, then those of the children, in order.
  std::vector<Parameter*> parameters();
  /// This module and all below it, outer before inner, in order.
  std::vector<Module*> modules();

 protected:
  /// For constructors. The name ends the parameter's path.
  Parameter& add_parameter(std::string name, Shape shape, Initialiser init);
  RandomSite site() const { return RandomSite(path_); }

 private:
  struct Slot {
    std::string name;
    Shape shape;
    Initialiser init;
    Parameter parameter;
  };
  void assign_paths(const std::string& path);

  std::string path_;
  std::deque<Slot> slots_;  // addresses stay
};

/// "a.b"; "b" below an empty root.
std::string join_path(const std::string& parent, const std::string& name);

}  // namespace ulp::nn
