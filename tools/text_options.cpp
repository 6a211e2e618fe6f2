#include "tools/text_options.h"

#include <fmt/core.h>

#include "core/error.h"
#include "core/number_text.h"
#include "nn/models/by_name.h"
#include "tools/format_options.h"
#include "tools/values.h"

namespace ulp::tools {
namespace {

constexpr int64_t kMostSteps = 1000000000;

void read_size(const char* flag, const std::optional<std::string>& text, int64_t& value,
               int64_t most = kMaxWidth) {
  if (text) value = integer_value<int64_t>(flag, *text, 1, most);
}

template <class E>
void read_choice(const char* flag, const std::optional<std::string>& text, E& value, E first,
                 E second) {
  if (!text) return;
  try {
    value = nn::parse_choice(flag, *text, first, second);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

}  // namespace

void TextFlags::add_to(CLI::App& app) {
  const char* group = "Texts (--data text:FILE)";
  const auto add = [&](const char* flag, std::optional<std::string>& text, const char* meaning) {
    add_text(app, flag, text, meaning)->group(group);
  };
  add("--layers", layers_, "layers of gpt, lstm and gru, at most 1000 (default: 6)");
  add("--width", width_, "their width (default: 384)");
  add("--heads", heads_, "heads of gpt's attention (default: 6)");
  add("--context", context_, "tokens of a sequence (default: 256)");
  add("--positions", positions_, "learned or rotary (default: learned)");
  add("--mlp", mlp_, "gelu or swiglu (default: gelu)");
  add("--norm", norm_, "layer or rms (default: layer)");
  app.add_flag("--tie", tie_, "the output is made with the embedding's table")->group(group);
  add("--tokens", tokens_, "characters (of UTF-8) or bytes (default: characters)");
  add("--validation", validation_,
      "the share of the text, from its end, that is for validation (default: 0.1)");
  add("--steps", steps_, "training steps, instead of --epochs");
  add("--validate-every", validate_every_,
      "steps between validations, a divisor of --steps; it is what counts as an epoch (default: "
      "all of them)");
}

void TextFlags::check_gpt_alone(const std::string& model) const {
  if (model == "gpt" || !nn::is_text_model(model))
    return;  // those of images are refused with their data
  for (const auto& [flag, given] : {std::pair{"--heads", heads_.has_value()},
                                    {"--positions", positions_.has_value()},
                                    {"--mlp", mlp_.has_value()},
                                    {"--norm", norm_.has_value()},
                                    {"--tie", tie_}})
    if (given)
      throw UsageError(fmt::format("{} is for --model gpt; {} has --layers, --width and --context",
                                   flag, model));
}

void TextFlags::resolve(Experiment& e, bool epochs_given) const {
  using S = nn::SequenceOptions;
  const bool any = layers_ || width_ || heads_ || context_ || positions_ || mlp_ || norm_ ||
                   tokens_ || validation_ || steps_ || validate_every_ || tie_;
  if (!nn::is_text_name(e.data)) {
    if (any)
      throw UsageError("--data " + e.data +
                       " is for images; --layers, --width, --heads, --context, --positions, "
                       "--mlp, --norm, --tie, --tokens, --validation, --steps and "
                       "--validate-every are for --data text:FILE");
    return;
  }
  check_gpt_alone(e.model);
  read_size("--layers", layers_, e.sequence.layers, kMaxLayers);
  read_size("--width", width_, e.sequence.width);
  read_size("--heads", heads_, e.sequence.heads);
  read_size("--context", context_, e.sequence.context);
  read_choice("--positions", positions_, e.sequence.positions, S::Positions::Learned,
              S::Positions::Rotary);
  read_choice("--mlp", mlp_, e.sequence.mlp, S::Mlp::Gelu, S::Mlp::Swiglu);
  read_choice("--norm", norm_, e.sequence.norm, S::Norm::Layer, S::Norm::Rms);
  e.sequence.tie = tie_;
  read_choice("--tokens", tokens_, e.tokens, nn::TokenKind::Characters, nn::TokenKind::Bytes);
  if (validation_) {
    const auto share = text::number_from_to<double>(*validation_, 0.0, 1.0);
    if (!share || *share <= 0 || *share >= 1)
      throw UsageError("--validation takes a number between 0 and 1, got '" + *validation_ + "'");
    e.validation = *share;
  }
  if (validate_every_ && !steps_) throw UsageError("--validate-every needs --steps");
  if (!steps_) return;
  if (epochs_given) throw UsageError("--steps and --epochs: give one of them");
  const auto steps = integer_value<int64_t>("--steps", *steps_, 1, kMostSteps);
  e.epoch_steps = steps;
  read_size("--validate-every", validate_every_, e.epoch_steps, kMostSteps);
  if (steps % e.epoch_steps != 0)
    throw UsageError(
        fmt::format("--validate-every {} does not divide --steps {}", e.epoch_steps, steps));
  e.epochs = steps / e.epoch_steps;
}

}  // namespace ulp::tools
