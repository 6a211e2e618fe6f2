// Milliseconds of one training step of a model, op by op and as a CUDA graph: of images in batches of 128 by SGD with momentum, of
// a text (gpt: 6 layers, width 384, 6 heads, context 256) in batches of 64 by AdamW.

#include <fmt/core.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "autograd/step_graph.h"
#include "core/error.h"
#include "core/format_text.h"
#include "nn/models/by_name.h"
#include "nn/policy.h"
#include "nn/train_batch.h"
#include "nn/training_loss.h"
#include "optim/optimizer.h"
#include "tools/bench_cuda.h"
#include "tools/bench_machine.h"
#include "tools/commands.h"
#include "tools/experiment.h"

namespace ulp::tools {
namespace {

constexpr int64_t kClasses = 10, kTokens = 128;
constexpr int64_t kSteps = 100;  // of an epoch

int64_t batch_of(const std::string& model) { return nn::is_text_model(model) ? 64 : 128; }

struct StepOptions {
  std::string device = "cuda", model = "mlp", setting;
  int repeats = 400;
  bool json = false, markdown = false, nodes = false;
};

/// What is quantised.
enum class Quantised : uint8_t { Nothing, LinearOperands, All };

/// What is trained with.
struct Setting {
  const char* name;
  Quantised quantised;
  Math math;
  bool of_texts_only = false;
};

/// "mlp, lenet5, …".
std::string models() {
  std::string all;
  for (const char* name : nn::model_names()) all += (all.empty() ? "" : ", ") + std::string(name);
  return all;
}

/// MNIST's images for the MLP and LeNet-5, CIFAR's for the others.
Shape image_of(const std::string& model) {
  return model == "mlp" || model == "lenet5" ? Shape{28, 28, 1} : Shape{32, 32, 3};
}

std::vector<uint8_t> random_bytes(int64_t count) {
  const RandomSource random({1, RandomSite("bench").stream("data"), 0, nullptr});
  std::vector<uint8_t> bytes(static_cast<size_t>(count));
  for (size_t i = 0; i < bytes.size(); i += 16) {
    const PhiloxWords words = random.words(i / 16);
    for (size_t k = 0; k < 16 && i + k < bytes.size(); ++k)
      bytes[i + k] = static_cast<uint8_t>(words.word[k / 4] >> (8 * (k % 4)));
  }
  return bytes;
}

/// Random tokens: time does not depend on them.
nn::Dataset make_text() {
  std::vector<uint8_t> tokens = random_bytes(int64_t{1} << 20);
  for (uint8_t& token : tokens) token %= kTokens;
  nn::Dataset data;
  data.name = "random tokens";
  data.train.images = Tensor::from(tokens, {static_cast<int64_t>(tokens.size())});
  data.classes = kTokens;
  return data;
}

/// Random images and labels.
nn::Dataset make_images(const std::string& model) {
  const int64_t inputs = image_of(model).numel(), samples = kSteps * batch_of(model);
  const std::vector<uint8_t> images = random_bytes(samples * inputs);
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < samples; ++i)
    labels.push_back(static_cast<int32_t>(images[static_cast<size_t>(i * inputs)] % kClasses));
  nn::Dataset data;
  data.name = "random images";
  data.train =
      data.test = {Tensor::from(images, {samples, inputs}), Tensor::from(labels, {samples})};
  data.classes = kClasses;
  data.scale = 1.0f / 255;
  return data;
}

/// Every role of every layer quantised: e4m3 forward, e5m2 with stochastic rounding backward, bf16 within norms and the
/// loss; of a text bf16 for the results too. Of linear layers' operands alone: those of their products.
nn::Policy policy_of(const Setting& s, const std::vector<nn::Layer>& layers, bool text) {
  nn::Policy policy;
  if (s.quantised == Quantised::Nothing) return policy;
  nn::Rule rule;
  if (s.quantised == Quantised::LinearOperands) {
    rule.types = {nn::LayerType::Linear};
    const OpFormats formats = OpFormats::make("e4m3", "e5m2:sr");
    for (const Role& role : kRoles)
      if (const Quantizer& q = formats.*role.quantizer; !q.is_identity()) rule.role(role.name) = q;
    policy.rules.push_back(rule);
    return policy;
  }
  for (const Role& role : kRoles) {
    const bool used =
        std::ranges::any_of(layers, [&](const nn::Layer& l) { return l.uses(role.name); });
    if (!used) continue;
    const std::string_view name = role.name;
    const bool result = name == "output" || name == "grad_input" || name == "grad_weight";
    rule.role(name) = name == "interior" || (text && result) ? Quantizer("bf16")
                      : name.starts_with("grad")             ? Quantizer("e5m2:sr")
                                                             : Quantizer("e4m3");
  }
  policy.rules.push_back(rule);
  return policy;
}

/// For images the weights are e4m3 under an e6m9 master, for a text everything is bf16.
optim::OptimizerOptions optimizer_of(const Setting& s, bool text) {
  optim::OptimizerOptions o{.lr = 0.01, .momentum = 0.9, .weight_decay = 5e-4};
  if (text) o = {.algorithm = optim::Algorithm::AdamW, .lr = 1e-3, .weight_decay = 0.1};
  if (s.quantised != Quantised::All) return o;
  if (text) {
    o.weight = o.grad = o.moment1 = o.moment2 = Quantizer("bf16");
    return o;
  }
  o.weight = "e4m3";
  o.accumulator = Quantizer("e6m9:sr");
  o.grad = "e5m2:sr";
  o.moment1 = "bf16:sr";
  return o;
}

std::unique_ptr<nn::BatchSource> batches_of(Run& run, const nn::Dataset& data,
                                            const std::string& model) {
  const int64_t size = batch_of(model);
  if (nn::is_text_model(model))
    return std::make_unique<nn::TextBatches>(run, data.train.images, nn::SequenceOptions{}.context,
                                             size, kSteps * size);
  return std::make_unique<nn::Batches>(run, data, data.train, size);
}

/// One training in progress.
class Training {
 public:
  Training(Device device, const std::string& model, const Setting& s, const nn::Dataset& data,
           StepGraph::Use use)
      : run_(device, 1, s.math),
        net_(nn::make_model(model, {.image = image_of(model),
                                    .classes = data.classes,
                                    .sequence = {},
                                    .hidden = {1024, 1024},
                                    .formats = {}})),
        batches_(batches_of(run_, data, model)),
        tally_(run_),
        graph_(run_, use) {
    net_->initialise(run_);
    const std::vector<nn::Layer> layers = nn::layers_of(*net_, loss_);
    const bool text = nn::is_text_model(model);
    nn::apply(policy_of(s, layers, text), layers, 1);
    optimizer_ =
        std::make_unique<optim::Optimizer>(run_, net_->parameters(), optimizer_of(s, text));
    restart();
  }

