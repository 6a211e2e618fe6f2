#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <map>

#include "autograd/attention.h"
#include "autograd/role_stats.h"
#include "autograd/scaling.h"
#include "nn/data/policy_file.h"
#include "nn/layers.h"
#include "nn/models.h"
#include "nn/models/by_name.h"
#include "nn/pieces.h"
#include "nn/recipes.h"
#include "nn/training_loss.h"
#include "nn/unit_scaling.h"
#include "tests/command.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

constexpr double kBand = 3;  // sizes from 1/kBand to kBand

bool in_band(double size) { return size >= 1 / kBand && size <= kBand; }

/// A model, and what it is made for: images of random pixels or tokens.
struct Case {
  std::string model;
  Shape image;
  int64_t batch;
  nn::SequenceOptions sequence{};
  bool is_text() const { return nn::is_text_model(model); }
};

nn::SequenceOptions small_gpt() {
  nn::SequenceOptions o;
  o.layers = 4;
  o.width = 64;
  o.heads = 4;
  o.context = 32;
  return o;
}

struct Prepared {
  Run run;
  std::unique_ptr<nn::Sequential> model;
  nn::TrainingLoss loss;
  Tensor inputs, labels;
};

constexpr int64_t kClasses = 10, kTokens = 50;

std::unique_ptr<Prepared> prepared(const Case& c, nn::WeightScheme scheme) {
  auto p = std::make_unique<Prepared>();
  const int64_t classes = c.is_text() ? kTokens : kClasses;
  p->model = nn::make_model(c.model, {c.image, classes, c.sequence, {256, 128}, {}});
  nn::apply_weight_scheme(*p->model, scheme);
  p->loss.scheme = scheme;
  p->model->initialise(p->run);
  nn::apply(nn::parse_policy(nn::recipe("unit-scaling").policy, "recipe"),
            nn::layers_of(*p->model, p->loss), 1);
  const int64_t length = c.is_text() ? c.sequence.context : 1, rows = c.batch * length;
  std::vector<int32_t> labels, tokens;
  for (int64_t i = 0; i < rows; ++i) {
    tokens.push_back(static_cast<int32_t>(i * 7919 % 104729 % classes));
    labels.push_back(static_cast<int32_t>(i * 104729 % 7919 % classes));
  }
  p->labels = Tensor::from(labels, {rows});
  const double bound = std::sqrt(3.0);
  p->inputs = c.is_text() ? Tensor::from(tokens, {c.batch, length})
                          : random_tensor({c.batch, c.image.numel()}, -bound, bound, 5);
  return p;
}

/// The size (root mean square) of every operand of every product in the first step, by "path role", as it comes to be rounded;
/// and how many of the numbers became 0 or too large.
struct Sizes {
  std::map<std::string, double> size;
  double lost = 0;  // the share
};

Sizes first_step(const Case& c, nn::WeightScheme scheme) {
  const auto p = prepared(c, scheme);
  RoleStats stats(kCpu);
  {
    const CountRoles counting(p->run, stats);
    Tape tape(p->run);
    Var logits = (*p->model)(tape, tape.constant(p->inputs));
    if (c.is_text()) logits = ops::reshape(tape, logits, {p->labels.numel(), kTokens});
    tape.backward(p->loss.of(tape, logits, p->labels));
  }
  const auto totals = stats.totals();
  Sizes sizes;
  double count = 0, lost = 0;
  for (const nn::Layer& layer : nn::layers_of(*p->model)) {
    if (!nn::has_product(layer.type)) continue;
    for (const char* role :
         {"input", "weight", "grad_output_dx", "weight_dx", "grad_output_dw", "input_dw"}) {
      const auto at = totals.find(RandomSite(layer.path).stream(role));
      if (!layer.uses(role) || at == totals.end()) continue;  // shared, or not needed
      const QuantiseStats& s = at->second.stats;
      REQUIRE(s.finite == s.count);
      sizes.size[layer.path + " " + role] = std::sqrt(s.square / static_cast<double>(s.count));
      count += static_cast<double>(s.count);
      lost += static_cast<double>(s.underflow + s.overflow);
    }
  }
  sizes.lost = lost / count;
  return sizes;
}

double size_of(const Tensor& t) {
  double sum = 0;
  for (const double x : t.to_doubles()) sum += x * x;
  return std::sqrt(sum / static_cast<double>(t.numel()));
}

}  // namespace

