#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "autograd/step_graph.h"
#include "kernels/quantised.h"
#include "nn/data/dataset.h"
#include "nn/evaluate.h"
#include "nn/models.h"
#include "optim/grad_scaler.h"
#include "optim/optimizer.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

Tensor of(std::vector<float> values) {
  const auto n = static_cast<int64_t>(values.size());
  return Tensor::from(values, {n});
}

}  // namespace

TEST_SUITE("scaling") {
  TEST_CASE("the dynamic loss scale is the machine that is written out here") {
    struct Setting {
      double start, growth, backoff, least, most;
      uint32_t interval;
    };
    for (const Setting& s :
         {Setting{1024, 2, 0.5, 0x1p-24, 0x1p24, 3}, Setting{4, 2, 0.5, 2, 16, 1},
          Setting{5, 1.7, 0.3, 0.1, 1e4, 2}, Setting{1, 1, 0.5, 1, 1, 2}}) {
      Run run;
      Parameter p{"w", of({1}), {}};
      optim::GradScalerOptions o;
      o.dynamic = true;
      o.loss_scale = s.start;
      o.growth = s.growth;
      o.backoff = s.backoff;
      o.least = s.least;
      o.most = s.most;
      o.interval = s.interval;
      optim::GradScaler scaler(run, {&p}, o);
      optim::Optimizer sgd(run, {&p}, {.lr = 0});
      float scale = static_cast<float>(s.start);
      uint32_t good = 0, skipped = 0, made = 0;
      for (int step = 0; step < 60; ++step) {
        const bool bad = (step * 7 + step / 5) % 11 < 3;
        p.grad = of({bad ? INFINITY : 1.0f});
        scaler.check();
        sgd.step();
        if (bad) {
          scale = std::max(scale * static_cast<float>(s.backoff), static_cast<float>(s.least));
          good = 0;
          ++skipped;
        } else {
          ++made;
          if (++good == s.interval) {
            scale = std::min(scale * static_cast<float>(s.growth), static_cast<float>(s.most));
            good = 0;
          }
        }
        const StepState& state = run.state();
        CHECK(state.loss_scale == scale);
        CHECK(state.good_steps == good);
        CHECK(state.skipped_steps == skipped);
        CHECK(state.optimizer_step == made);
        CHECK(state.random_step == static_cast<uint32_t>(step) + 2);
        CHECK(state.found_inf == 0);
      }
      CHECK((skipped > 9 && made > 30));
    }
  }

  TEST_CASE(
      "the backward pass starts from the scale, the optimizer undoes the one it started from") {
    Run run;
    Parameter p{"w", of({3}), {}};
    optim::GradScalerOptions o;
    o.dynamic = true;
    o.loss_scale = 8;
    o.interval = 1;
    optim::GradScaler scaler(run, {&p}, o);
    optim::Optimizer sgd(run, {&p}, {.lr = 0.25});
    float w = 3, scale = 8;
    for (int step = 0; step < 5; ++step) {
      Tape tape(run);
      tape.backward(ops::mean(tape, ops::square(tape, tape.watch(p))));
      CHECK(p.grad.to_floats()[0] == 2 * w * scale);
      scaler.check();
      CHECK(run.state().grad_factor == 1 / scale);
      CHECK(run.state().grad_norm == 2 * w);
      sgd.step();
      w = w - 0.25f * (2 * w);
      scale *= 2;
      CHECK(p.value.to_floats()[0] == w);
      CHECK(run.state().loss_scale == scale);
    }
  }

  TEST_CASE("an overflow leaves weights, states and delayed scales as they were") {
    using optim::Algorithm;
    struct Case {
      Algorithm algorithm;
      const char *weight, *master, *moment1, *moment2;  // master: nullptr for kahan
    };
    const Case cases[] = {
        {Algorithm::Sgd, "fp32", "fp32", "fp32", "fp32"},
        {Algorithm::Sgd, "bfp8:sr", "bfp8:sr", "bfp8:sr", "fp32"},
        {Algorithm::Sgd, "e5m2+scale=delayed4:sr", "e5m2+scale=delayed4:sr",
         "e5m2+scale=delayed4:sr", "fp32"},
        {Algorithm::Sgd, "e4m3+scale=current", "fp32", "e4m3+scale=current", "fp32"},
        {Algorithm::AdamW, "bf16:sr", "fp32", "dynamic8-g256-scalef32",
         "dynamic8u-g256-scalef32:sr"},
        {Algorithm::Adam, "bf16", nullptr, "bf16:sr", "bf16:sr"},
        {Algorithm::Lion, "e4m3", "e6m9:sr", "e2m1-g32-scalef32:sr", "fp32"},
    };
    for (const Case& c : cases)
      for (const float bad : {INFINITY, NAN}) {
        CAPTURE(to_string(c.algorithm));
        CAPTURE(std::string(c.weight));
        Run run;
        OpFormats f = OpFormats::make("e4m3+scale=delayed3", "e5m2+scale=delayed4:sr");
        f.output = "e4m3+scale=delayed2";
        const auto net = nn::mlp(8, std::vector<int64_t>{16}, 4, f);
        net->initialise(run);
        auto o = optim::OptimizerOptions::of(c.algorithm);
        if (c.algorithm == Algorithm::Sgd) o.momentum = 0.9;
        o.weight_decay = 0.01;
        o.lr = 0.1;
        o.weight = o.grad = c.weight;
        o.moment1 = c.moment1;
        o.moment2 = c.moment2;
        if (c.master != nullptr) o.accumulator = Quantizer(c.master);
        if (c.master == nullptr) o.update = optim::Update::Kahan;
        optim::Optimizer sgd(run, net->parameters(), o);
        optim::GradScaler scaler(run, net->parameters(),
                                 {.loss_scale = 16, .dynamic = true, .interval = 100});
        const auto everything = [&] {
          std::vector<std::vector<uint32_t>> all;
          for (const auto& state : sgd.states())
            all.push_back(bits_of_tensor(state.parameter->value));
          for (const auto& [name, tensor] : sgd.tensors()) all.push_back(bits_of_tensor(tensor));
          for (const auto& [stream, scaling] : run.scalings())
            all.push_back(bits_of_tensor(scaling));
          return all;
        };
        const auto step = [&](uint64_t seed, bool overflow) {
          Tape tape(run);
          const Var y = (*net)(tape, tape.constant(random_tensor({16, 8}, -1, 1, seed)));
          Tensor grad = random_tensor({16, 4}, -1, 1, seed + 1);
          if (overflow) grad.mutable_data<float>()[5] = bad;
          tape.backward(y, grad);
          scaler.check();
          sgd.step();
        };
        step(1, false);
        auto before = everything();
        step(3, false);
        CHECK(everything() != before);
        before = everything();
        step(5, true);
        CHECK(everything() == before);
        CHECK(run.state().skipped_steps == 1);
        CHECK(run.state().loss_scale == 8);
        step(7, true);
        CHECK(everything() == before);
        step(9, false);
        CHECK(everything() != before);
        CHECK(run.state().optimizer_step == 3);
        for (const auto& state : sgd.states())
          for (const float x : state.parameter->value.to_floats()) CHECK(std::isfinite(x));
      }
  }

  TEST_CASE("a first step that is skipped leaves the scales of the quantised weights") {
    Run run;
    Parameter p{"w", random_tensor({4, 4}, -3, 3, 1), {}};
    optim::OptimizerOptions o{.lr = 0.1};
    o.weight = "e4m3+scale=delayed4";
    optim::Optimizer sgd(run, {&p}, o);
    REQUIRE(run.scalings().size() == 1);
    const Tensor scaling = run.scalings().begin()->second;
    const auto before = scaling.to_floats();
    CHECK(before[1] > 0);
    optim::GradScaler scaler(run, {&p}, {.dynamic = true});
    p.grad = Tensor::from(std::vector<float>(16, NAN), {4, 4});
    scaler.check();
    sgd.step();
    CHECK(scaling.to_floats() == before);
  }

  TEST_CASE("clipping by the global norm, against fp64") {
    for (const double clip : {0.5, 3.0, 1e9})
      for (const double scaling : {1.0, 0.25}) {
        Run run;
        Parameter a{"a", random_tensor({70, 90}, -1, 1, 1), {}},
            b{"b", random_tensor({33}, -1, 1, 2), {}};
        const std::vector<double> wa = a.value.to_doubles(), wb = b.value.to_doubles();
        optim::Optimizer sgd(run, {&a, &b}, {.lr = 0.5, .grad_scaling = scaling});
        optim::GradScaler scaler(run, {&a, &b}, {.clip_norm = clip, .grad_scaling = scaling});
        a.grad = random_tensor({70, 90}, -1, 1, 3);
        b.grad = random_tensor({33}, -9, 9, 4);
        const std::vector<double> ga = a.grad.to_doubles(), gb = b.grad.to_doubles();
        double norm = 0;
        for (const double g : ga) norm += g * g;
        for (const double g : gb) norm += g * g;
        norm = std::sqrt(norm) * scaling;
        scaler.check();
        CHECK(run.state().grad_norm == doctest::Approx(norm).epsilon(1e-6));
        sgd.step();
        const double factor = scaling * std::min(1.0, clip / norm);
        // Roundings of a factor, a product and an fma: of numbers below 8.
        const auto near = [&](const Tensor& got, const std::vector<double>& w,
                              const std::vector<double>& g) {
          const std::vector<double> x = got.to_doubles();
          for (size_t i = 0; i < w.size(); ++i)
            if (std::abs(x[i] - (w[i] - 0.5 * factor * g[i])) > 4 * 8 * 0x1p-24) return false;
          return true;
        };
        CHECK(near(a.value, wa, ga));
        CHECK(near(b.value, wb, gb));
        CHECK(run.state().loss_scale == 1);
      }
  }

  TEST_CASE("the order of scaling and rounding gradients") {
    // 1/3 · 2^-9 is below e4m3's numbers, 1/3 is not: the one order loses it, the other scales what was rounded.
    for (const char* format : {"e4m3", "bfp4", "fixed8.6"}) {
      CAPTURE(std::string(format));
      const float g = 1.0f / 3, s = 0x1p-9f;
      const auto after = [&](GradOrder order) {
        Run run;
        Parameter p{"w", of({0, 0}), {}};
        optim::OptimizerOptions o{.lr = 1, .grad_scaling = s, .grad_order = order};
        o.grad = format;
        optim::Optimizer sgd(run, {&p}, o);
        p.grad = of({g, 0.75f});
        sgd.step();
        return p.value.to_floats();
      };
      const auto rounded = [&](std::vector<float> v) {
        QuantiseUse use;
        use.quantizer = format;
        return quantised(stream_of(kCpu), of(v), use).to_floats();
      };
      std::vector<float> first = rounded({g * s, 0.75f * s}), last = rounded({g, 0.75f});
      CHECK(after(GradOrder::ScaleFirst) == std::vector<float>{-first[0], -first[1]});
      CHECK(after(GradOrder::QuantiseFirst) == std::vector<float>{-last[0] * s, -last[1] * s});
    }
  }

  TEST_CASE("gradients of micro-batches: the fp32 sums in their order, and near one large batch") {
    const auto gradients = [](Run& run, nn::Sequential& net, int64_t first, int64_t last,
                              double share) {
      const Tensor x = random_tensor({12, 8}, -1, 1, 5).slice(0, first, last);
      std::vector<int32_t> labels;
      for (int64_t i = first; i < last; ++i) labels.push_back(static_cast<int32_t>(i * 5 % 4));
      Tape tape(run);
      tape.backward(ops::cross_entropy(tape, net(tape, tape.constant(x)),
                                       Tensor::from(labels, {last - first})),
                    share);
    };
    const auto model = [](Run& run) {
      auto net = nn::mlp(8, std::vector<int64_t>{16}, 4, OpFormats::make("e4m3", "e5m2"));
      net->initialise(run);
      return net;
    };
    Run run;
    StepState state = run.state();
    state.loss_scale = 6;
    run.set_state(state);
    const auto net = model(run);
    std::vector<std::vector<float>> sums;
    for (int64_t k = 0; k < 3; ++k) {
      for (Parameter* p : net->parameters()) p->grad = {};
      gradients(run, *net, 4 * k, 4 * k + 4, 1.0 / 3);
      size_t at = 0;
      for (Parameter* p : net->parameters()) {
        const std::vector<float> g = p->grad.to_floats();
        if (k == 0) sums.push_back(g);
        for (size_t i = 0; k > 0 && i < g.size(); ++i) sums[at][i] += g[i];
        ++at;
      }
    }
    for (Parameter* p : net->parameters()) p->grad = {};
    for (int64_t k = 0; k < 3; ++k) gradients(run, *net, 4 * k, 4 * k + 4, 1.0 / 3);
    std::vector<std::vector<float>> accumulated;
    for (Parameter* p : net->parameters()) accumulated.push_back(p->grad.to_floats());
    CHECK(accumulated == sums);
    // The same formats see the same numbers in one batch of 12, whose sums have another order.
    const auto plain = nn::mlp(8, std::vector<int64_t>{16}, 4, {});
    plain->initialise(run);
    for (int64_t k = 0; k < 3; ++k) gradients(run, *plain, 4 * k, 4 * k + 4, 1.0 / 3);
    std::vector<std::vector<float>> parts;
    for (Parameter* p : plain->parameters()) {
      parts.push_back(p->grad.to_floats());
      p->grad = {};
    }
    gradients(run, *plain, 0, 12, 1);
    size_t at = 0;
    for (Parameter* p : plain->parameters()) {
      const std::vector<float> whole = p->grad.to_floats();
      for (size_t i = 0; i < whole.size(); ++i)
        CHECK(std::abs(whole[i] - parts[at][i]) <= 1e-5f * (std::abs(whole[i]) + 6));
      ++at;
    }
  }

  TEST_CASE("random words do not repeat from micro-batch to micro-batch, or after a skipped step") {
    Run run;
    Parameter p{"w", random_tensor({256}, -1, 1, 5), {}};
    optim::Optimizer sgd(run, {&p}, {.lr = 0});
    optim::GradScaler scaler(run, {&p}, {.dynamic = true});
    OpFormats f;
    f.output = "e4m3:sr";
    std::vector<std::vector<float>> seen;
    for (int step = 0; step < 4; ++step) {
      for (int micro = 0; micro < 3; ++micro) {
        Tape tape(run);
        const Var y = ops::square(tape, tape.watch(p), f, RandomSite("square"));
        seen.push_back(y.value.to_floats());
        tape.backward(ops::mean(tape, y), 1.0 / 3);
      }
      if (step == 1) p.grad.mutable_data<float>()[0] = INFINITY;
      scaler.check();
      sgd.step();
    }
    CHECK(run.state().skipped_steps == 1);
    for (size_t i = 0; i < seen.size(); ++i)
      for (size_t j = 0; j < i; ++j) CHECK(seen[i] != seen[j]);
  }

  TEST_CASE("wrong options are named") {
    Run run;
    const auto make = [&](auto change) {
      optim::GradScalerOptions o;
      o.dynamic = true;
      change(o);
      optim::GradScaler(run, {}, o);
    };
    CHECK_NOTHROW(make([](auto&) {}));
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.loss_scale = 0; }), doctest::Contains("loss_scale"),
                         Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.loss_scale = NAN; }), doctest::Contains("loss_scale"),
                         Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.least = 2; }), doctest::Contains("bounds"), Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.growth = 0.5; }), doctest::Contains("growth"), Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.backoff = 1; }), doctest::Contains("backoff"), Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.interval = 0; }), doctest::Contains("interval"),
                         Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.clip_norm = -1; }), doctest::Contains("clip_norm"),
                         Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.clip_norm = 1e300; }), doctest::Contains("clip_norm"),
                         Error);
    CHECK(run.state().loss_scale == 1);
  }
}
