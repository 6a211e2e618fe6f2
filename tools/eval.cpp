#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

#include "core/error.h"
#include "core/memory_error.h"
#include "kernels/matmul_unit.h"
#include "nn/training_loss.h"
#include "tools/commands.h"
#include "tools/experiment.h"
#include "tools/format_options.h"
#include "tools/policy_text.h"
#include "tools/trained_model.h"

namespace ulp::tools {
namespace {

struct EvalOptions {
  TrainedModelFlags trained;
  std::optional<std::string> data;
  FormatOptions formats{FormatOptions::Passes::Forward};
};

/// Throws unless the data's samples and labels are those that the model was made for.
void check_data(const SavedExperiment& saved, const nn::Dataset& data, const std::string& file) {
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

/// Throws unless a text is still the one that the model was trained on.
void check_text(const SavedExperiment& saved, const nn::Dataset& data, const std::string& file) {
  if (saved.fingerprint.empty()) return;
  const std::string now = fingerprint(data);
  ULP_CHECK(now == saved.fingerprint,
            "{}: it is another text than the model was trained on: its fingerprint is {}, and {} "
            "says {}; --data {} scores it all the same",
            data.name, now, file, saved.fingerprint, saved.experiment.data);
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
        "forward, input, weight, output, interior and forward_acc");
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

void print_score(TrainedModel& trained, const nn::Dataset& data, const Experiment& e,
                 const std::string& dir) {
  const auto test = test_batches(trained.run, data, e);
  const nn::Score score = test_score(trained.run, *trained.model, *test, trained.loss);
  ULP_CHECK(std::isfinite(score.loss), "{}: the {} loss on {} is {}; try wider formats", dir,
            test_name(data), data.name, score.loss);
  fmt::print("data       {}, {} {} samples\n", data.name, test->samples(), test_name(data));
  fmt::print("{0} loss {1:.9g}{2}\n{0} accuracy {3:.4f}\n", test_name(data), score.loss,
             perplexity_text(data, score.loss), score.accuracy);
}

void run_eval(const EvalOptions& o) {
  o.trained.check();  // what is wrong with the command line comes first
  if (o.data && o.data->empty())
    throw UsageError(std::string("--data takes ") + nn::kDatasetNames + ", got nothing");
  const nn::Policy changes = o.formats.policy();
  check_forward(changes);
  SavedExperiment saved = o.trained.read();
  Experiment& e = saved.experiment;
  if (o.data) e.data = *o.data;
  e.policy.rules.insert(e.policy.rules.end(), changes.rules.begin(), changes.rules.end());
  for (nn::Rule& rule : e.policy.rules)
    if (rule.clamp_mask) rule.clamp_mask = false;  // of backward passes
  const nn::Dataset data = load_data(e, saved.vocabulary);
  check_data(saved, data, o.trained.config().string());
  if (!o.data) check_text(saved, data, o.trained.config().string());
  TrainedModel trained = TrainedModel::load(e, data, o.trained);
  fmt::print("weights    {} as stored in {}\n",
             trained.which.empty() ? to_string(e.optimizer.weight) : trained.which,
             o.trained.weights().string());
  fmt::print("math       {} on {}\n", to_string(e.math), to_string(e.device));
  fmt::print("{}{}", epoch_text(e.policy, e.epochs), forward_formats_text(trained.layers));
  with_memory_for("evaluation", [&] { print_score(trained, data, e, o.trained.dir()); });
}

}  // namespace

void add_eval(CLI::App& app) {
  auto o = std::make_shared<EvalOptions>();
  CLI::App* cmd = app.add_subcommand("eval", "Evaluate a saved model, also under other formats");
  o->trained.add_to(*cmd, "folder that ulp train wrote");
  add_text(*cmd, "--data", o->data, "another data set than the model was trained on");
  o->formats.add_to(*cmd);
  cmd->callback([o] { run_eval(*o); });
}

}  // namespace ulp::tools
