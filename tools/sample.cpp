#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>

#include "core/error.h"
#include "core/memory_error.h"
#include "core/random.h"
#include "nn/data/token_text.h"
#include "nn/pieces.h"
#include "nn/training_loss.h"
#include "tools/commands.h"
#include "tools/format_options.h"
#include "tools/trained_model.h"

namespace ulp::tools {
namespace {

constexpr int64_t kMostTokens = 1000000;
constexpr int64_t kTokens = 200;  // where --length is not given, if the context has room for them

struct SampleOptions {
  TrainedModelFlags trained;
  std::string prompt, temperature = "1", seed = "1", cache = "on";
  std::optional<std::string> length;
};

/// What the next token is: the first of the largest logits, or one drawn from their softmax at a temperature.
class Choice {
 public:
  Choice(double temperature, uint64_t seed)
      : temperature_(temperature),
        random_({seed, RandomSite("sample").stream("token"), 0, nullptr}) {}

  /// Word `index` of the seed's draw decides.
  int32_t operator()(const std::vector<float>& logits, uint64_t index) const {
    size_t best = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      ULP_CHECK(logits[i] == logits[i], "the model gives NaN for token {}; try wider formats", i);
      if (logits[i] > logits[best]) best = i;
    }
    if (temperature_ == 0) return static_cast<int32_t>(best);
    const auto most = static_cast<double>(logits[best]);
    std::vector<double> weights;
    double sum = 0;
    for (const float logit : logits) {
      weights.push_back(std::exp((static_cast<double>(logit) - most) / temperature_));
      sum += weights.back();
    }
    double rest = sum * (static_cast<double>(random_.word(index)) * 0x1p-32);
    for (size_t i = 0; i < weights.size(); ++i) {
      if (rest < weights[i]) return static_cast<int32_t>(i);
      rest -= weights[i];
    }
    return static_cast<int32_t>(best);  // rounding left something
  }

 private:
  double temperature_;
  RandomSource random_;
};

/// The logits after the last of some tokens.
std::vector<float> logits_of(Run& run, nn::Module& model, const std::vector<int32_t>& tokens) {
  Tape tape(run, Tape::Recording::Off);
  const auto count = static_cast<int64_t>(tokens.size());
  const Tensor in = Tensor::from(tokens, {1, count}, run.device());
  const Tensor y = model(tape, tape.constant(in)).value;
  return y.slice(1, count - 1, count).to_floats();
}

void show(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

/// Prints the prompt and what the model makes of it.
void write_on(Run& run, nn::Module& model, const nn::Vocabulary& vocabulary,
              std::vector<int32_t> tokens, int64_t length, const Choice& choice, bool cache) {
  const nn::EvaluationMode mode(model);
  std::optional<nn::InPieces> pieces;
  if (cache) pieces.emplace(model, 1, static_cast<int64_t>(tokens.size()) + length);
  std::vector<int32_t> next = tokens;  // what the model has not seen
  for (int64_t i = 0; i < length; ++i) {
    const int32_t token =
        choice(logits_of(run, model, cache ? next : tokens), static_cast<uint64_t>(i));
    show(vocabulary.decode(token));
    tokens.push_back(token);
    next = {token};
  }
  show("\n");
}

/// How many tokens are written after a prompt. Throws where the context has no room for them.
int64_t length_after(int64_t prompt, nn::TokenKind kind, std::optional<int64_t> length,
                     int64_t context) {
  const std::string tokens = nn::counted(prompt, kind);
  ULP_CHECK(prompt <= context,
            "--prompt has {}, and the model was trained with a context of {} (\"context\")", tokens,
            context);
  if (!length) return std::min(kTokens, context - prompt);
  ULP_CHECK(*length <= context - prompt,
            "--prompt of {} and --length {} make {}, and the model was trained with a context "
            "of {} (\"context\")",
            tokens, *length, prompt + *length, context);
  return *length;
}

void run_sample(const SampleOptions& o) {
  o.trained.check();
  if (o.prompt.empty()) throw UsageError("--prompt takes at least one character, got nothing");
  if (o.cache != "on" && o.cache != "off")
    throw UsageError("--cache takes on or off, got '" + o.cache + "'");
  std::optional<int64_t> wanted;
  if (o.length) wanted = integer_value<int64_t>("--length", *o.length, 0, kMostTokens);
  const double temperature = number_value("--temperature", o.temperature, Zero::Allowed);
  const auto seed = integer_value<uint64_t>("--seed", o.seed, 0, UINT64_MAX);
  const SavedExperiment saved = o.trained.read();
  const Experiment& e = saved.experiment;
  ULP_CHECK(!saved.vocabulary.empty(), "{}: the model is for images; ulp sample is for texts",
            o.trained.config().string());
  const std::vector<int32_t> tokens = saved.vocabulary.encode(o.prompt, "--prompt");
  const int64_t length = length_after(static_cast<int64_t>(tokens.size()), saved.vocabulary.kind(),
                                      wanted, e.sequence.context);

  nn::Dataset data;  // as much of it as the model needs
  data.classes = saved.classes;
  data.vocabulary = saved.vocabulary;
  data.sample_shape = {e.sequence.context};
  TrainedModel trained = TrainedModel::load(e, data, o.trained);
  const std::string obstacle = nn::obstacle_of(*trained.model);
  const bool cache = o.cache == "on" && obstacle.empty();
  if (o.cache == "on" && !cache)
    fmt::print(stderr, "ulp: without a cache, whole sequences for every token: {}\n", obstacle);
  show(o.prompt);
  with_memory_for(
      "sampling",
      [&] {
        write_on(trained.run, *trained.model, saved.vocabulary, tokens, length,
                 Choice(temperature, seed), cache);
      },
      [] { return "; take a smaller --length"; });
}

}  // namespace

void add_sample(CLI::App& app) {
  auto o = std::make_shared<SampleOptions>();
  CLI::App* cmd = app.add_subcommand("sample", "Write on from a prompt with a trained model");
  o->trained.add_to(*cmd, "folder that ulp train wrote for a text");
  cmd->add_option("--prompt", o->prompt, "the beginning; it is printed too")->required();
  add_text(*cmd, "--length", o->length,
           "tokens to write; with the prompt at most the context of the training (default: 200, or "
           "what the context leaves)");
  cmd->add_option("--temperature", o->temperature,
                  "0: always the likeliest token; 1: as likely as the model says; above: more even")
      ->capture_default_str();
  cmd->add_option("--seed", o->seed, "of the draws")->capture_default_str();
  cmd->add_option(
         "--cache", o->cache,
         "on: the model keeps what it has seen; off: whole sequences for every token, with "
         "the same bits in strict math")
      ->capture_default_str();
  cmd->callback([o] { run_sample(*o); });
}

}  // namespace ulp::tools
