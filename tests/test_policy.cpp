#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "autograd/step_graph.h"
#include "kernels/quantised.h"
#include "nn/data/dataset.h"
#include "nn/data/located_json.h"
#include "nn/data/policy_file.h"
#include "nn/evaluate.h"
#include "nn/layers.h"
#include "nn/model_tree.h"
#include "nn/models.h"
#include "nn/policy.h"
#include "optim/optimizer.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;
using nn::LayerType;
using nn::Policy;
using nn::Position;
using nn::Rule;

namespace {

/// A linear layer that says that it is a convolution.
class FakeConv : public nn::Linear {
 public:
  using Linear::Linear;
  LayerType type() const override { return LayerType::Conv; }
  std::string describe() const override { return "FakeConv"; }
};

/// y = x, with the roles of a norm and running statistics.
class FakeNorm : public nn::Module {
 public:
  explicit FakeNorm(int64_t channels) {
    add_parameter("gain", {channels}, nn::Initialiser::zeros());
    add_buffer("mean", {channels}, 0);
    add_buffer("variance", {channels}, 1);
  }
  Var forward(Tape&, const Var& x) override { return x; }
  std::string describe() const override { return "FakeNorm"; }
  LayerType type() const override { return LayerType::Normalization; }
  OpFormats* formats() override { return &formats_; }
  std::vector<const char*> roles() const override {
    return {"input", "output", "interior", "grad_input"};
  }

 private:
  OpFormats formats_;
};

/// x + f(x).
class FakeResidual : public nn::Module {
 public:
  explicit FakeResidual(std::unique_ptr<Module> inner) : inner_(std::move(inner)) {}
  Var forward(Tape& tape, const Var& x) override { return ops::add(tape, x, (*inner_)(tape, x)); }
  std::string describe() const override { return "FakeResidual"; }
  std::vector<Child> children() override { return {{"body", inner_.get()}}; }