TEST_SUITE("unit_scaling") {
  TEST_CASE("at the first step all operands of all products have sizes near 1, without it not") {
    const std::vector<Case> cases = {
        {"mlp", {8, 8, 1}, 128},          {"lenet5", {28, 28, 1}, 32}, {"vgg7", {8, 8, 3}, 16},
        {"preresnet20", {16, 16, 3}, 16}, {"gpt", {}, 8, small_gpt()},
    };
    for (const Case& c : cases) {
      CAPTURE(c.model);
      const Sizes unit = first_step(c, nn::WeightScheme::Unit),
                  plain = first_step(c, nn::WeightScheme::Standard);
      REQUIRE(unit.size.size() == plain.size.size());
      CHECK(unit.size.size() >= 8);
      for (const auto& [role, size] : unit.size) {
        CAPTURE(role);
        CAPTURE(size);
        CHECK(in_band(size));
      }
      int64_t outside = 0;
      for (const auto& [role, size] : plain.size) outside += !in_band(size);
      CAPTURE(outside);
      CHECK(outside * 2 >= static_cast<int64_t>(plain.size.size()));
      CAPTURE(unit.lost);
      CAPTURE(plain.lost);
      CHECK(unit.lost < 0.01);
      CHECK(plain.lost > 2 * unit.lost);
    }
  }

  TEST_CASE("gains of functions: closed forms, and what the authors measured") {
    const auto gains = [](nn::Activation& f) {
      return nn::unit_gains(1, [&](Tape& tape, const Var& x) { return f(tape, x); });
    };
    const auto near = [](double got, double wanted, double by) {
      CAPTURE(got);
      CAPTURE(wanted);
      CHECK(std::abs(got - wanted) <= by);
    };
    nn::ReLU relu;
    near(gains(relu).forward, std::sqrt(2.0), 1e-5);  // E[max(z, 0)²] = ½, and so is E[z > 0]
    near(gains(relu).backward, std::sqrt(2.0), 1e-5);
    const double infinity = std::numeric_limits<double>::infinity();
    nn::Hardtanh identity(-infinity, infinity);
    near(gains(identity).forward, 1, 1e-9);
    near(gains(identity).backward, 1, 1e-9);
    // graphcore-research/unit-scaling, functional.py: deviations 0.588 and 0.675 of gelu; its mean is 1/(2√π).
    nn::GELU gelu;
    const double mean = 0.5 / std::sqrt(std::acos(-1.0));
    near(std::sqrt(std::pow(gains(gelu).forward, -2) - mean * mean), 0.588, 5e-4);
    near(1 / gains(gelu).backward, 0.675, 5e-4);
    // E[M²] of the largest of n normal numbers: variance and mean of tables of order statistics.
    near(nn::largest_size(1), 1, 1e-9);
    near(nn::largest_size(2), 1, 1e-9);
    near(nn::largest_size(4), std::sqrt(0.4917152 + 1.0293754 * 1.0293754), 1e-6);
    near(nn::largest_size(9), std::sqrt(0.3573533 + 1.4850132 * 1.4850132), 1e-6);
  }

  TEST_CASE("every activation, pool and dropout makes size 1 of size 1, both ways") {
    using nn::Edge;
    const Tensor x = [] {  // normal by sums of twelve uniform numbers
      Tensor sum = Tensor::zeros({64, 16, 16, 8}, DType::F32, kCpu);
      float* out = sum.mutable_data<float>();
      for (uint64_t i = 0; i < 12; ++i) {
        const Tensor part = random_tensor(sum.shape(), -0.5, 0.5, 40 + i);
        for (int64_t k = 0; k < sum.numel(); ++k) out[k] += part.data<float>()[k];
      }
      return sum;
    }();
    nn::Sequential net;
    net.add<nn::ReLU>("relu").add<nn::GELU>("gelu").add<nn::ReLU6>("relu6");
    net.add<nn::LeakyReLU>("leaky", 0.2).add<nn::ELU>("elu").add<nn::Hardtanh>("hardtanh");
    net.add<nn::Sigmoid>("sigmoid").add<nn::Tanh>("tanh").add<nn::SiLU>("silu");
    net.add<nn::Softplus>("softplus").add<nn::SwiGLU>("swiglu").add<nn::Dropout>("drop", 0.3);
    net.add<nn::MaxPool2d>("max2", 2).add<nn::MaxPool2d>(
        "max3", ops::PoolOptions{.kernel = {3, 3}, .stride = {2, 2}, .padding = {1, 1}});
    net.add<nn::AvgPool2d>("average2", 2).add<nn::GlobalAvgPool>("average");
    Run run;
    nn::unit_scale(net);
    net.initialise(run);
    for (const nn::Module::Child& child : net.children()) {
      CAPTURE(child.name);
      Tape tape(run);
      const Var in = tape.leaf(x);
      const Var y = (*child.module)(tape, in);
      const Tensor g = random_tensor(y.shape(), -std::sqrt(3.0), std::sqrt(3.0), 7);
      tape.backward(y, g);
      const double forward = size_of(y.value), backward = size_of(tape.grad(in));
      CAPTURE(forward);
      CAPTURE(backward);
      if (child.name.starts_with("average"))  // what has no mean gets smaller
        CHECK(forward < 0.6);
      else
        CHECK(std::abs(forward - 1) < 0.05);
      CHECK(std::abs(backward - 1) < 0.05);
    }
  }

  TEST_CASE("gradients of parameters have sizes near 1, biases too") {
    const auto p = prepared({"mlp", {8, 8, 1}, 128}, nn::WeightScheme::Unit);
    Tape tape(p->run);
    const Var logits = (*p->model)(tape, tape.constant(p->inputs));
    tape.backward(p->loss.of(tape, logits, p->labels));
    for (const Parameter* parameter : p->model->parameters()) {
      CAPTURE(parameter->path);
      const double size = size_of(parameter->grad);
      CAPTURE(size);
      CHECK(in_band(size));
    }
  }

  TEST_CASE("at inner edges gradients are those of the results, but for one factor") {
    // Of a block that is not a Residual's every op may scale gradients otherwise; in a branch forward and backward agree.
    Run run;
    auto body = std::make_unique<nn::Sequential>();
    body->add<nn::Linear>("fc1", 8, 32).add<nn::Tanh>("tanh").add<nn::Linear>("fc2", 32, 8);
    nn::Sequential net;
    net.append("sum", std::make_unique<nn::Residual>(std::move(body)));
    nn::unit_scale(net);
    net.initialise(run);
    for (Parameter* p : net.parameters()) {
      std::vector<double> wide;
      for (const float x : p->value.to_floats()) wide.push_back(static_cast<double>(x));
      p->value = Tensor::from(wide, p->value.shape());
    }
    const Tensor x = random_tensor({5, 8}, -1, 1, 3, DType::F64),
                 g = random_tensor({5, 8}, -1, 1, 4, DType::F64);
    Tape tape(run);
    const Var in = tape.leaf(x);
    tape.backward(net(tape, in), g);
    const std::vector<double> grad = tape.grad(in).to_doubles();
    const auto loss = [&](int64_t i, double by) {
      std::vector<double> moved = x.to_doubles();
      moved[static_cast<size_t>(i)] += by;
      Tape aside(run, Tape::Recording::Off);
      const std::vector<double> y =
          net(aside, aside.constant(Tensor::from(moved, x.shape()))).value.to_doubles();
      double sum = 0;
      for (size_t k = 0; k < y.size(); ++k) sum += y[k] * g.to_doubles()[k];
      return sum;
    };
    for (int64_t i = 0; i < x.numel(); ++i) {
      const double h = 1e-5, numeric = (loss(i, h) - loss(i, -h)) / (2 * h);
      CHECK(std::abs(grad[static_cast<size_t>(i)] - numeric) <= 1e-6);
    }
  }

  TEST_CASE("residual sums: all bodies have equal parts") {
    // Bodies that make the same new size-1 numbers of whatever comes: three of them leave ¼ of the variance of x.
    nn::Sequential net;
    for (const char* name : {"a", "b", "c"}) {
      auto body = std::make_unique<nn::Sequential>();
      body->add<nn::LayerNorm>("norm", 256)
          .add<nn::Linear>("fc", 256, 256, OpFormats{}, nn::Linear::Bias::No);
      net.append(name, std::make_unique<nn::Residual>(std::move(body)));
    }
    nn::unit_scale(net);
    Run run;
    net.initialise(run);
    const Tensor x = random_tensor({100, 256}, -std::sqrt(3.0), std::sqrt(3.0), 9);
    Tape tape(run);
    const Var in = tape.leaf(x);
    const Var y = net(tape, in);
    CHECK(std::abs(size_of(y.value) - 1) < 0.1);
    double along = 0;
    const std::vector<double> xs = x.to_doubles(), ys = y.value.to_doubles();
    for (size_t i = 0; i < xs.size(); ++i) along += xs[i] * ys[i];
    CHECK(std::abs(along / static_cast<double>(xs.size()) - 0.5) < 0.1);  // √¼
    tape.backward(y, random_tensor(y.shape(), -std::sqrt(3.0), std::sqrt(3.0), 10));
    CHECK(std::abs(size_of(tape.grad(in)) - 1) < 0.15);
  }

  TEST_CASE("the loss keeps its value, and its gradient gets size 1") {
    Run run;
    const Tensor labels = Tensor::from(std::vector<int32_t>{3, 1, 4, 1, 5, 9, 2, 6}, {8});
    nn::TrainingLoss plain, unit;
    unit.scheme = nn::WeightScheme::Unit;
    Tape a(run), b(run);
    const Tensor equal = Tensor::zeros({8, 10}, DType::F32, kCpu);
    const Var x = a.leaf(equal), z = b.leaf(equal);
    const Var loss = plain.of(a, x, labels), scaled = unit.of(b, z, labels);
    CHECK(loss.value.item() == scaled.value.item());
    a.backward(loss);
    b.backward(scaled);
    CHECK(std::abs(size_of(b.grad(z)) - 1) < 1e-6);  // exactly C equally likely classes
    CHECK(std::abs(size_of(a.grad(x)) - 3.0 / 80) < 1e-6);
  }

  TEST_CASE("in pieces a sequence has the bits of the whole") {
    Run run;
    const auto net = nn::gpt(13, small_gpt());
    nn::unit_scale(*net);
    net->initialise(run);
    std::vector<int32_t> tokens;
    for (int32_t i = 0; i < 20; ++i) tokens.push_back(i * 7 % 13);
    const Tensor all = Tensor::from(tokens, {1, 20});
    const nn::EvaluationMode mode(*net);
    Tape tape(run, Tape::Recording::Off);
    const Tensor whole = (*net)(tape, tape.constant(all)).value;
    const nn::InPieces pieces(*net, 1, 20);
    int64_t at = 0;
    for (const int64_t length : {6, 1, 1, 12}) {
      const Tensor piece = kernels::contiguous(run.stream(), all.slice(1, at, at + length));
      const Tensor wanted = kernels::contiguous(run.stream(), whole.slice(1, at, at + length));
      CHECK(same_bits((*net)(tape, tape.constant(piece)).value, wanted));
      at += length;
    }
  }

  TEST_CASE("layers without a rule are named, and shown with one") {
    const auto refused = [](const char* model, const nn::SequenceOptions& o, const char* words) {
      const auto net = nn::make_model(model, {{}, kTokens, o, {}, {}});
      CHECK_THROWS_WITH_AS(nn::unit_scale(*net), doctest::Contains(words), Error);
    };
    refused("lstm", small_gpt(), "input_product: ");
    nn::SequenceOptions tied = small_gpt();
    tied.tie = true;
    refused("gpt", tied, "head: TiedLinear 64 → 50");
    nn::Sequential up;
    up.add<nn::ConvTranspose2d>("up", 4, 2, 3);
    CHECK_THROWS_WITH_AS(nn::unit_scale(up), doctest::Contains("up: ConvTranspose2d"), Error);
    nn::MultiHeadAttention alone(8, 2);
    CHECK_THROWS_WITH_AS(nn::unit_scale(alone), doctest::Contains("AttentionSettings::context"),
                         Error);

    const auto net = nn::mlp(64, std::vector<int64_t>{16}, 10);
    CHECK(nn::layers_of(*net)[0].description == "Linear 64 → 16");
    nn::unit_scale(*net);
    CHECK(nn::layers_of(*net)[0].description ==
          "Linear 64 → 16, unit: y × 0.125, dx × 0.25, dw × rows^−½");
    CHECK(nn::layers_of(*net)[1].description == "ReLU, unit: y × 1.414, dx × 1.414");
  }
}

