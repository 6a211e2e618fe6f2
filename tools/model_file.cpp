#include "tools/model_file.h"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <optional>
#include <system_error>

#include "core/error.h"
#include "nn/data/checkpoint.h"
#include "nn/data/safetensors.h"

namespace ulp::tools {
namespace fs = std::filesystem;
namespace {

constexpr const char* kRandomStep = "random_step";  // metadata

uint32_t parse_random_step(const std::string& text, const fs::path& file) {
  uint32_t step = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, step);
  ULP_CHECK(error == std::errc() && stop == end && step >= 1,
            "{}: the metadata \"{}\" must be a whole number from 1 to {}, got '{}'", file.string(),
            kRandomStep, UINT32_MAX, text);
  return step;
}

/// What delayed scaling remembers; returns how many tensors that are.
size_t load_scalings(Run& run, const nn::SafetensorsFile& saved, const fs::path& file) {
  size_t count = 0;
  for (const auto& [name, tensor] : saved.tensors) {
    const std::optional<uint32_t> stream = nn::scaling_stream(name);
    if (!stream) continue;
    nn::check_scaling(file.string(), name, tensor);
    run.set_scaling(*stream, tensor.to(run.device()));
    ++count;
  }
  return count;
}

}  // namespace

void check_finite(const std::string& before, const std::string& path, const Tensor& tensor,
                  const std::string& after) {
  int64_t index = 0;
  for (const float v : tensor.to_floats()) {
    ULP_CHECK(std::isfinite(v), "{}{} holds {} at element {}{}", before, path, v, index, after);
    ++index;
  }
}

void save_model(const Run& run, nn::Module& model, const fs::path& file, uint32_t random_step,
                const std::string& weights) {
  std::map<std::string, Tensor> tensors;
  for (const Parameter* p : model.parameters()) tensors[p->path] = p->value;
  for (const auto& [stream, state] : run.scalings()) tensors[nn::scaling_name(stream)] = state;
  nn::save_safetensors(
      file, tensors,
      {{"format", "ulp"}, {"weights", weights}, {kRandomStep, std::to_string(random_step)}});
}

void load_weights(Run& run, nn::Module& model, const fs::path& file) {
  const nn::SafetensorsFile saved = nn::load_safetensors(file);
  const std::vector<Parameter*> parameters = model.parameters();
  for (Parameter* p : parameters) {
    const auto at = saved.tensors.find(p->path);
    ULP_CHECK(at != saved.tensors.end(), "{}: there is no tensor {}", file.string(), p->path);
    const Tensor& tensor = at->second;
    ULP_CHECK(tensor.shape() == p->value.shape() && is_float_up_to_32(tensor.dtype()),
              "{}: {} must be a float tensor of shape {}, got {}", file.string(), p->path,
              p->value.shape(), tensor);
    check_finite(file.string() + ": ", p->path, tensor, "");
    p->value = tensor.to(run.device());
  }
  const size_t scalings = load_scalings(run, saved, file);
  ULP_CHECK(saved.tensors.size() == parameters.size() + scalings,
            "{}: it holds {} tensors and the model has {}", file.string(), saved.tensors.size(),
            parameters.size() + scalings);
  if (!saved.metadata.contains(kRandomStep)) return;  // made by another program
  StepState state = run.state();
  state.random_step = parse_random_step(saved.metadata.at(kRandomStep), file);
  run.set_state(state);
}

}  // namespace ulp::tools
