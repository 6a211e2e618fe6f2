#include "tools/experiment.h"

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <set>
#include <span>
#include <system_error>

#include "core/codebook.h"
#include "core/error.h"
#include "core/memory_error.h"
#include "kernels/matmul_unit.h"
#include "nn/augmentation.h"
#include "nn/data/checksum.h"
#include "nn/data/policy_file.h"
#include "nn/data/read_file.h"
#include "nn/models/by_name.h"
#include "tools/data_options.h"
#include "tools/format_options.h"
#include "tools/optimizer_options.h"

namespace ulp::tools {
namespace fs = std::filesystem;

/// Throws unless the model is for the data's kind.
static void check_model(const Experiment& experiment);

namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kEvalBatch = 256;
constexpr int64_t kEvalTokens = 16384;

int64_t parameter_count(nn::Module& model) {
  int64_t count = 0;
  for (const Parameter* p : model.parameters()) count += p->value.numel();
  return count;
}

/// How the steps of a training are made.
std::string steps_text(const Experiment& e) {
  if (e.device == kCpu) return "one op after another";
  if (e.graph == StepGraph::Use::Off) return "one op after another (--no-graph)";
  return kGuardBytes ? "one op after another (this build has guard bytes)"
                     : "one CUDA graph a step";
}

const char* order_text(GradOrder order) {
  return order == GradOrder::ScaleFirst ? "scale-first" : "quantise-first";
}

const char* kind_text(const Averaging& a) {
  return a.options.kind == optim::AverageOptions::Kind::Ema ? "ema" : "swa";
}

Json dynamic_json(const optim::GradScalerOptions& o) {
  if (!o.dynamic) return nullptr;
  return {{"growth", o.growth},
          {"interval", o.interval},
          {"backoff", o.backoff},
          {"min", o.least},
          {"max", o.most}};
}

Json average_json(const std::optional<Averaging>& a) {
  if (!a) return nullptr;
  Json json{{"kind", kind_text(*a)},
            {"format", to_string(a->options.format)},
            {"start", a->start.text()},
            {"every", a->every.text()}};
  if (a->options.kind == optim::AverageOptions::Kind::Ema) json["decay"] = a->options.decay;
  return json;
}

Json normalisation_json(const nn::Normalisation& n) {
  if (n.empty()) return nullptr;
  return {{"mean", n.mean}, {"std", n.std}};
}

std::vector<int64_t> extents(const Shape& shape) {
  std::vector<int64_t> all;
  for (int i = 0; i < shape.rank(); ++i) all.push_back(shape[i]);
  return all;
}

/// The keys of a text and of its model; nothing of images.
Json text_json(const Experiment& e, const nn::Dataset& data) {
  const nn::SequenceOptions& o = e.sequence;
  return {{"tokens", nn::to_string(data.vocabulary.kind())},
          {"characters", data.vocabulary.characters()},
          {"fingerprint", fingerprint(data)},
          {"validation", e.validation},
          {"context", o.context},
          {"layers", o.layers},
          {"width", o.width},
          {"heads", o.heads},
          {"positions", to_string(o.positions)},
          {"mlp", to_string(o.mlp)},
          {"norm", to_string(o.norm)},
          {"tie", o.tie},
          {"epoch_steps", e.epoch_steps}};
}

/// What becomes of samples before the network sees them, and where they are.
std::string samples_text(const Experiment& e, const nn::Dataset& data) {
  if (data.is_text())
    return fmt::format("windows of {} {} at random places, in the memory of {}", e.sequence.context,
                       nn::to_string(data.vocabulary.kind()), to_string(e.device));
  const bool bytes = data.train.images.dtype() == DType::U8;
  std::string text = bytes ? "values in [0, 1]" : "values as they are";
  if (!e.normalisation.empty())
    text = fmt::format("(value{} - [{}]) / [{}] by channel", bytes ? " in [0, 1]" : "",
                       fmt::join(e.normalisation.mean, ", "), fmt::join(e.normalisation.std, ", "));
  if (e.augmentation.any()) text += fmt::format(", {} in training", nn::to_string(e.augmentation));
  const bool resident = data.train.images.bytes() + data.train.labels.bytes() <= e.resident_bytes;
  return text + (resident ? fmt::format(", in the memory of {}", to_string(e.device))
                          : ", gathered by a thread of the host (--resident-mib)");
}

/// "gradients × 0.125, then rounded", "…, each step's own …".
std::string scaling_text(const Experiment& e) {
  const optim::GradScalerOptions& s = e.scaling;
  std::string text = s.dynamic ? fmt::format(
                                     "loss × {} at first, × {} after {} good steps, × {} after one "
                                     "that is skipped, from {} to {}; undone in gradients",
                                     s.loss_scale, s.growth, s.interval, s.backoff, s.least, s.most)
                               : fmt::format("loss × {}", s.loss_scale);
  text += fmt::format(", gradients × {} {} they are rounded", e.optimizer.grad_scaling,
                      e.optimizer.grad_order == GradOrder::ScaleFirst ? "before" : "after");
  if (s.clip_norm > 0) text += fmt::format(", their norm at most {}", s.clip_norm);
  return text;
}

/// An object inside config.json. Errors name the file and the key with its path.
class Keys {
 public:
  Keys(const Json& json, std::string file, std::string path = "")
      : json_(json), file_(std::move(file)), path_(std::move(path)) {}

