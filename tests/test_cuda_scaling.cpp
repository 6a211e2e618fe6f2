#include <doctest/doctest.h>

#include <cstring>

#include "autograd/step_graph.h"
#include "nn/data/dataset.h"
#include "nn/evaluate.h"
#include "nn/layers.h"
#include "nn/models.h"
#include "nn/running_statistics.h"
#include "nn/train_batch.h"
#include "optim/average.h"
#include "optim/grad_scaler.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

struct Setting {
  const char *forward, *backward, *state, *average;
  GradOrder order;
  int64_t accumulate;
  bool dynamic;
};

struct Trained {
  std::vector<Tensor> tensors;
  StepState state, device_state;
  int64_t averaged;
};

/// Steps whose loss scale grows until e5m2 gradients overflow, with clipping, micro-batches, an average and evaluations.
Trained train(Device device, const Setting& s, StepGraph::Use use) {
  const nn::Dataset digits = nn::load_dataset("digits");
  Run run(device, 7);
  const auto net =
      nn::mlp(64, std::vector<int64_t>{48, 33}, 10, OpFormats::make(s.forward, s.backward));
  net->initialise(run);
  optim::OptimizerOptions o;
  o.momentum = 0.9;
  o.weight = o.moment1 = o.grad = s.state;
  o.accumulator = Quantizer("bf16:sr");
  o.grad_order = s.order;
  optim::Optimizer sgd(run, net->parameters(), o);
  optim::GradScalerOptions scaling;
  scaling.dynamic = s.dynamic;
  scaling.loss_scale = s.dynamic ? 1 << 18 : 1;
  scaling.interval = 3;
  scaling.clip_norm = 1.5;
  optim::GradScaler scaler(run, net->parameters(), scaling);
  optim::AverageOptions averaging;
  averaging.format = s.average;
  averaging.start = 5;
  averaging.every = 2;
  optim::Average average(run, net->parameters(), averaging);
  nn::Batches batches(run, digits, digits.train, 37), test(run, digits, digits.test, 100);
  const int64_t steps = batches.steps() / s.accumulate, total = 60;
  const optim::Schedule schedule(optim::Schedule::parse("warmup:5+cosine:0.1"), 0.05, total);
  StepGraph graph(run, use);
  int64_t step = 0;
  for (int epoch = 0; step < total; ++epoch) {
    batches.shuffle(epoch);
    sgd.set_rates(schedule.rates(step, steps));
    for (int64_t i = 0; i < steps && step < total; ++i, ++step) {
      if (step == 30) {
        const optim::Average::InPlace in_place(average);
        nn::evaluate(run, *net, test);
      }
      graph.run([&] {
        for (int64_t k = 0; k < s.accumulate; ++k) {
          const nn::Batch batch = batches.next();
          Tape tape(run);
          tape.backward(
              ops::cross_entropy(tape, (*net)(tape, tape.constant(batch.inputs)), batch.labels),
              1.0 / static_cast<double>(s.accumulate));
        }
        scaler.check();
        sgd.step();
        average.update();
      });
      if (step == 40) CHECK(run.state().random_step > 40);  // looking changes nothing
    }
  }
  CHECK((graph.nodes() > 0) == (use == StepGraph::Use::Auto && graph.enabled()));
  Trained result;
  for (const auto& state : sgd.states()) result.tensors.push_back(state.parameter->value.to(kCpu));
  for (const auto& [name, tensor] : sgd.tensors()) result.tensors.push_back(tensor.to(kCpu));
  for (const auto& [stream, scaling_state] : run.scalings())
    result.tensors.push_back(scaling_state.to(kCpu));
  for (const auto& [name, tensor] : average.tensors()) result.tensors.push_back(tensor.to(kCpu));
  result.state = run.state();
  copy_bytes(&result.device_state, kCpu, run.device_state(), device, sizeof(StepState));
  result.averaged = average.count();
  return result;
}

void check_same(const Trained& a, const Trained& b) {
  REQUIRE(a.tensors.size() == b.tensors.size());
  for (size_t i = 0; i < a.tensors.size(); ++i) CHECK(same_bits(a.tensors[i], b.tensors[i]));
  for (const Trained* t : {&a, &b})
    CHECK(std::memcmp(&t->state, &t->device_state, sizeof(StepState)) == 0);
  CHECK(std::memcmp(&a.state, &b.state, sizeof(StepState)) == 0);
  CHECK(a.averaged == b.averaged);
}

