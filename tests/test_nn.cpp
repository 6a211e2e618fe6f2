#include <doctest/doctest.h>

#include <cmath>
#include <map>

#include "nn/activations.h"
#include "nn/linear.h"
#include "nn/models.h"
#include "nn/quantize.h"
#include "nn/sequential.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

TEST_SUITE("nn") {
  TEST_CASE("paths, parameters and values follow the names of the children") {
    Run run(kCpu, 7);
    auto inner = std::make_unique<nn::Sequential>();
    inner->add<nn::Linear>("fc", 3, 4);
    nn::Sequential net;
    net.append("block", std::move(inner))
        .add<nn::GELU>("act")
        .add<nn::Linear>("head", 4, 2, OpFormats{}, nn::Linear::Bias::No);
    net.initialise(run);
    std::vector<std::string> paths;
    for (const Parameter* p : net.parameters()) paths.push_back(p->path);
    CHECK(paths == std::vector<std::string>{"block.fc.weight", "block.fc.bias", "head.weight"});
    CHECK(net.modules().size() == 5);
    CHECK(net.parameters()[1]->value.to_floats() == std::vector<float>(4, 0.0f));
    const double bound = std::sqrt(6.0 / 3);
    double most = 0;
    for (const float v : net.parameters()[0]->value.to_floats())
      most = std::max(most, std::abs(static_cast<double>(v)));
    CHECK(most <= bound);
    CHECK(most > 0.3 * bound);
  }

  TEST_CASE("initial values depend on seed and path only: a layer elsewhere changes nothing") {
    const auto weights = [](uint64_t seed, bool extra) {
      Run run(kCpu, seed);
      nn::Sequential net;
      if (extra) net.add<nn::Linear>("other", 5, 5);
      net.add<nn::Linear>("fc", 5, 5);
      net.initialise(run);
      return net.parameters()[extra ? 2 : 0]->value;
    };
    CHECK(same_bits(weights(1, false), weights(1, true)));
    CHECK(!same_bits(weights(1, false), weights(2, false)));
  }

  TEST_CASE("a model computes what its ops compute") {
    Run run;
    const auto net = nn::mlp(6, std::vector<int64_t>{5, 4}, 3, OpFormats::make("e4m3", "e5m2:sr"));
    net->initialise(run);
    const Tensor x = random_tensor({7, 6}, -1, 1, 2);
    Tape tape(run), other(run);
    const Var y = (*net)(tape, tape.constant(x));
    const OpFormats f = OpFormats::make("e4m3", "e5m2:sr");
    const auto p = net->parameters();
    Var z = other.constant(x);
    z = ops::relu(
        other, ops::linear(other, z, other.watch(*p[0]), other.watch(*p[1]), f, RandomSite("fc1")));
    z = ops::relu(
        other, ops::linear(other, z, other.watch(*p[2]), other.watch(*p[3]), f, RandomSite("fc2")));
    z = ops::linear(other, z, other.watch(*p[4]), other.watch(*p[5]), f, RandomSite("fc3"));
    CHECK(same_bits(y.value, z.value));
    CHECK(y.shape() == Shape{7, 3});
  }

  TEST_CASE("Quantize stands anywhere in a graph") {
    Run run;
    nn::Sequential net;
    net.add<nn::Quantize>(
        "q", ops::QuantizeFormats{Quantizer::parse("fixed4.2"), Quantizer::parse("e5m2"), true});
    net.initialise(run);
    Tape tape(run);
    const Var x = tape.leaf(Tensor::from(std::vector<float>{0.3f, 5}, {2}));
    const Var y = net(tape, x);
    CHECK(y.value.to_floats() == std::vector<float>{0.25f, 1.75f});
    tape.backward(y, Tensor::from(std::vector<float>{1.1f, 1}, {2}));
    CHECK(tape.grad(x).to_floats() == std::vector<float>{1, 0});
    CHECK(net.modules()[1]->describe() == "Quantize fixed4.2, backward e5m2, clamp mask");
  }

  TEST_CASE("misuse is named") {
    nn::Sequential net;
    net.add<nn::ReLU>("a");
    CHECK_THROWS_WITH_AS(net.add<nn::ReLU>("a"), doctest::Contains("a child 'a' already"), Error);
    CHECK_THROWS_WITH_AS(net.add<nn::ReLU>("a.b"), doctest::Contains("without '.'"), Error);
    CHECK_THROWS_WITH_AS(nn::Linear(0, 3), doctest::Contains("at least 1"), Error);
    Run run;
    nn::Linear raw(2, 2);
    Tape tape(run);
    CHECK_THROWS_WITH_AS(raw.forward(tape, tape.constant(random_tensor({1, 2}, 0, 1, 1))),
                         doctest::Contains("initialise the model first"), Error);
  }

  TEST_CASE("two random streams that coincide are told apart when the model is built") {
    Run run;
    std::map<uint32_t, std::string> seen;
    std::string a, b;
    for (int i = 0; a.empty() && i < 400000; ++i) {
      const PhiloxWords w = philox4x32({{static_cast<uint32_t>(i), 0, 0, 0}}, 1, 2);
      const std::string name = "m" + std::to_string(w.word[0]) + "x" + std::to_string(w.word[1]);
      const auto [at, added] = seen.emplace(RandomSite(name).stream("input"), name);
      if (!added) {
        a = at->second;
        b = name;
      }
    }
    REQUIRE(!a.empty());
    nn::Sequential net;
    net.add<nn::ReLU>(a).add<nn::ReLU>(b);
    net.initialise(run);
    const std::vector<nn::Module*> modules = net.modules();
    REQUIRE(modules.size() == 3);
    CHECK(modules[1]->site().stream("input") == RandomSite(a).stream("input"));
    CHECK(modules[2]->site().stream("input") != RandomSite(b).stream("input"));
    CHECK(modules[2]->path() == b);
    // The one that stands first keeps the numbers of its name.
    nn::Sequential turned;
    turned.add<nn::ReLU>(b).add<nn::ReLU>(a);
    turned.initialise(run);
    CHECK(turned.modules()[1]->site().stream("input") == RandomSite(b).stream("input"));
    CHECK(turned.modules()[2]->site().stream("input") != RandomSite(a).stream("input"));
  }
}
