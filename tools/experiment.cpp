#include "tools/experiment.h"

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <system_error>

#include "core/error.h"
#include "kernels/matmul_unit.h"
#include "nn/data/atomic_file.h"
#include "nn/data/read_file.h"
#include "nn/data/safetensors.h"
#include "nn/models.h"
#include "tools/format_options.h"
#include "tools/optimizer_options.h"
#include "tools/progress.h"

namespace ulp::tools {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kEvalBatch = 256;
constexpr int64_t kLogInterval = 100;  // steps between looks at the loss, which wait for the GPU
constexpr const char* kScaling =
    "delayed_scaling.";                             // tensors, by the number of their random stream
constexpr const char* kRandomStep = "random_step";  // metadata of model.safetensors

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t parameter_count(nn::Module& model) {
  int64_t count = 0;
  for (const Parameter* p : model.parameters()) count += p->value.numel();
  return count;
}

/// How the steps of a training are made.
std::string steps_text(const Experiment& e) {
  if (e.device == kCpu) return "one op after another";
  if (e.graph == StepGraph::Use::Off) return "one op after another (--no-graph)";
  return kGuardBytes ? "one op after another (this build has guard bytes)"
                     : "one CUDA graph a step";
}

/// The matrix units that this process used for the first time since it had used `before` of them.
std::string units_text(size_t before) {
  const std::vector<std::string> all = matrix_units_used();
  std::string text;
  for (size_t i = before; i < all.size(); ++i)
    text += fmt::format("{:<11}{}\n", i == before ? "units" : "", all[i]);
  return text;
}

std::string memory_text(Device device, int64_t saved_bytes) {
  const auto mib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  return fmt::format("memory {:.1f} MiB at most on {}, {:.2f} MiB of it kept for a backward pass\n",
                     mib(memory_use(device).peak), to_string(device), mib(saved_bytes));
}

std::string metrics_line(int64_t epoch, const char* split, const nn::Score& s, double seconds) {
  return fmt::format(
      "{{\"epoch\":{},\"split\":\"{}\",\"loss\":{:.9g},\"accuracy\":{:.6g},\"seconds\":{:.3g}}}\n",
      epoch, split, s.loss, s.accuracy, seconds);
}

/// Removes what earlier runs left in the folder of a run, and in the folder of its baseline.
void clear_folder(const fs::path& dir) {
  const fs::path baseline = dir / "baseline";
  for (const fs::path& folder : {dir, baseline}) {
    std::error_code error;
    if (!fs::is_directory(folder, error)) continue;
    for (const char* name : {"config.json", "metrics.jsonl", "model.safetensors"}) {
      fs::remove(folder / name, error);
      ULP_CHECK(!error, "--out {}: {} of an earlier run cannot be removed ({})", folder.string(),
                name, error.message());
    }
    nn::remove_temporary_files(folder);
  }
  ::rmdir(baseline.c_str());  // stays if somebody keeps something there
}

/// Throws unless all elements are finite. `before` and `after` go around the message.
void check_finite(const std::string& before, const std::string& path, const Tensor& tensor,
                  const std::string& after) {
  int64_t index = 0;
  for (const float v : tensor.to_floats()) {
    ULP_CHECK(std::isfinite(v), "{}{} holds {} at element {}{}", before, path, v, index, after);
    ++index;
  }
}

std::string config_text(const Experiment& e, const nn::Dataset& data) {
  try {
    return to_json(e, data).dump(2) + "\n";
  } catch (const Json::exception&) {
    throw_error("--data {}: its name is not UTF-8", e.data);
  }
}

uint32_t random_step(const std::string& text, const fs::path& file) {
  uint32_t step = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, step);
  ULP_CHECK(error == std::errc() && stop == end && step >= 1,
            "{}: the metadata \"{}\" must be a whole number from 1 to {}, got '{}'", file.string(),
            kRandomStep, UINT32_MAX, text);
  return step;
}

OpFormats loss_formats(const OpFormats& formats) {
  OpFormats f;
  f.interior = formats.interior;
  return f;
}

/// An object inside config.json. Errors name the file and the key with its path.
class Keys {
 public:
  Keys(const Json& json, std::string file, std::string path = "")
      : json_(json), file_(std::move(file)), path_(std::move(path)) {}

