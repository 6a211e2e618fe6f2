#include "tools/experiment.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <chrono>
#include <cmath>
#include <map>

#include "core/error.h"
#include "nn/data/atomic_file.h"
#include "nn/data/safetensors.h"
#include "nn/models.h"
#include "tools/progress.h"

namespace ulp::tools {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kEvalBatch = 256;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t parameter_count(nn::Module& model) {
  int64_t count = 0;
  for (const Parameter* p : model.parameters()) count += p->value.numel();
  return count;
}

std::string storage_text(const char* what, const Quantizer& q) {
  return fmt::format("{} {} ({}, {} byte{})", what, to_string(q), to_string(storage_type(q)),
                     size_of(storage_type(q)), size_of(storage_type(q)) == 1 ? "" : "s");
}

std::string metrics_line(int64_t epoch, const char* split, const nn::Score& s, double seconds) {
  return fmt::format(
      "{{\"epoch\":{},\"split\":\"{}\",\"loss\":{:.9g},\"accuracy\":{:.6g},\"seconds\":{:.3g}}}\n",
      epoch, split, s.loss, s.accuracy, seconds);
}

/// The folder a run writes to, cleared of what an earlier run left there.
void prepare(const std::filesystem::path& dir) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  ULP_CHECK(!error && std::filesystem::is_directory(dir),
            "--out {}: the folder cannot be made ({})", dir.string(),
            error ? error.message() : "something else has that name");
  for (const char* name : {"config.json", "metrics.jsonl", "model.safetensors"}) {
    std::filesystem::remove(dir / name, error);
    ULP_CHECK(!error, "--out {}: {} of an earlier run cannot be removed ({})", dir.string(), name,
              error.message());
  }
}

OpFormats loss_formats(const OpFormats& formats) {
  OpFormats f;
  f.interior = formats.interior;
  return f;
}

std::string class_of(const Json& value) { return std::string(value.type_name()); }

/// json[key], with an error that names the file and the path of the key.
template <class T>
T read(const Json& json, const std::string& key, const std::string& file) {
  ULP_CHECK(json.is_object() && json.contains(key), "{}: the key \"{}\" is missing", file, key);
  try {
    return json.at(key).get<T>();
  } catch (const Json::exception&) {
    throw_error("{}: the key \"{}\" holds a {} of the wrong kind", file, key,
                class_of(json.at(key)));
  }
}

Quantizer read_format(const Json& json, const std::string& key, const std::string& file) {
  try {
    return Quantizer::parse(read<std::string>(json, key, file));
  } catch (const Error& error) {
    throw_error("{}: \"{}\": {}", file, key, error.what());
  }
}

}  // namespace

Experiment Experiment::baseline() const {
  Experiment plain = *this;
  plain.formats = {};
  plain.loss_scale = 1;
  plain.sgd.grad_scaling = 1;
  plain.sgd.weight = plain.sgd.grad = plain.sgd.momentum_format = Quantizer{};
  plain.sgd.accumulator.reset();
  return plain;
}

nlohmann::ordered_json to_json(const Experiment& e, const nn::Dataset& data) {
  Json roles;
  for (const Role& role : kRoles) roles[role.name] = to_string(e.formats.*role.quantizer);
  return {
      {"data", e.data},
      {"classes", data.classes},
      {"inputs", data.sample_shape.numel()},
      {"model", e.model},
      {"hidden", e.hidden},
      {"epochs", e.epochs},
      {"batch_size", e.batch_size},
      {"seed", e.seed},
      {"optimizer",
       {{"name", "sgd"},
        {"lr", e.sgd.lr},
        {"lr_schedule", e.lr_schedule},
        {"momentum_coef", e.sgd.momentum},
        {"weight_decay", e.sgd.weight_decay},
        {"nesterov", e.sgd.nesterov},
        {"loss_scale", e.loss_scale},
        {"grad_scaling", e.sgd.grad_scaling},
        {"weights", to_string(e.sgd.weight)},
        {"accumulator", e.sgd.accumulator ? Json(to_string(*e.sgd.accumulator)) : Json(nullptr)},
        {"grads", to_string(e.sgd.grad)},
        {"momentum_format", to_string(e.sgd.momentum_format)}}},
      {"formats", roles}};
}

Experiment experiment_from_json(const Json& json, const std::string& file) {
  Experiment e;
  e.data = read<std::string>(json, "data", file);
  e.model = read<std::string>(json, "model", file);
  e.hidden = read<std::vector<int64_t>>(json, "hidden", file);
  e.epochs = read<int64_t>(json, "epochs", file);
  e.batch_size = read<int64_t>(json, "batch_size", file);
  e.seed = read<uint64_t>(json, "seed", file);
  const Json optimizer = read<Json>(json, "optimizer", file);
  e.sgd.weight = read_format(optimizer, "weights", file);
  const Json roles = read<Json>(json, "formats", file);
  for (const Role& role : kRoles) e.formats.*role.quantizer = read_format(roles, role.name, file);
  return e;
}

