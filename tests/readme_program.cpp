#include <cstdio>

#include "nn/data/dataset.h"
#include "nn/evaluate.h"
#include "nn/layers.h"
#include "optim/optimizer.h"

int main() {
  using namespace ulp;
  const nn::Dataset digits = nn::load_dataset("digits");
  Run run(kCpu, /*seed=*/1);

  nn::Sequential net;
  net.add<nn::Linear>("fc1", 64, 32, OpFormats::make("e4m3", "e5m2:sr"))
      .add<nn::ReLU>("relu")
      .add<nn::Linear>("fc2", 32, 10, OpFormats::make("bfp8:sr", "bf16"));
  net.initialise(run);
  optim::Optimizer sgd(run, net.parameters(),
                       {.lr = 0.05, .momentum = 0.9, .weight = "e4m3", .accumulator = "e6m9:sr"});

  nn::Batches train(run, digits, digits.train, /*size=*/32),
      test(run, digits, digits.test, /*size=*/360);
  for (int epoch = 0; epoch < 10; ++epoch)
    for (const nn::Batch& batch : train.shuffled(epoch)) {
      Tape tape(run);
      tape.backward(ops::cross_entropy(tape, net(tape, tape.constant(batch.inputs)), batch.labels));
      sgd.step();
    }
  const double accuracy = nn::evaluate(run, net, test).accuracy;
  std::printf("test accuracy %.4f\n", accuracy);
  return accuracy > 0.85 ? 0 : 1;
}