  [[noreturn]] void fail(const std::string& key, const std::string& problem) const {
    throw_error("{}: the key \"{}{}\" {}", file_, path_, key, problem);
  }
  const Json& value(const std::string& key) const {
    if (!json_.is_object() || !json_.contains(key)) fail(key, "is missing");
    return json_.at(key);
  }
  Keys object(const std::string& key) const {
    if (!value(key).is_object()) fail(key, "must hold an object");
    return {value(key), file_, path_ + key + "."};
  }
  std::string text(const std::string& key) const {
    if (!value(key).is_string()) fail(key, "must hold a text");
    return value(key).get<std::string>();
  }
  int64_t integer(const std::string& key, int64_t least, int64_t most) const {
    return integer(key, value(key), least, most);
  }
  std::vector<int64_t> integers(const std::string& key, int64_t least, int64_t most) const {
    if (!value(key).is_array() || value(key).empty())
      fail(key, "must hold a list of whole numbers");
    std::vector<int64_t> all;
    for (const Json& one : value(key)) all.push_back(integer(key, one, least, most));
    return all;
  }
  uint64_t seed(const std::string& key) const {
    if (!value(key).is_number_unsigned()) fail(key, "must hold a whole number from 0 to 2^64 - 1");
    return value(key).get<uint64_t>();
  }
  Quantizer format(const std::string& key) const {
    const std::string name = text(key);
    try {
      return Quantizer::parse(name);
    } catch (const Error& error) {
      fail(key, std::string("is no format: ") + error.what());
    }
  }

 private:
  int64_t integer(const std::string& key, const Json& value, int64_t least, int64_t most) const {
    // Parsed JSON keeps what is not negative as unsigned.
    const bool fits = value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{INT64_MAX} &&
                      value.get<int64_t>() >= least && value.get<int64_t>() <= most;
    if (!fits)
      fail(key, fmt::format("must hold whole numbers from {} to {}, got {}", least, most,
                            value.dump(-1, ' ', true, Json::error_handler_t::replace)));
    return value.get<int64_t>();
  }

  const Json& json_;
  std::string file_, path_;
};

Json parse_config(const fs::path& file) {
  std::error_code error;
  ULP_CHECK(fs::is_regular_file(file, error),
            "{}: it cannot be read; give the folder that ulp train wrote (--out)", file.string());
  const std::vector<uint8_t> bytes = nn::read_file(file);
  Json json = Json::parse(bytes, nullptr, /*allow_exceptions=*/false);
  ULP_CHECK(!json.is_discarded(), "{}: not valid JSON", file.string());
  return json;
}

}  // namespace

Experiment Experiment::baseline() const {
  Experiment plain = *this;
  plain.formats = {};
  plain.loss_scale = 1;
  plain.optimizer = in_fp32(optimizer);
  return plain;
}

nlohmann::ordered_json to_json(const Experiment& e, const nn::Dataset& data) {
  Json roles;
  for (const Role& role : kRoles) roles[role.name] = to_string(e.formats.*role.quantizer);
  Json optimizer = to_json(e.optimizer);
  optimizer["lr_schedule"] = e.lr_schedule;
  optimizer["loss_scale"] = e.loss_scale;
  return {{"data", e.data},
          {"classes", data.classes},
          {"inputs", data.sample_shape.numel()},
          {"model", e.model},
          {"hidden", e.hidden},
          {"epochs", e.epochs},
          {"batch_size", e.batch_size},
          {"seed", e.seed},
          {"math", std::string(to_string(e.math))},
          {"optimizer", optimizer},
          {"formats", roles}};
}

SavedExperiment read_config(const fs::path& file) {
  const Json json = parse_config(file);
  const Keys keys(json, file.string());
  SavedExperiment saved;
  Experiment& e = saved.experiment;
  e.data = keys.text("data");
  saved.classes = keys.integer("classes", 2, INT32_MAX);
  saved.inputs = keys.integer("inputs", 1, INT32_MAX);
  e.model = keys.text("model");
  if (!is_model(e.model)) keys.fail("model", "must hold mlp, got " + e.model);
  e.hidden = keys.integers("hidden", 1, kMaxWidth);
  e.seed = keys.seed("seed");
  e.optimizer.weight = keys.object("optimizer").format("weights");
  const Keys roles = keys.object("formats");
  for (const Role& role : kRoles) {
    const Quantizer q = roles.format(role.name);
    const std::string problem = misfit(role, q);
    if (!problem.empty()) roles.fail(role.name, "does not fit: " + problem);
    e.formats.*role.quantizer = q;
  }
  return saved;
}

bool is_model(const std::string& name) { return name == "mlp"; }

