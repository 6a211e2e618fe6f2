#include "nn/sequential.h"

namespace ulp::nn {
namespace {

/// The layer's result; what it throws begins with the path of the layer, or of one inside it.
Var named_forward(Module& layer, Tape& tape, const Var& x) {
  try {
    return layer.forward(tape, x);
  } catch (const Error& error) {
    const std::string message = error.what();
    if (layer.path().empty() || message.starts_with(layer.path())) throw;
    throw Error(layer.path() + ": " + message);
  }
}

}  // namespace

Sequential& Sequential::append(const std::string& name, std::unique_ptr<Module> module) {
  ULP_CHECK(!name.empty() && name.find_first_of("./") == std::string::npos,
            "Sequential: a child needs a name without '.' and '/', got '{}'", name);
  ULP_CHECK(module != nullptr, "Sequential: the child '{}' is no module", name);
  for (const auto& [taken, layer] : layers_)
    ULP_CHECK(taken != name, "Sequential: there is a child '{}' already", name);
  layers_.emplace_back(name, std::move(module));
  return *this;
}

Var Sequential::forward(Tape& tape, const Var& x) {
  Var y = x;
  for (const auto& [name, layer] : layers_) y = named_forward(*layer, tape, y);
  return y;
}

std::vector<Module::Child> Sequential::children() {
  std::vector<Child> all;
  for (const auto& [name, layer] : layers_) all.push_back({name, layer.get()});
  return all;
}

}  // namespace ulp::nn
