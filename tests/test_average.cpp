#include <doctest/doctest.h>

#include <cmath>

#include "kernels/quantised.h"
#include "nn/models.h"
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
