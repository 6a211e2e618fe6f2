#include <cstdio>

#include "nn/data/dataset.h"
#include "nn/evaluate.h"
#include "nn/layers.h"
#include "nn/models.h"
#include "nn/policy.h"
#include "optim/optimizer.h"

int main() {
  using namespace ulp;
  const nn::Dataset digits = nn::load_dataset("digits");
  Run run(kCpu, /*seed=*/1);

  const auto net = nn::mlp(64, std::vector<int64_t>{32}, 10);
  nn::lower(*net, {nn::LayerType::Linear}, /*forward=*/"e4m3", /*backward=*/"e5m2:sr");
  net->initialise(run);
  optim::Optimizer sgd(
      run, net->parameters(),
      {.lr = 0.05, .momentum = 0.9, .weight = "e4m3", .accumulator = "e6m9:sr", .grad = "e5m2"});

  nn::Batches train(run, digits, digits.train, /*size=*/32),
      test(run, digits, digits.test, /*size=*/360);
  for (int epoch = 0; epoch < 10; ++epoch)
    for (const nn::Batch& batch : train.shuffled(epoch)) {
      Tape tape(run);
      const Var logits = (*net)(tape, tape.constant(batch.inputs));
      tape.backward(ops::cross_entropy(tape, logits, batch.labels));
      sgd.step();
    }
  const double accuracy = nn::evaluate(run, *net, test).accuracy;
  std::printf("test accuracy %.4f\n", accuracy);
  return accuracy > 0.85 ? 0 : 1;
}
