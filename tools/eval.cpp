#include <fmt/core.h>
#include <omp.h>

#include <fstream>
#include <memory>

#include "core/error.h"
#include "tools/commands.h"
#include "tools/experiment.h"
#include "tools/format_options.h"

namespace ulp::tools {
namespace {

struct EvalOptions {
  std::string dir, data, device = "cpu";
  FormatOptions formats;
  int threads = 0;
};

nlohmann::ordered_json read_config(const std::filesystem::path& file) {
  std::ifstream in(file);
  ULP_CHECK(in.good(), "{}: it cannot be read; give the folder that ulp train wrote (--out)",
            file.string());
  try {
    return nlohmann::ordered_json::parse(in);
  } catch (const nlohmann::json::exception& error) {
    throw_error("{}: not valid JSON ({})", file.string(), error.what());
  }
}

void run_eval(const EvalOptions& o) {
  const std::filesystem::path dir = o.dir, file = dir / "config.json";
  const auto config = read_config(file);
  Experiment e = experiment_from_json(config, file.string());
  if (!o.data.empty()) e.data = o.data;
  e.device = parse_device(o.device);
  e.formats = o.formats.apply(e.formats);
  if (o.threads > 0) omp_set_num_threads(o.threads);
  const nn::Dataset data = nn::load_dataset(e.data);
  ULP_CHECK(config.value("inputs", int64_t{0}) == data.sample_shape.numel(),
            "{}: the model takes {} values a sample and {} has {}", o.dir,
            config.value("inputs", int64_t{0}), data.name, data.sample_shape.numel());
  ULP_CHECK(config.value("classes", int64_t{0}) == data.classes,
            "{}: the model tells {} classes apart and {} has {}", o.dir,
            config.value("classes", int64_t{0}), data.name, data.classes);
  Run run(e.device, e.seed);
  const auto model = make_model(e, data);
  model->initialise(run);
  load_weights(*model, dir / "model.safetensors", e.device);
  fmt::print("weights    {} as stored in {}\n", to_string(e.sgd.weight),
             (dir / "model.safetensors").string());
  fmt::print("formats    input {}  weight {}  output {}  interior {}\n", to_string(e.formats.input),
             to_string(e.formats.weight), to_string(e.formats.output),
             to_string(e.formats.interior));
  const nn::Score score = test_score(run, *model, data, e.formats);
  fmt::print("data       {}, {} test samples\n", data.name, data.test.labels.numel());
  fmt::print("test loss {:.9g}\ntest accuracy {:.4f}\n", score.loss, score.accuracy);
}

}  // namespace

void add_eval(CLI::App& app) {
  auto o = std::make_shared<EvalOptions>();
  CLI::App* cmd = app.add_subcommand("eval", "Evaluate a saved model, also under other formats");
  cmd->add_option("DIR", o->dir, "folder that ulp train wrote")->required();
  cmd->add_option("--data", o->data, "another data set than the model was trained on");
  cmd->add_option("--threads", o->threads, "CPU threads (default: all cores)")
      ->check(CLI::Range(1, 1024));
  cmd->add_option("--device", o->device, "cpu, cuda or cuda:N")->capture_default_str();
  o->formats.add_to(*cmd);
  cmd->callback([o] { run_eval(*o); });
}

}  // namespace ulp::tools
