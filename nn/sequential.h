#pragma once

#include <memory>
#include <utility>

#include "nn/module.h"

namespace ulp::nn {

/// Modules one after another, each with a name of its own. What a layer's forward throws begins with the layer's path.
class Sequential : public Module {
 public:
  Sequential() = default;

  /// net.add<nn::Linear>("fc1", 64, 32, formats).add<nn::ReLU>("act1"). Throws if the name is empty, taken or contains
  /// one of ". /".
  template <class M, class... Args>
  Sequential& add(const std::string& name, Args&&... args) {
    return append(name, std::make_unique<M>(std::forward<Args>(args)...));
  }
  Sequential& append(const std::string& name, std::unique_ptr<Module> module);

  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override { return "Sequential"; }
  std::vector<Child> children() override;

 private:
  std::vector<std::pair<std::string, std::unique_ptr<Module>>> layers_;
};

}  // namespace ulp::nn
