#include <doctest/doctest.h>

#include <cmath>

#include "kernels/quantised.h"
#include "nn/layers.h"
#include "nn/models.h"
#include "nn/running_statistics.h"
#include "optim/average.h"
#include "optim/grad_scaler.h"
#include "optim/optimizer.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;
using optim::Average;
using optim::AverageOptions;

namespace {

constexpr auto kSwa = AverageOptions::Kind::Swa;
constexpr auto kEma = AverageOptions::Kind::Ema;

}  // namespace

TEST_SUITE("average") {
  TEST_CASE("equal and exponential averages follow fp64") {
    for (const auto kind : {kSwa, kEma})
      for (const int64_t start : {0, 4})
        for (const int64_t every : {1, 3}) {
          Run run;
          Parameter p{"w", random_tensor({4, 9}, -1, 1, 1), {}};
          optim::Optimizer sgd(run, {&p}, {.lr = 0.1});
          Average average(run, {&p}, {kind, {}, start, every, 0.75});
          std::vector<double> expected(36, 0.0);
          int64_t count = 0;
          for (int64_t step = 1; step <= 20; ++step) {
            p.grad = random_tensor({4, 9}, -2, 2, static_cast<uint64_t>(10 + step));
            sgd.step();
            average.update();
            if (step < start || (step - start) % every != 0) continue;
            const std::vector<double> w = p.value.to_doubles();
            for (size_t i = 0; i < w.size(); ++i) {
              const double share =
                  kind == kSwa || count == 0 ? 1.0 / static_cast<double>(count + 1) : 0.25;
              expected[i] += share * (w[i] - expected[i]);
            }
            ++count;
          }
          CHECK(average.count() == count);
          const std::vector<double> got = average.tensors().at("w.average").to_doubles();
          // Three roundings of numbers below 8 for each of at most 20 weights.
          for (size_t i = 0; i < got.size(); ++i)
            CHECK(std::abs(got[i] - expected[i]) <= 60 * 8 * 0x1p-24);
        }
  }

  TEST_CASE(
      "an average in any format is the rounded recursion, and near the mean if that is fine") {
    struct Case {
      const char* format;
      double spacing;  // of neighbours, as a share of a value; 0: coarse
    };
    for (const Case& c :
         {Case{"bf16:sr", 0x1p-7}, Case{"e6m9:sr", 0x1p-9}, Case{"bfp8-axis0:sr", 0},
          Case{"e4m3-g4-scalef32", 0}, Case{"nvfp4:sr", 0}, Case{"e2m1", 0}}) {
      CAPTURE(std::string(c.format));
      Run run;
      Parameter p{"w", random_tensor({8, 16}, -1, 1, 1), {}};
      optim::OptimizerOptions o{.lr = 0.02};
      o.weight = "bf16:sr";
      optim::Optimizer sgd(run, {&p}, o);
      AverageOptions options;
      options.format = c.format;
      Average average(run, {&p}, options);
      const Tensor held = average.tensors().at("w.average");
      CHECK(held.dtype() == storage_type(Quantizer(c.format)));
      constexpr int kSteps = 30;
      std::vector<double> mean(128, 0.0);
      for (int step = 0; step < kSteps; ++step) {
        p.grad = random_tensor({8, 16}, -2, 2, static_cast<uint64_t>(10 + step));
        sgd.step();
        std::vector<float> expected = held.to_floats();
        const std::vector<float> w = p.value.to_floats();
        for (size_t i = 0; i < w.size(); ++i) {
          expected[i] =
              std::fma(w[i] - expected[i], 1.0f / static_cast<float>(step + 1), expected[i]);
          mean[i] += static_cast<double>(w[i]) / kSteps;
        }
        QuantiseUse use;
        use.quantizer = c.format;
        use.axis = 1;
        use.key = {run.seed(), RandomSite("w").stream("average"), 0, run.device_state()};
        expected =
            quantised(run.stream(), Tensor::from(expected, {8, 16}), use, held.dtype()).to_floats();
        average.update();
        CHECK(held.to_floats() == expected);
      }
      if (c.spacing == 0) continue;
      // The rounding of step k + 1, less than a spacing, counts (k + 1) / steps of itself in the end.
      const std::vector<double> values = held.to_doubles();
      for (size_t i = 0; i < values.size(); ++i)
        CHECK(std::abs(values[i] - mean[i]) <= 0.5 * (kSteps + 1) * c.spacing * 1.5);
    }
  }

  TEST_CASE("what is not its turn, and a skipped step, change nothing") {
    for (const char* format : {"fp32", "bf16:sr", "bfp8:sr"}) {
      CAPTURE(std::string(format));
      Run run;
      Parameter p{"w", random_tensor({4, 9}, -1, 1, 1), {}};
      optim::Optimizer sgd(run, {&p}, {.lr = 0.1});
      optim::GradScaler scaler(run, {&p}, {.dynamic = true});
      AverageOptions options{kEma, {}, 2, 2, 0.5};
      options.format = format;
      Average average(run, {&p}, options);
      const Tensor held = average.tensors().at("w.average");
      std::vector<int> changed;
      for (int step = 1; step <= 8; ++step) {
        const auto before = held.to_floats();
        p.grad = random_tensor({4, 9}, -2, 2, static_cast<uint64_t>(10 + step));
        if (step == 6) p.grad.mutable_data<float>()[3] = NAN;
        scaler.check();
        sgd.step();
        average.update();
        if (held.to_floats() != before) changed.push_back(step);
      }
      CHECK(changed == std::vector<int>{2, 4, 7, 8});  // 6 was skipped
      CHECK(average.count() == 4);
    }
  }

  TEST_CASE("the average takes the weights' place for a while") {
    Run run;
    Parameter p{"w", random_tensor({3}, -1, 1, 1), {}};
    optim::OptimizerOptions o{.lr = 0.5};
    o.weight = "e4m3";
    optim::Optimizer sgd(run, {&p}, o);
    Average average(run, {&p}, {});
    for (int step = 0; step < 3; ++step) {
      p.grad = random_tensor({3}, -1, 1, static_cast<uint64_t>(step));
      sgd.step();
      average.update();
    }
    const auto weights = p.value.to_floats();
    const void* address = p.value.raw();
    const auto mean = average.tensors().at("w.average").to_floats();
    {
      const Average::InPlace in_place(average);
      CHECK(p.value.to_floats() == mean);
      CHECK(mean != weights);
    }
    CHECK(p.value.to_floats() == weights);
    CHECK(p.value.raw() == address);
    CHECK(average.formats() == std::map<std::string, std::string>{{"w.average", "fp32"}});
    CHECK(average.tensors().size() == 2);
  }

  TEST_CASE("running statistics of other weights are the means over the batches of an epoch") {
    const nn::Dataset digits = nn::load_dataset("digits");
    Run run;
    nn::Sequential net;
    nn::BatchNormSettings slow;
    slow.momentum = 0.25;
    OpFormats interior;
    interior.interior = "bf16";
    net.add<nn::Linear>("fc1", 64, 12)
        .add<nn::BatchNorm>("bn1", 12, slow)
        .add<nn::ReLU>("relu")
        .add<nn::Dropout>("drop", 0.3)
        .add<nn::Linear>("fc2", 12, 10, OpFormats::make("e4m3:sr", "fp32"))
        .add<nn::BatchNorm>("bn2", 10, slow, interior);
    net.initialise(run);
    nn::Batches batches(run, digits, digits.train, 100);
    for (nn::Buffer* b : net.buffers())
      b->value = Tensor::from(std::vector<float>(static_cast<size_t>(b->value.numel()), NAN),
                              b->value.shape());

    // What the batch norms see, and the means of its moments, in fp64.
    std::map<std::string, std::vector<double>> mean, variance;
    std::map<std::string, int64_t> seen;
    net.observe([&](nn::Module& module, const Var& x, const Var&) {
      if (module.type() != nn::LayerType::Normalization) return;
      const std::vector<double> v = x.value.to_doubles();
      const int64_t rows = x.shape()[0], channels = x.shape()[1];
      const auto k = static_cast<double>(++seen[module.path()]);
      auto &m = mean[module.path()], &s = variance[module.path()];
      m.resize(static_cast<size_t>(channels));
      s.resize(m.size());
      for (size_t c = 0; c < m.size(); ++c) {
        double sum = 0, squares = 0;
        for (size_t i = c; i < v.size(); i += m.size()) sum += v[i];
        const double now = sum / static_cast<double>(rows);
        for (size_t i = c; i < v.size(); i += m.size()) squares += (v[i] - now) * (v[i] - now);
        m[c] += (now - m[c]) / k;
        s[c] += (squares / static_cast<double>(rows - 1) - s[c]) / k;
      }
    });
    const StepState before = run.state();
    nn::recompute_running_statistics(run, net, batches, 3);
    net.observe({});
    CHECK(seen == std::map<std::string, int64_t>{{"bn1", 14}, {"bn2", 14}});  // 1437 / 100
    CHECK(run.state().random_step == before.random_step + 1);
    CHECK(run.fresh());
    CHECK(net.mode() == nn::Mode::Train);
    for (nn::Module* module : net.modules())
      if (const auto* norm = dynamic_cast<nn::BatchNorm*>(module)) {
        CAPTURE(norm->path());
        CHECK(norm->momentum() == 0.25);
        // Roundings of the sums, 7 levels of the tree and more, and of 14 steps of the mean; bf16 rounds each batch's.
        const double close = norm->path() == "bn1" ? 64 * 0x1p-24 : 0x1p-8;
        const auto [m, s] = norm->running_statistics();
        const auto check = [&](const nn::Buffer& got, const std::vector<double>& wanted) {
          const std::vector<double> values = got.value.to_doubles();
          double largest = 0;
          for (const double x : wanted) largest = std::max(largest, std::abs(x));
          REQUIRE(values.size() == wanted.size());
          for (size_t c = 0; c < values.size(); ++c)
            CHECK(std::abs(values[c] - wanted[c]) <= close * largest);
        };
        check(*m, mean[norm->path()]);
        check(*s, variance[norm->path()]);
      }

    // Again, and as a second set: the same bits, and the first set stays.
    std::vector<std::vector<float>> first;
    for (const nn::Buffer* b : net.buffers()) first.push_back(b->value.to_floats());
    nn::RunningStatistics second(run, net);
    run.set_state(before);
    {
      const nn::RunningStatistics::InPlace in_place(second);
      Parameter* w = net.parameters()[0];
      w->value = Tensor::from(std::vector<float>(64 * 12, 0.5f), {12, 64});
      nn::recompute_running_statistics(run, net, batches, 3);
      CHECK(net.buffers()[0]->value.to_floats() != first[0]);
    }
    for (size_t i = 0; i < first.size(); ++i)
      CHECK(net.buffers()[i]->value.to_floats() == first[i]);
    CHECK(second.tensors().size() == 4);
    CHECK(second.tensors().at("bn1.running_mean.average").to_floats() != first[0]);
  }

  TEST_CASE("without batch norm nothing is passed through the model and nothing drawn") {
    const nn::Dataset digits = nn::load_dataset("digits");
    Run run;
    const auto net = nn::mlp(64, std::vector<int64_t>{8}, 10);
    net->initialise(run);
    int64_t passes = 0;
    net->observe([&](nn::Module&, const Var&, const Var&) { ++passes; });
    nn::Batches batches(run, digits, digits.train, 100);
    const StepState before = run.state();
    nn::recompute_running_statistics(run, *net, batches, 0);
    CHECK(passes == 0);
    CHECK(run.state().random_step == before.random_step);
    CHECK(nn::RunningStatistics(run, *net).tensors().empty());
  }

  TEST_CASE("wrong options are named") {
    Run run;
    Parameter p{"fc.weight", random_tensor({5, 2}, -1, 1, 1), {}}, empty{"x", {}, {}};
    const auto make = [&](auto change, Parameter* of) {
      AverageOptions o;
      change(o);
      Average(run, {of}, o);
    };
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.every = 0; }, &p), doctest::Contains("every"), Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.start = -1; }, &p), doctest::Contains("start"),
                         Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.decay = 1; }, &p), doctest::Contains("decay"), Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.format = "bfp8-axis2"; }, &p),
                         doctest::Contains("needs axis 2, but fc.weight has shape (5, 2)"), Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.format = "e4m3+scale=delayed4"; }, &p),
                         doctest::Contains("+scale=current"), Error);
    CHECK_THROWS_WITH_AS(make([](auto&) {}, &empty), doctest::Contains("initialise"), Error);
  }
}