#if defined(ULP_COMMAND)

using namespace ulp::command;

TEST_SUITE("unit_scaling") {
  TEST_CASE("eval, resume and the plan know it; other words are refused") {
    const Folder folder;
    const std::string out = folder / "run";
    const std::string train =
        "train --hidden 24 --epochs 2 --recipe unit-scaling --checkpoint-every 5 --keep 9 --out " +
        out;
    const Result run = succeed(train);
    const std::string whole = slurp(out + "/model.safetensors");
    const size_t at = run.out.rfind("test accuracy ");
    REQUIRE(at != std::string::npos);
    CHECK(has(succeed("eval " + out).out, run.out.substr(at + 14, 6)));
    for (const int step : {15, 20, 22})
      std::filesystem::remove(out + "/checkpoint-" + std::to_string(step) + ".safetensors");
    CHECK(has(succeed(train + " --resume").out, "resumed    checkpoint-10.safetensors"));
    CHECK(slurp(out + "/model.safetensors") == whole);
    check_refused(train + " --resume --init standard", 1, {"init"});
    const std::string plan = succeed("train --hidden 24 --recipe unit-scaling --explain").out;
    CHECK(has(plan, "Linear 64 → 24, unit: y × 0.125, dx × 0.2041, dw × rows^−½"));
    CHECK(has(plan, "cross-entropy, unit: dx × N·C/√(C − 1)"));
    check_refused("train --init xavier", 2, {"--init: 'xavier'", "standard, unit and wage"});
    check_refused("train --init unit --data text:" + out + "/config.json --model lstm --context 16",
                  1, {"input_product", "no rule of unit scaling"});
  }
}

#endif
