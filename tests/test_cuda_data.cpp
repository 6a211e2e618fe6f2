#include <doctest/doctest.h>

#include <cstring>

#include "autograd/role_stats.h"
#include "autograd/step_graph.h"
#include "nn/batches.h"
#include "nn/data/dataset.h"
#include "nn/models.h"
#include "optim/optimizer.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

struct Setting {
  Device device = kCpu;
  StepGraph::Use use = StepGraph::Use::Off;
  int64_t resident = INT64_MAX;
  bool counted = false;  // every fifth step's roles
  int batches_a_step = 1;
};

struct Trained {
  std::vector<Tensor> weights;
  StepState state;
  std::vector<std::pair<uint32_t, QuantiseStats>> stats;
};

/// Steps on augmented digits.
Trained train(const Setting& setting) {
  const nn::Dataset digits = nn::load_dataset("digits");
  Run run(setting.device, 3, Math::Strict);
  OpFormats formats = OpFormats::make("e4m3", "e5m2:sr");
  formats.output = "bf16:sr";
  const auto net = nn::mlp(64, std::vector<int64_t>{48, 33}, 10, formats);
  net->initialise(run);
  optim::Optimizer sgd(run, net->parameters(), {.lr = 0.05, .momentum = 0.9});
  nn::BatchOptions options;
  options.normalisation = nn::channel_statistics(digits);
  options.augmentation = {2, true, 3};
  options.resident_bytes = setting.resident;
  nn::Batches batches(run, digits, digits.train, 37, options);
  StepGraph graph(run, setting.use);
  RoleStats stats(setting.device);
  Trained result;
  int step = 0;
  const auto one = [&] {
    for (int k = 0; k < setting.batches_a_step; ++k) {
      const nn::Batch batch = batches.next();
      Tape tape(run);
      const Var logits = (*net)(tape, tape.constant(batch.inputs));
      tape.backward(ops::cross_entropy(tape, logits, batch.labels), 1.0 / setting.batches_a_step);
    }
    sgd.step();
  };
  for (int epoch = 0; epoch < 2; ++epoch) {
    batches.shuffle(epoch);
    for (int64_t i = 0; i + 1 <= batches.steps() / setting.batches_a_step; ++i, ++step) {
      if (setting.counted && step % 5 == 4) {
        const CountRoles counting(run, stats);
        one();
        for (const auto& [stream, total] : stats.totals())
          result.stats.emplace_back(stream, total.stats);
        stats.clear();
      } else {
        graph.run(one);
      }
    }
  }
  CHECK((graph.nodes() > 0) == graph.enabled());
  for (const Parameter* p : net->parameters()) result.weights.push_back(p->value.to(kCpu));
  result.state = run.state();
  return result;
}

void check_same(const Trained& a, const Trained& b) {
  REQUIRE(a.weights.size() == b.weights.size());
  for (size_t i = 0; i < a.weights.size(); ++i) CHECK(same_bits(a.weights[i], b.weights[i]));
  CHECK(std::memcmp(&a.state, &b.state, sizeof a.state) == 0);
  REQUIRE(a.stats.size() == b.stats.size());
  for (size_t i = 0; i < a.stats.size(); ++i) {
    CHECK(a.stats[i].first == b.stats[i].first);
    const QuantiseStats &x = a.stats[i].second, &y = b.stats[i].second;
    CHECK((x.count == y.count && x.overflow == y.overflow && x.underflow == y.underflow &&
           x.nan == y.nan && x.infinite == y.infinite && x.amax_bits == y.amax_bits &&
           x.finite == y.finite));
    CHECK((x.error == y.error && x.square_error == y.square_error && x.square == y.square));
  }
}

}  // namespace

TEST_SUITE("cuda_data") {
  TEST_CASE(
      "augmented training leaves the same bits on both devices, in graphs and from a loader") {
    const Device gpu = cuda_device(0);
    for (const int batches : {1, 3}) {
      const Trained cpu = train({.batches_a_step = batches});
      check_same(cpu, train({.resident = 0, .batches_a_step = batches}));
      for (const StepGraph::Use use : {StepGraph::Use::Off, StepGraph::Use::Auto})
        for (const int64_t resident : {INT64_MAX, int64_t{0}})
          check_same(cpu, train({gpu, use, resident, false, batches}));
    }
  }

  TEST_CASE("steps whose roles are counted stand between recorded ones, with the same numbers") {
    const Trained plain = train({});
    const Trained cpu = train({.counted = true});
    CHECK(!cpu.stats.empty());
    for (size_t i = 0; i < plain.weights.size(); ++i)
      CHECK(same_bits(plain.weights[i], cpu.weights[i]));
    for (const StepGraph::Use use : {StepGraph::Use::Off, StepGraph::Use::Auto})
      for (const int64_t resident : {INT64_MAX, int64_t{0}})
        check_same(cpu, train({cuda_device(0), use, resident, true, 1}));
  }

  TEST_CASE("evaluation batches of samples that stay on the host") {
    const nn::Dataset digits = nn::load_dataset("digits");
    Run cpu(kCpu, 1), gpu(cuda_device(0), 1);
    nn::BatchOptions options;
    options.normalisation = nn::channel_statistics(digits);
    nn::Batches a(cpu, digits, digits.test, 100, options);
    options.resident_bytes = 0;
    nn::Batches b(gpu, digits, digits.test, 100, options);
    const nn::Batches::Range others = b.in_order();
    auto at = others.begin();
    for (const nn::Batch& batch : a.in_order()) {
      const nn::Batch other = *at;
      CHECK(same_bits(batch.inputs, other.images.to(kCpu)));
      CHECK(same_bits(batch.labels, other.labels.to(kCpu)));
      ++at;
    }
  }
}
