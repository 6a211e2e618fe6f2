#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "autograd/embedding.h"
#include "autograd/rotary.h"
#include "nn/evaluate.h"
#include "nn/models.h"
#include "nn/models/by_name.h"
#include "nn/pieces.h"
#include "nn/policy.h"
#include "tests/near.h"
#include "tests/op_table.h"
#include "tests/paths.h"

using namespace ulp;
using namespace ulp::tests;
using nlohmann::json;

namespace {

const json& fixture() {
  static const json all = json::parse(std::ifstream(std::string(paths::kTestData) + "/gpt.json"));
  return all;
}

Tensor tokens_of(const json& rows) {
  std::vector<int32_t> tokens;
  for (const json& row : rows)
    for (const json& token : row) tokens.push_back(token.get<int32_t>());
  return Tensor::from(tokens,
                      {static_cast<int64_t>(rows.size()), static_cast<int64_t>(rows.at(0).size())});
}

Var build(Tape& tape, const json& c, const std::map<std::string, Var>& in) {
  const std::string op = c.at("op");
  const json& o = c.at("options");
  if (op == "embedding") return ops::embedding(tape, tokens_of(o.at("tokens")), in.at("table"));
  if (op == "positions")
    return ops::add_positions(tape, in.at("x"), in.at("table"), o.at("offset"));
  if (op == "rotary") return ops::rotary(tape, in.at("x"), o.at("offset"));
  REQUIRE(op == "swiglu");
  return ops::swiglu(tape, in.at("x"));
}

nn::SequenceOptions options_of(const json& o) {
  using S = nn::SequenceOptions;
  S s;
  s.layers = o.at("layers");
  s.width = o.at("width");
  s.heads = o.at("heads");
  s.context = o.at("context");
  s.positions = o.at("positions") == "learned" ? S::Positions::Learned : S::Positions::Rotary;
  s.mlp = o.at("mlp") == "gelu" ? S::Mlp::Gelu : S::Mlp::Swiglu;
  s.norm = o.at("norm") == "layer" ? S::Norm::Layer : S::Norm::Rms;
  s.tie = o.at("tie");
  return s;
}

Tensor some_tokens(int64_t batch, int64_t length, int64_t vocabulary) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < batch * length; ++i)
    tokens.push_back(static_cast<int32_t>((i * i * 7 + i * 3) % vocabulary));
  return Tensor::from(tokens, {batch, length});
}

std::vector<nn::SequenceOptions> every_kind() {
  using S = nn::SequenceOptions;
  S a, b;
  a.layers = b.layers = 2;
  a.width = b.width = 24;
  a.heads = b.heads = 3;
  a.context = b.context = 21;
  b.positions = S::Positions::Rotary;
  b.mlp = S::Mlp::Swiglu;
  b.norm = S::Norm::Rms;
  b.tie = true;
  return {a, b};
}

}  // namespace

