#include "tools/training.h"

#include <fmt/core.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <optional>
#include <system_error>

#include "core/error.h"
#include "kernels/matmul_unit.h"
#include "nn/data/atomic_file.h"
#include "tools/model_file.h"
#include "tools/progress.h"

namespace ulp::tools {
namespace fs = std::filesystem;
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kLogInterval = 100;  // steps between looks at the loss, which wait for the GPU

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
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

std::string config_text(const Experiment& e, const nn::Dataset& data) {
  try {
    return to_json(e, data).dump(2) + "\n";
  } catch (const nlohmann::json::exception&) {
    throw_error("--data {}: its name is not UTF-8", e.data);
  }
}

/// One run, from its first step to its last.
class Training {
 public:
  Training(const Experiment& e, const nn::Dataset& data, fs::path dir)
      : e_(e),
        dir_(std::move(dir)),
        run_(e.device, e.seed, e.math),
        model_(initialised_model(run_, e, data)),
        sgd_(run_, model_->parameters(), e.sgd),
        batches_(run_, data, data.train, e.batch_size),
        tests_(test_batches(run_, data)),
        steps_(batches_.steps()),
        schedule_(optim::Schedule::parse(e.lr_schedule), e.sgd.lr, e.epochs * steps_),
        tally_(run_),
        graph_(run_, e.graph) {
    StepState state = run_.state();
    state.loss_scale = static_cast<float>(e.loss_scale);
    run_.set_state(state);
  }

  nn::Module& model() { return *model_; }

  nn::Score train() {
    Progress progress(e_.epochs, steps_, batches_.size());
    for (int64_t epoch = 0; epoch < e_.epochs; ++epoch) train_epoch(epoch, progress);
    say(memory_text(e_.device, saved_bytes_));
    for (const Parameter* p : model_->parameters())
      check_finite(
          "", p->path, p->value,
          fmt::format(" after epoch {}; try a smaller --lr or wider --weights", e_.epochs));
    save_model(run_, *model_, dir_ / "model.safetensors", test_step_, to_string(e_.sgd.weight));
    return test_;
  }

 private:
  static std::unique_ptr<nn::Sequential> initialised_model(Run& run, const Experiment& e,
                                                           const nn::Dataset& data) {
    auto model = make_model(e, data);
    model->initialise(run);
    return model;
  }

  void step() {
    const nn::Batch batch = batches_.next();
    Tape tape(run_);
    const Var logits = (*model_)(tape, tape.constant(batch.images));
    const Var loss =
        ops::cross_entropy(tape, logits, batch.labels, loss_formats(e_), RandomSite("loss"));
    tally_.add(loss.value, logits.value, batch.labels);
    saved_bytes_ = tape.saved_bytes();
    tape.backward(loss);
    sgd_.step();
  }

  void train_epoch(int64_t epoch, Progress& progress) {
    const auto start = Clock::now();
    const int64_t interval = e_.device == kCpu ? 1 : kLogInterval;
    batches_.shuffle(epoch);
    sgd_.set_rates(schedule_.rates(epoch * steps_, steps_));
    tally_.reset();
    for (int64_t step = 0; step < steps_; ++step) {
      graph_.run([this] { this->step(); });
      if (units_) say(units_text(*units_));
      units_.reset();
      if ((step + 1) % interval == 0 || step + 1 == steps_) look(epoch, step, progress);
    }
    end_epoch(epoch, seconds_since(start), progress);
  }

  /// Waits for the device, shows where the run is, and throws if the loss is no number any more.
  void look(int64_t epoch, int64_t step, Progress& progress) const {
    const ScoreTotals so_far = tally_.totals();
    ULP_CHECK(so_far.bad_batch < 0,
              "the loss is {} at epoch {}, step {} of {}; try a smaller --lr, wider formats or a "
              "--loss-scale",
              so_far.bad_loss, epoch + 1, so_far.bad_batch + 1, steps_);
    progress.step(epoch, step, nn::Score(so_far).loss, nn::Score(so_far).accuracy);
  }

  void end_epoch(int64_t epoch, double seconds, Progress& progress) {
    const nn::Score trained = tally_.score();
    const auto start = Clock::now();
    test_step_ = run_.state().random_step;
    test_ = test_score(run_, *model_, tests_, e_);
    ULP_CHECK(std::isfinite(test_.loss),
              "the test loss is {} after epoch {}; try a smaller --lr or wider formats", test_.loss,
              epoch + 1);
    metrics_ += metrics_line(epoch + 1, "train", trained, seconds);
    metrics_ += metrics_line(epoch + 1, "test", test_, seconds_since(start));
    nn::write_file_atomically(dir_ / "metrics.jsonl", metrics_);
    progress.epoch_done(fmt::format(
        "epoch {}/{}  train loss {:.4f} accuracy {:.4f}  test loss {:.4f} accuracy {:.4f}  {:.3g} "
        "s",
        epoch + 1, e_.epochs, trained.loss, trained.accuracy, test_.loss, test_.accuracy, seconds));
  }

  const Experiment& e_;
  fs::path dir_;
  Run run_;
  std::unique_ptr<nn::Sequential> model_;
  optim::Sgd sgd_;
  nn::Batches batches_, tests_;
  int64_t steps_;  // of an epoch
  optim::Schedule schedule_;
  nn::Tally tally_;
  StepGraph graph_;
  std::optional<size_t> units_ = matrix_units_used().size();  // until the first step is made
  int64_t saved_bytes_ = 0;                                   // for the backward pass of one step
  std::string metrics_;
  nn::Score test_;
  uint32_t test_step_ = 0;
};

}  // namespace

nn::Score train(const Experiment& e, const nn::Dataset& data, const fs::path& dir,
                const char* title) {
  Training training(e, data, dir);
  const std::string config = config_text(e, data);

  // Whatever can be wrong with the run has been thrown: now the earlier run goes.
  make_folder(dir);
  clear_folder(dir);
  say(fmt::format("--- {}\n{}", title, describe(e, data, training.model())));
  nn::write_file_atomically(dir / "config.json", config);
  return training.train();
}

}  // namespace ulp::tools