  [[noreturn]] void fail(const std::string& key, const std::string& problem) const {
    throw_error("{}: the key \"{}{}\" {}", file_, path_, key, problem);
  }
  const Json& value(const std::string& key) const {
    if (!json_.is_object() || !json_.contains(key)) fail(key, "is missing");
    return json_.at(key);
  }
  Keys object(const std::string& key) const {
    if (!value(key).is_object()) fail(key, "must hold an object");
    return {value(key), file_, path_ + key + "."};
  }
  std::string text(const std::string& key) const {
    if (!value(key).is_string()) fail(key, "must hold a text");
    return value(key).get<std::string>();
  }
  int64_t integer(const std::string& key, int64_t least, int64_t most) const {
    return integer(key, value(key), least, most);
  }
  std::vector<int64_t> integers(const std::string& key, int64_t least, int64_t most) const {
    if (!value(key).is_array() || value(key).empty())
      fail(key, "must hold a list of whole numbers");
    std::vector<int64_t> all;
    for (const Json& one : value(key)) all.push_back(integer(key, one, least, most));
    return all;
  }
  bool has(const std::string& key) const {
    return json_.is_object() && json_.contains(key) && !json_.at(key).is_null();
  }
  std::vector<double> numbers(const std::string& key) const {
    std::vector<double> all;
    for (const Json& one : value(key))
      all.push_back(one.is_number() ? one.get<double>() : std::nan(""));
    if (!value(key).is_array() || all.empty()) fail(key, "must hold a list of numbers");
    return all;
  }
  double share(const std::string& key) const {
    const double value = this->value(key).is_number() ? this->value(key).get<double>() : 0;
    if (!(value > 0 && value < 1)) fail(key, "must hold a number between 0 and 1");
    return value;
  }
  bool boolean(const std::string& key) const {
    if (!value(key).is_boolean()) fail(key, "must hold true or false");
    return value(key).get<bool>();
  }
  uint64_t seed(const std::string& key) const {
    if (!value(key).is_number_unsigned()) fail(key, "must hold a whole number from 0 to 2^64 - 1");
    return value(key).get<uint64_t>();
  }
  Quantizer format(const std::string& key) const {
    const std::string name = text(key);
    try {
      return Quantizer::parse(name);
    } catch (const Error& error) {
      fail(key, std::string("is no format: ") + error.what());
    }
  }

