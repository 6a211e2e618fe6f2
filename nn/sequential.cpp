#include "nn/sequential.h"

namespace ulp::nn {
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
  for (const auto& [name, layer] : layers_) y = (*layer)(tape, y);
  return y;
}

std::vector<Module::Child> Sequential::children() {
  std::vector<Child> all;
  for (const auto& [name, layer] : layers_) all.push_back({name, layer.get()});
  return all;
}

}  // namespace ulp::nn
