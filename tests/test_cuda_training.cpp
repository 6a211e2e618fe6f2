#include <doctest/doctest.h>

#include <cmath>

#include "nn/data/dataset.h"
#include "nn/evaluate.h"
#include "nn/models.h"
#include "optim/sgd.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

Tensor on(const Tensor& t, Device device) { return t.to(device); }

struct Trained {
  std::vector<Tensor> states;
  nn::Score score;
};

/// Some quantised steps on the digits, everything in strict math.
Trained train(Device device, const OpFormats& formats, const optim::SgdOptions& options,
              int steps) {
  const nn::Dataset digits = nn::load_dataset("digits");
  Run run(device, 3);
  const auto net = nn::mlp(64, std::vector<int64_t>{48, 33}, 10, formats);
  net->initialise(run);
  optim::Sgd sgd(run, net->parameters(), options);
  StepState state = run.state();
  state.loss_scale = 4;
  run.set_state(state);
  const nn::Batches batches(run, digits, digits.train, 37), test(run, digits, digits.test, 100);
  int step = 0;
  for (int epoch = 0; step < steps; ++epoch)
    for (const nn::Batch& batch : batches.shuffled(epoch)) {
      if (step++ == steps) break;
      Tape tape(run);
      tape.backward(
          ops::cross_entropy(tape, (*net)(tape, tape.constant(batch.images)), batch.labels));
      sgd.step();
    }
  Trained result;
  for (const auto& state : sgd.states())
    for (const Tensor& t : {state.parameter->value, state.master, state.momentum})
      if (t.defined()) result.states.push_back(on(t, kCpu));
  result.score = nn::evaluate(run, *net, test);
  return result;
}

}  // namespace

TEST_SUITE("cuda_training") {
  TEST_CASE("fifty quantised training steps leave the same bits on the CPU and the GPU") {
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
      optim::SgdOptions o;
      o.lr = 0.05;
      o.momentum = 0.9;
      o.nesterov = true;
      o.weight_decay = 1e-4;
      o.grad_scaling = 0.25;
      o.weight = s.weights;
      if (s.accumulator != nullptr) o.accumulator = Quantizer(s.accumulator);
      o.grad = s.grads;
      o.momentum_format = s.momentum;
      const Trained cpu = train(kCpu, f, o, 50), gpu = train(cuda_device(0), f, o, 50);
      REQUIRE(cpu.states.size() == gpu.states.size());
      for (size_t i = 0; i < cpu.states.size(); ++i) CHECK(same_bits(cpu.states[i], gpu.states[i]));
      CHECK(cpu.score.loss == gpu.score.loss);
      CHECK(cpu.score.accuracy == gpu.score.accuracy);
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
          OpFormats formats;
          for (const char* name : row.roles)
            for (const Role& role : kRoles)
              if (std::string(name) == role.name)
                formats.*role.quantizer = Quantizer::parse(format);
          std::vector<Tensor> host, device;
          for (size_t k = 0; k < shapes.size(); ++k) {
            host.push_back(hard_tensor(shapes[k], 5 + k));
            device.push_back(host.back().to(cuda_device(0)));
          }
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
}
