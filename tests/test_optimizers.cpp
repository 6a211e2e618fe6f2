#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "core/packed.h"
#include "core/pattern.h"
#include "core/storage.h"
#include "kernels/quantised.h"
#include "kernels/state.h"
#include "optim/optimizer.h"
#include "tests/op_table.h"
#include "tests/reference.h"

using namespace ulp;
using namespace ulp::tests;
using optim::Algorithm;
using optim::Decay;
using optim::OptimizerOptions;
using optim::Slot;
using optim::Update;

namespace {

constexpr Algorithm kAlgorithms[] = {Algorithm::Sgd, Algorithm::Adam, Algorithm::AdamW,
                                     Algorithm::Lion};

std::vector<float> as_floats(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

/// The papers' updates in fp64, one number at a time.
struct Textbook {
  OptimizerOptions o;
  std::vector<double> p, m, v;
  int t = 0;

  Textbook(const OptimizerOptions& options, std::vector<double> start)
      : o(options), p(std::move(start)), m(p.size(), 0.0), v(p.size(), 0.0) {}

  void step(const std::vector<double>& gradient) {
    ++t;
    const bool decoupled = o.resolved_decay() == Decay::Decoupled;
    for (size_t i = 0; i < p.size(); ++i) {
      double g = gradient[i] * o.grad_scaling;
      if (decoupled)
        p[i] *= 1 - o.lr * o.weight_decay;
      else
        g += o.weight_decay * p[i];
      switch (o.algorithm) {
        case Algorithm::Sgd:
          m[i] = o.momentum * m[i] + g;
          p[i] -= o.lr * (o.nesterov ? g + o.momentum * m[i] : m[i]);
          break;
        case Algorithm::Adam:
        case Algorithm::AdamW: {
          m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
          v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
          const double mean = m[i] / (1 - std::pow(o.beta1, t));
          const double square = v[i] / (1 - std::pow(o.beta2, t));
          p[i] -= o.lr * mean / (std::sqrt(square) + o.eps);
          break;
        }
        case Algorithm::Lion: {
          const double c = o.beta1 * m[i] + (1 - o.beta1) * g;
          p[i] -= o.lr * (c > 0 ? 1 : c < 0 ? -1 : 0);
          m[i] = o.beta2 * m[i] + (1 - o.beta2) * g;
          break;
        }
      }
    }
  }
};

OptimizerOptions some_options(Algorithm algorithm) {
  OptimizerOptions o = OptimizerOptions::of(algorithm);
  o.lr = algorithm == Algorithm::Sgd ? 0.05 : 0.01;
  if (algorithm == Algorithm::Sgd) o.momentum = 0.9;
  o.weight_decay = 0.02;
  o.grad_scaling = 0.5;
  return o;
}

/// One parameter in fp32 and formats, from the rows that quantise whole tensors: what the fused kernel must equal.
struct Book {
  OptimizerOptions o;
  std::string path;
  Shape shape;
  uint64_t seed;
  std::vector<float> weight, master, m, v, c;
  uint32_t t = 0;

  std::vector<float> round(const std::vector<float>& values, const Quantizer& q, const char* role,
                           uint32_t step) const {
    if (q.is_identity()) return values;
    StepState state;
    state.random_step = step;
    // Of states only: groups of weights and gradients run along the last axis.
    const std::string_view name = role;
    const bool flat = q.block.kind == Block::Kind::Group && name != "weight" && name != "grad";
    const Tensor x = Tensor::from(values, flat ? Shape{shape.numel()} : shape);
    QuantiseUse use;
    use.quantizer = q;
    if (q.block.kind == Block::Kind::Axis && shape.rank() == 1) use.quantizer.block.axis = 0;
    use.axis = std::max(0, x.rank() - 1);
    use.key = {seed, RandomSite(path).stream(role), 0, &state};
    return quantised(stream_of(kCpu), x, use).to_floats();
  }

  void begin(const std::vector<float>& start) {
    const std::vector<float> zeros(start.size(), 0.0f);
    m = v = c = zeros;
    master = o.accumulator ? round(start, *o.accumulator, "master", 0) : start;
    weight = round(master, o.weight, "weight", 0);
  }

  void step(const std::vector<float>& gradient, uint32_t random_step) {
    ++t;
    const auto f = [](double x) { return static_cast<float>(x); };
    std::vector<float> g = gradient;
    for (float& one : g) one *= f(o.grad_scaling);
    g = round(g, o.grad, "grad", random_step);
    const std::vector<float> old = o.accumulator ? master : weight;
    std::vector<float> p = old, owed(p.size());
    const bool adam = o.algorithm == Algorithm::Adam || o.algorithm == Algorithm::AdamW;
    const bool decoupled = o.resolved_decay() == Decay::Decoupled,
               kahan = o.update == Update::Kahan;
    const float lr = f(o.lr), decay = f(o.weight_decay), b1 = f(o.beta1), b2 = f(o.beta2);
    double b1_t = 1, b2_t = 1;
    for (uint32_t i = 0; i < t; ++i) b1_t *= o.beta1, b2_t *= o.beta2;
    // Powers by squaring differ from these by few ulps of fp64, which fp32 does not see (checked below for t ≤ 20).
    const float step = adam ? f(double{lr} / (1 - b1_t)) : lr;
    const float root = f(1 / std::sqrt(1 - b2_t));
    for (size_t i = 0; i < p.size(); ++i) {
      const float d = decoupled || decay == 0 ? g[i] : std::fma(decay, p[i], g[i]);
      float u = d;
      if (o.algorithm == Algorithm::Sgd && o.momentum > 0) {
        m[i] = std::fma(f(o.momentum), m[i], d);
        u = o.nesterov ? std::fma(f(o.momentum), m[i], d) : m[i];
      } else if (adam) {
        m[i] = std::fma(b1, m[i], f(1 - o.beta1) * d);
        v[i] = std::fma(b2, v[i], (f(1 - o.beta2) * d) * d);
        u = m[i] / std::fma(std::sqrt(v[i]), root, f(o.eps));
      } else if (o.algorithm == Algorithm::Lion) {
        const float mix = std::fma(b1, m[i], f(1 - o.beta1) * d);
        m[i] = std::fma(b2, m[i], f(1 - o.beta2) * d);
        u = mix > 0 ? 1.0f : mix < 0 ? -1.0f : mix;
      }
      const float shrink = decoupled ? lr * decay : 0.0f;
      if (kahan) {
        owed[i] = -(step * u);
        if (shrink != 0) owed[i] = std::fma(-shrink, p[i], owed[i]);
        owed[i] += c[i];
        p[i] += owed[i];
      } else {
        if (shrink != 0) p[i] = std::fma(-shrink, p[i], p[i]);
        p[i] = std::fma(-step, u, p[i]);
      }
    }
    if (o.accumulator)
      p = master = round(p, *o.accumulator, "master", random_step);
    else
      p = weight = round(p, o.weight, "weight", random_step);
    if (kahan) {
      for (size_t i = 0; i < p.size(); ++i) c[i] = owed[i] - (p[i] - old[i]);
      c = round(c, o.compensation, "compensation", random_step);
    }
    if (o.accumulator) weight = round(p, o.weight, "weight", random_step);
    m = round(m, o.moment1, "moment1", random_step);
    v = round(v, o.moment2, "moment2", random_step);
  }
};

/// What a weight of one becomes in `steps` steps with gradient one.
double walk(OptimizerOptions o, int steps) {
  Run run;
  constexpr int64_t kCount = 512;  // the mean of stochastic ones
  Parameter p{"w", Tensor::from(std::vector<float>(kCount, 1.0f), {kCount}), {}};
  optim::Optimizer optimizer(run, {&p}, o);
  for (int i = 0; i < steps; ++i) {
    p.grad = Tensor::from(std::vector<float>(kCount, 1.0f), {kCount});
    optimizer.step();
  }
  double sum = 0;
  for (const double w : p.value.to_doubles()) sum += w;
  return sum / kCount;
}

}  // namespace

TEST_SUITE("optimizers") {
  TEST_CASE("every algorithm follows its paper in fp64 for twenty steps") {
    for (const Algorithm algorithm : kAlgorithms)
      for (const auto decay : {Decay::Coupled, Decay::Decoupled})
        for (const bool extra : {false, true})
          for (const Shape& shape : {Shape{50}, Shape{7, 3}, Shape{}, Shape{257, 5}, Shape{0}}) {
            CAPTURE(to_string(algorithm));
            CAPTURE(to_string(shape));
            OptimizerOptions o = some_options(algorithm);
            o.decay = decay;
            if (extra && algorithm == Algorithm::Sgd) o.nesterov = true;
            if (extra && algorithm != Algorithm::Sgd) o.beta1 = 0.8, o.beta2 = 0.95, o.eps = 1e-3;
            Run run;
            Parameter p{"w", random_tensor(shape, -1, 1, 1), {}};
            Textbook book(o, p.value.to_doubles());
            optim::Optimizer optimizer(run, {&p}, o);
            for (uint64_t step = 0; step < 20; ++step) {
              // Away from zero: there a sign may differ for a rounding error (lion).
              std::vector<double> g = random_values(shape.numel(), 0.1, 1, 300 + step);
              for (size_t i = 0; i < g.size(); ++i) g[i] *= (i + step) % 3 == 0 ? -1 : 1;
              p.grad = Tensor::from(as_floats(g), shape);
              book.step(p.grad.to_doubles());
              optimizer.step();
            }
            const std::vector<double> got = p.value.to_doubles();
            // 20 steps of ≤ 8 roundings of numbers below 16; Adam's quotients are below 4.
            bool near = true;
            for (size_t i = 0; i < got.size(); ++i)
              near = near && std::abs(got[i] - book.p[i]) <= 160 * 16 * 0x1p-24;
            CHECK(near);
          }
  }

  TEST_CASE("a momentum for each step: the papers with another one every time") {
    for (const Algorithm algorithm : kAlgorithms)
      for (const bool nesterov : {false, true}) {
        if (nesterov && algorithm != Algorithm::Sgd) continue;
        CAPTURE(to_string(algorithm));
        const Shape shape{7, 3};
        OptimizerOptions o = some_options(algorithm);
        o.nesterov = nesterov;
        Run run;
        Parameter p{"w", random_tensor(shape, -1, 1, 1), {}};
        Textbook book(o, p.value.to_doubles());
        optim::Optimizer optimizer(run, {&p}, o);
        const std::vector<float> rates = {0.01f, 0.02f, 0.03f}, momenta = {0.95f, 0.5f, 0.0f};
        optimizer.set_rates(rates, momenta);
        for (uint64_t step = 0; step < 8; ++step) {
          if (step == 5) optimizer.set_lr(0.01);        // the options' momentum from here on
          const size_t at = std::min<size_t>(step, 2);  // the last one stays
          OptimizerOptions& now = book.o;
          now.lr = step < 5 ? static_cast<double>(rates[at]) : 0.01;
          (algorithm == Algorithm::Sgd ? now.momentum : now.beta1) =
              step < 5                      ? static_cast<double>(momenta[at])
              : algorithm == Algorithm::Sgd ? o.momentum
                                            : o.beta1;
          std::vector<double> g = random_values(shape.numel(), 0.1, 1, 300 + step);
          p.grad = Tensor::from(as_floats(g), shape);
          book.step(p.grad.to_doubles());
          optimizer.step();
        }
        const std::vector<double> got = p.value.to_doubles();
        bool near = true;
        for (size_t i = 0; i < got.size(); ++i)
          near = near && std::abs(got[i] - book.p[i]) <= 160 * 16 * 0x1p-24;
        CHECK(near);
      }
    Run run;
    Parameter p{"w", Tensor::from(std::vector<float>{1}, {1}), {}};
    optim::Optimizer plain(run, {&p}, {});
    const std::vector<float> rates = {0.1f, 0.2f};
    CHECK_THROWS_WITH_AS(plain.set_rates(rates, std::vector<float>{0.9f, 0.8f}),
                         doctest::Contains("needs a momentum above 0 to begin with"), Error);
    Parameter q{"v", Tensor::from(std::vector<float>{1}, {1}), {}};
    optim::Optimizer momentum(run, {&q}, some_options(Algorithm::Sgd));
    CHECK_THROWS_WITH_AS(momentum.set_rates(rates, std::vector<float>{0.9f}),
                         doctest::Contains("2 learning rates and 1 momenta"), Error);
    CHECK_THROWS_WITH_AS(momentum.set_rates(rates, std::vector<float>{0.9f, 1.0f}),
                         doctest::Contains("momentum must be"), Error);
  }

  TEST_CASE("QPyTorch's order of one step, by hand") {
    // fixed4.2 has steps of 1/4 up to 1.75, ties to even. g = 0.3·0.5 = 0.15 → 0.25. d = 0.25 + 0.5·1.0 = 0.75 with the
    // accumulator 1.0; m = 0.75; p = 1 − 0.5·0.75 = 0.625. accumulator (steps of 1/8): 0.625; weight: 0.625 → 0.5 (tie).
    // Then g = −0.9·0.5 = −0.45 → −0.5; d = −0.5 + 0.5·0.625 = −0.1875; m = 0.9·0.75 − 0.1875 = 0.4875, used as it is
    // although 0.5 is stored before (0.75 → 0.75): p = 0.625 − 0.24375 = 0.38125 → 0.375; weight 0.375 → 0.5 (tie).
    OptimizerOptions o;
    o.lr = 0.5;
    o.momentum = 0.9;
    o.weight_decay = 0.5;
    o.grad_scaling = 0.5;
    o.weight = o.grad = o.moment1 = "fixed4.2";
    o.accumulator = Quantizer("fixed6.3");
    Run run;
    Parameter p{"w", Tensor::from(std::vector<float>{1.0f}, {1}), {}};
    optim::Optimizer optimizer(run, {&p}, o);
    const auto state = [&](Slot slot) {
      return optimizer.read(optimizer.states()[0], slot).to_floats()[0];
    };
    p.grad = Tensor::from(std::vector<float>{0.3f}, {1});
    optimizer.step();
    CHECK(state(Slot::Moment1) == 0.75f);
    CHECK(state(Slot::Master) == 0.625f);
    CHECK(p.value.to_floats()[0] == 0.5f);
    p.grad = Tensor::from(std::vector<float>{-0.9f}, {1});
    optimizer.step();
    CHECK(state(Slot::Moment1) == 0.5f);
    CHECK(state(Slot::Master) == 0.375f);
    CHECK(p.value.to_floats()[0] == 0.5f);
  }

  TEST_CASE("twenty steps equal the written-out order for states of every layout") {
    struct Setting {
      const char *weight, *accumulator, *grad, *moment1, *moment2, *compensation;
    };
    const Setting settings[] = {
        {"fp32", "", "fp32", "fp32", "fp32", ""},
        {"bf16", "", "fp32", "bf16:sr", "bf16:sr", "bf16"},
        {"bf16:sr", "", "e5m2:sr", "e4m3", "bf16", ""},
        {"e4m3", "e6m9:sr", "e5m2:sr", "e5m2:sr", "e6m9", "e6m9"},
        {"fp32", "", "fp32", "dynamic8-g256-scalef32", "dynamic8u-g256-scalef32", ""},
        {"fp32", "", "fp32", "dynamic8-g64-scalef32:sr", "dynamic8u-g8-scalef32:sr", "bf16"},
        {"bf16", "fp32", "fp32", "e4m3-g256-scalef32:sr", "e4m3-g128-scalef32", ""},
        {"fp32", "fixed16.12:sr", "fp32", "e2m1-g32-scalef32:sr", "posit8.1", "fixed8.10"},
        {"e4m3", "posit16.1", "fixed8.4", "nf4-g4-scalef32", "fixed13.11-u:sr", "e3m4"},
        {"fp32", "", "bfp8", "bfp8:sr", "e6m9-g16-scalef32", "e2m3"},
        {"bfp8-g3", "e6m9", "fp32", "mxfp8", "mxfp8-rceil:sr", ""},
        {"bf16", "bfp12-axis0:sr", "fp32", "nvfp4:sr", "e5m2+scale=row", ""},
        {"bf16", "", "fp32", "e4m3+scale=current", "bfp8-t4x4", ""},
        {"fp32", "tf32", "e4m3", "e5m2-g100-scalef32", "e4m3-g512-scalef32:sr", "tf32:sr"},
    };
    for (const Setting& s : settings)
      for (const Algorithm algorithm : kAlgorithms) {
        CAPTURE(to_string(algorithm));
        CAPTURE(std::string(s.weight));
        CAPTURE(std::string(s.moment1));
        CAPTURE(std::string(s.moment2));
        OptimizerOptions o = some_options(algorithm);
        o.eps = 1e-3;  // second moments that become zero
        o.weight = s.weight;
        if (*s.accumulator) o.accumulator = Quantizer(s.accumulator);
        o.grad = s.grad;
        o.moment1 = s.moment1;
        if (algorithm == Algorithm::Adam || algorithm == Algorithm::AdamW) o.moment2 = s.moment2;
        if (*s.compensation) {
          o.update = Update::Kahan;
          o.compensation = s.compensation;
        }
        Run run(kCpu, 42);
        const Shape shapes[] = {{9, 71}, {300}, {1}};
        std::vector<Parameter> parameters;
        for (const Shape& shape : shapes)
          parameters.push_back({"fc" + std::to_string(parameters.size()),
                                random_tensor(shape, -1, 1, 1 + parameters.size()),
                                {}});
        std::vector<Book> books;
        std::vector<Parameter*> all;
        for (Parameter& p : parameters) {
          books.push_back({o, p.path, p.value.shape(), 42, {}, {}, {}, {}, {}});
          books.back().begin(p.value.to_floats());
          all.push_back(&p);
        }
        optim::Optimizer optimizer(run, all, o);
        for (uint32_t step = 1; step <= 20; ++step) {
          for (size_t k = 0; k < parameters.size(); ++k) {
            parameters[k].grad =
                random_tensor(parameters[k].value.shape(), -4, 4, 1000 * k + 100 + step);
            books[k].step(parameters[k].grad.to_floats(), step);
          }
          optimizer.step();
        }
        for (size_t k = 0; k < parameters.size(); ++k) {
          CAPTURE(k);
          const optim::Optimizer::State& state = optimizer.states()[k];
          const auto same = [&](Slot slot, const std::vector<float>& wanted) {
            if (!state[slot].defined()) return;
            CAPTURE(std::string(to_string(slot)));
            CHECK(optimizer.read(state, slot).to_floats() == wanted);
            CHECK((state[slot].data.dtype() == DType::U8) == is_packed(state.format(slot)));
          };
          CHECK(parameters[k].value.to_floats() == books[k].weight);
          same(Slot::Master, books[k].master);
          same(Slot::Moment1, books[k].m);
          same(Slot::Moment2, books[k].v);
          same(Slot::Compensation, books[k].c);
        }
      }
  }

  TEST_CASE("states take the bytes that are reported, and no more are allocated") {
    struct Setting {
      const char *moment1, *moment2;
      double bytes;  // of both, for each of 4096 elements
    };
    const Setting settings[] = {
        {"fp32", "fp32", 8},
        {"bf16", "bf16:sr", 4},
        {"e4m3", "e5m2", 2},
        {"e3m4", "fixed8.6", 2},
        {"e2m1", "nf4", 1},
        {"e2m3", "fixed12.9", 0.75 + 1.5},
        {"e6m9", "posit16.1", 4},
        {"dynamic8-g256-scalef32", "dynamic8u-g256-scalef32", 2 + 2 * 4.0 / 256},
        {"mxfp8", "nvfp4", 1 + 1 / 32.0 + 0.5 + 1 / 16.0 + 4 / 4096.0}};
    for (const Setting& s : settings) {
      CAPTURE(std::string(s.moment1));
      OptimizerOptions o = OptimizerOptions::of(Algorithm::AdamW);
      o.moment1 = s.moment1;
      o.moment2 = s.moment2;
      Run run;
      Parameter p{"w", random_tensor({16, 256}, -1, 1, 1), {}};
      const int64_t before = memory_use(kCpu).now;
      optim::Optimizer optimizer(run, {&p}, o);
      constexpr int64_t kRates = 12;  // a rate and two counters
      CHECK(memory_use(kCpu).now - before - kRates == optimizer.bytes());
      CHECK(static_cast<double>(optimizer.bytes()) == s.bytes * 4096);
      int64_t bytes = 0;
      for (const auto& [name, tensor] : optimizer.tensors()) bytes += tensor.bytes();
      CHECK(bytes - 4 == optimizer.bytes());
    }
  }

  TEST_CASE("packed states lie in their format's value set") {
    for (const char* format : {"e3m4", "fixed8.6:sr", "e2m3", "posit8.1", "e2m1:sr"}) {
      CAPTURE(std::string(format));
      OptimizerOptions o = OptimizerOptions::of(Algorithm::Lion);
      o.moment1 = format;
      Run run;
      Parameter p{"w", random_tensor({333}, -1, 1, 1), {}};
      optim::Optimizer optimizer(run, {&p}, o);
      for (uint64_t step = 0; step < 5; ++step) {
        p.grad = random_tensor({333}, -20, 20, step);
        optimizer.step();
      }
      const Format f = Quantizer(format).format;
      bool inside = true;
      for (const float x : optimizer.read(optimizer.states()[0], Slot::Moment1).to_floats())
        inside = inside && encode(f, x).has_value();
      CHECK(inside);
    }
  }

  TEST_CASE("plain updates of bf16 weights stall where Kahan's and stochastic ones follow") {
    // A step of 0.001 is less than half of bf16's 2^−8 below one.
    for (const Algorithm algorithm : kAlgorithms) {
      CAPTURE(to_string(algorithm));
      OptimizerOptions o = OptimizerOptions::of(algorithm);
      o.lr = 0.001;
      const double fp32 = walk(o, 300);
      CHECK(fp32 == doctest::Approx(0.7).epsilon(1e-4));
      o.weight = "bf16";
      CHECK(walk(o, 300) == 1);
      o.weight = "bf16:sr";
      CHECK(walk(o, 300) == doctest::Approx(fp32).epsilon(0.005));
      o.weight = "bf16";
      o.update = Update::Kahan;
      o.compensation = "bf16";
      CHECK(walk(o, 300) == doctest::Approx(fp32).epsilon(0.004));
      o.update = Update::Plain;
      o.compensation = {};
      o.accumulator = Quantizer{};
      CHECK(walk(o, 300) == doctest::Approx(fp32).epsilon(0.004));
    }
  }

  TEST_CASE("groups by pattern change formats, rates and decay; later ones win") {
    OptimizerOptions o = OptimizerOptions::of(Algorithm::Adam);
    o.lr = 0.5;
    o.weight_decay = 0.25;
    o.weight = "bf16";
    o.moment1 = "e4m3";
    optim::ParameterGroup biases{"fc*.bias"}, first{"fc?.*"}, second{"fc2.*"};
    first.lr_factor = 0.5;
    biases.weight_decay = 0.0;
    biases.moment1 = Quantizer{};
    second.lr_factor = 0.0;
    second.accumulator = std::optional<Quantizer>(Quantizer{});
    o.groups = {biases, first, second};
    Run run;
    Parameter w1{"fc1.weight", random_tensor({4}, 1, 2, 1), {}},
        b1{"fc1.bias", random_tensor({4}, 1, 2, 2), {}},
        w2{"fc2.weight", random_tensor({4}, 1, 2, 3), {}},
        out{"head.weight", random_tensor({4}, 1, 2, 4), {}};
    optim::Optimizer optimizer(run, {&w1, &b1, &w2, &out}, o);
    const auto& states = optimizer.states();
    CHECK((states[0].lr_factor == 0.5 && states[1].lr_factor == 0.5 && states[2].lr_factor == 0 &&
           states[3].lr_factor == 1));
    CHECK((states[0].options.weight_decay == 0.25 && states[1].options.weight_decay == 0));
    CHECK(states[1][Slot::Moment1].data.dtype() == DType::F32);
    CHECK(states[0][Slot::Moment1].data.dtype() == DType::F8E4M3);
    CHECK((states[2][Slot::Master].defined() && !states[0][Slot::Master].defined()));
    const auto before = w2.value.to_floats(), moved = out.value.to_floats();
    for (Parameter* p : {&w1, &b1, &w2, &out}) p->grad = random_tensor({4}, 1, 2, 5);
    optimizer.step();
    CHECK(w2.value.to_floats() == before);
    CHECK(out.value.to_floats() != moved);

    o.groups = {{"fc1.wieght"}};
    CHECK_THROWS_WITH_AS(
        optim::Optimizer(run, {&w1, &b1, &out}, o),
        doctest::Contains("'fc1.wieght' matches no parameter; similar: fc1.weight"), Error);
  }

  TEST_CASE("patterns") {
    CHECK(matches("fc*.bias", "fc12.bias"));
    CHECK(matches("*", ""));
    CHECK(matches("*.w*t", "a.b.weight"));
    CHECK(matches("a?c", "abc"));
    CHECK(!matches("a?c", "ac"));
    CHECK(!matches("fc*.bias", "fc1.bias2"));
    CHECK(!matches("", "a"));
    CHECK(matches("a*b*c", "a-b-b-c"));
    CHECK(similar("fc1.wei", {"head.bias", "fc1.weight", "fc2.weight", "x"})[0] == "fc1.weight");
  }

  TEST_CASE("skipped steps change nothing and do not count toward Adam's corrections") {
    OptimizerOptions o = OptimizerOptions::of(Algorithm::Adam);
    o.moment1 = "dynamic8-g256-scalef32:sr";
    o.moment2 = "bfp8";
    Run run;
    Parameter p{"w", random_tensor({300}, -1, 1, 1), {}};
    optim::Optimizer optimizer(run, {&p}, o);
    const auto all = [&] {
      std::vector<std::vector<float>> values{p.value.to_floats()};
      for (const auto& [name, tensor] : optimizer.tensors()) values.push_back(tensor.to_floats());
      return values;
    };
    const auto step = [&](bool skip, uint64_t seed) {
      StepState state = run.state();
      state.found_inf = skip ? 1 : 0;
      run.set_state(state);
      p.grad = random_tensor({300}, -1, 1, seed);
      optimizer.step();
    };
    step(false, 2);
    const auto before = all();
    step(true, 3);
    CHECK(all() == before);
    CHECK(optimizer.tensors().at("optimizer.steps").data<int32_t>()[0] == 1);
    step(false, 4);
    CHECK(optimizer.tensors().at("optimizer.steps").data<int32_t>()[0] == 2);
    CHECK(all() != before);
  }

  TEST_CASE("tensors() is all that a resumed optimizer needs") {
    OptimizerOptions o = OptimizerOptions::of(Algorithm::AdamW);
    o.weight = "bf16";
    o.update = Update::Kahan;
    o.compensation = "bf16";
    o.moment1 = "dynamic8-g64-scalef32:sr";
    o.moment2 = "nvfp4:sr";
    const auto start = [] { return random_tensor({5, 70}, -1, 1, 1); };
    const auto step = [](Parameter& p, optim::Optimizer& optimizer, uint64_t seed) {
      p.grad = random_tensor({5, 70}, -1, 1, seed);
      optimizer.step();
    };
    Run run_a, run_b;
    Parameter a{"w", start(), {}}, b{"w", start(), {}};
    optim::Optimizer first(run_a, {&a}, o), second(run_b, {&b}, o);
    for (uint64_t i = 0; i < 3; ++i) step(a, first, i);
    run_b.set_state(run_a.state());
    std::map<std::string, Tensor> to = second.tensors();
    const std::map<std::string, Tensor> from = first.tensors();
    to["weight"] = b.value;
    REQUIRE(from.size() + 1 == to.size());
    for (const auto& [name, tensor] : to) {
      const Tensor& source = name == "weight" ? a.value : from.at(name);
      Tensor handle = tensor;
      copy_bytes(handle.mutable_raw(), kCpu, source.raw(), kCpu,
                 static_cast<size_t>(source.bytes()));
    }
    for (const char* name : {"w.moment1.codes", "w.moment1.scales", "w.moment2.codes",
                             "w.moment2.scales", "w.moment2.factor", "w.compensation"}) {
      CAPTURE(std::string(name));
      CHECK(from.contains(name));
      CHECK(first.formats().contains(name));
    }
    CHECK(first.formats().at("w.moment1.codes") == "dynamic8-g64-scalef32:sr");
    for (uint64_t i = 3; i < 6; ++i) {
      step(a, first, i);
      step(b, second, i);
    }
    CHECK(a.value.to_floats() == b.value.to_floats());
    for (const auto& [name, tensor] : first.tensors())
      CHECK(tensor.to_floats() == second.tensors().at(name).to_floats());
  }

  TEST_CASE("a NaN shows in the weight also where a packed moment has no code for it") {
    OptimizerOptions o = OptimizerOptions::of(Algorithm::Adam);
    o.moment1 = "fixed8.6";
    o.moment2 = "dynamic8u-g256-scalef32";
    Run run;
    Parameter p{"w", Tensor::from(std::vector<float>{1, 2}, {2}), {}};
    optim::Optimizer optimizer(run, {&p}, o);
    p.grad = Tensor::from(std::vector<float>{NAN, 1}, {2});
    optimizer.step();
    CHECK(std::isnan(p.value.to_floats()[0]));
    CHECK(std::isfinite(p.value.to_floats()[1]));
    // A group with a NaN is NaN, as all scaled blocks are.
    for (const float v : optimizer.read(optimizer.states()[0], Slot::Moment2).to_floats())
      CHECK(std::isnan(v));
  }

  TEST_CASE("wrong options are named") {
    Run run;
    Parameter p{"fc.weight", random_tensor({5, 2}, -1, 1, 1), {}};
    const auto refused = [&](Algorithm algorithm, auto change, const char* what) {
      OptimizerOptions o = OptimizerOptions::of(algorithm);
      change(o);
      CHECK_THROWS_WITH_AS(optim::Optimizer(run, {&p}, o), doctest::Contains(what), Error);
    };
    refused(
        Algorithm::Adam, [](auto& o) { o.beta1 = 1; }, "adam: beta1");
    refused(
        Algorithm::Sgd, [](auto& o) { o.momentum = 1; }, "sgd: momentum must be");
    refused(
        Algorithm::Adam, [](auto& o) { o.moment1 = "dynamic8u-g256-scalef32"; },
        "adam: moment1 has negative numbers, and dynamic8u-g256-scalef32 has none");
    refused(
        Algorithm::Sgd, [](auto& o) { o.weight = "fixed8.4-u"; },
        "sgd: weight has negative numbers, and fixed8.4-u has none");
    refused(
        Algorithm::Sgd, [](auto& o) { o.accumulator = "fixed8.4-u"; }, "sgd: accumulator has");
    refused(
        Algorithm::Sgd, [](auto& o) { o.grad = "fixed8.4-u"; }, "sgd: grad has negative");
    refused(
        Algorithm::Sgd,
        [](auto& o) {
          o.update = Update::Kahan;
          o.compensation = "fixed8.4-u";
        },
        "compensation has negative numbers");
    refused(
        Algorithm::Lion, [](auto& o) { o.beta2 = -0.1; }, "lion: beta2");
    refused(
        Algorithm::AdamW, [](auto& o) { o.eps = 0; }, "adamw: eps");
    refused(
        Algorithm::Adam, [](auto& o) { o.momentum = 0.9; }, "momentum and nesterov are for sgd");
    refused(
        Algorithm::Lion, [](auto& o) { o.moment2 = "bf16"; }, "keeps no second moment");
    refused(
        Algorithm::Sgd, [](auto& o) { o.moment2 = "bf16"; }, "keeps no second moment");
    refused(
        Algorithm::Adam, [](auto& o) { o.compensation = "bf16"; }, "needs kahan");
    refused(
        Algorithm::Adam,
        [](auto& o) {
          o.update = Update::Kahan;
          o.weight = "bfp8";
        },
        "kahan updates need weights without blocks");
    refused(
        Algorithm::Adam, [](auto& o) { o.moment2 = "bfp8-axis2"; },
        "moment2 format bfp8-axis2 needs axis 2, but fc.weight");
    refused(
        Algorithm::Sgd,
        [](auto& o) {
          o.groups = {{"fc.weight", -1.0}};
        },
        "(fc.weight of group 'fc.weight')");
    CHECK_THROWS_WITH_AS(optim::parse_algorithm("adagrad"),
                         doctest::Contains("there are sgd, adam, adamw and lion"), Error);
  }
}
