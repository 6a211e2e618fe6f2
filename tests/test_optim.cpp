#include <doctest/doctest.h>

#include <cmath>

#include "kernels/state.h"
#include "nn/models.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"
#include "tests/op_table.h"
#include "tests/reference.h"

using namespace ulp;
using namespace ulp::tests;
using optim::Slot;

namespace {

/// One parameter's numbers in the order of the optimizer's page, element by element in plain code. Block formats use the
/// independent reference of tests/reference.h with the largest magnitude of each block.
struct Book {
  optim::OptimizerOptions o;
  std::vector<float> weight, master, momentum;
  Shape shape;
  std::string path;
  uint64_t seed;

  std::vector<float> round(const std::vector<float>& v, const Quantizer& q, const char* role,
                           uint32_t step) const {
    if (q.is_identity()) return v;
    StepState state;
    state.random_step = step;
    const RandomSource random({seed, RandomSite(path).stream(role), 0, &state});
    std::vector<float> out;
    const int64_t columns = shape[shape.rank() - 1];
    for (size_t i = 0; i < v.size(); ++i) {
      float amax = 0;
      for (size_t j = 0; j < v.size(); ++j) {
        const auto row = [&](size_t k) { return static_cast<int64_t>(k) / columns; };
        const auto column = [&](size_t k) { return static_cast<int64_t>(k) % columns; };
        const bool rows =
            q.block.kind == Block::Kind::Axis && q.block.axis == 0 && shape.rank() == 2;
        const bool columns_own =
            q.block.kind == Block::Kind::Axis && q.block.axis == 1 && shape.rank() == 2;
        const bool own = q.block.kind == Block::Kind::Axis && shape.rank() == 1;
        const bool group = q.block.kind == Block::Kind::Group;
        const bool same = (!rows || row(i) == row(j)) && (!columns_own || column(i) == column(j)) &&
                          (!own || i == j) &&
                          (!group || (row(i) == row(j) &&
                                      column(i) / q.block.columns == column(j) / q.block.columns));
        if (same) amax = std::max(amax, std::abs(v[j]));
      }
      out.push_back(reference::Reference(q, amax)(v[i], random.word(i)).value);
    }
    return out;
  }

  void begin(const std::vector<float>& start) {
    momentum.assign(start.size(), 0.0f);
    master = o.accumulator ? round(start, *o.accumulator, "master", 0) : start;
    weight = round(master, o.weight, "weight", 0);
  }

  void step(const std::vector<float>& grad, uint32_t random_step) {
    std::vector<float> g = grad;
    for (float& v : g) v *= static_cast<float>(o.grad_scaling);
    g = round(g, o.grad, "grad", random_step);
    std::vector<float> p = o.accumulator ? master : weight, m = momentum;
    for (size_t i = 0; i < p.size(); ++i) {
      const float mu = static_cast<float>(o.momentum), wd = static_cast<float>(o.weight_decay);
      const float d = wd == 0 ? g[i] : std::fma(wd, p[i], g[i]);
      m[i] = o.momentum > 0 ? std::fma(mu, m[i], d) : d;
      p[i] = std::fma(-static_cast<float>(o.lr), o.nesterov ? std::fma(mu, m[i], d) : m[i], p[i]);
    }
    if (o.accumulator) p = master = round(p, *o.accumulator, "master", random_step);
    weight = round(p, o.weight, "weight", random_step);
    momentum = round(m, o.moment1, "moment1", random_step);
  }
};

}  // namespace

