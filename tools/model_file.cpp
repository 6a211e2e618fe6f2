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

constexpr const char* kRandomStep = "random_step";                 // metadata
constexpr const char* kAverageRandomStep = "average_random_step";  // the same
constexpr const char* kAverageFormat = "average";                  // the same
constexpr const char* kAverageCount = "average_count";             // the same
constexpr const char* kAverageSuffix = ".average";                 // of tensors

uint32_t parse_random_step(const nn::SafetensorsFile& saved, const char* key,
                           const fs::path& file) {
  const std::string& text = saved.metadata.at(key);
  uint32_t step = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, step);
  ULP_CHECK(error == std::errc() && stop == end && step >= 1,
            "{}: the metadata \"{}\" must be a whole number from 1 to {}, got '{}'", file.string(),
            key, UINT32_MAX, text);
  return step;
}

/// The tensor of a parameter or a buffer in the file.
const Tensor& tensor_of(const nn::SafetensorsFile& saved, const std::string& name,
                        const Shape& shape, const fs::path& file) {
  const auto at = saved.tensors.find(name);
  ULP_CHECK(at != saved.tensors.end(), "{}: there is no tensor {}", file.string(), name);
  const Tensor& tensor = at->second;
  ULP_CHECK(tensor.shape() == shape && is_float_up_to_32(tensor.dtype()),
            "{}: {} must be a float tensor of shape {}, got {}", file.string(), name, shape,
            tensor);
  check_finite(file.string() + ": ", name, tensor, "");
  return tensor;
}

std::string note(const nn::SafetensorsFile& saved, const char* key, const char* absent) {
  const auto at = saved.metadata.find(key);
  return at == saved.metadata.end() ? absent : at->second;
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
                const std::string& weights, const std::optional<SavedAverage>& average) {
  std::map<std::string, Tensor> tensors;
  const auto add = [&](const std::string& path, const Tensor& value) {
    tensors[path] = value;
    if (average) tensors[path + kAverageSuffix] = average->tensors.at(path + kAverageSuffix);
  };
  for (const Parameter* p : model.parameters()) add(p->path, p->value);
  for (const nn::Buffer* b : model.buffers()) add(b->path, b->value);
  for (const auto& [stream, state] : run.scalings()) tensors[nn::scaling_name(stream)] = state;
  std::map<std::string, std::string> metadata{
      {"format", "ulp"}, {"weights", weights}, {kRandomStep, std::to_string(random_step)}};
  if (average) {
    metadata[kAverageFormat] = average->format;
    metadata[kAverageCount] = std::to_string(average->count);
    metadata[kAverageRandomStep] = std::to_string(average->random_step);
  }
  nn::save_safetensors(file, tensors, metadata);
}

std::string load_weights(Run& run, nn::Module& model, const fs::path& file, Weights which) {
  const nn::SafetensorsFile saved = nn::load_safetensors(file);
  const std::vector<Parameter*> parameters = model.parameters();
  const bool averaged = saved.metadata.contains(kAverageFormat);
  const bool take_average = averaged && which == Weights::Average;
  const auto read = [&](const std::string& path, const Shape& shape) {
    const Tensor last = tensor_of(saved, path, shape, file);
    const Tensor average = averaged ? tensor_of(saved, path + kAverageSuffix, shape, file) : last;
    return take_average ? average : last;
  };
  for (Parameter* p : parameters) p->value = read(p->path, p->value.shape()).to(run.device());
  const std::vector<nn::Buffer*> buffers = model.buffers();
  for (nn::Buffer* b : buffers) {
    const Tensor buffer = read(b->path, b->value.shape());
    ULP_CHECK(buffer.dtype() == DType::F32, "{}: {} must be F32, got {}", file.string(), b->path,
              buffer.dtype());
    b->value = buffer.to(run.device());
  }
  const size_t scalings = load_scalings(run, saved, file);
  const size_t known = (parameters.size() + buffers.size()) * (averaged ? 2 : 1) + scalings;
  ULP_CHECK(saved.tensors.size() == known, "{}: it holds {} tensors and the model has {}",
            file.string(), saved.tensors.size(), known);
  const char* step = take_average ? kAverageRandomStep : kRandomStep;
  if (saved.metadata.contains(step)) {  // else made by another program
    StepState state = run.state();
    state.random_step = parse_random_step(saved, step, file);
    run.set_state(state);
  }
  if (!averaged) return "";
  if (!take_average) return "the last ones,";
  return "the average of " + note(saved, kAverageCount, "some") + " in " +
         note(saved, kAverageFormat, "") + ",";
}

}  // namespace ulp::tools
