#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>

#include "core/error.h"
#include "kernels/matmul_unit.h"
#include "nn/models/by_name.h"
#include "tools/checkpoint_options.h"
#include "tools/commands.h"
#include "tools/data_options.h"
#include "tools/experiment.h"
#include "tools/folder_lock.h"
#include "tools/format_options.h"
#include "tools/optimizer_options.h"
#include "tools/policy_text.h"
#include "tools/preflight.h"
#include "tools/progress.h"
#include "tools/recipe_option.h"
#include "tools/scaling_options.h"
#include "tools/text_options.h"
#include "tools/threads.h"
#include "tools/train_options.h"
#include "tools/training.h"

namespace ulp::tools {

struct TrainOptions {
  Experiment experiment;
  ScalingOptions scaling;
  CheckpointOptions checkpoints;
  OptimizerFlags optimizer;
  DataOptions samples;
  TextFlags text;
  RecipeOption recipe;
  std::string hidden = "256,128", epochs = "10", batch_size = "128", seed = "1",
              loss = "cross-entropy", init = "standard";
  std::optional<std::string> threads, math;
  std::string device = "cpu";
  const CLI::Option *epochs_given = nullptr, *hidden_given = nullptr;
  bool no_graph = false;
};

namespace {

/// Of ulp train itself.
struct TrainCommand {
  std::shared_ptr<TrainOptions> options;
  FormatOptions formats{FormatOptions::Passes::Both};
  std::string out = "runs/train";
  bool baseline = false, explain = false;
};

std::vector<int64_t> parse_hidden(const std::string& text) {
  std::vector<int64_t> sizes;
  std::string_view rest = text;
  while (true) {
    const size_t comma = rest.find(',');
    const std::string part(rest.substr(0, comma));
    int64_t value = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (error != std::errc() || end != part.data() + part.size() || value < 1 || value > kMaxWidth)
      throw UsageError("--hidden takes layer sizes from 1 to 1000000 such as 256,128, got '" +
                       text + "'");
    sizes.push_back(value);
    if (comma == std::string_view::npos) return sizes;
    rest.remove_prefix(comma + 1);
  }
}

}  // namespace

Experiment resolve(TrainOptions& o) {
  o.experiment.recipe = o.recipe.apply(o.optimizer, o.experiment.data);
  Experiment e = o.experiment;
  e.hidden = parse_hidden(o.hidden);
  try {
    e.loss = nn::parse_loss(o.loss);
  } catch (const Error& error) {
    throw UsageError(std::string("--loss: ") + error.what());
  }
  try {
    e.init = nn::parse_weight_scheme(o.init);
  } catch (const Error& error) {
    throw UsageError(std::string("--init: ") + error.what());
  }
  e.epochs = integer_value<int64_t>("--epochs", o.epochs, 1, 1000000);
  e.batch_size = integer_value<int64_t>("--batch-size", o.batch_size, 1, 1000000);
  e.seed = integer_value<uint64_t>("--seed", o.seed, 0, UINT64_MAX);
  e.device = parse_device(o.device);
  e.math = math_value(o.math, e.device);
  if (o.no_graph) e.graph = StepGraph::Use::Off;
  if (!nn::is_model(e.model))
    throw UsageError("--model '" + e.model + "': unknown model; there are " + model_list());
  if (e.data.empty())
    throw UsageError(std::string("--data takes ") + nn::kDatasetNames + ", got nothing");
  e.optimizer = o.optimizer.resolve();
  o.scaling.resolve(e);
  o.optimizer.check_momentum(e.lr_schedule);
  o.samples.resolve(e);
  if (o.hidden_given != nullptr && o.hidden_given->count() > 0 && e.model != "mlp")
    throw UsageError("--hidden is for --model mlp; " + e.model + " has layers of its own");
  if (nn::is_text_name(e.data) && e.loss != nn::LossKind::CrossEntropy)
    throw UsageError("--loss " + o.loss + " is for images; losses of texts are nats");
  o.text.resolve(e, o.epochs_given != nullptr && o.epochs_given->count() > 0);
  return e;
}

nn::Policy recipe_policy(const TrainOptions& o) { return o.recipe.policy(); }

Checkpointing checkpointing_of(const TrainOptions& o) { return o.checkpoints.resolve(); }

nn::Dataset prepare(const TrainOptions& o, Experiment& e) {
  use_threads(o.threads);
  nn::Dataset data = load_data(e);
  fit(o, e, data);
  return data;
}

void fit(const TrainOptions& o, Experiment& e, const nn::Dataset& data) {
  e.data = nn::lasting_dataset_name(e.data);
  o.samples.fit(e, data);
  if (data.is_text() && e.epoch_steps > 0) return;  // steps draw as many windows as they want
  const int64_t samples = data.is_text() ? (data.train.images.numel() - 1) / e.sequence.context
                                         : data.train.labels.numel();
  if (e.batch_size > samples)
    say(fmt::format("--batch-size {}: there are {} training samples, which make one batch\n",
                    e.batch_size, samples));
  e.batch_size = std::min(e.batch_size, samples);
}

namespace {

void run_train(TrainCommand& o) {
  Experiment e = resolve(*o.options);
  if (o.out.empty()) throw UsageError("--out takes a folder, got nothing");
  e.policy = o.formats.policy(recipe_policy(*o.options));
  const Checkpointing checkpointing = checkpointing_of(*o.options);
  const nn::Dataset data = prepare(*o.options, e);
  if (o.explain) return say(explain_training(e, data));
  stream_of(e.device);  // throws if there is no such device
  preflight(e, data);
  const std::filesystem::path dir = o.out;
  std::error_code ignored;
  make_folder(dir);
  if (o.baseline) make_folder(dir / "baseline");
  const FolderLock lock(dir);
  const bool other = !o.baseline && std::filesystem::is_directory(dir / "baseline", ignored);
  std::optional<FolderLock> baseline_lock;
  if (o.baseline || other) baseline_lock.emplace(dir / "baseline");
  if (other) baseline_lock.reset();  // it goes, unless somebody trains there

  const nn::Score score = train(e, data, dir, o.baseline ? "quantised" : "training", checkpointing);
  std::string fp32;
  if (o.baseline) {
    const nn::Score plain =
        train(e.baseline(), data, dir / "baseline", "fp32 baseline", checkpointing);
    say(fmt::format("difference to fp32: {:+.2f} points of accuracy, {:+.4f} of loss\n",
                    100 * (score.accuracy - plain.accuracy), score.loss - plain.loss));
    fp32 = fmt::format("  (fp32 {:.4f})", data.is_text() ? plain.loss : plain.accuracy);
  }
  say(fmt::format("metrics {}\n", (dir / "metrics.jsonl").string()));
  if (data.is_text())
    say(fmt::format("validation loss {:.4f} nats{} accuracy {:.4f}{}\n", score.loss,
                    perplexity_text(data, score.loss), score.accuracy, fp32));
  else
    say(fmt::format("test accuracy {:.4f}{}\n", score.accuracy, fp32));
}

}  // namespace

Device parse_device(const std::string& text) {
  if (text == "cpu") return kCpu;
  if (text == "cuda") return cuda_device(0);
  int index = -1;
  if (text.starts_with("cuda:")) {
    const auto [end, error] = std::from_chars(text.data() + 5, text.data() + text.size(), index);
    if (error == std::errc() && end == text.data() + text.size() && index >= 0 && index < 128)
      return cuda_device(index);
  }
  throw UsageError("--device takes cpu, cuda or cuda:N, got '" + text + "'");
}

Math math_value(const std::optional<std::string>& text, Device device) {
  const bool cpu = device.type == DeviceType::Cpu;
  if (!text) return cpu ? Math::Strict : Math::Fast;
  Math math{};
  try {
    math = parse_math(*text);
  } catch (const Error&) {
    throw UsageError("--math takes strict, fast, tf32 or fp8, got '" + *text + "'");
  }
  if (cpu && math != Math::Strict)
    throw UsageError("--math " + *text + " needs --device cuda; the cpu has strict math only");
  return math;
}

void add_math(CLI::App& app, std::optional<std::string>& math) {
  add_text(app, "--math", math,
           "strict: the same bits on every device; fast: matrix units whose products are exact; "
           "tf32: for fp32 operands too; fp8: for 8-bit operands, with larger errors in the sums "
           "(default: fast on cuda; the cpu has strict only)");
}

std::shared_ptr<TrainOptions> add_training_options(CLI::App& app) {
  auto o = std::make_shared<TrainOptions>();
  CLI::App* cmd = &app;
  Experiment& e = o->experiment;
  cmd->add_option("--data", e.data, nn::kDatasetNames)->capture_default_str();
  cmd->add_option("--model", e.model,
                  "one of " + model_list() + "; layers with a product have the formats below")
      ->capture_default_str();
  o->recipe.add_to(*cmd);
  o->hidden_given = cmd->add_option("--hidden", o->hidden, "sizes of the hidden layers of mlp")
                        ->capture_default_str();
  o->epochs_given =
      cmd->add_option("--epochs", o->epochs, "passes over the training data, at most 1000000")
          ->capture_default_str();
  cmd->add_option("--batch-size", o->batch_size, "samples a step, at most 1000000")
      ->capture_default_str();
  cmd->add_option("--loss", o->loss,
                  "cross-entropy, the mean over a batch; or sum-of-squares, 1/2 (y - onehot)^2 "
                  "summed over it, whose rates are smaller")
      ->capture_default_str();
  cmd->add_option(
         "--init", o->init,
         "standard: first weights as each layer has them; unit: of size 1, with factors in "
         "every layer that keep activations and gradients there (unit scaling); wage: uniform, "
         "wide "
         "enough for two bits, in linear layers and convolutions, whose results are divided by a "
         "power of two")
      ->capture_default_str();
  cmd->add_option("--seed", o->seed, "of initial weights, order and stochastic rounding")
      ->capture_default_str();
  add_text(*cmd, "--threads", o->threads,
           "CPU threads; results do not depend on it (default: all cores)");
  cmd->add_option("--device", o->device,
                  "cpu, cuda or cuda:N; strict math gives the same bits on both")
      ->capture_default_str();
  add_math(*cmd, o->math);
  cmd->add_flag("--no-graph", o->no_graph,
                "run the ops of a step one by one instead of as one CUDA graph; the same bits");
  cmd->add_flag(
      "--stats", e.stats,
      "write overflow, underflow, NaN, largest magnitude and SQNR of every role and layer "
      "(interior: of all its named intermediates, where it has a format) into metrics.jsonl, of "
      "every 100th step and the last of each epoch, which run op by op; no result depends on it");
  o->checkpoints.add_to(*cmd);
  o->samples.add_to(*cmd);
  o->text.add_to(*cmd);
  o->optimizer.add_to(*cmd);
  o->scaling.add_to(*cmd);
  return o;
}

void add_train(CLI::App& app) {
  auto o = std::make_shared<TrainCommand>();
  CLI::App* cmd = app.add_subcommand("train", "Train a quantised network on images or a text");
  o->options = add_training_options(*cmd);
  cmd->add_option("--out", o->out, "folder for config.json, metrics.jsonl and model.safetensors")
      ->capture_default_str();
  cmd->add_flag("--baseline", o->baseline, "also train fp32 with the same seed into OUT/baseline");
  cmd->add_flag("--explain", o->explain,
                "train nothing: print the model as a tree with shapes, parameters, the formats of "
                "every role and the unit that computes each product");
  o->formats.add_to(*cmd);
  cmd->callback([o] { run_train(*o); });
}

}  // namespace ulp::tools
