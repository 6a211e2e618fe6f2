#include "tools/training.h"

#include <fmt/core.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <optional>
#include <system_error>

#include "core/memory_error.h"
#include "core/number_text.h"
#include "kernels/matmul_unit.h"
#include "nn/data/atomic_file.h"
#include "nn/running_statistics.h"
#include "nn/training_loss.h"
#include "tools/checkpoint_folder.h"
#include "tools/data_options.h"
#include "tools/model_file.h"
#include "tools/optimizer_options.h"
#include "tools/policy_text.h"
#include "tools/progress.h"
#include "tools/role_metrics.h"

namespace ulp::tools {
namespace fs = std::filesystem;
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kLogInterval = 100;    // steps between looks at the loss, which wait for the GPU
constexpr int64_t kStatsInterval = 100;  // steps between those whose roles are counted

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Throws Diverged unless the training can go on.
template <class... A>
void check_going(bool condition, const char* message, const A&... args) {
  if (!condition) throw Diverged(format_message(message, {ErrorArg(args)...}));
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
  return fmt::format(
      "memory {:.1f} MiB of tensors at most on {}, {:.2f} MiB of it kept for a backward pass\n",
      mib(memory_use(device).peak), to_string(device), mib(saved_bytes));
}

/// `more`: further keys.
std::string metrics_line(int64_t epoch, const char* split, const nn::Score& s, double seconds,
                         const std::string& more = "") {
  return fmt::format(
      "{{\"epoch\":{},\"split\":\"{}\",\"loss\":{:.9g},\"accuracy\":{:.6g}{},\"seconds\":{:.3g}}}"
      "\n",
      epoch, split, s.loss, s.accuracy, more, seconds);
}

/// The average of a training with its moments in steps; none if none is asked for.
std::optional<optim::Average> make_average(Run& run, nn::Module& model, const Experiment& e,
                                           int64_t epoch_steps) {
  if (!e.average) return {};
  optim::AverageOptions options = e.average->options;
  const int64_t total = e.epochs * epoch_steps;
  options.start = e.average->start.steps(total, epoch_steps);
  options.every = std::max<int64_t>(1, e.average->every.steps(total, epoch_steps));
  // The first step from `start` on whose turn it is.
  const int64_t first = options.start == 0 ? options.every : options.start;
  ULP_CHECK(first <= total,
            "--average: its first weights are those after step {}, and the run has {} steps", first,
            total);
  return std::optional<optim::Average>(std::in_place, run, model.parameters(), options);
}

optim::Optimizer make_optimizer(Run& run, nn::Module& model, const Experiment& e) {
  check_optimizer(e.optimizer, model.parameters());
  return {run, model.parameters(), e.optimizer};
}

optim::Schedule make_schedule(const Experiment& e, int64_t epoch_steps) {
  try {
    return {optim::Schedule::parse(e.lr_schedule), e.optimizer.lr, e.epochs * epoch_steps,
            epoch_steps};
  } catch (const Error& error) {
    throw UsageError(std::string("--lr-schedule: ") + error.what());
  }
}

/// Steps of an epoch.
int64_t step_count(const nn::BatchSource& batches, int64_t accumulate) {
  ULP_CHECK(batches.steps() >= accumulate,
            "--accumulate-steps {}: an epoch has {} batches of {} samples", accumulate,
            batches.steps(), batches.size());
  return batches.steps() / accumulate;
}

/// A test and the random step of its draws.
struct Tested {
  nn::Score score;
  uint32_t random_step = 0;
};

constexpr const char* kFiles[] = {"config.json", "metrics.jsonl", "model.safetensors"};

/// Throws if something else has the name of a file of a run, in its folder or in that of its baseline.
void check_folder(const fs::path& dir) {
  for (const fs::path& folder : {dir, dir / "baseline"}) {
    for (const char* name : kFiles) check_is_file(folder / name);
    CheckpointFolder::check(folder);
  }
}

/// Removes what earlier runs left in the folder of a run, and in the folder of its baseline.
void clear_folder(const fs::path& dir) {
  const fs::path baseline = dir / "baseline";
  for (const fs::path& folder : {dir, baseline}) {
    std::error_code error;
    if (!fs::is_directory(folder, error)) continue;
    for (const char* name : kFiles) remove_file(folder / name);
    CheckpointFolder::clear(folder);
    nn::remove_temporary_files(folder);
  }
  ::rmdir(baseline.c_str());  // stays if somebody keeps something there
}

/// The notes of a training in a checkpoint. Errors name the file.
class Notes {
 public:
  Notes(const nn::Checkpoint& checkpoint, std::string file)
      : checkpoint_(checkpoint), file_(std::move(file)) {}