 private:
  int64_t integer(const std::string& key, const Json& value, int64_t least, int64_t most) const {
    // Parsed JSON keeps what is not negative as unsigned.
    const bool fits = value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{INT64_MAX} &&
                      value.get<int64_t>() >= least && value.get<int64_t>() <= most;
    if (!fits)
      fail(key, fmt::format("must hold whole numbers from {} to {}, got {}", least, most,
                            value.dump(-1, ' ', true, Json::error_handler_t::replace)));
    return value.get<int64_t>();
  }

  const Json& json_;
  std::string file_, path_;
};

/// "table=PATH CHECKSUM" of the numbers of every table from a file that a configuration's formats name.
void add_tables(const Json& json, std::set<std::string>& tables) {
  if (json.is_structured())
    for (const Json& value : json) add_tables(value, tables);
  if (!json.is_string() || !json.get_ref<const std::string&>().starts_with("table=")) return;
  Format format;
  try {
    format = Quantizer::parse(json.get<std::string>()).format;
  } catch (const Error&) {
    return;  // another text that begins so
  }
  if (format.kind != FormatKind::Codebook) return;
  const Codebook& book = codebook(format.table);
  const std::span<const float> values = book.values;
  const uint32_t sum =
      nn::checksum(0, {reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes()});
  tables.insert(fmt::format("{} {:08x}", book.name, sum));
}

nn::Normalisation read_normalisation(const Keys& keys, int64_t channels) {
  const Keys own = keys.object("normalize");
  const nn::Normalisation n{own.numbers("mean"), own.numbers("std")};
  try {
    nn::check_normalisation(n, channels);
  } catch (const Error& error) {
    keys.fail("normalize", std::string("does not fit: ") + error.what());
  }
  return n;
}

template <class E>
E choice(const Keys& keys, const char* key, E first, E second) {
  const std::string text = keys.text(key);
  if (text != to_string(first) && text != to_string(second))
    keys.fail(key,
              fmt::format("must hold {} or {}, got {}", to_string(first), to_string(second), text));
  return text == to_string(first) ? first : second;
}

void read_text(const Keys& keys, SavedExperiment& saved) {
  Experiment& e = saved.experiment;
  nn::SequenceOptions& o = e.sequence;
  using S = nn::SequenceOptions;
  e.tokens = choice(keys, "tokens", nn::TokenKind::Characters, nn::TokenKind::Bytes);
  const std::string characters = keys.text("characters");
  try {
    saved.vocabulary = e.tokens == nn::TokenKind::Bytes
                           ? nn::Vocabulary::bytes()
                           : nn::Vocabulary::characters_of(characters, "characters");
  } catch (const Error& error) {
    keys.fail("characters", std::string("must hold UTF-8: ") + error.what());
  }
  if (saved.vocabulary.size() != saved.classes)
    keys.fail("characters", fmt::format("must hold {} characters (\"classes\"), got {}",
                                        saved.classes, saved.vocabulary.size()));
  if (keys.has("fingerprint")) saved.fingerprint = keys.text("fingerprint");
  e.validation = keys.share("validation");
  o.context = keys.integer("context", 1, kMaxWidth);
  o.layers = keys.integer("layers", 1, kMaxLayers);
  o.width = keys.integer("width", 1, kMaxWidth);
  o.heads = keys.integer("heads", 1, kMaxWidth);
  o.positions = choice(keys, "positions", S::Positions::Learned, S::Positions::Rotary);
  o.mlp = choice(keys, "mlp", S::Mlp::Gelu, S::Mlp::Swiglu);
  o.norm = choice(keys, "norm", S::Norm::Layer, S::Norm::Rms);
  o.tie = keys.boolean("tie");
}

nn::LossKind read_loss(const Keys& keys) {
  const std::string text = keys.text("loss");
  try {
    return nn::parse_loss(text);
  } catch (const Error& error) {
    keys.fail("loss", std::string("is wrong: ") + error.what());
  }
}

nn::WeightScheme read_init(const Keys& keys) {
  const std::string text = keys.text("init");
  try {
    return nn::parse_weight_scheme(text);
  } catch (const Error& error) {
    keys.fail("init", std::string("is wrong: ") + error.what());
  }
}

Json parse_config(const fs::path& file) {
  std::error_code error;
  ULP_CHECK(fs::is_regular_file(file, error),
            "{}: it cannot be read; give the folder that ulp train wrote (--out)", file.string());
  const std::vector<uint8_t> bytes = nn::read_file(file);
  Json json = Json::parse(bytes, nullptr, /*allow_exceptions=*/false);
  ULP_CHECK(!json.is_discarded(), "{}: not valid JSON", file.string());
  return json;
}

}  // namespace

