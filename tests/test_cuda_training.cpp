#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "autograd/step_graph.h"
#include "nn/data/dataset.h"
#include "nn/models.h"
#include "nn/train_batch.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

Tensor on(const Tensor& t, Device device) { return t.to(device); }

struct Trained {
  std::vector<Tensor> states;
  nn::Score score;
  ScoreTotals totals;
  StepState state, device_state;
};

/// Some quantised steps on the digits, with a schedule, skipped steps and an evaluation between them.
Trained train(Device device, const OpFormats& formats, const optim::OptimizerOptions& options,
              int steps, Math math = Math::Strict, StepGraph::Use use = StepGraph::Use::Off,
              const char* rates = "cosine") {
  const nn::Dataset digits = nn::load_dataset("digits");
  Run run(device, 3, math);
  const auto net = nn::mlp(64, std::vector<int64_t>{48, 33}, 10, formats);
  net->initialise(run);
  optim::Optimizer sgd(run, net->parameters(), options);
  StepState state = run.state();
  state.loss_scale = 4;
  run.set_state(state);
  nn::Batches batches(run, digits, digits.train, 37), test(run, digits, digits.test, 100);
  const optim::Schedule schedule(optim::Schedule::parse(rates), options.lr, steps);
  nn::Tally tally(run);
  StepGraph graph(run, use);
  int step = 0;
  for (int epoch = 0; step < steps; ++epoch) {
    batches.shuffle(epoch);
    sgd.set_rates(schedule.rates(step, batches.steps()), schedule.momenta(step, batches.steps()));
    for (int64_t i = 0; i < batches.steps() && step < steps; ++i, ++step) {
      if (step % 11 == 7) {  // a skipped step
        StepState skipped = run.state();
        skipped.found_inf = 1;
        run.set_state(skipped);
      }
      if (step == 20) nn::evaluate(run, *net, test);
      graph.run([&] {
        nn::train_batch(run, *net, batches.next(), tally);
        sgd.step();
      });
    }
  }
  CHECK((graph.nodes() > 0) == (use == StepGraph::Use::Auto && graph.enabled()));
  Trained result;
  for (const auto& state : sgd.states()) result.states.push_back(on(state.parameter->value, kCpu));
  for (const auto& [name, tensor] : sgd.tensors()) result.states.push_back(on(tensor, kCpu));
  for (const auto& [stream, scaling] : run.scalings()) result.states.push_back(on(scaling, kCpu));
  result.totals = tally.totals();
  result.state = run.state();
  copy_bytes(&result.device_state, kCpu, run.device_state(), device, sizeof(StepState));
  result.score = nn::evaluate(run, *net, test);
  return result;
}

void check_same(const Trained& a, const Trained& b) {
  REQUIRE(a.states.size() == b.states.size());
  for (size_t i = 0; i < a.states.size(); ++i) CHECK(same_bits(a.states[i], b.states[i]));
  CHECK(a.score.loss == b.score.loss);
  CHECK(a.score.accuracy == b.score.accuracy);
  CHECK(std::memcmp(&a.totals, &b.totals, sizeof a.totals) == 0);
  CHECK(std::memcmp(&a.state, &b.state, sizeof a.state) == 0);
  CHECK(std::memcmp(&a.state, &a.device_state, sizeof a.state) == 0);
  CHECK(std::memcmp(&b.state, &b.device_state, sizeof b.state) == 0);
}

std::vector<Tensor> on_gpu(const std::vector<Tensor>& host) {
  std::vector<Tensor> device;
  for (const Tensor& one : host) device.push_back(one.to(cuda_device(0)));
  return device;
}

}  // namespace