std::unique_ptr<nn::Sequential> make_model(const Experiment& e, const nn::Dataset& data) {
  ULP_ASSERT(is_model(e.model));
  return nn::mlp(data.sample_shape.numel(), e.hidden, data.classes, e.formats);
}

std::string describe(const Experiment& e, const nn::Dataset& data, nn::Module& model) {
  std::string text;
  const auto line = [&](const char* name, const std::string& value) {
    text += fmt::format("{:<11}{}\n", name, value);
  };
  std::vector<int64_t> sample;
  for (int i = 0; i < data.sample_shape.rank(); ++i) sample.push_back(data.sample_shape[i]);
  line("data",
       fmt::format("{}: {} training and {} test samples of {}, {} classes, values in [0, 1]",
                   data.name, data.train.labels.numel(), data.test.labels.numel(),
                   fmt::join(sample, "×"), data.classes));
  line("model", fmt::format("{}, {} parameters", e.model, parameter_count(model)));
  line("training",
       fmt::format("{} epochs, batches of {} (a last partial batch is dropped), seed {}, {}",
                   e.epochs, e.batch_size, e.seed, to_string(e.device)));
  line("steps", fmt::format("{} math, {}", to_string(e.math), steps_text(e)));
  line("optimizer", describe_rule(e.optimizer, e.lr_schedule));
  line("scaling", fmt::format("loss × {}, gradients × {}", e.loss_scale, e.optimizer.grad_scaling));
  bool first_state = true;
  for (const std::string& state : describe_states(e.optimizer)) {
    line(first_state ? "states" : "", state);
    first_state = false;
  }
  for (nn::Module* module : model.modules()) {
    if (module->formats() == nullptr) continue;
    std::string roles;
    for (const char* name : module->roles())
      for (const Role& role : kRoles)
        if (std::string(name) == role.name) {
          const bool first_of_row =
              std::string(name) == "grad_output_dx" || std::string(name) == "grad_output_dw";
          if (first_of_row && module->roles().size() > 4) roles += fmt::format("\n{:<33}", "");
          roles += fmt::format("  {} {}", name, to_string(module->formats()->*role.quantizer));
        }
    text += fmt::format("{:<11}{:<22}{}\n", module->path(), module->describe(), roles);
  }
  text += fmt::format("{:<11}{:<22}  interior {}\n", "loss", "cross-entropy",
                      to_string(e.formats.interior));
  return text;
}

nn::Batches test_batches(Run& run, const nn::Dataset& data) {
  return nn::Batches(run, data, data.test, kEvalBatch);
}

nn::Score test_score(Run& run, nn::Module& model, nn::Batches& test, const OpFormats& formats) {
  return nn::evaluate(run, model, test, loss_formats(formats));
}

void make_folder(const fs::path& dir) {
  std::error_code error;
  fs::create_directories(dir, error);
  ULP_CHECK(!error && fs::is_directory(dir, error), "--out {}: the folder cannot be made ({})",
            dir.string(), error ? error.message() : "something else has that name");
  ULP_CHECK(::access(dir.c_str(), W_OK | X_OK) == 0,
            "--out {}: the folder cannot be written to ({})", dir.string(),
            std::generic_category().message(errno));
}