  /// Back to the epoch's first batch.
  void restart() { batches_->shuffle(0); }
  void step() {
    graph_.run([this] {
      nn::train_batch(run_, *net_, batches_->next(), tally_, loss_);
      optimizer_->step();
    });
  }
  void wait() const { synchronize(run_.stream()); }
  StepGraph& graph() { return graph_; }
  std::vector<Tensor> states() const {
    std::vector<Tensor> all;
    for (const auto& state : optimizer_->states()) all.push_back(state.parameter->value.to(kCpu));
    for (const auto& [name, tensor] : optimizer_->tensors()) all.push_back(tensor.to(kCpu));
    return all;
  }

 private:
  Run run_;
  std::unique_ptr<nn::Sequential> net_;
  nn::TrainingLoss loss_;
  std::unique_ptr<nn::BatchSource> batches_;
  nn::Tally tally_;
  StepGraph graph_;
  std::unique_ptr<optim::Optimizer> optimizer_;
};

/// The graph's weights and states are those of the ops one by one, to the bit.
void check_equal(Training& eager, Training& graph, const char* name) {
  for (int i = 0; i < 20; ++i) {
    eager.step();
    graph.step();
  }
  const std::vector<Tensor> a = eager.states(), b = graph.states();
  for (size_t i = 0; i < a.size(); ++i)
    ULP_CHECK(a[i].to_floats() == b[i].to_floats(),
              "bench step: {}: the graph's states differ from those of its ops one by one", name);
}

/// Median over groups of ten steps, the device waited for after each group; three groups at least, no more after two seconds.
double milliseconds(Training& training, int repeats) {
  constexpr int kGroup = 10;
  std::vector<double> all;
  training.restart();
  for (int i = 0; i < kGroup; ++i) training.step();
  training.wait();
  int64_t left = kSteps - kGroup;
  const double start = seconds_now();
  for (int done = 0; done < repeats; done += kGroup) {
    if (all.size() >= 3 && seconds_now() - start > 2) break;
    if (left < kGroup) {
      training.restart();
      left = kSteps;
    }
    left -= kGroup;
    const double begin = seconds_now();
    for (int i = 0; i < kGroup; ++i) training.step();
    training.wait();
    all.push_back((seconds_now() - begin) / kGroup);
  }
  return 1e3 * median(all);
}

struct Row {
  std::string model, setting;
  double eager, graph;
  int64_t nodes;
};

void print_nodes(Training& training, const char* name) {
  fmt::print("{}: microseconds that each node adds to the graph\n", name);
  double total = 0;
  // An epoch's steps with the one that warms up: there are no batches beyond.
  for (const GraphNode& node :
       training.graph().measure([&] { training.restart(); }, static_cast<int>(kSteps) - 1)) {
    total += node.microseconds;
    fmt::print("  {:8.2f} {:9.2f}  {}\n", node.microseconds, total, node.name);
  }
}

void run_step(const StepOptions& options) {
  const Device device = parse_device(options.device);
  if (device == kCpu) throw UsageError("bench step: --device takes cuda or cuda:N");
  if (options.repeats < 1) throw UsageError("bench step: --repeats must be at least 1");
  std::vector<std::string> wanted;
  for (const std::string_view name : text::split(options.model, ',')) wanted.emplace_back(name);
  for (const std::string& model : wanted)
    if (!nn::is_model(model))
      throw UsageError(
          fmt::format("bench step: --model {}: unknown; there are {}", model, models()));
  using enum Quantised;
  const Setting settings[] = {{"fp32, strict math", Nothing, Math::Strict},
                              {"fp32", Nothing, Math::Fast},
                              {"fp32, tf32 math", Nothing, Math::Tf32},
                              {"linear e4m3 / e5m2:sr", LinearOperands, Math::Fast, true},
                              {"e4m3 / e5m2:sr, strict math", All, Math::Strict},
                              {"e4m3 / e5m2:sr", All, Math::Fast}};
  const auto is_setting = [&](const Setting& s) { return options.setting == s.name; };
  if (!options.setting.empty() && std::ranges::none_of(settings, is_setting)) {
    std::string all;
    for (const Setting& s : settings) all += fmt::format("{}'{}'", all.empty() ? "" : ", ", s.name);
    throw UsageError(
        fmt::format("bench step: --setting {}: unknown; there are {}", options.setting, all));
  }
  check_gpu("bench step");
  stream_of(device);  // throws if there is none
  std::vector<Row> rows;
  for (const std::string& model : wanted) {
    const bool text = nn::is_text_model(model);
    const nn::Dataset data = text ? make_text() : make_images(model);
    for (const Setting& s : settings) {
      if (s.of_texts_only && !text) continue;
      if (!options.setting.empty() && !is_setting(s)) continue;
      Training eager(device, model, s, data, StepGraph::Use::Off),
          graph(device, model, s, data, StepGraph::Use::Auto);
      check_equal(eager, graph, s.name);
      rows.push_back({model, s.name, milliseconds(eager, options.repeats),
                      milliseconds(graph, options.repeats), graph.graph().nodes()});
      if (options.nodes) print_nodes(graph, s.name);
    }
  }
  if (options.json) {
    nlohmann::ordered_json all = nlohmann::ordered_json::array();
    for (const Row& r : rows)
      all.push_back({{"model", r.model},
                     {"setting", r.setting},
                     {"eager_ms", r.eager},
                     {"graph_ms", r.graph},
                     {"nodes", r.nodes}});
    fmt::print("{}\n", all.dump(2));
    return;
  }
  const char* line = options.markdown ? "| {} | {} | {:.3f} | {:.3f} | {} |\n"
                                      : "{:<13} {:<28} {:>9.3f} {:>9.3f} {:>6}\n";
  print_origin(gpu_description(device));
  if (options.markdown)
    fmt::print(
        "\n| model | ms a step | op by op | CUDA graph | nodes |\n"
        "|---|---|--:|--:|--:|\n");
  else
    fmt::print(
        "ms a step; graph and ops give equal states\n"
        "{:<42} {:>9} {:>9} {:>6}\n",
        "", "op by op", "graph", "nodes");
  for (const Row& r : rows)
    fmt::print(fmt::runtime(line), r.model, r.setting, r.eager, r.graph, r.nodes);
}

}  // namespace

void add_bench_step(CLI::App& bench) {
  auto options = std::make_shared<StepOptions>();
  CLI::App* step = bench.add_subcommand(
      "step", "one training step of a model on a GPU, op by op and as a CUDA graph");
  step->add_option("--model", options->model,
                   "one or more of " + models() + ", with commas; mlp is 784-1024-1024-10")
      ->capture_default_str();
  step->add_option("--setting", options->setting,
                   "only this one of the settings, as the table names it");
  step->add_option("--device", options->device, "cuda or cuda:N")->capture_default_str();
  step->add_option("--repeats", options->repeats,
                   "steps at most; the median over groups of ten counts")
      ->capture_default_str();
  step->add_flag("--nodes", options->nodes, "also print what each node of the graph adds");
  step->add_flag("--json", options->json, "print a JSON array of rows");
  step->add_flag("--markdown", options->markdown, "print a table for the README");
  step->callback([options] { run_step(*options); });
}

}  // namespace ulp::tools
