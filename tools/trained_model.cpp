#include "tools/trained_model.h"

#include "core/error.h"
#include "core/memory_error.h"
#include "tools/commands.h"
#include "tools/format_options.h"
#include "tools/threads.h"

namespace ulp::tools {

void TrainedModelFlags::add_to(CLI::App& app, const std::string& dir) {
  app.add_option("DIR", dir_, dir)->required();
  add_text(app, "--threads", threads_, "CPU threads (default: all cores)");
  app.add_option("--device", device_, "cpu, cuda or cuda:N")->capture_default_str();
  add_math(app, math_);
  app.add_flag("--last", last_,
               "the last weights, of a model that was trained with --average: its average is used "
               "otherwise");
}

void TrainedModelFlags::check() const {
  if (dir_.empty()) throw UsageError("DIR is empty; give the folder that ulp train wrote");
  if (threads_) integer_value("--threads", *threads_, 1, kMaxThreads);
  math_value(math_, parse_device(device_));
}

SavedExperiment TrainedModelFlags::read() const {
  check();
  use_threads(threads_);
  SavedExperiment saved =
      with_memory_for(config().string(), [this] { return read_config(config()); });
  saved.experiment.device = parse_device(device_);
  saved.experiment.math = math_value(math_, saved.experiment.device);
  return saved;
}

TrainedModel TrainedModel::load(const Experiment& e, const nn::Dataset& data,
                                const TrainedModelFlags& flags) {
  return with_memory_for("--model " + e.model, [&] { return TrainedModel(e, data, flags); });
}

TrainedModel::TrainedModel(const Experiment& e, const nn::Dataset& data,
                           const TrainedModelFlags& flags)
    : run(e.device, e.seed, e.math), model(make_model(e, data)), loss{e.loss, {}, e.init} {
  model->initialise(run);
  layers = nn::layers_of(*model, loss);
  nn::check_epochs(e.policy, e.epochs);
  nn::apply(e.policy, layers, e.epochs);
  which = load_weights(run, *model, flags.weights(), flags.which());
}

}  // namespace ulp::tools