std::unique_ptr<nn::Sequential> make_model(const Experiment& e, const nn::Dataset& data) {
  if (e.model != "mlp")
    throw UsageError(format_message("--model {}: unknown model; there is mlp", {e.model}));
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
  line("optimizer", fmt::format("sgd, lr {} ({}), momentum {}, weight decay {}, nesterov {}",
                                e.sgd.lr, e.lr_schedule, e.sgd.momentum, e.sgd.weight_decay,
                                e.sgd.nesterov ? "on" : "off"));
  line("scaling", fmt::format("loss × {}, gradients × {}", e.loss_scale, e.sgd.grad_scaling));
  line("states", storage_text("weights", e.sgd.weight));
  line("", e.sgd.accumulator ? storage_text("accumulator", *e.sgd.accumulator)
                             : "accumulator none (the stored weight is the only copy)");
  line("", fmt::format("gradients {}", to_string(e.sgd.grad)));
  if (e.sgd.momentum > 0) line("", storage_text("momentum", e.sgd.momentum_format));
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

nn::Score test_score(Run& run, nn::Module& model, const nn::Dataset& data,
                     const OpFormats& formats) {
  return nn::evaluate(run, model, nn::Batches(run, data, data.test, kEvalBatch),
                      loss_formats(formats));
}

nn::Score train(const Experiment& e, const nn::Dataset& data, const std::filesystem::path& dir,
                const char* title) {
  Run run(e.device, e.seed);
  const auto model = make_model(e, data);
  model->initialise(run);
  fmt::print("--- {}\n{}", title, describe(e, data, *model));
  std::fflush(stdout);

  optim::Sgd sgd(run, model->parameters(), e.sgd);
  const nn::Batches batches(run, data, data.train, e.batch_size);
  const int64_t steps = batches.steps();
  const optim::Schedule schedule(optim::Schedule::parse(e.lr_schedule), e.sgd.lr, e.epochs * steps);
  prepare(dir);
  nn::write_file_atomically(dir / "config.json", to_json(e, data).dump(2) + "\n");

  Progress progress(e.epochs, steps, batches.size());
  std::string metrics;
  nn::Score test;
  for (int64_t epoch = 0; epoch < e.epochs; ++epoch) {
    const auto start = Clock::now();
    nn::Tally tally;
    int64_t step = 0;
    for (const nn::Batch& batch : batches.shuffled(epoch)) {
      sgd.set_lr(schedule.lr(epoch * steps + step));
      Tape tape(run);
      const Var logits = (*model)(tape, tape.constant(batch.images));
      const Var loss = ops::cross_entropy(tape, logits, batch.labels, loss_formats(e.formats),
                                          RandomSite("loss"));
      tally.add(run, loss.value, logits.value, batch.labels);
      ULP_CHECK(std::isfinite(tally.last_loss()),
                "the loss is {} at epoch {}, step {} of {}; try a smaller --lr, wider formats or a "
                "--loss-scale",
                tally.last_loss(), epoch + 1, step + 1, steps);
      tape.backward(loss, e.loss_scale);
      sgd.step();
      progress.step(epoch, step++, tally.score().loss, tally.score().accuracy);
    }
    const nn::Score trained = tally.score();
    const double seconds = seconds_since(start);
    const auto test_start = Clock::now();
    test = test_score(run, *model, data, e.formats);
    metrics += metrics_line(epoch + 1, "train", trained, seconds);
    metrics += metrics_line(epoch + 1, "test", test, seconds_since(test_start));
    nn::write_file_atomically(dir / "metrics.jsonl", metrics);
    progress.epoch_done(fmt::format(
        "epoch {}/{}  train loss {:.4f} accuracy {:.4f}  test loss {:.4f} accuracy {:.4f}  {:.3g} "
        "s",
        epoch + 1, e.epochs, trained.loss, trained.accuracy, test.loss, test.accuracy, seconds));
  }

  std::map<std::string, Tensor> weights;
  for (const Parameter* p : model->parameters()) weights[p->path] = p->value;
  nn::save_safetensors(dir / "model.safetensors", weights,
                       {{"format", "ulp"}, {"weights", to_string(e.sgd.weight)}});
  return test;
}

void load_weights(nn::Module& model, const std::filesystem::path& file, Device device) {
  const nn::SafetensorsFile saved = nn::load_safetensors(file);
  const std::vector<Parameter*> parameters = model.parameters();
  for (Parameter* p : parameters) {
    const auto at = saved.tensors.find(p->path);
    ULP_CHECK(at != saved.tensors.end(), "{}: there is no tensor {}", file.string(), p->path);
    const Tensor& tensor = at->second;
    ULP_CHECK(tensor.shape() == p->value.shape() && is_float_up_to_32(tensor.dtype()),
              "{}: {} must be a float tensor of shape {}, got {}", file.string(), p->path,
              p->value.shape(), tensor);
    int64_t index = 0;
    for (const float v : tensor.to_floats()) {
      ULP_CHECK(std::isfinite(v), "{}: {} holds {} at element {}", file.string(), p->path, v,
                index);
      ++index;
    }
    p->value = tensor.to(device);
  }
  ULP_CHECK(saved.tensors.size() == parameters.size(),
            "{}: it holds {} tensors and the model has {}", file.string(), saved.tensors.size(),
            parameters.size());
}

}  // namespace ulp::tools