  const std::string& text(const char* name) const {
    const auto at = checkpoint_.notes.find(name);
    ULP_CHECK(at != checkpoint_.notes.end(), "{}: it has no note.{}; it is of no ulp train", file_,
              name);
    return at->second;
  }
  template <class T>
  T number(const char* name, T least, T most) const {
    const auto value = text::number_from_to<T>(text(name), least, most);
    ULP_CHECK(value, "{}: its note.{} is no number from {} to {}", file_, name, least, most);
    return *value;
  }

 private:
  const nn::Checkpoint& checkpoint_;
  std::string file_;
};

/// One run, from its first step to its last.
class Training {
 public:
  Training(const Experiment& e, const nn::Dataset& data, fs::path dir,
           const Checkpointing& checkpointing)
      : e_(e),
        dir_(std::move(dir)),
        files_(dir_, checkpointing),
        config_(config_text(e, data)),
        data_(fingerprint(data)),
        run_(e.device, e.seed, e.math),
        model_(initialised_model(run_, e, data)),
        loss_{e.loss, {}, e.init},
        layers_(nn::layers_of(*model_, loss_)),
        optimizer_(make_optimizer(run_, *model_, e)),
        batches_(training_batches(run_, data, e)),
        tests_(test_batches(run_, data, e)),
        test_name_(test_name(data)),
        perplexity_(data.is_text()),
        steps_(step_count(*batches_, e.accumulate_steps)),
        schedule_(make_schedule(e, steps_)),
        scaler_(run_, model_->parameters(), e.scaling),
        average_(make_average(run_, *model_, e, steps_)),
        average_statistics_(run_, *model_),
        tally_(run_),
        graph_(run_, e.graph),
        goes_on_(checkpointing.resume) {
    set_formats();
  }

  nn::Module& model() { return *model_; }

  /// Goes where the newest whole checkpoint of the folder is; false if there is none.
  bool resume() {
    const auto found = files_.newest_whole();
    if (!found) return false;
    const std::string file = found->file.string();
    const Notes notes(found->checkpoint, file);
    check_same_config(notes.text("config"), config_, file);
    ULP_CHECK(
        notes.text("data") == data_ && notes.number<int64_t>("epoch_steps", 1, INT64_MAX) == steps_,
        "{}: it was written with other samples than {} has now", file, e_.data);
    const auto epoch = notes.number<int64_t>("epoch", 0, INT64_MAX);
    const auto step = notes.number<int64_t>("step", 0, steps_ - 1);
    ULP_CHECK(epoch < e_.epochs || (epoch == e_.epochs && step == 0),
              "{}: it has {} epochs and {} steps behind it, more than --epochs {}", file, epoch,
              step, e_.epochs);
    const int64_t named = *step_of(found->file.filename().string()), steps = epoch * steps_ + step;
    ULP_CHECK(named == steps,
              "{}: it is the checkpoint of step {}; give it the name checkpoint-{}.safetensors, or "
              "move it away",
              file, steps, steps);
    const StepState& state = found->checkpoint.state;
    ULP_CHECK(step == 0 || state.batch_offset <= batches_->samples(),
              "{}: its state.batch_offset is {}, and an epoch has {} samples", file,
              state.batch_offset, batches_->samples());
    ULP_CHECK(e_.scaling.checks() || state.grad_factor == 1,
              "{}: its state.grad_factor is {}; without --loss-scale dynamic and --clip-norm it is "
              "1",
              file, state.grad_factor);
    const double most = std::numeric_limits<double>::max();
    seconds_ = notes.number("seconds", 0.0, most);
    test_.score.loss = notes.number("test_loss", -most, most);
    test_.score.accuracy = notes.number("test_accuracy", 0.0, 1.0);
    test_.random_step = notes.number<uint32_t>("test_random_step", 0, UINT32_MAX);
    if (average_) {
      average_test_.score.loss = notes.number("average_loss", -most, most);
      average_test_.score.accuracy = notes.number("average_accuracy", 0.0, 1.0);
      average_test_.random_step = notes.number<uint32_t>("average_random_step", 0, UINT32_MAX);
    }
    const auto metrics = found->checkpoint.texts.find("metrics");
    ULP_CHECK(metrics != found->checkpoint.texts.end(), "{}: it has no text.metrics", file);

    nn::restore(found->checkpoint, file, run_, states());
    metrics_ = metrics->second;
    epoch_ = epoch;
    first_step_ = step;
    set_formats();
    if (step > 0) begin_epoch(run_.state().batch_offset);
    resumed_ = found->file.filename().string();
    return true;
  }

