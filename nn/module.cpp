#include "nn/module.h"

#include <map>
#include <utility>

#include "core/memory_error.h"

namespace ulp::nn {
namespace {

/// The optimizer's and the initialiser's streams of one parameter.
constexpr const char* kParameterRoles[] = {"init", "weight", "master", "grad", "momentum"};

/// An error that begins with the path of the layer that threw it.
class LayerError : public Error {
 public:
  using Error::Error;
};

void claim(std::map<uint32_t, std::string>& streams, const std::string& path, const char* role) {
  const std::string name = path + "/" + role;
  const auto [at, added] = streams.emplace(RandomSite(path).stream(role), name);
  ULP_CHECK(added,
            "model: '{}' and '{}' would draw the same random numbers; rename one of the modules, "
            "or take fewer layers",
            at->second, name);
}

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
  if (observer_) observer_(*this, x, y);
  return y;
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
  std::map<uint32_t, std::string> streams;
  std::map<std::string, Module*> paths;
  for (Module* module : modules()) {
    const auto [at, added] = paths.emplace(module->path(), module);
    ULP_CHECK(added || module == this || module->path().empty(),
              "model: two modules have the path '{}'; give children different names",
              module->path());
    for (const char* role : module->roles()) claim(streams, module->path(), role);
    if (module->type() == LayerType::Dropout) claim(streams, module->path(), "mask");
    for (Slot& slot : module->slots_)
      for (const char* role : kParameterRoles) claim(streams, slot.parameter.path, role);
  }
  for (Module* module : modules())
    for (Slot& slot : module->slots_) {
      slot.parameter.value = slot.init.make(run, slot.shape, slot.parameter.path);
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
