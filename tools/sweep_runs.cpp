#include "tools/sweep_runs.h"

#include <fmt/core.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "nn/training_loss.h"
#include "tools/folder_lock.h"
#include "tools/format_bits.h"
#include "tools/progress.h"
#include "tools/training.h"

namespace ulp::tools {
namespace fs = std::filesystem;

namespace {

/// The mean over the operands of all products in the last epoch.
double bits_of(const Experiment& e, const nn::Dataset& data) {
  const auto model = make_model(e, data);
  nn::TrainingLoss loss{e.loss, {}, e.init};
  const std::vector<nn::Layer> layers = nn::layers_of(*model, loss);
  nn::apply(e.policy, layers, e.epochs);
  double sum = 0;
  int count = 0;
  for (const nn::Layer& layer : layers) {
    if (!nn::has_product(layer.type)) continue;
    for (const auto& [role, name] : {std::pair{&OpFormats::input, "input"},
                                     {&OpFormats::weight, "weight"},
                                     {&OpFormats::grad_output_dx, "grad_output_dx"},
                                     {&OpFormats::weight_dx, "weight_dx"},
                                     {&OpFormats::grad_output_dw, "grad_output_dw"},
                                     {&OpFormats::input_dw, "input_dw"}}) {
      if (!layer.uses(name)) continue;  // a softmax or a state beside the products of its type
      const Quantizer& q = layer.formats->*role;
      sum += bits_per_element(q).value_or(element_bits(q.format));
      ++count;
    }
  }
  return count == 0 ? 32 : sum / count;
}

/// The losses on held-out samples that a training wrote, by epoch, and the last weights' score where an average's counts.
void read_metrics(const fs::path& metrics, SweepRun& run) {
  SweepScore last;
  bool averages = false;
  std::ifstream lines(metrics);
  for (std::string line; std::getline(lines, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_object() || !json.contains("loss") || !json["loss"].is_number()) continue;
    const std::string split = json.value("split", "");
    if (split == "test" || split == "validation") {
      last.accuracy = json.value("accuracy", 0.0);
      last.loss = json["loss"];
      last.curve.push_back(last.loss);
      run.curve.push_back(last.loss);
    } else if (split == "average" && !run.curve.empty()) {
      averages = true;
      run.curve.back() = json["loss"];  // what is tested beside the last weights counts
    }
  }
  if (averages) run.last = last;
}

/// Trains one.
SweepRun trained(SweepRun run, const Experiment& e, const nn::Dataset& data, const fs::path& dir,
                 Checkpointing checkpointing) {
  const auto start = std::chrono::steady_clock::now();
  checkpointing.resume = checkpointing.resume || checkpointing.every > 0;
  make_folder(dir);
  const FolderLock lock(dir);
  try {
    const Quiet quiet;
    const nn::Score score = train(e, data, dir, "sweep", checkpointing);
    run.accuracy = score.accuracy;
    run.loss = score.loss;
  } catch (const Diverged& error) {
    run.problem = error.what();
  }
  read_metrics(dir / "metrics.jsonl", run);
  run.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return run;
}

std::string line_of(const SweepRun& run, const nn::Dataset& data) {
  if (!run.problem.empty()) return "diverged: " + run.problem;
  return fmt::format("{} loss {:.4f} accuracy {:.4f}", test_name(data), run.loss, run.accuracy);
}

}  // namespace

PlannedRun plan(const std::string& name, const std::string& folder, const Experiment& experiment,
                const nn::Dataset& data) {
  PlannedRun planned;
  planned.experiment = experiment;
  planned.data = data;
  planned.folder = fmt::format("{}-seed{}", folder, experiment.seed);
  planned.run.formats = name;
  planned.run.seed = experiment.seed;
  planned.run.bits = bits_of(experiment, data);
  planned.run.config = config_text(experiment, data);
  planned.run.data = fingerprint(data);
  return planned;
}

/// A run that is done, with its last weights' score where that is wanted: older files have it in the run's folder only.
static SweepRun done_run(const SweepRun& done, const PlannedRun& p, const fs::path& dir) {
  SweepRun run = done;
  if (!p.wants_last || run.last || !run.problem.empty()) return run;
  const fs::path metrics = dir / p.folder / "metrics.jsonl";
  SweepRun read;
  read_metrics(metrics, read);
  ULP_CHECK(
      read.last,
      "{}: {} with seed {} was run before, and the score of its last weights is neither there "
      "nor in {}; give another --out",
      (dir / "sweep.json").string(), run.formats, run.seed, metrics.string());
  run.last = read.last;
  return run;
}

std::vector<SweepRun> train_all(const std::vector<PlannedRun>& planned, const fs::path& dir,
                                const Checkpointing& checkpointing, std::FILE* log) {
  make_folder(dir);
  const FolderLock lock(dir);
  SweepResults results(dir / "sweep.json");
  // What was run otherwise is told first.
  for (const PlannedRun& p : planned)
    if (const SweepRun* before = results.find(p.run)) done_run(*before, p, dir);

  std::vector<SweepRun> runs;
  for (const PlannedRun& p : planned) {
    const SweepRun* before = results.find(p.run);
    if (before != nullptr) {
      runs.push_back(done_run(*before, p, dir));
    } else {
      runs.push_back(trained(p.run, p.experiment, p.data, dir / p.folder, checkpointing));
      results.add(runs.back());
    }
    fmt::print(log, "{}/{}  {} seed {}: {}{}\n", runs.size(), planned.size(), p.run.formats,
               p.run.seed, line_of(runs.back(), p.data), before == nullptr ? "" : " (done before)");
    std::fflush(log);
  }
  return runs;
}

}  // namespace ulp::tools