  /// Prints what the run is, and where it goes on.
  void announce(const char* title, const nn::Dataset& data) const {
    const std::string average =
        average_ ? fmt::format("{:<11}average {} bytes\n", "", average_->bytes()) : "";
    say(fmt::format("--- {}\n{}{}{:<11}{}\n{}{:<11}{}\n", title, describe(e_, data, *model_),
                    formats_text(e_.policy, e_.epochs, layers_), "", describe_bytes(optimizer_),
                    average, "schedule", schedule_.describe()));
    if (!resumed_.empty())
      say(fmt::format("resumed    {}: epoch {}, step {} of {}\n", resumed_,
                      std::min(epoch_ + 1, e_.epochs), epoch_ < e_.epochs ? first_step_ : steps_,
                      steps_));
  }

  nn::Score train() {
    return with_memory_for(
        "training", [this] { return train_to_the_end(); },
        [this] { return "; take a smaller --batch-size" + files_.way_on(); });
  }

 private:
  static std::unique_ptr<nn::Sequential> initialised_model(Run& run, const Experiment& e,
                                                           const nn::Dataset& data) {
    auto model = make_model(e, data);
    model->initialise(run);
    return model;
  }

  /// Makes the folder that of this run as far as it has come: once the first step, which takes the most memory, is behind
  /// it. To resume removes no checkpoint.
  void begin_files() {
    begun_ = true;
    files_.set_aside();
    if (!goes_on_) {
      clear_folder(dir_);
    } else {
      remove_file(dir_ / "model.safetensors");
      nn::remove_temporary_files(dir_);
    }
    files_.guard([&] { nn::write_file_atomically(dir_ / "config.json", config_); });
    if (metrics_.empty())
      remove_file(dir_ / "metrics.jsonl");
    else
      files_.guard([&] { nn::write_file_atomically(dir_ / "metrics.jsonl", metrics_); });
  }

  nn::Score train_to_the_end() {
    if (epoch_ == e_.epochs) begin_files();
    Progress progress(e_.epochs, steps_, batches_->size() * e_.accumulate_steps,
                      epoch_ * steps_ + first_step_);
    while (epoch_ < e_.epochs) train_epoch(progress);
    say(memory_text(e_.device, saved_bytes_));
    try {
      for (const Parameter* p : model_->parameters())
        check_finite(
            "", p->path, p->value,
            fmt::format(" after epoch {}; try a smaller --lr or wider --weights", e_.epochs));
      for (const nn::Buffer* b : model_->buffers())
        check_finite(
            "", b->path, b->value,
            fmt::format(" after epoch {}; try a smaller --lr or wider formats", e_.epochs));
    } catch (const MemoryError&) {
      throw;  // says nothing of the numbers
    } catch (const Error& error) {
      throw Diverged(error.what());
    }
    const int64_t averaged = average_ ? average_->count() : 0;
    std::optional<SavedAverage> average;
    if (averaged > 0) {
      average = {average_->tensors(), to_string(e_.average->options.format), averaged,
                 average_test_.random_step};
      average->tensors.merge(average_statistics_.tensors());
      say(fmt::format("last weights: {} {}; below: the average of {}\n", test_name_,
                      score_text(test_.score), averaged));
    } else if (average_) {
      say("no average: every step whose weights it would take was skipped\n");
    }
    files_.guard([&] {
      save_model(run_, *model_, dir_ / "model.safetensors", test_.random_step,
                 to_string(e_.optimizer.weight), average);
    });
    return average ? average_test_.score : test_.score;
  }