TEST_SUITE("cuda_training") {
  TEST_CASE(
      "fifty quantised training steps leave the same bits on the CPU, the GPU and in a CUDA "
      "graph") {
    struct Setting {
      const char *forward, *backward, *results, *weights, *accumulator, *grads, *momentum;
    };
    const Setting settings[] = {
        {"fp32", "fp32", "fp32", "fp32", nullptr, "fp32", "fp32"},
        {"e4m3", "e5m2:sr", "fp32", "e4m3", "e6m9:sr", "fp32", "fp32"},
        {"e4m3:sr", "e5m2:sr", "e5m2:sr", "bf16:sr", nullptr, "e5m2:sr", "bf16"},
        {"bfp8-axis0:sr", "bfp8-axis0:sr", "bfp8-axis0:sr", "bfp8-axis0:sr", nullptr,
         "bfp8-axis0:sr", "bfp8-axis0:sr"},
        {"mxfp8", "mxfp8-e5m2:sr", "posit16.1", "mxfp6-rceil", "fp32", "fp32", "posit8.1"},
        {"bfp8-g16:sr", "bfp8-g16:sr", "bfp8", "fixed8.6:sr", "fp32", "fp32", "fp32"},
        {"nvfp4", "nvfp4:sr", "e4m3+scale=current", "nvfp4-t16x16", "fp32", "fp32", "fp32"},
        {"mxfp4+rht16", "mxfp4+rht16+q34:sr", "fp32", "e4m3-axis0-scalef32", "fp32", "fp32",
         "e5m2+scale=row"},
        {"e4m3+scale=delayed4", "e5m2+scale=delayed4:sr", "fp32", "fp32", nullptr, "fp32", "fp32"},
        {"e4m3-g16-scalef32", "e4m3-t8x8-scalef32:sr", "nf4-g64-scalef32", "fp32", nullptr, "fp32",
         "fp32"},
        {"fixed8.5:rtz", "fixed16.12:sr4c", "e6m9:ru", "e5m2", "fp32", "fp32", "e6m9:odd"},
    };
    for (const Setting& s : settings) {
      CAPTURE(std::string(s.forward));
      OpFormats f = OpFormats::make(s.forward, s.backward);
      f.output = f.grad_input = f.grad_weight = s.results;
      optim::OptimizerOptions o;
      o.lr = 0.05;
      o.momentum = 0.9;
      o.nesterov = true;
      o.weight_decay = 1e-4;
      o.grad_scaling = 0.25;
      o.weight = s.weights;
      if (s.accumulator != nullptr) o.accumulator = Quantizer(s.accumulator);
      o.grad = s.grads;
      o.moment1 = s.momentum;
      const Trained cpu = train(kCpu, f, o, 50), gpu = train(cuda_device(0), f, o, 50);
      check_same(cpu, gpu);
      check_same(gpu, train(cuda_device(0), f, o, 50, Math::Strict, StepGraph::Use::Auto));
      check_same(train(cuda_device(0), f, o, 50, Math::Fast),
                 train(cuda_device(0), f, o, 50, Math::Fast, StepGraph::Use::Auto));
    }
  }

  TEST_CASE("simulated accumulators: every op with products gives the same bits on both devices") {
    Run cpu_run, gpu_run(cuda_device(0)), fast_run(cuda_device(0), 1, Math::Fast);
    for (const OpRow& row : op_table()) {
      if (!has_products(row)) continue;
      for (const auto& shapes : row.shapes)
        for (const SummedFormats& one : kSummedFormats) {
          CAPTURE(std::string(row.name));
          CAPTURE(std::string(one.sums));
          const OpFormats formats = formats_of(row, one);
          const std::vector<Tensor> host = hard_inputs(shapes), device = on_gpu(host);
          const Pass wanted = run_row(row, cpu_run, host, formats);
          CHECK(same_bits(wanted, run_row(row, gpu_run, device, formats)));
          CHECK(same_bits(wanted, run_row(row, fast_run, device, formats)));  // no unit sums so
        }
    }
  }

  TEST_CASE(
      "every op gives the same bits on both devices, forward and backward, hard values included") {
    Run cpu_run, gpu_run(cuda_device(0));
    for (const OpRow& row : op_table())
      for (const auto& shapes : row.shapes)
        for (const char* format : {"fp32", "e5m2:sr", "bfp8:sr", "fixed8.4:odd"}) {
          CAPTURE(std::string(row.name));
          CAPTURE(std::string(format));
          const OpFormats formats = formats_of(row, {format, "fp32"});
          const std::vector<Tensor> host = hard_inputs(shapes), device = on_gpu(host);
          CHECK(same_bits(run_row(row, cpu_run, host, formats),
                          run_row(row, gpu_run, device, formats)));
        }
  }

  TEST_CASE("fast products of quantised operands feed the same tape") {
    // e4m3 operands are exact in bf16: the tensor core's result differs by its summation only.
    OpFormats f = OpFormats::make("e4m3", "e5m2");
    Run strict(cuda_device(0), 1, Math::Strict), fast(cuda_device(0), 1, Math::Fast);
    const OpRow& row = op_table()[0];
    std::vector<Tensor> in;
    for (const Shape& shape : {Shape{256, 512}, Shape{384, 512}, Shape{384}})
      in.push_back(random_tensor(shape, -1, 1, 9).to(cuda_device(0)));
    const Pass a = run_row(row, strict, in, f), b = run_row(row, fast, in, f);
    const auto distance = [](const Tensor& x, const Tensor& y) {
      const std::vector<double> u = x.to_doubles(), v = y.to_doubles();
      double difference = 0, norm = 0;
      for (size_t i = 0; i < u.size(); ++i) {
        difference += (u[i] - v[i]) * (u[i] - v[i]);
        norm += u[i] * u[i];
      }
      return std::sqrt(difference / norm);
    };
    CHECK(distance(a.y, b.y) < 1e-6);
    CHECK(distance(a.grads[0], b.grads[0]) < 1e-6);
    CHECK(distance(a.grads[1], b.grads[1]) < 1e-6);
  }

  TEST_CASE("a step that cannot be recorded says why, and the run goes on") {
    const Device gpu = cuda_device(0);
    Run run(gpu);
    Parameter p{"w", Tensor::from(std::vector<float>{1, 2}, {2}, gpu), {}};
    optim::Optimizer sgd(run, {&p}, {.lr = 0.5});
    StepGraph graph(run);
    if (!graph.enabled()) return;  // guard bytes
    const auto step = [&] {
      Tape tape(run);
      const Var loss = ops::mean(tape, ops::square(tape, tape.watch(p)));
      tape.backward(loss);
      sgd.step();
      return loss.value;
    };
    const auto reading = [&] { step().item(); };
    graph.run(reading);  // the first call runs it as it is
    CHECK_THROWS_WITH_AS(graph.run(reading),
                         doctest::Contains("neither wait for the device nor exchange data"), Error);
    const auto drawing = [&] { static_cast<void>(run.key(1)); };
    graph.run(drawing);
    restart_step(run);
    CHECK_THROWS_WITH_AS(graph.run(drawing), doctest::Contains("end with the optimizer's step"),
                         Error);
    sgd.zero_grad();
    CHECK(run.state().optimizer_step == 1);
    const std::vector<float> before = p.value.to_floats();
    Tensor loss;
    for (int i = 0; i < 4; ++i) graph.run([&] { loss = step(); });
    // Half of x − lr · x each step, the loss as of the last one.
    CHECK(p.value.to_floats() == std::vector<float>{before[0] / 16, before[1] / 16});
    CHECK(loss.item() == (before[0] * before[0] + before[1] * before[1]) / 2 / 64);
    CHECK(run.state().optimizer_step == 5);
    CHECK(graph.nodes() > 0);
    graph.reset();
    CHECK(graph.nodes() == 0);
    sgd.set_lr(0);
    for (int i = 0; i < 3; ++i) graph.run([&] { loss = step(); });
    CHECK(p.value.to_floats() == std::vector<float>{before[0] / 16, before[1] / 16});
    // A new number of rates moves them in memory: the step is recorded again.
    sgd.set_rates(std::vector<float>{0.5f, 0});
    for (int i = 0; i < 4; ++i) graph.run([&] { loss = step(); });
    CHECK(p.value.to_floats() == std::vector<float>{before[0] / 32, before[1] / 32});
  }

  TEST_CASE("one cycle of rates and momenta: the same bits on the CPU, the GPU and in a graph") {
    const char* rates = "onecycle:0.3,10,100@0.95,0.85";
    for (const char* name : {"sgd", "adamw", "lion"}) {
      CAPTURE(std::string(name));
      optim::OptimizerOptions o = optim::OptimizerOptions::of(optim::parse_algorithm(name));
      if (o.algorithm == optim::Algorithm::Sgd) o.momentum = 0.9;
      o.moment1 = "bf16:sr";
      using Use = StepGraph::Use;
      const Trained cpu = train(kCpu, {}, o, 50, Math::Strict, Use::Off, rates);
      const Device gpu = cuda_device(0);
      check_same(cpu, train(gpu, {}, o, 50, Math::Strict, Use::Off, rates));
      check_same(cpu, train(gpu, {}, o, 50, Math::Strict, Use::Auto, rates));
      const Trained without = train(kCpu, {}, o, 50, Math::Strict, Use::Off, "onecycle:0.3,10,100");
      CHECK(!same_bits(cpu.states[0], without.states[0]));
    }
  }

  TEST_CASE("where random numbers were drawn before the step, it runs eagerly with the same bits") {
    const Device gpu = cuda_device(0);
    const auto trained = [&](StepGraph::Use use) {
      Run run(gpu);
      Parameter p{"w", random_tensor({64}, -1, 1, 5).to(gpu), {}};
      optim::Optimizer sgd(run, {&p}, {.lr = 0.25});
      StepGraph graph(run, use);
      OpFormats f;
      f.output = "e4m3:sr";
      for (int i = 0; i < 8; ++i) {
        Tape other(run, Tape::Recording::Off);
        if (i % 3 == 2) ops::square(other, other.watch(p), f, RandomSite("square"));
        graph.run([&] {
          Tape tape(run);
          tape.backward(ops::mean(tape, ops::square(tape, tape.watch(p), f, RandomSite("square"))));
          sgd.step();
        });
      }
      return p.value.to_floats();
    };
    CHECK(trained(StepGraph::Use::Auto) == trained(StepGraph::Use::Off));
  }
}