Experiment Experiment::baseline() const {
  Experiment plain = *this;
  plain.recipe.reset();
  plain.policy = {};
  plain.scaling = {};
  plain.scaling.clip_norm = scaling.clip_norm;
  if (plain.average) plain.average->options.format = Quantizer{};
  plain.optimizer = in_fp32(optimizer);
  return plain;
}

static Json without_tables(const Experiment& e, const nn::Dataset& data) {
  Json optimizer = to_json(e.optimizer);
  optimizer["lr_schedule"] = e.lr_schedule;
  optimizer["loss_scale"] = e.scaling.loss_scale;
  optimizer["dynamic_loss_scale"] = dynamic_json(e.scaling);
  optimizer["clip_norm"] = e.scaling.clip_norm > 0 ? Json(e.scaling.clip_norm) : Json(nullptr);
  optimizer["grad_order"] = order_text(e.optimizer.grad_order);
  Json json{{"data", e.data},
            {"classes", data.classes},
            {"inputs", data.sample_shape.numel()},
            {"sample_shape", extents(data.sample_shape)},
            {"normalize", normalisation_json(e.normalisation)},
            {"augment", nn::to_string(e.augmentation)},
            {"model", e.model},
            {"hidden", e.hidden},
            {"loss", to_string(e.loss)},
            {"init", to_string(e.init)},
            {"epochs", e.epochs},
            {"batch_size", e.batch_size},
            {"accumulate_steps", e.accumulate_steps},
            {"seed", e.seed},
            {"math", std::string(to_string(e.math))},
            {"optimizer", optimizer},
            {"average", average_json(e.average)},
            {"policy", Json::parse(nn::rules_json(e.policy))}};
  if (data.is_text()) json["text"] = text_json(e, data);
  return json;
}

std::string fingerprint(const nn::Dataset& data) {
  uint32_t sum = 0;
  for (const nn::Split* split : {&data.train, &data.test})
    for (const Tensor& tensor : {split->images, split->labels})
      if (tensor.defined()) sum = nn::checksum(sum, nn::bytes_of(tensor.to_cpu_contiguous()));
  return fmt::format("{:08x}", sum);
}

nlohmann::ordered_json to_json(const Experiment& e, const nn::Dataset& data) {
  Json json = without_tables(e, data);
  std::set<std::string> tables;
  add_tables(json, tables);
  if (!tables.empty()) json["tables"] = tables;
  return json;
}