  void step() {
    for (int64_t k = 0; k < e_.accumulate_steps; ++k) {
      const nn::Batch batch = batches_->next();
      Tape tape(run_);
      const Var logits = nn::logit_rows(tape, (*model_)(tape, tape.constant(batch.inputs)));
      const Var loss = loss_.of(tape, logits, batch.labels);
      tally_.add(loss_.mean(run_, loss, batch.labels.numel()), logits.value, batch.labels);
      saved_bytes_ = tape.saved_bytes();
      tape.backward(loss, loss_.share(e_.accumulate_steps));
    }
    scaler_.check();
    optimizer_.step();
    if (average_) average_->update();
  }

  /// A step, op by op, whose roles are counted.
  void count_step(int64_t step) {
    RoleStats stats(e_.device);
    {
      const CountRoles counting(run_, stats);
      this->step();
    }
    metrics_ += role_lines(*model_, stats, epoch_ + 1, step + 1);
  }

  /// All that changes from step to step.
  nn::Checkpoint states() const {
    nn::Checkpoint c = nn::checkpoint_of(run_, *model_);
    c.add(optimizer_.tensors(), optimizer_.formats());
    if (average_) {
      c.add(average_->tensors(), average_->formats());
      c.add(average_statistics_.tensors(), {});
    }
    c.add(tally_.tensors(), {});
    return c;
  }

  /// Throws Diverged if there is no way on from here: then the last checkpoint is better.
  void check_numbers(int64_t step) const {
    try {
      const std::string after = fmt::format(" after step {}; try a smaller --lr or wider formats{}",
                                            step, files_.way_on());
      for (const Parameter* p : model_->parameters()) check_finite("", p->path, p->value, after);
      for (const nn::Buffer* b : model_->buffers()) check_finite("", b->path, b->value, after);
      for (const optim::Optimizer::State& state : optimizer_.states())
        for (const optim::Slot slot : optim::kSlots) {
          if (!state[slot].defined()) continue;
          for (const float x : optimizer_.read(state, slot).to_floats())
            ULP_CHECK(!std::isnan(x), "{}'s {} holds {}{}", state.parameter->path,
                      optim::to_string(slot), x, after);
        }
    } catch (const MemoryError&) {
      throw;  // says nothing of the numbers
    } catch (const Error& error) {
      throw Diverged(error.what());
    }
  }

  /// After `step` steps of an epoch.
  void write_checkpoint(int64_t epoch, int64_t step, double seconds) {
    check_numbers(epoch * steps_ + step);
    nn::Checkpoint c = states();
    c.notes = {{"config", config_},
               {"data", data_},
               {"epoch", std::to_string(epoch)},
               {"step", std::to_string(step)},
               {"epoch_steps", std::to_string(steps_)},
               {"seconds", fmt::format("{}", seconds)},
               {"test_loss", fmt::format("{}", test_.score.loss)},
               {"test_accuracy", fmt::format("{}", test_.score.accuracy)},
               {"test_random_step", std::to_string(test_.random_step)}};
    if (average_) {
      c.notes["average_loss"] = fmt::format("{}", average_test_.score.loss);
      c.notes["average_accuracy"] = fmt::format("{}", average_test_.score.accuracy);
      c.notes["average_random_step"] = std::to_string(average_test_.random_step);
    }
    c.texts["metrics"] = metrics_;
    files_.write(epoch * steps_ + step, c);
  }

  /// Those of the epoch that the run is in. A recorded step has the formats that it was recorded with.
  void set_formats() {
    std::vector<OpFormats> before;
    for (const nn::Layer& layer : layers_) before.push_back(*layer.formats);
    nn::apply(e_.policy, layers_, std::min(epoch_ + 1, e_.epochs));
    for (size_t i = 0; i < layers_.size(); ++i)
      if (!(*layers_[i].formats == before[i])) return graph_.reset();
  }

  /// Makes the order of the epoch's samples and sets the rates of its steps, from `first_step_` on.
  void begin_epoch(int64_t batch_offset) {
    batches_->shuffle(epoch_, batch_offset);
    const int64_t first = epoch_ * steps_ + first_step_, count = steps_ - first_step_;
    optimizer_.set_rates(schedule_.rates(first, count), schedule_.momenta(first, count));
  }

