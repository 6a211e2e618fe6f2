#include <doctest/doctest.h>

#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "command.h"
#include "nn/layers.h"
#include "nn/losses.h"
#include "nn/models.h"
#include "nn/models/by_name.h"
#include "optim/optimizer.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

int64_t parameter_count(nn::Module& model) {
  int64_t count = 0;
  for (const Parameter* p : model.parameters()) count += p->value.numel();
  return count;
}

nn::ModelOptions options_for(const Shape& image, int64_t classes, const OpFormats& formats = {}) {
  nn::ModelOptions o;
  o.image = image;
  o.classes = classes;
  o.hidden = {16};
  o.formats = formats;
  return o;
}

std::unique_ptr<nn::Sequential> made(Run& run, const std::string& name,
                                     const nn::ModelOptions& options) {
  auto model = nn::make_model(name, options);
  model->initialise(run);
  return model;
}

/// Bytes of the tensors of one training step of a batch, beside those that were there before it.
struct StepBytes {
  int64_t saved, peak;
};
StepBytes step_bytes(const std::string& name, int64_t batch, const OpFormats& formats) {
  Run run(kCpu, 5);
  const Shape image{32, 32, 3};
  const auto model = made(run, name, options_for(image, 10, formats));
  optim::Optimizer sgd(run, model->parameters(), {.lr = 0.1, .momentum = 0.9});
  const Tensor images = random_tensor({batch, image.numel()}, -1, 1, 3);
  const Tensor labels = Tensor::from(std::vector<int32_t>(static_cast<size_t>(batch), 1), {batch});
  StepBytes bytes{};
  // The most so far is a process's: what is missing to it is taken, and then the step begins there.
  const MemoryUse before = memory_use(kCpu);
  const Tensor rest = Tensor::empty({before.peak - before.now}, DType::U8, kCpu);
  {
    Tape tape(run);
    const Var loss = ops::cross_entropy(tape, (*model)(tape, tape.constant(images)), labels);
    bytes.saved = tape.saved_bytes();
    tape.backward(loss);
    sgd.step();
  }
  bytes.peak = memory_use(kCpu).peak - before.peak;
  return bytes;
}

/// The loss on one batch of random images before and after a step on it.
std::pair<double, double> losses(const std::string& name, const Shape& image, double lr,
                                 const OpFormats& formats = {}) {
  constexpr int64_t kBatch = 4;
  Run run(kCpu, 5);
  const auto model = made(run, name, options_for(image, 10, formats));
  for (nn::Module* module : model->modules())  // which would hide what the step did
    if (module->type() == nn::LayerType::Dropout) module->set_mode(nn::Mode::Evaluate);
  optim::Optimizer sgd(run, model->parameters(), {.lr = lr});
  const Tensor images = random_tensor({kBatch, image.numel()}, -1, 1, 3);
  const Tensor labels = Tensor::from(std::vector<int32_t>{3, 1, 4, 1}, {kBatch});
  const auto loss = [&](bool step) {
    Tape tape(run);
    const Var logits = (*model)(tape, tape.constant(images));
    CHECK(logits.shape() == Shape{kBatch, 10});
    const Var l = ops::cross_entropy(tape, logits, labels);
    if (!step) return l.value.item();
    tape.backward(l);
    for (const Parameter* p : model->parameters()) {
      CAPTURE(p->path);
      CHECK(p->grad.defined());
    }
    sgd.step();
    return l.value.item();
  };
  const double before = loss(true);
  return {before, loss(false)};
}

