#include <doctest/doctest.h>

#include "autograd/step_graph.h"
#include "nn/data/dataset.h"
#include "nn/evaluate.h"
#include "nn/models.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

TEST_SUITE("step_graph") {
  TEST_CASE("on the CPU the step is called every time; a loop over batches gives the same bits") {
    const nn::Dataset digits = nn::load_dataset("digits");
    const auto trained = [&](bool graphed) {
      Run run(kCpu, 5);
      const auto net =
          nn::mlp(64, std::vector<int64_t>{16}, 10, OpFormats::make("e4m3", "e5m2:sr"));
      net->initialise(run);
      optim::Optimizer sgd(run, net->parameters(),
                           {.lr = 0.1, .momentum = 0.9, .weight = "bfp8:sr"});
      nn::Batches batches(run, digits, digits.train, 100);
      StepGraph graph(run);
      CHECK(!graph.enabled());
      int calls = 0;
      const auto step = [&](const nn::Batch& batch) {
        ++calls;
        Tape tape(run);
        tape.backward(
            ops::cross_entropy(tape, (*net)(tape, tape.constant(batch.inputs)), batch.labels));
        sgd.step();
      };
      for (int epoch = 0; epoch < 2; ++epoch) {
        if (graphed) {
          batches.shuffle(epoch);
          for (int64_t i = 0; i < batches.steps(); ++i) graph.run([&] { step(batches.next()); });
        } else {
          for (const nn::Batch& batch : batches.shuffled(epoch)) step(batch);
        }
      }
      CHECK(calls == 28);
      CHECK(graph.nodes() == 0);
      CHECK(run.state().random_step == 29);
      CHECK(run.state().batch_offset == 1400);
      return net->parameters()[0]->value;
    };
    CHECK(same_bits(trained(true), trained(false)));
  }

  TEST_CASE("batches: images and labels by the epoch's order, whole batches only") {
    const nn::Dataset digits = nn::load_dataset("digits");
    Run run(kCpu, 9);
    nn::Batches batches(run, digits, digits.train, 700);
    CHECK_THROWS_WITH_AS(batches.next(), doctest::Contains("call shuffle first"), Error);
    batches.shuffle(3);
    StepState epoch;
    epoch.random_step = 3;
    const RandomSource random({9, RandomSite("data").stream("shuffle"), 0, &epoch});
    std::vector<int32_t> order(1437);
    for (int32_t i = 0; i < 1437; ++i) order[static_cast<size_t>(i)] = i;
    for (uint64_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[(uint64_t{random.word(i)} * i) >> 32]);
    for (int64_t b = 0; b < 2; ++b) {
      const nn::Batch batch = batches.next();
      CHECK(run.state().batch_offset == 700 * (b + 1));
      bool right = true;
      for (int64_t n = 0; n < 700; ++n) {
        const int64_t row = order[static_cast<size_t>(700 * b + n)];
        right =
            right && batch.labels.data<int32_t>()[n] == digits.train.labels.data<int32_t>()[row];
        for (int64_t j = 0; j < 64; ++j)
          right = right && batch.inputs.data<float>()[64 * n + j] ==
                               digits.scale * digits.train.images.data<uint8_t>()[64 * row + j];
      }
      CHECK(right);
    }
    CHECK_THROWS_WITH_AS(batches.next(), doctest::Contains("no further whole batch after 1400"),
                         Error);
    int64_t samples = 0;
    for (const nn::Batch& batch : batches.in_order()) {
      CHECK(batch.labels.data<int32_t>()[0] == digits.train.labels.data<int32_t>()[samples]);
      samples += batch.labels.numel();
    }
    CHECK(samples == 1437);
    CHECK(run.state().batch_offset == 1400);
    nn::Dataset wrong = digits;
    wrong.classes = 9;
    CHECK_THROWS_WITH_AS(nn::Batches(run, wrong, digits.train, 10),
                         doctest::Contains("is not in [0, 9)"), Error);
  }

  TEST_CASE("a schedule in the device's memory: each step has its own rate, the last one stays") {
    Run run;
    Parameter p{"w", Tensor::from(std::vector<float>{0}, {1}), {}};
    optim::Optimizer sgd(run, {&p}, {.lr = 8});
    CHECK(sgd.lr() == 8);
    const optim::Schedule schedule(optim::Schedule::parse("step"), 4, 4);
    sgd.set_rates(schedule.rates(1, 3));
    float w = 0;
    for (const float rate : {4.0f, 0.4f, 0.04f, 0.04f}) {
      CHECK(sgd.lr() == rate);
      p.grad = Tensor::from(std::vector<float>{1}, {1});
      sgd.step();
      w = std::fma(-rate, 1.0f, w);
      CHECK(p.value.to_floats()[0] == w);
    }
    CHECK_THROWS_WITH_AS(sgd.set_rates({}), doctest::Contains("no learning rates"), Error);
    CHECK_THROWS_WITH_AS(sgd.set_rates(std::vector<float>{-1}), doctest::Contains("lr"), Error);
    CHECK_THROWS_WITH_AS(sgd.set_lr(NAN), doctest::Contains("lr"), Error);
  }

  TEST_CASE("a skipped step leaves block-formatted states as they are") {
    for (const char* format : {"bfp8:sr", "e4m3-g4-scalef32:sr", "nvfp4:sr"}) {
      CAPTURE(std::string(format));
      Run run;
      Parameter p{"w", random_tensor({4, 8}, -1, 1, 1), {}};
      optim::OptimizerOptions o{.lr = 0.1, .momentum = 0.9};
      o.weight = o.moment1 = format;
      o.accumulator = Quantizer(format);
      optim::Optimizer sgd(run, {&p}, o);
      p.grad = random_tensor({4, 8}, -1, 1, 2);
      sgd.step();
      const auto& state = sgd.states()[0];
      const auto moment = [&] { return sgd.read(state, optim::Slot::Moment1).to_floats(); };
      const auto master = [&] { return sgd.read(state, optim::Slot::Master).to_floats(); };
      const auto w = p.value.to_floats(), m = moment(), a = master();
      const void* address = p.value.raw();
      StepState skip = run.state();
      skip.found_inf = 1;
      run.set_state(skip);
      p.grad = random_tensor({4, 8}, -1, 1, 3);
      sgd.step();
      CHECK(p.value.to_floats() == w);
      CHECK(moment() == m);
      CHECK(master() == a);
      CHECK(run.state().optimizer_step == 1);
      p.grad = random_tensor({4, 8}, -1, 1, 3);
      sgd.step();
      CHECK(p.value.to_floats() != w);
      CHECK(p.value.raw() == address);  // updates are in place
    }
  }
}