  void train_epoch(Progress& progress) {
    const auto start = Clock::now();
    const int64_t interval = e_.device == kCpu ? 1 : kLogInterval;
    if (first_step_ == 0) {
      set_formats();
      begin_epoch(0);
      tally_.reset();
    }
    for (int64_t step = first_step_; step < steps_; ++step) {
      if (e_.stats && ((epoch_ * steps_ + step + 1) % kStatsInterval == 0 || step + 1 == steps_))
        count_step(step);
      else
        graph_.run([this] { this->step(); });
      if (!begun_) begin_files();
      if (units_) say(units_text(*units_));
      units_.reset();
      const bool last = step + 1 == steps_;
      const bool due = !last && files_.due(epoch_ * steps_ + step + 1);
      if ((step + 1) % interval == 0 || last || due) look(step, progress);
      if (due) write_checkpoint(epoch_, step + 1, seconds_ + seconds_since(start));
    }
    end_epoch(seconds_ + seconds_since(start), progress);
  }

  /// Waits for the device, shows where the run is, and throws if the loss is no number any more.
  void look(int64_t step, Progress& progress) const {
    const ScoreTotals so_far = tally_.totals();
    check_going(so_far.bad_batch < 0,
                "the loss is {} at epoch {}, step {} of {}; try a smaller --lr, wider formats or a "
                "--loss-scale",
                so_far.bad_loss, epoch_ + 1, so_far.bad_batch / e_.accumulate_steps + 1, steps_);
    progress.step(epoch_, step, nn::Score(so_far).loss, nn::Score(so_far).accuracy, scaling_text());
  }

  /// The loss scale and how many steps were skipped; empty where nothing looks at gradients.
  std::string scaling_text() const {
    if (!e_.scaling.checks()) return "";
    const StepState& state = run_.state();
    const std::string skipped = fmt::format("  skipped {}", state.skipped_steps);
    return e_.scaling.dynamic ? fmt::format("  loss scale {}{}", state.loss_scale, skipped)
                              : skipped;
  }
  /// The same as keys of metrics.jsonl.
  std::string scaling_keys() const {
    if (!e_.scaling.checks()) return "";
    const StepState& state = run_.state();
    return fmt::format(",\"loss_scale\":{},\"skipped_steps\":{},\"grad_norm\":{}", state.loss_scale,
                       state.skipped_steps, state.grad_norm);
  }

  /// "loss 1.2345 accuracy 0.5678", of texts with the perplexity.
  std::string score_text(const nn::Score& s) const {
    return fmt::format("loss {:.4f}{} accuracy {:.4f}", s.loss,
                       perplexity_ ? fmt::format(" perplexity {:.4f}", std::exp(s.loss)) : "",
                       s.accuracy);
  }
  /// The same as a key of metrics.jsonl; null where no number holds it, since JSON has no Inf.
  std::string perplexity_key(double loss) const {
    if (!perplexity_) return "";
    const double perplexity = std::exp(loss);
    return std::isfinite(perplexity) ? fmt::format(",\"perplexity\":{:.9g}", perplexity)
                                     : ",\"perplexity\":null";
  }

  Tested test(const char* what) {
    Tested tested;
    tested.random_step = run_.state().random_step;
    tested.score = test_score(run_, *model_, *tests_, loss_);
    check_going(std::isfinite(tested.score.loss),
                "the {} loss{} is {} after epoch {}; try a smaller --lr or wider formats",
                test_name_, what, tested.score.loss, epoch_ + 1);
    return tested;
  }

