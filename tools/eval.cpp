#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

#include "core/error.h"
#include "kernels/matmul_unit.h"
#include "nn/training_loss.h"
#include "tools/commands.h"
#include "tools/experiment.h"
#include "tools/format_options.h"
#include "tools/model_file.h"
#include "tools/policy_text.h"

namespace ulp::tools {
namespace {

struct EvalOptions {
  std::string dir, device = "cpu";
  std::optional<std::string> data, threads, math;
  FormatOptions formats{FormatOptions::Passes::Forward};
  bool last = false;
};

/// Throws unless the data's samples and labels are those that the model was made for.
void check_data(const SavedExperiment& saved, const nn::Dataset& data, const std::string& file) {
  ULP_CHECK(saved.vocabulary == data.vocabulary,
            "{}: the model knows other characters (\"characters\") than {} has", file, data.name);
  const int64_t inputs = data.sample_shape.numel();
  ULP_CHECK(saved.inputs == inputs,
            "{}: the model takes {} values a sample (\"inputs\") and {} has {}", file, saved.inputs,
            data.name, inputs);
  ULP_CHECK(!saved.sample_shape || saved.experiment.model == "mlp" ||
                *saved.sample_shape == data.sample_shape,
            "{}: the model is for images of {} (\"sample_shape\") and {} has {}", file,
            *saved.sample_shape, data.name, data.sample_shape);
  ULP_CHECK(saved.classes == data.classes,
            "{}: the model tells {} classes apart (\"classes\") and {} has {}", file, saved.classes,
            data.name, data.classes);
}

/// Throws if rules set formats, and none of them one of a forward pass.
void check_forward(const nn::Policy& policy) {
  const auto forward = [](const nn::Rule& rule) {
    if (rule.forward || rule.forward_acc) return true;
    for (size_t i = 0; i < kRoles.size(); ++i)
      for (const auto role :
           {&OpFormats::input, &OpFormats::weight, &OpFormats::output, &OpFormats::interior})
        if (rule.roles[i] && kRoles[i].quantizer == role) return true;
    return false;
  };
  if (!policy.rules.empty() && std::none_of(policy.rules.begin(), policy.rules.end(), forward))
    throw UsageError(
        "--policy: its rules are for backward passes only, and evaluation has none; it takes "
        "forward, input, weight, output and interior");
}

/// The epoch whose formats are evaluated, where that makes a difference.
std::string epoch_text(const nn::Policy& policy, int64_t epochs) {
  const bool differs =
      std::any_of(policy.rules.begin(), policy.rules.end(), [](const nn::Rule& rule) {
        return rule.from_epoch != 1 || rule.to_epoch != nn::Rule::kNoEnd;
      });
  return differs ? fmt::format("policy     as in epoch {}, the last of the training\n", epochs)
                 : "";
}

void run_eval(const EvalOptions& o) {
  if (o.dir.empty()) throw UsageError("DIR is empty; give the folder that ulp train wrote");
  if (o.data && o.data->empty())
    throw UsageError(std::string("--data takes ") + nn::kDatasetNames + ", got nothing");
  if (o.threads) omp_set_num_threads(integer_value("--threads", *o.threads, 1, kMaxThreads));
  const nn::Policy changes = o.formats.policy();  // what is wrong with the command line comes first
  check_forward(changes);
  const std::filesystem::path dir = o.dir, file = dir / "config.json";
  SavedExperiment saved = read_config(file);
  Experiment& e = saved.experiment;
  if (o.data) e.data = *o.data;
  e.device = parse_device(o.device);
  e.math = math_value(o.math, e.device);
  e.policy.rules.insert(e.policy.rules.end(), changes.rules.begin(), changes.rules.end());
  const nn::Dataset data = load_data(e);
  check_data(saved, data, file.string());
  Run run(e.device, e.seed, e.math);
  const auto model = make_model(e, data);
  model->initialise(run);
  nn::TrainingLoss loss{e.loss, {}};
  const std::vector<nn::Layer> layers = nn::layers_of(*model, loss);
  nn::check_epochs(e.policy, e.epochs);
  nn::apply(e.policy, layers, e.epochs);
  const std::string which = load_weights(run, *model, dir / "model.safetensors",
                                         o.last ? Weights::Last : Weights::Average);
  fmt::print("weights    {} as stored in {}\n",
             which.empty() ? to_string(e.optimizer.weight) : which,
             (dir / "model.safetensors").string());
  fmt::print("math       {} on {}\n", to_string(e.math), to_string(e.device));
  fmt::print("{}{}", epoch_text(e.policy, e.epochs), forward_formats_text(layers));
  const auto test = test_batches(run, data, e);
  const nn::Score score = test_score(run, *model, *test, loss);
  ULP_CHECK(std::isfinite(score.loss), "{}: the test loss on {} is {}; try wider formats", o.dir,
            data.name, score.loss);
  fmt::print("data       {}, {} {} samples\n", data.name, test->samples(), test_name(data));
  fmt::print("{0} loss {1:.9g}{2}\n{0} accuracy {3:.4f}\n", test_name(data), score.loss,
             perplexity_text(data, score.loss), score.accuracy);
}

}  // namespace

void add_eval(CLI::App& app) {
  auto o = std::make_shared<EvalOptions>();
  CLI::App* cmd = app.add_subcommand("eval", "Evaluate a saved model, also under other formats");
  cmd->add_option("DIR", o->dir, "folder that ulp train wrote")->required();
  add_text(*cmd, "--data", o->data, "another data set than the model was trained on");
  add_text(*cmd, "--threads", o->threads, "CPU threads (default: all cores)");
  cmd->add_option("--device", o->device, "cpu, cuda or cuda:N")->capture_default_str();
  add_math(*cmd, o->math);
  cmd->add_flag("--last", o->last,
                "the last weights, of a model that was trained with --average: its average is "
                "evaluated otherwise");
  o->formats.add_to(*cmd);
  cmd->callback([o] { run_eval(*o); });
}

}  // namespace ulp::tools