std::string message_of(const std::string& name, const Shape& image) {
  try {
    nn::make_model(name, options_for(image, 10));
  } catch (const Error& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

void check_has(const std::string& text, const std::string& words) {
  CAPTURE(text);
  CHECK(text.find(words) != std::string::npos);
}

}  // namespace

TEST_SUITE("models") {
  TEST_CASE("numbers of parameters") {
    struct Known {
      const char* name;
      Shape image;
      int64_t classes, parameters;
    };
    const Known all[] = {{"mlp", {8, 8, 1}, 10, 64 * 16 + 16 + 160 + 10},
                         {"lenet5", {28, 28, 1}, 10, 61706},
                         {"lenet5", {32, 32, 3}, 10, 62006},
                         {"vgg16", {32, 32, 3}, 10, 15245130},
                         {"vgg16bn", {32, 32, 3}, 10, 15253578},
                         {"vgg16bn", {32, 32, 3}, 100, 15253578 + 90 * 513},
                         {"vgg7", {32, 32, 3}, 10, 12973440},
                         {"preresnet20", {32, 32, 3}, 10, 272282},
                         {"preresnet56", {32, 32, 3}, 10, 855578},
                         {"preresnet110", {32, 32, 3}, 10, 1730522},
                         {"resnet18", {32, 32, 3}, 10, 11173962},
                         {"resnet18", {32, 32, 3}, 100, 11220132}};
    for (const Known& known : all) {
      CAPTURE(std::string(known.name));
      Run run;
      const auto model = made(run, known.name, options_for(known.image, known.classes));
      CHECK(parameter_count(*model) == known.parameters);
    }
  }

  TEST_CASE("every role of a model with a thousand layers draws numbers of its own") {
    const auto streams_of = [](nn::Module& model) {
      std::vector<uint32_t> streams;
      for (const char* role : {"interior", "grad_input"})
        streams.push_back(RandomSite("loss").stream(role));
      for (nn::Module* module : model.modules()) {
        for (const char* role : module->roles()) streams.push_back(module->site().stream(role));
        if (module->formats() != nullptr) streams.push_back(module->site().stream("grad_input2"));
        if (module->type() == nn::LayerType::Dropout)
          streams.push_back(module->site().stream("mask"));
      }
      for (const Parameter* p : model.parameters())
        for (const char* role :
             {"init", "weight", "master", "grad", "moment1", "moment2", "compensation", "average"})
          streams.push_back(p->site().stream(role));
      return streams;
    };
    using S = nn::SequenceOptions;
    nn::ModelOptions o;
    o.classes = 3;
    o.sequence = {.layers = 1000, .width = 2, .heads = 1, .context = 4};
    for (const auto& [name, mlp, norm] : {std::tuple{"gpt", S::Mlp::Gelu, S::Norm::Layer},
                                          {"gpt", S::Mlp::Swiglu, S::Norm::Rms},
                                          {"lstm", S::Mlp::Gelu, S::Norm::Layer},
                                          {"gru", S::Mlp::Gelu, S::Norm::Layer}}) {
      CAPTURE(std::string(name));
      o.sequence.mlp = mlp;
      o.sequence.norm = norm;
      Run run(kCpu, 1);
      const auto model = made(run, name, o);
      const std::vector<uint32_t> all = streams_of(*model);
      CHECK(all.size() > 10000);
      CHECK(std::set<uint32_t>(all.begin(), all.end()).size() == all.size());
      // Another run of the model has the same ones.
      Run other(kCpu, 2);
      CHECK(streams_of(*made(other, name, o)) == all);
    }
  }

  TEST_CASE("no layer draws the numbers of the training's loss") {
    const uint32_t of_loss = RandomSite("loss").stream("grad_input");
    // Names with the same hash as the loss's: fnv1a32, found by trying some 10^9 of them.
    REQUIRE(RandomSite("xua90053").stream("grad_output_dx") == of_loss);
    REQUIRE(RandomSite("zbb946202").stream("grad_weight") == of_loss);
    Run run(kCpu, 1);
    nn::Sequential net;
    net.add<nn::Linear>("xua90053", 3, 4)
        .add<nn::Linear>("zbb946202", 4, 4)
        .add<nn::Linear>("loss", 4, 4)
        .add<nn::Linear>("other", 4, 2);
    net.initialise(run);
    for (const auto& child : net.children()) {
      CAPTURE(child.name);
      const bool moved = child.name != "other";
      CHECK(child.module->site().stream("input") ==
            fnv1a32(child.name + (moved ? "#1" : "") + "/input"));
      for (const char* role : child.module->roles())
        CHECK(child.module->site().stream(role) != of_loss);
    }
    // A loss that is its own root is that of the training.
    nn::CrossEntropyLoss loss;
    loss.initialise(run, "loss");
    CHECK(loss.site().stream("grad_input") == of_loss);
  }

  TEST_CASE("models as they are in use draw the numbers of their roles' names") {
    const auto check = [](nn::Module& model) {
      for (const Parameter* p : model.parameters()) {
        CHECK(p->twin == 0);
        CHECK(p->site().stream("init") == fnv1a32(p->path + "/init"));
      }
      for (nn::Module* module : model.modules())
        CHECK(module->site().stream("input") == fnv1a32(module->path() + "/input"));
    };
    for (const std::string name : nn::model_names()) {
      CAPTURE(name);
      nn::ModelOptions o = options_for({32, 32, 3}, 10);
      for (const int64_t layers : {1, 6, 24}) {
        o.sequence = {.layers = layers, .width = 4, .heads = 1, .context = 4};
        Run run(kCpu, 1);
        check(*made(run, name, o));
        if (!nn::is_text_model(name)) break;
      }
    }
  }

  TEST_CASE("paths that policies can name") {
    Run run;
    const auto paths = [&](const char* name, const Shape& image) {
      std::map<std::string, nn::LayerType> all;
      const auto model = made(run, name, options_for(image, 10));
      for (nn::Module* module : model->modules()) all[module->path()] = module->type();
      return all;
    };
    using nn::LayerType;
    auto lenet = paths("lenet5", {28, 28, 1});
    CHECK(lenet.size() == 14);
    for (const auto& [path, type] : std::map<std::string, LayerType>{
             {"conv1", LayerType::Conv}, {"pool2", LayerType::Pool}, {"fc3", LayerType::Linear}})
      CHECK(lenet.at(path) == type);
    auto vgg = paths("vgg16bn", {32, 32, 3});
    CHECK(vgg.at("features.block3.conv3") == LayerType::Conv);
    CHECK(vgg.at("features.block5.bn1") == LayerType::Normalization);
    CHECK(vgg.at("classifier.drop2") == LayerType::Dropout);
    CHECK(vgg.at("classifier.fc3") == LayerType::Linear);
    CHECK(!paths("vgg16", {32, 32, 3}).contains("features.block5.bn1"));
    auto pre = paths("preresnet20", {32, 32, 3});
    CHECK(pre.at("layer1.block1.body.conv1") == LayerType::Conv);
    CHECK(pre.at("layer3.block3.body.bn2") == LayerType::Normalization);
    CHECK(pre.at("layer2.block1.shortcut.conv") == LayerType::Conv);
    CHECK(!pre.contains("layer1.block1.shortcut.conv"));
    CHECK(!pre.contains("layer2.block2.shortcut.conv"));
    auto res = paths("resnet18", {32, 32, 3});
    CHECK(res.at("layer4.block2.sum.body.conv2") == LayerType::Conv);
    CHECK(res.at("layer4.block1.sum.shortcut.bn") == LayerType::Normalization);
    CHECK(res.at("layer1.block1.relu") == LayerType::Activation);
  }

  TEST_CASE("a step makes the loss less, in fp32 and quantised; every parameter has a gradient") {
    struct Case {
      const char* name;
      Shape image;
      double lr;
    };
    // Small images where the model allows them: time.
    const Case all[] = {{"mlp", {8, 8, 1}, 0.1},          {"lenet5", {12, 12, 1}, 0.05},
                        {"lenet5", {32, 32, 3}, 0.02},    {"vgg16", {32, 32, 3}, 0.002},
                        {"vgg16bn", {32, 32, 3}, 0.01},   {"vgg7", {8, 8, 3}, 0.01},
                        {"preresnet20", {8, 8, 3}, 0.02}, {"preresnet56", {8, 8, 1}, 0.01},
                        {"resnet18", {8, 8, 3}, 0.005}};
    for (const Case& c : all)
      for (const bool quantised : {false, true}) {
        CAPTURE(std::string(c.name));
        CAPTURE(quantised);
        const OpFormats formats = quantised ? OpFormats::make("e4m3", "e5m2:sr") : OpFormats{};
        const auto [before, after] = losses(c.name, c.image, c.lr, formats);
        CAPTURE(before);
        CHECK(after < before);
      }
  }

  TEST_CASE("images that do not fit are refused with the layer's path") {
    check_has(message_of("vgg16", {28, 28, 1}),
              "vgg16: features.block5.pool: images of 1 x 1 pixels cannot be halved; take larger "
              "images or another model");
    check_has(message_of("vgg16bn", {32, 16, 3}), "vgg16bn: features.block5.pool: images of 2 x 1");
    check_has(message_of("lenet5", {8, 8, 1}),
              "lenet5: conv2: images of 4 x 4 pixels are too small for");
    check_has(message_of("vgg7", {4, 4, 3}), "vgg7: features.block3.pool: images of 1 x 1 pixels");
    check_has(message_of("preresnet19", {32, 32, 3}),
              "model 'preresnet19': unknown; there are mlp,");
    CHECK_THROWS_WITH_AS(nn::preresnet(21, {8, 8, 3}, 10), doctest::Contains("6 n + 2"), Error);
    nn::make_model("preresnet20", options_for({1, 1, 1}, 10));
    Run run;
    const auto model = made(run, "vgg7", options_for({8, 8, 3}, 10));
    Tape tape(run);
    const auto forward = [&](const Shape& shape) {
      (*model)(tape, tape.constant(random_tensor(shape, 0, 1, 1)));
    };
    CHECK_THROWS_WITH_AS(forward({2, 191}), doctest::Contains("image: "), Error);
    nn::Sequential inner;
    inner.append("part", nn::make_model("lenet5", options_for({12, 12, 2}, 10)));
    inner.initialise(run);
    CHECK_THROWS_WITH_AS(inner(tape, tape.constant(random_tensor({2, 3}, 0, 1, 1))),
                         doctest::Contains("part.image: "), Error);
  }

  TEST_CASE("running statistics and dropout: evaluation is the same twice, training is not") {
    Run run;
    const auto model = made(run, "vgg16bn", options_for({32, 32, 3}, 10));
    CHECK(model->buffers().size() == 2 * 13);
    const Tensor images = random_tensor({2, 3072}, -1, 1, 3);
    const auto logits = [&] {
      Tape tape(run, Tape::Recording::Off);
      return (*model)(tape, tape.constant(images)).value;
    };
    const Tensor first = logits(), second = logits();
    CHECK(!same_bits(first, second));
    const nn::EvaluationMode mode(*model);
    CHECK(same_bits(logits(), logits()));
  }

  TEST_CASE("a training step keeps what its backward pass needs, once") {
    // Floats of a sample of preresnet20: the image; in each block of the input's size the input (of a norm and the sum), the
    // input of each convolution, and the result of the first one.
    constexpr int64_t kFirst = 16 * 32 * 32, kSecond = kFirst / 2, kThird = kFirst / 4;
    constexpr int64_t kSample = 3072 + 3 * 4 * kFirst + (2 * kFirst + 2 * kSecond) +
                                2 * 4 * kSecond + (2 * kSecond + 2 * kThird) + 2 * 4 * kThird +
                                2 * kThird + 64 + 10;
    // Beside them the weights, two statistics a channel, and what the loss keeps.
    constexpr int64_t kBatch = 8, kOthers = 4 * (271994 + 2 * 1500);
    const StepBytes fp32 = step_bytes("preresnet20", kBatch, {});
    CHECK(fp32.saved >= 4 * kBatch * kSample);
    CHECK(fp32.saved <= 4 * kBatch * kSample + kOthers);
    // It is the most at the loss: gradients come as what was kept goes.
    CHECK(fp32.peak <= fp32.saved + 4 * kBatch * kFirst);
    // Rounded operands, of two bytes at most, are kept beside what norms and activations read in fp32.
    const StepBytes quantised =
        step_bytes("preresnet20", kBatch, OpFormats::make("e4m3", "e5m2:sr"));
    CHECK(quantised.saved <= 5 * fp32.saved / 4);
    CHECK(quantised.peak <= quantised.saved + 4 * kBatch * kFirst);
  }
}

#if defined(ULP_COMMAND)

using namespace ulp::command;

TEST_SUITE("models") {
  TEST_CASE("ulp train --model: config.json names it, eval makes it again, misfits are refused") {
    const Folder folder;
    const std::string out = folder / "run";
    const std::string train =
        "train --model preresnet20 --epochs 1 --batch-size 128 --lr 0.05 --forward e4m3 --backward "
        "e5m2:sr --normalize data --augment crop:1 --out " +
        out;
    const Result r = ulp_command(train);
    CAPTURE(r.err);
    REQUIRE(r.status == 0);
    check_has(r.out, "preresnet20, 271994 parameters");
    check_has(slurp(out + "/config.json"), "\"model\": \"preresnet20\"");
    const std::string metrics = slurp(out + "/metrics.jsonl");
    const std::string last = metrics.substr(metrics.rfind('{'));
    const size_t at = last.find("\"loss\":") + 7;
    const Result e = ulp_command("eval " + out);
    REQUIRE(e.status == 0);
    check_has(e.out, "test loss " + last.substr(at, last.find(',', at) - at) + "\n");
    check_refused("train --model vgg16 --out " + (folder / "no"), 1,
                  {"vgg16: features.block4.pool: images of 1 x 1 pixels"});
    check_refused("train --model vgg19 --out " + (folder / "no"), 2,
                  {"--model 'vgg19'", "mlp, lenet5", "resnet18"});
    CHECK(!std::filesystem::exists(folder / "no/model.safetensors"));
  }
}

#endif