nn::Score train(const Experiment& e, const nn::Dataset& data, const fs::path& dir,
                const char* title) {
  Run run(e.device, e.seed, e.math);
  const auto model = make_model(e, data);
  model->initialise(run);
  optim::Optimizer optimizer(run, model->parameters(), e.optimizer);
  StepState state = run.state();
  state.loss_scale = static_cast<float>(e.loss_scale);
  run.set_state(state);
  nn::Batches batches(run, data, data.train, e.batch_size), tests = test_batches(run, data);
  const int64_t steps = batches.steps();
  const optim::Schedule schedule(optim::Schedule::parse(e.lr_schedule), e.optimizer.lr,
                                 e.epochs * steps);
  const std::string config = config_text(e, data);

  // Whatever can be wrong with the run has been thrown: now the earlier run goes.
  make_folder(dir);
  clear_folder(dir);
  say(fmt::format("--- {}\n{}{:<11}{}\n", title, describe(e, data, *model), "",
                  describe_bytes(optimizer)));
  nn::write_file_atomically(dir / "config.json", config);

  nn::Tally tally(run);
  StepGraph graph(run, e.graph);
  int64_t saved_bytes = 0;  // for the backward pass of one step
  const auto one_step = [&] {
    const nn::Batch batch = batches.next();
    Tape tape(run);
    const Var logits = (*model)(tape, tape.constant(batch.images));
    const Var loss =
        ops::cross_entropy(tape, logits, batch.labels, loss_formats(e.formats), RandomSite("loss"));
    tally.add(loss.value, logits.value, batch.labels);
    saved_bytes = tape.saved_bytes();
    tape.backward(loss);
    optimizer.step();
  };
  const size_t units_before = matrix_units_used().size();
  const int64_t interval = e.device == kCpu ? 1 : kLogInterval;
  Progress progress(e.epochs, steps, batches.size());
  std::string metrics;
  nn::Score test;
  uint32_t test_step = 0;
  for (int64_t epoch = 0; epoch < e.epochs; ++epoch) {
    const auto start = Clock::now();
    batches.shuffle(epoch);
    optimizer.set_rates(schedule.rates(epoch * steps, steps));
    tally.reset();
    for (int64_t step = 0; step < steps; ++step) {
      graph.run(one_step);
      if (epoch == 0 && step == 0) say(units_text(units_before));
      if ((step + 1) % interval != 0 && step + 1 < steps) continue;
      const ScoreTotals so_far = tally.totals();
      ULP_CHECK(so_far.bad_batch < 0,
                "the loss is {} at epoch {}, step {} of {}; try a smaller --lr, wider formats or a "
                "--loss-scale",
                so_far.bad_loss, epoch + 1, so_far.bad_batch + 1, steps);
      progress.step(epoch, step, nn::Score(so_far).loss, nn::Score(so_far).accuracy);
    }
    const nn::Score trained = tally.score();
    const double seconds = seconds_since(start);
    const auto test_start = Clock::now();
    test_step = run.state().random_step;
    test = test_score(run, *model, tests, e.formats);
    ULP_CHECK(std::isfinite(test.loss),
              "the test loss is {} after epoch {}; try a smaller --lr or wider formats", test.loss,
              epoch + 1);
    metrics += metrics_line(epoch + 1, "train", trained, seconds);
    metrics += metrics_line(epoch + 1, "test", test, seconds_since(test_start));
    nn::write_file_atomically(dir / "metrics.jsonl", metrics);
    progress.epoch_done(fmt::format(
        "epoch {}/{}  train loss {:.4f} accuracy {:.4f}  test loss {:.4f} accuracy {:.4f}  {:.3g} "
        "s",
        epoch + 1, e.epochs, trained.loss, trained.accuracy, test.loss, test.accuracy, seconds));
  }

  say(memory_text(e.device, saved_bytes));
  std::map<std::string, Tensor> weights;
  for (const Parameter* p : model->parameters()) {
    check_finite("", p->path, p->value,
                 fmt::format(" after epoch {}; try a smaller --lr or wider --weights", e.epochs));
    weights[p->path] = p->value;
  }
  for (const auto& [stream, state] : run.scalings())
    weights[fmt::format("{}{:08x}", kScaling, stream)] = state;
  nn::save_safetensors(dir / "model.safetensors", weights,
                       {{"format", "ulp"},
                        {"weights", to_string(e.optimizer.weight)},
                        {kRandomStep, std::to_string(test_step)}});
  return test;
}

namespace {

/// What delayed scaling remembers; returns how many tensors that are.
size_t load_scalings(Run& run, const nn::SafetensorsFile& saved, const fs::path& file) {
  size_t count = 0;
  for (const auto& [name, tensor] : saved.tensors) {
    if (!name.starts_with(kScaling)) continue;
    const std::string_view digits = std::string_view(name).substr(std::strlen(kScaling));
    uint32_t stream = 0;
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), stream, 16);
    ULP_CHECK(error == std::errc() && end == digits.data() + digits.size() &&
                  tensor.dtype() == DType::F32 && tensor.rank() == 1 && tensor.numel() >= 2,
              "{}: {} is not the state of a delayed scale (F32, a scale and magnitudes)",
              file.string(), name);
    for (const float x : tensor.to_floats())
      ULP_CHECK(std::isfinite(x) && x >= 0, "{}: {} holds {}", file.string(), name, x);
    run.set_scaling(stream, tensor.to(run.device()));
    ++count;
  }
  return count;
}

}  // namespace

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
  state.random_step = random_step(saved.metadata.at(kRandomStep), file);
  run.set_state(state);
}

}  // namespace ulp::tools
