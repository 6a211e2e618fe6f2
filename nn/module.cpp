#include "nn/module.h"

#include <algorithm>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "core/memory_error.h"
#include "nn/policy.h"
#include "nn/training_loss.h"

namespace ulp::nn {
namespace {

/// The streams of one parameter: the initialiser's, the optimizer's, the average's.
constexpr const char* kParameterRoles[] = {"init",    "weight",  "master",       "grad",
                                           "moment1", "moment2", "compensation", "average"};

/// An error that begins with the path of the layer that threw it.
class LayerError : public Error {
 public:
  using Error::Error;
};

/// The random streams of a model that have an owner.
class Streams {
 public:
  /// Takes those of a path's roles. Returns the first number that tells the path from all before (site_of).
  int32_t take(const std::string& path, const std::vector<const char*>& roles) {
    ULP_CHECK(std::set<std::string_view>(roles.begin(), roles.end()).size() == roles.size(),
              "{}: two of its roles have one name, so they would draw the same words", path);
    for (int32_t twin = 0;; ++twin) {
      const RandomSite site = site_of(path, twin);
      std::set<uint32_t> own;
      for (const char* role : roles) own.insert(site.stream(role));
      if (own.size() < roles.size() ||
          std::ranges::any_of(own, [&](uint32_t stream) { return taken_.contains(stream); }))
        continue;
      taken_.merge(own);
      return twin;
    }
  }

 private:
  std::set<uint32_t> taken_;
};

}  // namespace

std::string join_path(const std::string& parent, const std::string& name) {
  return parent.empty() ? name : parent + "." + name;
}

Parameter& Module::add_parameter(std::string name, Shape shape, Initialiser init) {
  slots_.push_back({std::move(name), shape, init, {}});
  slots_.back().parameter.path = slots_.back().name;
  return slots_.back().parameter;
}

void Module::set_initialiser(const Parameter& parameter, const Initialiser& init) {
  for (Slot& slot : slots_)
    if (&slot.parameter == &parameter) slot.init = init;
}

Buffer& Module::add_buffer(std::string name, Shape shape, float value) {
  buffers_.push_back({std::move(name), shape, value, {}});
  buffers_.back().buffer.path = buffers_.back().name;
  return buffers_.back().buffer;
}

Var Module::operator()(Tape& tape, const Var& x) {
  Var y;
  try {
    y = forward(tape, x);
  } catch (const LayerError&) {
    throw;
  } catch (const MemoryError&) {
    throw;  // where it was missing is chance
  } catch (const Error& error) {
    if (path_.empty()) throw;
    throw LayerError(path_ + ": " + error.what());
  }
  show(x, y);
  return y;
}

std::optional<ProductShapes> Module::product_shapes(const Shape&, const Shape& y) const {
  for (const Slot& slot : slots_) {
    if (slot.shape.rank() < 2) continue;
    const int64_t out = slot.shape[0], channels = y.rank() == 0 ? 1 : y[y.rank() - 1];
    return ProductShapes{y.numel() / std::max<int64_t>(1, channels), out,
                         slot.shape.numel() / std::max<int64_t>(1, out),
                         slot.parameter.value.dtype()};
  }
  return {};
}

void Module::observe(const Observer& observer) {
  for (Module* module : modules()) module->observer_ = observer;
}

void Module::set_mode(Mode mode) {
  for (Module* module : modules()) module->mode_ = mode;
}

void Module::assign_paths(const std::string& path) {
  path_ = path;
  for (BufferSlot& slot : buffers_) slot.buffer.path = join_path(path, slot.name);
  for (Slot& slot : slots_) slot.parameter.path = join_path(path, slot.name);
  for (const Child& child : children()) child.module->assign_paths(join_path(path, child.name));
}

void Module::initialise(Run& run, const std::string& path) {
  assign_paths(path);
  Streams streams;
  // The training's loss is no module of the model: its streams have an owner before any of these, unless this is one.
  if (type() != LayerType::Loss)
    streams.take(kLossPath, {std::begin(kLossRoles), std::end(kLossRoles)});
  std::map<std::string, Module*> paths;
  std::set<std::string> parameters;
  for (Module* module : modules()) {
    const auto [at, added] = paths.emplace(module->path(), module);
    ULP_CHECK(added || module == this || module->path().empty(),
              "model: two modules have the path '{}'; give children different names",
              module->path());
    std::vector<const char*> roles = module->roles();
    if (module->type() == LayerType::Dropout) roles.push_back("mask");
    if (module->formats() != nullptr) roles.push_back("grad_input2");
    if (has_product(module->type()))  // also of parts that have none: their names are free
      for (const ProductRole& product : kProductRoles) roles.push_back(product.sums);
    module->twin_ = streams.take(module->path(), roles);
    for (Slot& slot : module->slots_) {
      ULP_CHECK(parameters.insert(slot.parameter.path).second,
                "model: two parameters have the path '{}'; give children different names",
                slot.parameter.path);
      slot.parameter.twin = streams.take(slot.parameter.path,
                                         {std::begin(kParameterRoles), std::end(kParameterRoles)});
    }
  }
  for (Module* module : modules())
    for (Slot& slot : module->slots_) {
      slot.parameter.value = slot.init.make(run, slot.shape, slot.parameter.site());
      slot.parameter.grad = {};
    }
  for (Module* module : modules())
    for (BufferSlot& slot : module->buffers_)
      slot.buffer.value =
          Tensor::from(std::vector<float>(static_cast<size_t>(slot.shape.numel()), slot.first),
                       slot.shape, run.device());
}

std::vector<Parameter*> Module::parameters() {
  std::vector<Parameter*> all;
  for (Module* module : modules())
    for (Slot& slot : module->slots_) all.push_back(&slot.parameter);
  return all;
}

std::vector<Buffer*> Module::buffers() {
  std::vector<Buffer*> all;
  for (Module* module : modules())
    for (BufferSlot& slot : module->buffers_) all.push_back(&slot.buffer);
  return all;
}

std::vector<Module*> Module::modules() {
  std::vector<Module*> all{this};
  for (const Child& child : children())
    for (Module* module : child.module->modules()) all.push_back(module);
  return all;
}

}  // namespace ulp::nn