SavedExperiment read_config(const fs::path& file) {
  const Json json = parse_config(file);
  const Keys keys(json, file.string());
  SavedExperiment saved;
  Experiment& e = saved.experiment;
  e.data = keys.text("data");
  saved.classes = keys.integer("classes", 2, INT32_MAX);
  saved.inputs = keys.integer("inputs", 1, INT32_MAX);
  if (keys.has("text")) read_text(keys.object("text"), saved);
  if (keys.has("sample_shape") && saved.vocabulary.empty()) {
    const std::vector<int64_t> shape = keys.integers("sample_shape", 1, INT32_MAX);
    if (shape.size() != 3) keys.fail("sample_shape", "must hold height, width and channels");
    saved.sample_shape = Shape{shape[0], shape[1], shape[2]};
  }
  if (keys.has("normalize"))
    e.normalisation = read_normalisation(keys, saved.sample_shape ? (*saved.sample_shape)[2] : 1);
  e.model = keys.text("model");
  if (!nn::is_model(e.model))
    keys.fail("model", "must hold one of " + model_list() + ", got " + e.model);
  e.hidden = keys.integers("hidden", 1, kMaxWidth);
  if (keys.has("loss")) e.loss = read_loss(keys);  // older files have neither
  if (keys.has("init")) e.init = read_init(keys);
  e.epochs = keys.integer("epochs", 1, 1000000);
  e.seed = keys.seed("seed");
  e.optimizer.weight = keys.object("optimizer").format("weights");
  const std::vector<uint8_t> bytes = nn::read_file(file);
  e.policy = nn::parse_rules_of({reinterpret_cast<const char*>(bytes.data()), bytes.size()},
                                "policy", file.string());
  return saved;
}

static void check_model(const Experiment& e) {
  const bool text = nn::is_text_name(e.data);
  ULP_CHECK(nn::is_text_model(e.model) == text, "--model {} is for {}, and --data {} is {}",
            e.model, text ? "images" : "texts", e.data,
            text ? "a text; take --model gpt" : "images; take text:FILE");
}

std::string model_list() { return fmt::format("{}", fmt::join(nn::model_names(), ", ")); }

std::unique_ptr<nn::Sequential> make_model(const Experiment& e, const nn::Dataset& data) {
  nn::ModelOptions options;
  options.image = data.sample_shape;
  options.classes = data.classes;
  options.hidden = e.hidden;
  options.sequence = e.sequence;
  check_model(e);
  auto model = nn::make_model(e.model, options);
  nn::apply_weight_scheme(*model, e.init);
  return model;
}

namespace {

/// "6 layers of width 384, …".
std::string sequence_text(const Experiment& e) {
  const nn::SequenceOptions& o = e.sequence;
  const std::string layers =
      fmt::format("{} {} of width {}", o.layers, o.layers == 1 ? "layer" : "layers", o.width);
  if (e.model != "gpt") return fmt::format("{}, context {}", layers, o.context);
  return fmt::format("{} with {} {}, context {}, {} positions, {}, {} norm{}", layers, o.heads,
                     o.heads == 1 ? "head" : "heads", o.context, to_string(o.positions),
                     to_string(o.mlp), to_string(o.norm), o.tie ? ", tied output" : "");
}

/// "4 epochs, batches of 128 (…)"; where a text's steps are given, "2000 steps, 500 an epoch, batches of 64".
std::string length_text(const Experiment& e, bool text) {
  const std::string batches =
      fmt::format("batches of {}{}", e.batch_size,
                  e.accumulate_steps == 1 ? "" : fmt::format(", {} a step", e.accumulate_steps));
  if (text && e.epoch_steps > 0)
    return fmt::format("{} steps, {} an epoch, {}", e.epochs * e.epoch_steps, e.epoch_steps,
                       batches);
  return fmt::format("{} epochs, {} (a last partial one is dropped)", e.epochs, batches);
}

}  // namespace