  /// Tests, writes down how the epoch went, and goes to the beginning of the next one.
  void end_epoch(double seconds, Progress& progress) {
    const nn::Score trained = tally_.score();
    check_going(run_.state().skipped_steps < static_cast<uint64_t>((epoch_ + 1) * steps_),
                "all {} steps until epoch {} were skipped, for a gradient with Inf or NaN; try {}, "
                "or wider formats",
                (epoch_ + 1) * steps_, epoch_ + 1,
                e_.scaling.dynamic ? "a smaller --loss-scale-start or --loss-scale-min"
                                   : "a smaller --loss-scale or --loss-scale dynamic");
    auto start = Clock::now();
    metrics_ += metrics_line(epoch_ + 1, "train", trained, seconds,
                             perplexity_key(trained.loss) + scaling_keys());
    const std::string scaling = scaling_text();
    test_ = test("");
    metrics_ += metrics_line(epoch_ + 1, test_name_, test_.score, seconds_since(start),
                             perplexity_key(test_.score.loss));
    std::string averaged;
    if (average_ && average_->count() > 0) {
      start = Clock::now();
      const optim::Average::InPlace weights(*average_);
      const nn::RunningStatistics::InPlace statistics(average_statistics_);
      nn::recompute_running_statistics(run_, *model_, *batches_, epoch_);
      average_test_ = test(" of the average");
      metrics_ += metrics_line(epoch_ + 1, "average", average_test_.score, seconds_since(start),
                               perplexity_key(average_test_.score.loss) +
                                   fmt::format(",\"weights\":{}", average_->count()));
      averaged = "  average " + score_text(average_test_.score);
    }
    files_.guard([&] { nn::write_file_atomically(dir_ / "metrics.jsonl", metrics_); });
    progress.epoch_done(fmt::format("epoch {}/{}  train {}  {} {}{}{}  {:.3g} s", epoch_ + 1,
                                    e_.epochs, score_text(trained), test_name_,
                                    score_text(test_.score), averaged, scaling, seconds));
    ++epoch_;
    first_step_ = 0;
    seconds_ = 0;
    if (files_.due(epoch_ * steps_) || (files_.writes() && epoch_ == e_.epochs))
      write_checkpoint(epoch_, 0, 0);
  }

  const Experiment& e_;
  fs::path dir_;
  CheckpointFolder files_;
  std::string config_, data_;  // the text of config.json, and what tells the data apart
  Run run_;
  std::unique_ptr<nn::Sequential> model_;
  nn::TrainingLoss loss_;
  std::vector<nn::Layer> layers_;  // whose formats the policy sets
  optim::Optimizer optimizer_;
  std::unique_ptr<nn::BatchSource> batches_, tests_;
  const char* test_name_;  // what is scored after each epoch
  bool perplexity_;        // is shown beside the loss
  int64_t steps_;          // of an epoch
  optim::Schedule schedule_;
  optim::GradScaler scaler_;
  std::optional<optim::Average> average_;
  nn::RunningStatistics average_statistics_;  // of its weights
  nn::Tally tally_;
  StepGraph graph_;
  bool goes_on_, begun_ = false;  // --resume; whether the folder is that of this run
  std::optional<size_t> units_ = matrix_units_used().size();  // until the first step is made
  int64_t saved_bytes_ = 0;                                   // for the backward pass of one step
  int64_t epoch_ = 0, first_step_ = 0;                        // where the run goes on
  double seconds_ = 0;                                        // what this epoch took before
  std::string resumed_;  // the checkpoint's name; empty: from the beginning
  std::string metrics_;
  Tested test_, average_test_;
};

}  // namespace

std::string config_text(const Experiment& e, const nn::Dataset& data) {
  try {
    return to_json(e, data).dump(2) + "\n";
  } catch (const nlohmann::json::exception&) {
    throw_error("--data {}: its name is not UTF-8", e.data);
  }
}

void check_training(const Experiment& e, const nn::Dataset& data) {
  with_memory_for("--model " + e.model, [&] { Training(e, data, {}, {}); });
}

nn::Score train(const Experiment& e, const nn::Dataset& data, const fs::path& dir,
                const char* title, const Checkpointing& checkpointing) {
  check_folder(dir);
  const auto training = with_memory_for("--model " + e.model, [&] {
    return std::make_unique<Training>(e, data, dir, checkpointing);
  });
  if (checkpointing.resume && !with_memory_for("--resume", [&] { return training->resume(); }))
    say(fmt::format("no whole checkpoint in {}: from the beginning\n", dir.string()));
  // Whatever can be wrong with the run has been thrown, here or by preflight(), but for the memory of a step: after the
  // first one the earlier run goes.
  make_folder(dir);
  training->announce(title, data);
  return training->train();
}

}  // namespace ulp::tools
