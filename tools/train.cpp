#include <fmt/core.h>
#include <omp.h>

#include <charconv>
#include <memory>

#include "core/error.h"
#include "tools/commands.h"
#include "tools/experiment.h"
#include "tools/format_options.h"

namespace ulp::tools {
namespace {

struct TrainOptions {
  Experiment experiment;
  FormatOptions formats;
  std::string hidden = "256,128", optimizer = "sgd";
  std::string lr = "0.1", momentum_coef = "0.9", weight_decay = "0", loss_scale = "1", grad_scaling;
  std::string weights = "fp32", accumulator, grads = "fp32", momentum_format = "fp32";
  std::string out = "runs/train", device = "cpu";
  int threads = 0;
  bool baseline = false;
};

std::vector<int64_t> parse_hidden(const std::string& text) {
  std::vector<int64_t> sizes;
  std::string_view rest = text;
  while (true) {
    const size_t comma = rest.find(',');
    const std::string part(rest.substr(0, comma));
    int64_t value = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (error != std::errc() || end != part.data() + part.size() || value < 1 || value > 1000000)
      throw UsageError("--hidden takes layer sizes from 1 to 1000000 such as 256,128, got '" +
                       text + "'");
    sizes.push_back(value);
    if (comma == std::string_view::npos) return sizes;
    rest.remove_prefix(comma + 1);
  }
}

double at_least(const char* flag, double value, double least, bool allowed_equal) {
  if (value < least || (value == least && !allowed_equal))
    throw UsageError(format_message("{} must be {} {}, got {}",
                                    {flag, allowed_equal ? ">=" : ">", least, value}));
  return value;
}

Experiment resolve(const TrainOptions& o) {
  Experiment e = o.experiment;
  e.hidden = parse_hidden(o.hidden);
  e.device = parse_device(o.device);
  if (o.optimizer != "sgd")
    throw UsageError("--optimizer " + o.optimizer + ": unknown optimizer; there is sgd");
  if (e.model != "mlp") throw UsageError("--model " + e.model + ": unknown model; there is mlp");
  try {
    optim::Schedule::parse(e.lr_schedule);
  } catch (const Error& error) {
    throw UsageError(std::string("--lr-schedule: ") + error.what());
  }
  e.sgd.lr = at_least("--lr", number_value("--lr", o.lr), 0, false);
  e.sgd.momentum =
      at_least("--momentum-coef",
               number_value("--momentum-coef", o.momentum_coef, "--momentum-format"), 0, true);
  e.sgd.weight_decay = at_least(
      "--weight-decay", number_value("--weight-decay", o.weight_decay, "--weights"), 0, true);
  e.loss_scale = at_least("--loss-scale", number_value("--loss-scale", o.loss_scale), 0, false);
  e.sgd.grad_scaling =
      o.grad_scaling.empty()
          ? 1 / e.loss_scale
          : at_least("--grad-scaling", number_value("--grad-scaling", o.grad_scaling, "--grads"), 0,
                     false);
  e.formats = o.formats.apply({});
  e.sgd.weight = format_value("--weights", o.weights, "--weight-decay");
  if (!o.accumulator.empty()) e.sgd.accumulator = format_value("--accumulator", o.accumulator);
  e.sgd.grad = format_value("--grads", o.grads, "--grad-scaling");
  e.sgd.momentum_format = format_value("--momentum-format", o.momentum_format, "--momentum-coef");
  if (e.sgd.nesterov && e.sgd.momentum == 0)
    throw UsageError("--nesterov needs a --momentum-coef above 0");
  if (e.sgd.momentum == 0 && !e.sgd.momentum_format.is_identity())
    throw UsageError("--momentum-format needs a --momentum-coef above 0");
  return e;
}

void run_train(const TrainOptions& o) {
  const Experiment e = resolve(o);
  if (o.threads > 0) omp_set_num_threads(o.threads);
  const nn::Dataset data = nn::load_dataset(e.data);
  const std::filesystem::path dir = o.out;
  const nn::Score score = train(e, data, dir, o.baseline ? "quantised" : "training");
  std::string fp32;
  if (o.baseline) {
    const nn::Score plain = train(e.baseline(), data, dir / "baseline", "fp32 baseline");
    fmt::print("difference to fp32: {:+.2f} points of accuracy, {:+.4f} of loss\n",
               100 * (score.accuracy - plain.accuracy), score.loss - plain.loss);
    fp32 = fmt::format("  (fp32 {:.4f})", plain.accuracy);
  }
  fmt::print("metrics {}\n", (dir / "metrics.jsonl").string());
  fmt::print("test accuracy {:.4f}{}\n", score.accuracy, fp32);
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

void add_train(CLI::App& app) {
  auto o = std::make_shared<TrainOptions>();
  CLI::App* cmd = app.add_subcommand("train", "Train a quantised network on images");
  Experiment& e = o->experiment;
  cmd->add_option("--data", e.data,
                  "digits (in the program), fashion-mnist, or a folder with MNIST-named IDX files")
      ->capture_default_str();
  cmd->add_option("--model", e.model, "mlp")->capture_default_str();
  cmd->add_option("--hidden", o->hidden, "sizes of the hidden layers")->capture_default_str();
  cmd->add_option("--epochs", e.epochs, "passes over the training data")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  cmd->add_option("--batch-size", e.batch_size, "samples a step")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  cmd->add_option("--seed", e.seed, "of initial weights, order and stochastic rounding")
      ->capture_default_str();
  cmd->add_option("--threads", o->threads,
                  "CPU threads; results do not depend on it (default: all cores)")
      ->check(CLI::Range(1, 1024));
  cmd->add_option("--device", o->device,
                  "cpu, cuda or cuda:N; strict math gives the same bits on both")
      ->capture_default_str();
  cmd->add_option("--out", o->out, "folder for config.json, metrics.jsonl and model.safetensors")
      ->capture_default_str();
  cmd->add_flag("--baseline", o->baseline, "also train fp32 with the same seed into OUT/baseline");
  const char* opt = "Optimizer";
  cmd->add_option("--optimizer", o->optimizer, "sgd")->capture_default_str()->group(opt);
  cmd->add_option("--lr", o->lr, "learning rate, the schedule's base")
      ->capture_default_str()
      ->group(opt);
  cmd->add_option("--lr-schedule", e.lr_schedule,
                  "constant, cosine (to 0), step (×0.1 after 1/2 and 3/4)")
      ->capture_default_str()
      ->group(opt);
  cmd->add_option("--momentum-coef", o->momentum_coef,
                  "how much of the last momentum is kept, a number")
      ->capture_default_str()
      ->group(opt);
  cmd->add_option("--weight-decay", o->weight_decay, "added to the gradient, times the weight")
      ->capture_default_str()
      ->group(opt);
  cmd->add_flag("--nesterov", e.sgd.nesterov, "look ahead along the momentum")->group(opt);
  cmd->add_option("--loss-scale", o->loss_scale, "the loss gradient is multiplied by it")
      ->capture_default_str()
      ->group(opt);
  cmd->add_option(
         "--grad-scaling", o->grad_scaling,
         "gradients are multiplied by it before --grads rounds them (default: 1 / loss scale)")
      ->group(opt);
  const char* states = "Formats of what the optimizer keeps";
  cmd->add_option("--weights", o->weights, "the stored weight")
      ->capture_default_str()
      ->group(states);
  cmd->add_option("--accumulator", o->accumulator,
                  "the master copy; fp32 is a full master (default: none, the stored weight is the "
                  "only copy)")
      ->group(states);
  cmd->add_option("--grads", o->grads, "the gradient the optimizer reads")
      ->capture_default_str()
      ->group(states);
  cmd->add_option("--momentum-format", o->momentum_format, "the stored momentum")
      ->capture_default_str()
      ->group(states);
  o->formats.add_to(*cmd);
  cmd->callback([o] { run_train(*o); });
}

}  // namespace ulp::tools