std::string describe(const Experiment& e, const nn::Dataset& data, nn::Module& model) {
  std::string text;
  const auto line = [&](const char* name, const std::string& value) {
    text += fmt::format("{:<11}{}\n", name, value);
  };
  if (data.is_text())
    line("data", fmt::format("{}: {} training and {} validation {}, {} different ones", data.name,
                             data.train.images.numel(), data.test.images.numel(),
                             nn::to_string(data.vocabulary.kind()), data.classes));
  else
    line("data", fmt::format("{}: {} training and {} test samples of {}, {} classes", data.name,
                             data.train.labels.numel(), data.test.labels.numel(),
                             fmt::join(extents(data.sample_shape), "×"), data.classes));
  line("samples", samples_text(e, data));
  line("model", fmt::format("{}, {} parameters", e.model, parameter_count(model)));
  if (data.is_text()) line("", sequence_text(e));
  line("training",
       fmt::format("{}, seed {}, {}", length_text(e, data.is_text()), e.seed, to_string(e.device)));
  line("loss", nn::to_string(e.loss));
  if (e.init == nn::WeightScheme::Unit)
    line("weights", "begin with size 1, layers and gradients are scaled to size 1");
  if (e.init == nn::WeightScheme::Wage)
    line("weights", "begin wide enough for two bits, products are divided by powers of two");
  line("steps", fmt::format("{} math, {}", to_string(e.math), steps_text(e)));
  if (e.recipe) {
    line("recipe", fmt::format("{}: {}", e.recipe->name, e.recipe->source));
    if (!e.recipe->flags.empty()) line("", "its options: " + e.recipe->flags);
    for (const std::string& one : e.recipe->replaced) line("", "not taken from it: " + one);
  }
  line("optimizer", describe_rule(e.optimizer, e.lr_schedule));
  line("scaling", scaling_text(e));
  if (e.average)
    line("average", fmt::format("{}{}, {} ({}), from {} on, every {}", kind_text(*e.average),
                                e.average->options.kind == optim::AverageOptions::Kind::Ema
                                    ? fmt::format(" {}", e.average->options.decay)
                                    : "",
                                to_string(e.average->options.format),
                                to_string(storage_type(e.average->options.format)),
                                e.average->start.text(), e.average->every.text()));
  bool first_state = true;
  for (const std::string& state : describe_states(e.optimizer)) {
    line(first_state ? "states" : "", state);
    first_state = false;
  }
  return text;
}

nn::Dataset load_data(const Experiment& e, const nn::Vocabulary& known) {
  check_model(e);
  return with_memory_for("--data " + e.data, [&] {
    if (nn::is_text_name(e.data))
      return nn::load_text_dataset(e.data, {e.tokens, e.validation, e.sequence.context, known});
    return nn::load_dataset(e.data);
  });
}

std::unique_ptr<nn::BatchSource> training_batches(Run& run, const nn::Dataset& data,
                                                  const Experiment& e) {
  if (data.is_text())
    return std::make_unique<nn::TextBatches>(run, data.train.images, e.sequence.context,
                                             e.batch_size,
                                             e.epoch_steps * e.accumulate_steps * e.batch_size);
  return std::make_unique<nn::Batches>(run, data, data.train, e.batch_size, batch_options(e));
}

std::unique_ptr<nn::BatchSource> test_batches(Run& run, const nn::Dataset& data,
                                              const Experiment& e) {
  if (data.is_text()) {
    const int64_t windows = std::max<int64_t>(1, kEvalTokens / e.sequence.context);
    return std::make_unique<nn::TextBatches>(run, data.test.images, e.sequence.context, windows);
  }
  nn::BatchOptions options = batch_options(e);
  options.augmentation = {};
  return std::make_unique<nn::Batches>(run, data, data.test, kEvalBatch, options);
}

nn::Score test_score(Run& run, nn::Module& model, nn::BatchSource& test,
                     const nn::TrainingLoss& loss) {
  return nn::evaluate(run, model, test, loss);
}

std::string perplexity_text(const nn::Dataset& data, double loss) {
  return data.is_text() ? fmt::format(" perplexity {:.4f}", std::exp(loss)) : "";
}

const char* test_name(const nn::Dataset& data) { return data.is_text() ? "validation" : "test"; }

void make_folder(const fs::path& dir) {
  std::error_code error;
  fs::create_directories(dir, error);
  ULP_CHECK(!error && fs::is_directory(dir, error), "--out {}: the folder cannot be made ({})",
            dir.string(), error ? error.message() : "something else has that name");
  ULP_CHECK(::access(dir.c_str(), W_OK | X_OK) == 0,
            "--out {}: the folder cannot be written to ({})", dir.string(),
            std::generic_category().message(errno));
}

}  // namespace ulp::tools