TEST_SUITE("gpt") {
  TEST_CASE("ops agree with PyTorch in fp64") {
    Run run;
    for (const json& c : fixture().at("cases")) {
      CAPTURE(c.at("op").get<std::string>());
      Tape tape(run);
      std::map<std::string, Var> in;
      for (const auto& [name, value] : c.at("inputs").items())
        if (name != "g") in[name] = tape.leaf(tensor_of(value));
      const Var y = build(tape, c, in);
      tape.backward(y, tensor_of(c.at("inputs").at("g")));
      CHECK(near(y.value, c.at("results").at("y")));
      for (const auto& [name, var] : in)
        CHECK(near(tape.grad(var), c.at("results").at("d" + name)));
    }
  }

  TEST_CASE("whole models agree with PyTorch in fp64: logits, loss and every gradient") {
    for (const json& m : fixture().at("models")) {
      Run run;
      const auto net = nn::gpt(m.at("options").at("vocabulary"), options_of(m.at("options")));
      net->initialise(run);
      CHECK(net->parameters().size() == m.at("parameters").size());
      for (Parameter* p : net->parameters()) {
        CAPTURE(p->path);
        REQUIRE(m.at("parameters").contains(p->path));
        const Tensor value = tensor_of(m.at("parameters").at(p->path));
        REQUIRE(value.shape() == p->value.shape());
        p->value = value;
      }
      Tape tape(run);
      const Var logits = (*net)(tape, tape.constant(tokens_of(m.at("tokens"))));
      CHECK(near(logits.value, m.at("logits")));
      const auto labels = m.at("labels").get<std::vector<int32_t>>();
      const Var loss =
          ops::cross_entropy(tape, nn::logit_rows(tape, logits),
                             Tensor::from(labels, {static_cast<int64_t>(labels.size())}));
      CHECK(loss.value.item() == doctest::Approx(m.at("loss").get<double>()).epsilon(1e-5));
      tape.backward(loss);
      for (const Parameter* p : net->parameters()) {
        CAPTURE(p->path);
        CHECK(near(p->grad, m.at("gradients").at(p->path)));
      }
    }
  }

  TEST_CASE("everything quantised: results in narrow types change no bit of loss or gradients") {
    for (const nn::SequenceOptions& o : every_kind()) {
      const auto trained = [&](bool narrow) {
        Run run;
        run.keep_narrow(narrow);
        const auto net = nn::gpt(13, o);
        net->initialise(run);
        nn::TrainingLoss loss;
        nn::Policy policy;
        nn::Rule rule;
        for (const Role& role : kRoles) {
          const std::string_view name = role.name;
          const bool result = name == "output" || name == "grad_input" || name == "grad_weight";
          rule.role(name) = result || name == "interior" ? Quantizer("bf16")
                            : name.starts_with("grad")   ? Quantizer("e5m2:sr")
                                                         : Quantizer("e4m3");
        }
        policy.rules.push_back(rule);
        const std::vector<nn::Layer> layers = nn::layers_of(*net, loss);
        nn::apply(policy, layers, 1);
        Tape tape(run);
        const Tensor tokens = some_tokens(3, o.context, 13);
        const Var logits = nn::logit_rows(tape, (*net)(tape, tape.constant(tokens)));
        CHECK(logits.value.dtype() == (narrow ? DType::BF16 : DType::F32));
        const Var value = loss.of(tape, logits, tokens.reshape({tokens.numel()}));
        tape.backward(value);
        std::vector<Tensor> all{value.value, logits.value};
        for (const Parameter* p : net->parameters()) all.push_back(p->grad);
        return all;
      };
      const std::vector<Tensor> wide = trained(false), narrow = trained(true);
      REQUIRE(wide.size() == narrow.size());
      for (size_t i = 0; i < wide.size(); ++i) CHECK(same_bits(wide[i], narrow[i]));
    }
  }

  TEST_CASE("no place sees those after it, and pieces have the bits of the whole") {
    for (const nn::SequenceOptions& o : every_kind())
      for (const char* format : {"fp32", "e4m3", "mxfp8"}) {
        CAPTURE(std::string(format));
        Run run;
        const auto net = nn::gpt(13, o);
        net->initialise(run);
        nn::Policy policy;
        policy.rules.emplace_back();
        policy.rules[0].types = {nn::LayerType::Linear};
        policy.rules[0].forward = Quantizer::parse(format);
        nn::apply(policy, *net);
        CHECK(nn::obstacle_of(*net).empty());
        const Tensor tokens = some_tokens(2, 21, 13);
        const nn::EvaluationMode mode(*net);
        Tape tape(run, Tape::Recording::Off);
        const Tensor whole = (*net)(tape, tape.constant(tokens)).value;
        REQUIRE(whole.shape() == Shape{2, 21, 13});
        const auto places = [&](int64_t from, int64_t to) {
          return kernels::contiguous(run.stream(), whole.slice(1, from, to));
        };
        const auto piece = [&](int64_t from, int64_t to) {
          return tape.constant(kernels::contiguous(run.stream(), tokens.slice(1, from, to)));
        };
        CHECK(same_bits((*net)(tape, piece(0, 8)).value, places(0, 8)));
        for (int round = 0; round < 2; ++round) {  // begin forgets
          const nn::InPieces pieces(*net, 2, 21);
          int64_t at = 0;
          for (const int64_t length : {5, 1, 1, 7, 1, 6}) {
            CHECK(same_bits((*net)(tape, piece(at, at + length)).value, places(at, at + length)));
            at += length;
          }
        }
        CHECK(same_bits((*net)(tape, tape.constant(tokens)).value, whole));
      }
  }

  TEST_CASE("layers can be reached by their paths and types") {
    Run run;
    const auto net = nn::gpt(13, every_kind()[0]);
    net->initialise(run);
    std::set<std::string> paths;
    for (const nn::Layer& layer : nn::layers_of(*net)) paths.insert(layer.path);
    for (const char* path : {"tokens", "positions", "block1.attn.body.norm", "block2.mlp.body.fc1",
                             "block2.mlp.body.act", "norm", "head"})
      CHECK(paths.count(path) == 1);
    nn::Policy policy;
    policy.rules.emplace_back();
    policy.rules[0].path = "*.attention.*";
    policy.rules[0].forward = Quantizer::parse("e4m3");
    nn::apply(policy, *net);
  }

  TEST_CASE("sizes that do not fit are refused") {
    nn::SequenceOptions o = every_kind()[0];
    o.heads = 5;
    CHECK_THROWS_AS(nn::gpt(13, o), Error);
    o = every_kind()[1];
    o.heads = 8;  // three values a head: no pairs
    CHECK_THROWS_AS(nn::gpt(13, o), Error);
    o = every_kind()[0];
    o.layers = 0;
    CHECK_THROWS_AS(nn::gpt(13, o), Error);
    Run run;
    const auto net = nn::gpt(13, every_kind()[0]);
    net->initialise(run);
    Tape tape(run);
    CHECK_THROWS_AS((*net)(tape, tape.constant(some_tokens(1, 22, 13))), Error);
    CHECK(nn::is_text_model("gpt"));
    CHECK(!nn::is_text_model("vit-tiny"));
  }

  TEST_CASE("vit-tiny: patches, blocks that see every place, one row of logits an image") {
    Run run;
    const auto net = nn::vit_tiny({8, 8, 1}, 10);
    net->initialise(run);
    Tape tape(run);
    const Var y = (*net)(tape, tape.constant(random_tensor({2, 64}, 0, 1, 1)));
    CHECK(y.shape() == Shape{2, 10});
    tape.backward(y, random_tensor({2, 10}, -1, 1, 2));
    for (const Parameter* p : net->parameters()) {
      CAPTURE(p->path);
      CHECK(p->grad.defined());
    }
    CHECK_THROWS_AS(nn::vit_tiny({9, 8, 1}, 10), Error);
    CHECK_THROWS_AS(nn::vit_tiny({30, 30, 3}, 10), Error);
  }
}