/// Epochs of a network with batch norm and dropout whose average gets running statistics and a test after each of them.
std::vector<Tensor> train_batch_norms(Device device, StepGraph::Use use, int64_t resident_bytes) {
  const nn::Dataset digits = nn::load_dataset("digits");
  Run run(device, 7);
  nn::Sequential net;
  net.add<nn::Linear>("fc1", 64, 48, OpFormats::make("e4m3:sr", "e5m2:sr"))
      .add<nn::BatchNorm>("bn1", 48)
      .add<nn::ReLU>("relu")
      .add<nn::Dropout>("drop", 0.2)
      .add<nn::Linear>("fc2", 48, 10, OpFormats::make("bfp8:sr", "bf16"))
      .add<nn::BatchNorm>("bn2", 10);
  net.initialise(run);
  optim::Optimizer sgd(run, net.parameters(), {.lr = 0.05, .momentum = 0.9});
  optim::Average average(run, net.parameters(), {.start = 10, .every = 3});
  nn::RunningStatistics statistics(run, net);
  nn::BatchOptions options;
  options.augmentation.crop = 1;
  options.resident_bytes = resident_bytes;
  nn::Batches batches(run, digits, digits.train, 97, options), test(run, digits, digits.test, 100);
  nn::Tally tally(run);
  StepGraph graph(run, use);
  std::vector<Tensor> result;
  const auto keep = [&](const Tensor& t) {
    result.push_back(Tensor::from(t.to_floats(), t.shape()));  // of its own: these go on
  };
  for (int epoch = 0; epoch < 3; ++epoch) {
    batches.shuffle(epoch);
    for (int64_t i = 0; i < batches.steps(); ++i)
      graph.run([&] {
        nn::train_batch(run, net, batches.next(), tally);
        sgd.step();
        average.update();
      });
    const optim::Average::InPlace weights(average);
    const nn::RunningStatistics::InPlace in_place(statistics);
    nn::recompute_running_statistics(run, net, batches, epoch);
    for (const nn::Buffer* b : net.buffers()) keep(b->value);
    result.push_back(Tensor::from(
        std::vector<float>{static_cast<float>(nn::evaluate(run, net, test).loss)}, {1}));
  }
  for (const Parameter* p : net.parameters()) keep(p->value);
  for (const nn::Buffer* b : net.buffers()) keep(b->value);
  return result;
}

}  // namespace

TEST_SUITE("cuda_scaling") {
  TEST_CASE("running statistics of an average: CPU, GPU, CUDA graph and a loader agree") {
    const std::vector<Tensor> cpu = train_batch_norms(kCpu, StepGraph::Use::Off, INT64_MAX);
    for (const auto use : {StepGraph::Use::Off, StepGraph::Use::Auto})
      for (const int64_t resident : {INT64_MAX, int64_t{0}}) {
        const std::vector<Tensor> gpu = train_batch_norms(cuda_device(0), use, resident);
        REQUIRE(gpu.size() == cpu.size());
        for (size_t i = 0; i < cpu.size(); ++i) CHECK(same_bits(cpu[i], gpu[i]));
      }
  }

  TEST_CASE("loss scaling, clipping, micro-batches and averages: CPU, GPU and CUDA graph agree") {
    constexpr auto kFirst = GradOrder::ScaleFirst, kLast = GradOrder::QuantiseFirst;
    for (const Setting& s :
         {Setting{"fp32", "e5m2", "fp32", "fp32", kFirst, 1, true},
          Setting{"e4m3", "e5m2:sr", "bf16:sr", "bf16:sr", kFirst, 2, true},
          Setting{"e4m3+scale=delayed4", "e5m2:sr", "bf16", "bfp8:sr", kLast, 3, true},
          Setting{"bfp8:sr", "e5m2", "bfp8:sr", "e4m3-g16-scalef32", kLast, 1, true},
          Setting{"e4m3", "e5m2+scale=delayed4:sr", "e5m2+scale=delayed4", "e6m9:sr", kFirst, 2,
                  false}}) {
      CAPTURE(std::string(s.forward));
      CAPTURE(std::string(s.average));
      const Trained cpu = train(kCpu, s, StepGraph::Use::Off),
                    gpu = train(cuda_device(0), s, StepGraph::Use::Off);
      CHECK(cpu.averaged > 10);
      if (s.dynamic) CHECK(cpu.state.skipped_steps > 3);
      check_same(cpu, gpu);
      check_same(gpu, train(cuda_device(0), s, StepGraph::Use::Auto));
    }
  }
}