 private:
  std::unique_ptr<Module> inner_;
};

std::unique_ptr<nn::Sequential> block(int64_t width) {
  auto body = std::make_unique<nn::Sequential>();
  body->add<FakeConv>("conv1", width, width)
      .add<FakeNorm>("norm1", width)
      .add<nn::ReLU>("act")
      .add<FakeConv>("conv2", width, width);
  auto all = std::make_unique<nn::Sequential>();
  all->append("res", std::make_unique<FakeResidual>(std::move(body)));
  return all;
}

/// stem (conv), features.0.res.body.conv1 …, features.1 …, head (linear).
std::unique_ptr<nn::Sequential> network() {
  auto features = std::make_unique<nn::Sequential>();
  features->append("0", block(8)).append("1", block(8));
  auto net = std::make_unique<nn::Sequential>();
  net->add<FakeConv>("stem", 4, 8);
  net->append("features", std::move(features)).add<nn::Linear>("head", 8, 3);
  return net;
}

const OpFormats& formats_at(nn::Module& model, const std::string& path) {
  for (const nn::Layer& layer : nn::layers_of(model))
    if (layer.path == path) return *layer.formats;
  FAIL(path);
  throw Error("");
}

std::string refusal(const std::function<void()>& what) {
  try {
    what();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& words) {
  const bool there = text.find(words) != std::string::npos;
  if (!there) MESSAGE(text << "  lacks  " << words);
  return there;
}

std::string with(const std::string& rule) { return "{\"rules\": [" + rule + "]}"; }

Policy parsed(const std::string& rules) { return nn::parse_policy(with(rules), "p.json"); }

}  // namespace

TEST_SUITE("policy") {
  TEST_CASE("rules in order: the last match wins for each role, and what no rule sets is fp32") {
    const auto net = network();
    formats_at(*net, "stem");
    nn::layers_of(*net)[0].formats->output = Quantizer("e2m1");  // gone afterwards
    nn::apply(parsed(R"({"type": ["conv", "linear"], "forward": "e4m3", "backward": "e5m2:sr"},
                        {"type": "conv", "weight": "bfp8"},
                        {"path": "stem", "forward": "bf16", "input": "fp16"},
                        {"path": "*conv2", "weight": "e3m4", "output": "bf16"},
                        {"type": "linear", "grad_input": "e5m2"})"),
              *net);
    OpFormats conv = OpFormats::make("e4m3", "e5m2:sr");
    conv.weight = Quantizer("bfp8");
    CHECK(formats_at(*net, "features.1.res.body.conv1") == conv);
    conv.weight = Quantizer("e3m4");
    conv.output = Quantizer("bf16");
    CHECK(formats_at(*net, "features.0.res.body.conv2") == conv);
    OpFormats stem = OpFormats::make("bf16", "e5m2:sr");  // forward came after the single role
    stem.input = Quantizer("fp16");
    CHECK(formats_at(*net, "stem") == stem);
    OpFormats head = OpFormats::make("e4m3", "e5m2:sr");
    head.grad_input = Quantizer("e5m2");
    CHECK(formats_at(*net, "head") == head);
    CHECK(formats_at(*net, "features.0.res.body.norm1").is_identity());
    CHECK(formats_at(*net, "features.0.res.body.act").is_identity());
    nn::apply({}, *net);
    for (const nn::Layer& layer : nn::layers_of(*net)) CHECK(layer.formats->is_identity());
  }

  TEST_CASE("a rule without conditions is for all layers, each as far as it has the role") {
    const auto net = network();
    nn::TrainingLoss loss;
    nn::apply(parsed(R"({"interior": "bf16"}, {"forward": "e4m3"}, {"grad_input": "e5m2"})"),
              nn::layers_of(*net, loss), 1);
    CHECK(loss.formats.interior == Quantizer("bf16"));
    CHECK(loss.formats.grad_input == Quantizer("e5m2"));
    CHECK(loss.formats.input.is_identity());
    const OpFormats norm = formats_at(*net, "features.0.res.body.norm1");
    CHECK(norm.interior == Quantizer("bf16"));
    CHECK(norm.input.is_identity());  // "forward" is for layers with a product
    CHECK(norm.weight.is_identity());
    const OpFormats head = formats_at(*net, "head");
    CHECK(head.interior.is_identity());
    CHECK(head.weight_dx == Quantizer("e4m3"));
  }

  TEST_CASE("positions are the first and the last layer with a product") {
    const auto net = network();
    nn::apply(parsed(R"({"position": "first", "output": "e4m3"},
                        {"position": "last", "output": "e5m2"},
                        {"position": "last", "type": "linear", "weight": "e3m4"})"),
              *net);
    for (const nn::Layer& layer : nn::layers_of(*net)) {
      const bool first = layer.path == "stem", last = layer.path == "head";
      CHECK(layer.formats->output == (first  ? Quantizer("e4m3")
                                      : last ? Quantizer("e5m2")
                                             : Quantizer()));
    }
    CHECK(formats_at(*net, "head").weight == Quantizer("e3m4"));
    const auto refused = [&](const char* rules) {
      return refusal([&] { nn::apply(parsed(rules), *net); });
    };
    CHECK(has(refused(R"({"position": "first", "type": "linear", "input": "e4m3"})"),
              "p.json, line 1: the first layer with a product is stem (conv)"));
    nn::Sequential bare;
    bare.add<nn::ReLU>("act");
    CHECK(has(refusal([&] { nn::apply(parsed(R"({"position": "last", "input": "e4m3"})"), bare); }),
              "no layer of the model has a product"));
  }

  TEST_CASE(
      "phases: a rule holds from one epoch to another, and later ones see what it was before") {
    const auto net = network();
    const Policy policy = parsed(R"({"path": "head", "weight": "bf16"},
                                    {"path": "head", "weight": "e4m3", "from_epoch": 3, "to_epoch": 4},
                                    {"path": "head", "output": "e5m2", "from_epoch": 4})");
    const auto at = [&](int64_t epoch) {
      nn::apply(policy, *net, epoch);
      return formats_at(*net, "head");
    };
    for (const int64_t epoch : {5, 1, 3, 2, 4, 6}) {  // whatever was applied before
      CAPTURE(epoch);
      const OpFormats f = at(epoch);
      CHECK(f.weight == Quantizer(epoch == 3 || epoch == 4 ? "e4m3" : "bf16"));
      CHECK(f.output == Quantizer(epoch >= 4 ? "e5m2" : "fp32"));
    }
    CHECK(nn::phases(policy, 10) == std::vector<int64_t>{1, 3, 4, 5});
    CHECK(nn::phases(policy, 4) == std::vector<int64_t>{1, 3, 4});
    CHECK(nn::phases({}, 4) == std::vector<int64_t>{1});
    nn::check_epochs(policy, 4);
    CHECK(has(refusal([&] { nn::check_epochs(policy, 3); }),
              "p.json, line 3: it begins with epoch 4, and the run has 3"));
  }

  TEST_CASE("forward and backward are for layers with a product unless a type is named") {
    const auto net = network();
    nn::apply(parsed(R"({"forward": "e4m3", "backward": "e5m2"})"), *net);
    CHECK(formats_at(*net, "head") == OpFormats::make("e4m3", "e5m2"));
    CHECK(formats_at(*net, "features.0.res.body.act").is_identity());
    CHECK(formats_at(*net, "features.0.res.body.norm1").is_identity());
    nn::apply(parsed(R"({"type": "normalization", "forward": "e4m3"})"), *net);
    CHECK(formats_at(*net, "features.0.res.body.norm1").input == Quantizer("e4m3"));
    CHECK(
        has(refusal([&] { nn::apply(parsed(R"({"path": "*.act", "forward": "e4m3"})"), *net); }),
            "\"forward\" is for layers with a product, and features.0.res.body.act is activation; "
            "give its \"type\" too"));
  }

  TEST_CASE("every type that a file lists must be there; types of flags and programs need not") {
    const auto net = network();
    CHECK(has(refusal([&] {
                nn::apply(parsed(R"({"type": ["conv", "pool"], "output": "e4m3"})"), *net);
              }),
              "p.json, line 1: no layer is of type pool; there are conv (stem"));
    CHECK(has(refusal([&] {
                nn::apply(
                    parsed(R"({"type": ["conv", "linear"], "path": "stem", "output": "e4m3"})"),
                    *net);
              }),
              "no layer on the path 'stem' is of type linear; there are conv (stem)"));
    nn::apply(parsed(R"({"type": ["conv", "linear"], "position": "first", "output": "e4m3"})"),
              *net);
    nn::lower(*net, {LayerType::Conv, LayerType::Pool}, "e4m3");
    CHECK(formats_at(*net, "stem").input == Quantizer("e4m3"));
  }

  TEST_CASE(
      "what a convolution's op refuses is refused before, in every epoch, by the layer itself") {
    const auto made = [] {
      auto net = std::make_unique<nn::Sequential>();
      net->add<nn::Conv2d>("point", 16, 16, 1)
          .add<nn::Conv2d>("stride", 16, 16, 1, ops::ConvOptions{.stride = 2})
          .add<nn::Conv2d>("wide", 16, 16, 3, ops::ConvOptions{.padding = 1})
          .add<nn::ConvTranspose2d>("up", 16, 16, 1)
          .add<nn::Conv2d>("groups", 16, 16, 1, ops::ConvOptions{.groups = 2});
      return net;
    };
    for (const char* path : {"point", "stride", "wide", "up", "groups"})
      for (const char* format :
           {"e4m3-g16-scalef32", "mxfp4+rht16", "e4m3+scale=current", "mxfp8"}) {
        CAPTURE(path);
        CAPTURE(format);
        const auto net = made();
        Run run;
        net->initialise(run);
        Rule rule;
        rule.path = path;
        rule.forward = rule.backward = Quantizer(format);
        const std::string text = refusal([&] { nn::apply(Policy{{rule}}, *net); });
        if (!text.empty()) {
          CHECK(has(text, std::string("rule 1: ") + path + " (Conv"));
          CHECK(formats_at(*net, path).is_identity());
        }
        for (const nn::Layer& layer : nn::layers_of(*net))
          if (layer.path == path) *layer.formats = OpFormats::make(format, format);
        Tape tape(run);
        const std::string in_op = refusal([&] {
          (*net)(tape, tape.constant(Tensor::zeros({2, 4, 4, 16}, DType::F32, kCpu)));
        });
        CHECK(in_op.empty() == text.empty());
        if (!in_op.empty()) CHECK(has(in_op, std::string(path) + ": conv"));
      }
    const auto net = made();
    const Policy late = parsed(
        R"({"type": "conv", "from_epoch": 3, "to_epoch": 4, "weight": "e4m3-g16-scalef32"})");
    nn::apply(late, *net, 1);  // of that epoch only
    CHECK(
        has(refusal([&] { nn::check(late, nn::layers_of(*net), 5); }), "p.json, line 1: stride ("));
    CHECK(has(refusal([&] { nn::check(late, nn::layers_of(*net), 2); }), "begins with epoch 3"));
  }

  TEST_CASE("a rule that matches nothing names what is near, and nothing is changed") {
    const auto net = network();
    nn::apply(parsed(R"({"path": "stem", "weight": "e4m3"})"), *net);
    const auto refused = [&](const char* rules) {
      const std::string text = refusal([&] { nn::apply(parsed(rules), *net); });
      CHECK(has(text, "p.json, line 1: "));
      CHECK(formats_at(*net, "stem").weight == Quantizer("e4m3"));
      return text;
    };
    CHECK(has(refused(R"({"path": "stem", "weight": "e5m2"}, {"path": "steam", "weight": "e4m3"})"),
              "the path 'steam' matches no layer; near it are stem"));
    CHECK(
        has(refused(R"({"path": "features.*.cnv1", "weight": "e4m3"})"), "near it are features."));
    CHECK(has(refused(R"({"path": "features.0", "weight": "e4m3"})"),
              "those below it are 'features.0.*'"));
    CHECK(has(refused(R"({"type": "pool", "input": "e4m3"})"),
              "no layer is of type pool; there are conv (stem, features.0.res.body.conv1"));
    CHECK(has(refused(R"({"type": ["attention", "pool"], "path": "head", "input": "e4m3"})"),
              "no layer on the path 'head' is of type attention or pool; there are linear (head)"));
    CHECK(has(refused(R"({"type": "loss", "interior": "e4m3"})"), "no layer is of type loss"));
    // A rule of a later epoch is looked at now.
    CHECK(has(refused(R"({"from_epoch": 7, "path": "nowhere", "input": "e4m3"})"), "'nowhere'"));
  }

  TEST_CASE("a role that no matched layer uses is an error, one that some use is none") {
    const auto net = network();
    const auto refused = [&](const char* rules) {
      return refusal([&] { nn::apply(parsed(rules), *net); });
    };
    CHECK(refused(R"({"path": "features.0.*", "interior": "bf16"})").empty());
    CHECK(has(refused(R"({"type": "conv", "interior": "bf16"})"),
              "no layer that it matches uses \"interior\"; stem (conv) has input, weight"));
    CHECK(has(refused(R"({"type": "activation", "weight": "bf16"})"), "\"weight\""));
    CHECK(refused(R"({"type": "activation", "backward": "bf16", "forward": "e4m3"})").empty());
    CHECK(has(refused(R"({"type": "normalization", "backward": "bf16"})"), "\"backward\""));
    CHECK(refused(R"({"type": "conv", "forward_acc": "fp32", "dx_acc": "fp32"})").empty());
    CHECK(has(refused(R"({"type": "activation", "dw_acc": "fp32"})"), "\"dw_acc\""));
    Policy direct;
    direct.rules.push_back({.types = {LayerType::Conv}, .forward = "bfp8-axis2"});
    CHECK(has(refusal([&] { nn::apply(direct, *net); }), "rule 1: \"forward\" does not fit"));
    direct.rules = {{.from_epoch = 3, .to_epoch = 2, .forward = "e4m3"}};
    CHECK(has(refusal([&] { nn::apply(direct, *net); }), "from 3 to 2"));
    Rule sums{.types = {LayerType::Conv}};
    sums.forward_acc.emplace().kind = Accumulator::Kind::Kahan;
    sums.forward_acc->sum = "bfp8";
    direct.rules = {sums};
    CHECK(has(refusal([&] { nn::apply(direct, *net); }),
              "rule 1: \"forward_acc\" does not fit: bfp8"));
  }

  TEST_CASE("lower: one line for all layers of some types, on top of what they have") {
    const auto net = network();
    nn::layers_of(*net)[0].formats->output = Quantizer("e2m1");
    nn::lower(*net, {LayerType::Conv}, "e4m3", "e5m2:sr");
    OpFormats stem = OpFormats::make("e4m3", "e5m2:sr");
    stem.output = Quantizer("e2m1");
    CHECK(formats_at(*net, "stem") == stem);
    CHECK(formats_at(*net, "head").is_identity());
    nn::lower(*net, {LayerType::Activation, LayerType::Normalization}, "bf16");
    CHECK(formats_at(*net, "features.0.res.body.act").input == Quantizer("bf16"));
    CHECK(formats_at(*net, "features.0.res.body.act").grad_output_dx.is_identity());
    CHECK(has(refusal([&] { nn::lower(*net, {LayerType::Pool}, "e4m3"); }),
              "lower: no layer is of type pool"));
    // A model's formats from lower are those that it can be built with.
    Run run(kCpu, 3);
    const auto built = nn::mlp(4, std::vector<int64_t>{8}, 3, OpFormats::make("e4m3", "e5m2:sr"));
    const auto lowered = nn::mlp(4, std::vector<int64_t>{8}, 3);
    nn::lower(*lowered, {LayerType::Conv, LayerType::Linear}, "e4m3", "e5m2:sr");
    for (size_t i = 0; i < nn::layers_of(*built).size(); ++i)
      CHECK(*nn::layers_of(*built)[i].formats == *nn::layers_of(*lowered)[i].formats);
  }

  TEST_CASE("training through a change of formats equals switching by hand") {
    const nn::Dataset digits = nn::load_dataset("digits");
    const auto trained = [&](const std::function<void(nn::Module&, int64_t)>& prepare) {
      Run run(kCpu, 5);
      const auto net = nn::mlp(64, std::vector<int64_t>{16}, 10);
      net->initialise(run);
      optim::Optimizer sgd(run, net->parameters(), {.lr = 0.1, .momentum = 0.9});
      nn::Batches batches(run, digits, digits.train, 100);
      StepGraph graph(run);
      for (int epoch = 0; epoch < 4; ++epoch) {
        prepare(*net, epoch + 1);
        graph.reset();
        batches.shuffle(epoch);
        for (int64_t i = 0; i < batches.steps(); ++i)
          graph.run([&] {
            const nn::Batch batch = batches.next();
            Tape tape(run);
            tape.backward(
                ops::cross_entropy(tape, (*net)(tape, tape.constant(batch.inputs)), batch.labels));
            sgd.step();
          });
      }
      return net->parameters()[0]->value;
    };
    const Policy policy = parsed(R"({"type": "linear", "forward": "e4m3:sr", "backward": "e5m2"},
        {"from_epoch": 2, "to_epoch": 3, "path": "fc1", "forward": "e2m1:sr"})");
    const Tensor by_policy =
        trained([&](nn::Module& net, int64_t e) { nn::apply(policy, net, e); });
    const Tensor by_hand = trained([&](nn::Module& net, int64_t epoch) {
      for (nn::Module* module : net.modules())
        if (module->type() == LayerType::Linear)
          *module->formats() = OpFormats::make(
              module->path() == "fc1" && (epoch == 2 || epoch == 3) ? "e2m1:sr" : "e4m3:sr",
              "e5m2");
    });
    CHECK(same_bits(by_policy, by_hand));
    const Tensor without = trained([&](nn::Module& net, int64_t) { nn::apply(policy, net, 1); });
    CHECK(!same_bits(by_policy, without));
  }

  TEST_CASE("JSON: every key, and the rules come back from what is written") {
    const std::string text = R"({"rules": [
  {"type": ["conv", "linear", "attention"], "forward": "e4m3", "backward": "e5m2:sr"},
  {"path": "features.*.conv1", "position": "first", "from_epoch": 2, "to_epoch": 5,
   "input": "e4m3", "weight": "bfp8:sr", "output": "bf16", "grad_output_dx": "e5m2",
   "weight_dx": "e3m4", "grad_input": "fp16", "grad_output_dw": "mxfp8", "input_dw": "e2m3",
   "grad_weight": "tf32", "interior": "bf16:sr", "forward_acc": "chunk64/e6m9:sr/bf16", "dx_acc": "fp32",
   "dw_acc": "kahan/fp16"},
  {"type": "loss", "position": "last", "interior": "fp16"}
]})";
    const Policy policy = nn::parse_policy(text, "p.json");
    REQUIRE(policy.rules.size() == 3);
    CHECK(policy.rules[0].types ==
          std::vector<LayerType>{LayerType::Conv, LayerType::Linear, LayerType::Attention});
    CHECK(policy.rules[0].origin == "p.json, line 2");
    CHECK(policy.rules[1].origin == "p.json, line 3");
    CHECK(policy.rules[1].path == "features.*.conv1");
    CHECK(policy.rules[1].from_epoch == 2);
    CHECK(policy.rules[1].to_epoch == 5);
    CHECK(policy.rules[1].position == Position::First);
    CHECK(policy.rules[1].roles[9] == Quantizer("bf16:sr"));
    CHECK(policy.rules[1].forward_acc == Accumulator("chunk64/e6m9:sr/bf16"));
    CHECK(policy.rules[1].dx_acc == Accumulator{});
    CHECK(policy.rules[1].dw_acc == Accumulator("kahan/e5m10"));
    CHECK(policy.rules[2].position == Position::Last);
    const std::string written = nn::rules_json(policy);
    CHECK(nn::parse_policy("{\"rules\":" + written + "}", "again") == policy);
    CHECK(nlohmann::json::parse(written) == nlohmann::json::parse(text).at("rules"));
    CHECK(nn::parse_rules_of("{\"x\": 1, \"policy\": " + written + "}", "policy", "c") == policy);
    CHECK(nn::parse_policy("{\"rules\": []}", "p").rules.empty());
    CHECK(nn::rules_json({}) == "[]");
    for (size_t i = 1; i < 12; ++i)
      CHECK(static_cast<size_t>(nn::parse_layer_type(nn::layer_type_names()[i - 1])) == i);
  }

  TEST_CASE("JSON: what is wrong is told with its line and key") {
    struct Case {
      const char* text;
      std::vector<const char*> words;
    };
    const std::vector<Case> cases = {
        {"", {"line 1", "ends too early"}},
        {"{\"rules\": [\n", {"line 2", "ends too early"}},
        {"{\n\"rules\": [\n{\"type\": conv}]}", {"line 3, column 10: no JSON"}},
        {"{\"rules\": [],\n}", {"line 2, column 1: no JSON"}},
        {"{\"rules\": []\n", {"line 2, column 1: no JSON: the text ends too early"}},
        {"", {"line 1, column 1: no JSON: the text ends too early"}},
        {"{\"rules\": \"a\nb\"}", {"line 1, column 13: no JSON"}},
        {"[]", {"line 1", "\"rules\"", "a list"}},
        {"{}", {"\"rules\" is missing"}},
        {"{\n\n\"rulse\": []}", {"line 3", "\"rulse\"", "there is \"rules\""}},
        {"{\"rules\": 3}", {"line 1", "\"rules\"", "a whole number"}},
        {"{\"rules\": [\n\n3]}", {"line 3", "a rule is an object"}},
        {"{\"rules\": [\n{}]}", {"line 2", "sets no format"}},
        {"{\"rules\": [\n{\"type\": \"conv\"}]}", {"line 2", "sets no format"}},
        {"{\"rules\": [\n{\"type\": \"conv\",\n\"wieght\": \"e4m3\"}]}",
         {"line 3", "\"wieght\"", "near it are \"weight\""}},
        {"{\"rules\": [\n{\"type\":\n \"convv\",\n\"weight\": \"e4m3\"}]}",
         {"line 2", "\"type\"", "'convv'", "near it is conv"}},
        {"{\"rules\": [{\"type\": [\"conv\",\n \"pol\"], \"weight\": \"e4m3\"}]}",
         {"line 2", "\"type\"", "'pol'", "near it is pool"}},
        {"{\"rules\": [{\"type\": \"conv\", \"accumulator\": \"fp32\"}]}",
         {"near it are \"forward_acc\", \"dx_acc\", \"dw_acc\" (all"}},
        {"{\"rules\": [{\"type\": [], \"weight\": \"e4m3\"}]}", {"line 1", "\"type\"", "empty"}},
        {"{\"rules\": [{\"type\": [1], \"weight\": \"e4m3\"}]}", {"\"type\"", "a whole number"}},
        {"{\"rules\": [{\"type\": \"container\", \"input\": \"e4m3\"}]}", {"'container'"}},
        {"{\"rules\": [{\"type\": \"normalization\", \"interior\": \"bfp8\"}]}",
         {"\"interior\"", "interior takes element-wise formats, got bfp8; blocks"}},
        {"{\"rules\": [{\"path\": \"\", \"weight\": \"e4m3\"}]}", {"\"path\"", "empty"}},
        {"{\"rules\": [{\"path\": [\"a\"], \"weight\": \"e4m3\"}]}", {"\"path\"", "a list"}},
        {"{\"rules\": [{\"position\": \"middle\", \"weight\": \"e4m3\"}]}",
         {"\"position\"", "first or last", "'middle'"}},
        {"{\"rules\": [{\n\"weight\": \"e99m1\"}]}", {"line 2", "\"weight\"", "e99m1"}},
        {"{\"rules\": [{\n\"weight\": 8\n}]}", {"line 2", "\"weight\"", "a whole number (8)"}},
        {"{\"rules\": [{\"weight\": null}]}", {"\"weight\"", "null"}},
        {"{\"rules\": [{\"weight\": true}]}", {"\"weight\"", "a truth value (true)"}},
        {"{\"rules\": [{\"weight\": \"bfp8-axis2\"}]}", {"\"weight\"", "axes 0 and 1"}},
        {"{\"rules\": [{\"forward\": \"bfp8-axis2\"}]}", {"\"forward\"", "axes 0 and 1"}},
        {"{\"rules\": [{\"interior\": \"bfp8\"}]}", {"\"interior\"", "takes element-wise"}},
        {"{\"rules\": [{\n\"forward_acc\": \"bfp8\"}]}",
         {"line 2", "\"forward_acc\"", "sums 'bfp8'", "a sum is one number"}},
        {"{\"rules\": [{\"from_epoch\": 0, \"weight\": \"e4m3\"}]}", {"\"from_epoch\"", "from 1"}},
        {"{\"rules\": [{\"from_epoch\": 1.5, \"weight\": \"e4m3\"}]}", {"\"from_epoch\"", "1.5"}},
        {"{\"rules\": [{\"from_epoch\": 3,\n\"to_epoch\": 2, \"weight\": \"e4m3\"}]}",
         {"line 2", "\"to_epoch\"", "from 3 to 2"}},
        {"{\"rules\": [{\"weight\": \"e4m3\",\n\"weight\": \"e5m2\"}]}",
         {"line 2", "\"weight\"", "line 1"}},
        {"{\"rules\": [{\"weight\": \"e4m3\"}],\n\"rules\": []}",
         {"line 2", "\"rules\"", "line 1"}},
    };
    for (const Case& c : cases) {
      CAPTURE(c.text);
      const std::string text = refusal([&] { nn::parse_policy(c.text, "dir/p.json"); });
      CHECK(text.starts_with("dir/p.json"));
      CHECK(text.find('\n') == std::string::npos);
      for (const char* word : c.words) CHECK(has(text, word));
    }
    const std::string deep(100, '[');
    CHECK(has(refusal([&] { nn::parse_policy(deep, "p"); }), "64 brackets"));
    CHECK(has(refusal([] { nn::load_policy("/nowhere/p.json"); }), "/nowhere/p.json"));
    CHECK(has(refusal([] { nn::parse_rules_of("{}", "policy", "c.json"); }),
              "c.json: the key \"policy\" is missing"));
  }

  TEST_CASE("located JSON knows lines of keys and of list items, and keeps whole numbers") {
    const nn::LocatedJson json = nn::parse_located(
        "{\n \"a\": 12\n,\n \"b\": [\"x\",\n\n \"y\", -3, 2.5, 18446744073709551615]\n}", "j");
    REQUIRE(json.members.size() == 2);
    CHECK(json.members[0].line == 2);
    CHECK(json.find("a")->integer == 12);
    CHECK(json.find("a")->line == 2);
    const nn::LocatedJson& list = *json.find("b");
    CHECK(list.line == 4);
    REQUIRE(list.items.size() == 5);
    CHECK(list.items[0].line == 4);
    CHECK(list.items[1].line == 6);
    CHECK(list.items[2].integer == -3);
    CHECK(list.items[2].number == -3);
    CHECK(list.items[3].number == 2.5);
    CHECK(list.items[4].number == 0x1p64);
    CHECK(list.items[3].shown() == "a number (2.5)");
    CHECK(list.shown() == "a list");
    CHECK(list.items[3].kind == nn::LocatedJson::Kind::Number);
    CHECK(list.items[4].kind == nn::LocatedJson::Kind::Number);
    CHECK(json.find("c") == nullptr);
  }

  TEST_CASE("the tree of a model has shapes, parameters and products of nested containers") {
    Run run(kCpu, 2);
    const auto net = network();
    net->initialise(run);
    nn::TrainingLoss loss;
    nn::apply(parsed(R"({"type": "conv", "forward": "e4m3", "backward": "e5m2"},
                        {"type": "normalization", "interior": "bf16"})"),
              nn::layers_of(*net, loss), 1);
    const nn::ModelTree tree(run, *net, "net", {4});
    REQUIRE(tree.nodes().size() == net->modules().size());
    int64_t parameters = 0;
    for (const Parameter* p : net->parameters()) parameters += p->value.numel();
    CHECK(tree.parameters() == parameters);
    CHECK(tree.parameter_bytes() == 4 * parameters);
    CHECK(tree.buffer_bytes() == 2 * 2 * 8 * 4);
    const auto node = [&](const std::string& path) {
      for (const nn::TreeNode& n : tree.nodes())
        if (n.module->path() == path) return n;
      throw Error(path);
    };
    for (const nn::TreeNode& n : tree.nodes()) CHECK(n.seen);
    CHECK(node("stem").output == Shape{1, 8});
    CHECK(node("stem").input == Shape{1, 4});
    CHECK(!node("stem").needs_dx);
    CHECK(node("features.1.res.body.conv1").needs_dx);
    CHECK(node("features.1.res.body.conv1").depth == 5);
    CHECK(node("head").output == Shape{1, 3});
    CHECK(node("stem").parameters == 8 * 4 + 8);
    CHECK(node("features").parameters == 0);
    CHECK(tree.products(node("features"), 32, Math::Fast).empty());

    const auto stem = tree.products(node("stem"), 32, Math::Fast);
    REQUIRE(stem.size() == 2);
    CHECK(nn::to_string(stem[0]) == "32 × 8 × 4: bf16 tensor cores");
    CHECK(nn::to_string(stem[1]) == "8 × 4 × 32: bf16 tensor cores");
    CHECK(std::string(stem[1].name) == "dw");
    const auto conv = tree.products(node("features.0.res.body.conv1"), 32, Math::Strict);
    REQUIRE(conv.size() == 3);
    CHECK(nn::to_string(conv[1]) == "32 × 8 × 8: fp32 in strict order");
    CHECK(nn::to_string(tree.products(node("head"), 32, Math::Fast)[0]) == "32 × 3 × 8: fp32");
    CHECK(nn::to_string(tree.products(node("head"), 32, Math::Tf32)[0]) ==
          "32 × 3 × 8: tf32 tensor cores");

    const std::string text = nn::tree_text(tree, nn::layers_of(*net, loss), 32, Math::Fast);
    for (const char* words :
         {"net", "├ stem", "└ head", "├ features", "│ ├ 0", "│ └ 1", "res", "└ body",
          "FakeResidual", "weight e4m3", "grad_output_dx e5m2", "interior bf16",
          "40 parameters, 160 bytes", "dw       8 × 4 × 32: bf16 tensor cores",
          "dx       not needed", "cross-entropy", "interior fp32  grad_input fp32"})
      CHECK(has(text, words));
    // Nobody looks on afterwards.
    Tape tape(run);
    (*net)(tape, tape.constant(Tensor::zeros({1, 4}, DType::F32, kCpu)));
    CHECK(tree.nodes()[0].output == Shape{1, 3});
    CHECK(net->mode() == nn::Mode::Train);
  }

  TEST_CASE("planned products are those of the operands that quantising makes") {
    const int64_t rows = 32, in = 48, out = 64;
    Run run(kCpu, 4);
    const Tensor x = Tensor::zeros({rows, in}, DType::F32, kCpu),
                 w = Tensor::zeros({out, in}, DType::F32, kCpu);
    for (const char* a : {"fp32", "e4m3", "e5m2", "bf16", "fp16", "tf32", "e5m10", "bfp8", "mxfp4",
                          "nvfp4", "fixed16.8", "posit16.1", "nf4-g16-scalef32",
                          "e4m3-t16x16-scalef32", "e4m3+scale=current"})
      for (const char* b : {"fp32", "e4m3", "fp16", "e4m3-g24-scalef32"})
        for (const Math math : {Math::Strict, Math::Fast, Math::Tf32, Math::Fp8}) {
          CAPTURE(a);
          CAPTURE(b);
          CAPTURE(std::string(to_string(math)));
          nn::Sequential net;
          net.add<nn::Linear>("fc", in, out);
          net.initialise(run);
          nn::layers_of(net)[0].formats->input = Quantizer(a);
          nn::layers_of(net)[0].formats->weight = Quantizer(b);
          const nn::ModelTree tree(run, net, "net", {in});
          const nn::PlannedProduct planned = tree.products(tree.nodes()[1], rows, math)[0];

          const auto use = [&](const char* format) {
            QuantiseUse u;
            u.quantizer = Quantizer(format);
            u.axis = 1;
            u.math = math;
            return u;
          };
          const Operand xq = quantised_operand(run.stream(), x, use(a), Side::Left);
          const Operand wq = quantised_operand(run.stream(), w, use(b), Side::Right);
          MatmulArgs args;
          int64_t depth = in;
          for (const Operand* o : {&xq, &wq})
            if (o->has_factors() && o->factors.values.numel() != 1)
              depth = std::min(depth, o->factors.columns);
          args.a = xq.values.slice(1, 0, depth);
          args.b = wq.values.transpose(0, 1).slice(0, 0, depth);
          args.math = math;
          args.fits_tf32 = (xq.fits_tf32 || xq.values.dtype() != DType::F32) &&
                           (wq.fits_tf32 || wq.values.dtype() != DType::F32);
          CHECK(planned.unit == matrix_unit(args).unit);
          CHECK((planned.parts == 1) == (depth == in));
          CHECK(planned.problem.empty());
        }
    nn::Sequential net;
    net.add<nn::Linear>("fc", in, out);
    net.initialise(run);
    *nn::layers_of(net)[0].formats = OpFormats::make("e5m2", "e4m3");
    const nn::ModelTree tree(run, net, "net", {in});
    CHECK(has(tree.products(tree.nodes()[1], rows, Math::Fp8)[0].problem, "e5m2 x e5m2"));
    nn::layers_of(net)[0].formats->input = Quantizer("mxfp4+rht16");
    CHECK(has(tree.products(tree.nodes()[1], rows, Math::Fast)[0].problem, "rotated"));
  }
}