TEST_SUITE("optim") {
  TEST_CASE("twenty steps equal the written-out order, for element-wise and block formats") {
    struct Setting {
      const char *weight, *accumulator, *grad, *momentum;
    };
    const Setting settings[] = {
        {"fp32", "", "fp32", "fp32"},
        {"e4m3", "e6m9:sr", "fp32", "fp32"},
        {"e4m3", "fp32", "e5m2:sr", "bf16"},
        {"bf16:sr", "", "e5m2", "e5m2:sr"},
        {"bfp8:sr", "", "bfp8:sr", "bfp8:sr"},
        {"bfp8-axis0:sr", "fp32", "bfp8-axis0:sr", "bfp8-axis0"},
        {"bfp8-axis1:sr", "", "bfp8-axis1", "bfp8-axis1:sr"},
        {"bfp8-g3", "e6m9:sr", "fp32", "e4m3"},
        {"fixed8.6:sr", "fixed16.12:sr", "fixed8.4", "fixed8.4"},
    };
    for (const Setting& s : settings)
      for (const bool nesterov : {false, true})
        for (const double momentum : {0.0, 0.9}) {
          if (momentum == 0 && (nesterov || std::string(s.momentum) != "fp32")) continue;
          CAPTURE(std::string(s.weight));
          CAPTURE(std::string(s.grad));
          optim::OptimizerOptions o;
          o.lr = 0.05;
          o.momentum = momentum;
          o.nesterov = nesterov;
          o.weight_decay = 0.01;
          o.grad_scaling = 0.25;
          o.weight = Quantizer::parse(s.weight);
          if (*s.accumulator) o.accumulator = Quantizer::parse(s.accumulator);
          o.grad = Quantizer::parse(s.grad);
          o.moment1 = Quantizer::parse(s.momentum);
          Run run(kCpu, 42);
          Parameter matrix{"fc.weight", random_tensor({4, 7}, -1, 1, 1), {}};
          Parameter vector{"fc.bias", random_tensor({5}, -1, 1, 2), {}};
          std::vector<Book> books;
          for (const Parameter* p : {&matrix, &vector}) {
            books.push_back({o, {}, {}, {}, p->value.shape(), p->path, 42});
            books.back().begin(p->value.to_floats());
          }
          optim::Optimizer sgd(run, {&matrix, &vector}, o);
          CHECK(matrix.value.to_floats() == books[0].weight);  // quantised before the first step
          CHECK(matrix.value.dtype() == storage_type(o.weight.format));
          for (uint32_t step = 1; step <= 20; ++step) {
            matrix.grad = random_tensor({4, 7}, -4, 4, 100 + step);
            vector.grad = random_tensor({5}, -4, 4, 200 + step);
            books[0].step(matrix.grad.to_floats(), step);
            books[1].step(vector.grad.to_floats(), step);
            sgd.step();
            const Parameter* parameters[] = {&matrix, &vector};
            for (size_t k = 0; k < 2; ++k) {
              CHECK(parameters[k]->value.to_floats() == books[k].weight);
              const auto& state = sgd.states()[k];
              const auto read = [&](Slot slot) { return sgd.read(state, slot).to_floats(); };
              if (o.accumulator) CHECK(read(Slot::Master) == books[k].master);
              if (momentum > 0) CHECK(read(Slot::Moment1) == books[k].momentum);
              if (momentum > 0)
                CHECK(state[Slot::Moment1].data.dtype() ==
                      (is_packed(o.moment1) ? DType::U8 : storage_type(o.moment1)));
            }
          }
          CHECK(run.state().optimizer_step == 20);
        }
  }

  TEST_CASE("fp32 SGD follows an fp64 reference") {
    Run run;
    Parameter p{"w", random_tensor({50}, -1, 1, 1), {}};
    std::vector<double> w = p.value.to_doubles(), m(50, 0.0);
    optim::OptimizerOptions o;
    o.lr = 0.1;
    o.momentum = 0.9;
    o.weight_decay = 0.05;
    o.nesterov = true;
    optim::Optimizer sgd(run, {&p}, o);
    for (int step = 0; step < 20; ++step) {
      p.grad = random_tensor({50}, -1, 1, static_cast<uint64_t>(300 + step));
      const std::vector<double> g = p.grad.to_doubles();
      for (size_t i = 0; i < 50; ++i) {
        const double d = g[i] + 0.05 * w[i];
        m[i] = 0.9 * m[i] + d;
        w[i] -= 0.1 * (d + 0.9 * m[i]);
      }
      sgd.step();
    }
    // 20 steps of ≤ 4 roundings of numbers below 16.
    const std::vector<double> got = p.value.to_doubles();
    for (size_t i = 0; i < 50; ++i) CHECK(std::abs(got[i] - w[i]) <= 80 * 16 * 0x1p-24);
  }

  TEST_CASE(
      "a skipped step changes nothing and is not counted; two optimizers of a run keep their own "
      "rates") {
    Run run;
    Parameter a{"a", Tensor::from(std::vector<float>{1}, {1}), {}},
        b{"b", Tensor::from(std::vector<float>{1}, {1}), {}};
    optim::Optimizer first(run, {&a}, {.lr = 0.5}), second(run, {&b}, {.lr = 0.25});
    a.grad = b.grad = Tensor::from(std::vector<float>{1}, {1});
    StepState state = run.state();
    state.found_inf = 1;
    run.set_state(state);
    first.step();
    CHECK(a.value.to_floats()[0] == 1);
    CHECK(run.state().optimizer_step == 0);
    a.grad = b.grad;
    first.step();
    second.step();
    CHECK(a.value.to_floats()[0] == 0.5f);
    CHECK(b.value.to_floats()[0] == 0.75f);
    CHECK(run.state().optimizer_step == 2);
  }

  TEST_CASE("gradients are scaled without a gradient format too, and forgotten after the step") {
    Run run;
    Parameter p{"w", Tensor::from(std::vector<float>{1}, {1}), {}};
    optim::OptimizerOptions o;
    o.lr = 1;
    o.grad_scaling = 0.5;
    optim::Optimizer sgd(run, {&p}, o);
    p.grad = Tensor::from(std::vector<float>{1}, {1});
    sgd.step();
    CHECK(p.value.to_floats() == std::vector<float>{0.5f});
    CHECK(!p.grad.defined());
    sgd.step();  // no gradient, no change
    CHECK(p.value.to_floats() == std::vector<float>{0.5f});
  }

  TEST_CASE("stored weights, masters and momenta lie in their formats' value sets after training") {
    for (const char* format : {"e4m3", "e2m1", "fixed8.5", "e5m2:sr"}) {
      CAPTURE(std::string(format));
      Run run;
      const auto net = nn::mlp(8, std::vector<int64_t>{16}, 4, OpFormats::make("e4m3", "e5m2:sr"));
      net->initialise(run);
      optim::OptimizerOptions o;
      o.momentum = 0.9;
      o.weight = o.moment1 = Quantizer::parse(format);
      o.accumulator = Quantizer::parse("e6m9:sr");
      optim::Optimizer sgd(run, net->parameters(), o);
      for (int step = 0; step < 10; ++step) {
        Tape tape(run);
        const Var y =
            (*net)(tape, tape.constant(random_tensor({16, 8}, -1, 1, static_cast<uint64_t>(step))));
        tape.backward(ops::mean(tape, ops::square(tape, y)));
        sgd.step();
      }
      const auto inside = [](const Tensor& t, const char* name) {
        const std::vector<double> values = reference::Reference(name).values();
        for (const double v : t.to_doubles())
          if (v != 0 && std::find(values.begin(), values.end(), v) == values.end()) return false;
        return true;
      };
      for (const auto& state : sgd.states()) {
        CHECK(inside(state.parameter->value, format));
        CHECK(inside(sgd.read(state, Slot::Moment1), format));
        CHECK(inside(sgd.read(state, Slot::Master), "e6m9"));
      }
    }
  }

  TEST_CASE("wrong options are named") {
    Run run;
    Parameter p{"fc.weight", random_tensor({5, 2}, -1, 1, 1), {}};
    const auto make = [&](auto change) {
      optim::OptimizerOptions o;
      change(o);
      optim::Optimizer sgd(run, {&p}, o);
    };
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.lr = -1; }), doctest::Contains("lr"), Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.weight_decay = NAN; }),
                         doctest::Contains("weight_decay"), Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.nesterov = true; }), doctest::Contains("nesterov"),
                         Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.moment1 = Quantizer::parse("e5m2"); }),
                         doctest::Contains("momentum above 0"), Error);
    CHECK_THROWS_WITH_AS(make([](auto& o) { o.weight = Quantizer::parse("bfp8-axis2"); }),
                         doctest::Contains("needs axis 2, but fc.weight has shape (5, 2)"), Error);
    CHECK_THROWS_WITH_AS(optim::Optimizer(run, {&p, &p}, {}), doctest::Contains("given twice"),
                         Error);
    Parameter empty{"x", {}, {}};
    CHECK_THROWS_WITH_AS(optim::Optimizer(run, {&empty}, {}), doctest::Contains("initialise"),
                         Error);
  }
}
