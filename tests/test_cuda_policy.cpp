#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "autograd/step_graph.h"
#include "nn/data/dataset.h"
#include "nn/data/policy_file.h"
#include "nn/evaluate.h"
#include "nn/model_tree.h"
#include "nn/models.h"
#include "optim/optimizer.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

/// Four epochs of ten steps, formats by a policy, the recorded step forgotten where they change.
std::vector<Tensor> trained(Device device, StepGraph::Use use) {
  const nn::Dataset digits = nn::load_dataset("digits");
  const nn::Policy policy = nn::parse_policy(R"({"rules": [
      {"type": "linear", "forward": "e4m3:sr", "backward": "e5m2:sr"},
      {"path": "fc1", "from_epoch": 2, "to_epoch": 3, "forward": "e2m1+scale=delayed4:sr"},
      {"position": "last", "from_epoch": 3, "output": "bf16:sr"},
      {"type": "loss", "from_epoch": 4, "interior": "bf16"}]})",
                                             "test");
  Run run(device, 3);
  const auto net = nn::mlp(64, std::vector<int64_t>{48, 33}, 10);
  net->initialise(run);
  nn::TrainingLoss loss;
  const std::vector<nn::Layer> layers = nn::layers_of(*net, loss);
  optim::Optimizer sgd(run, net->parameters(), {.lr = 0.05, .momentum = 0.9, .weight = "bf16:sr"});
  nn::Batches batches(run, digits, digits.train, 37), test(run, digits, digits.test, 100);
  StepGraph graph(run, use);
  for (int epoch = 0; epoch < 4; ++epoch) {
    nn::apply(policy, layers, epoch + 1);
    graph.reset();
    batches.shuffle(epoch);
    for (int i = 0; i < 10; ++i)
      graph.run([&] {
        const nn::Batch batch = batches.next();
        Tape tape(run);
        const Var logits = (*net)(tape, tape.constant(batch.inputs));
        tape.backward(loss.of(tape, logits, batch.labels));
        sgd.step();
      });
    CHECK((graph.nodes() > 0) == graph.enabled());
    nn::evaluate(run, *net, test, loss);
  }
  std::vector<Tensor> states;
  for (const Parameter* p : net->parameters()) states.push_back(p->value.to(kCpu));
  for (const auto& [name, tensor] : sgd.tensors()) states.push_back(tensor.to(kCpu));
  for (const auto& [stream, scaling] : run.scalings()) states.push_back(scaling.to(kCpu));
  return states;
}

}  // namespace

TEST_SUITE("cuda_policy") {
  TEST_CASE("formats that change at an epoch are recorded anew: the bits of the CPU") {
    if (cuda_device_count() == 0) return;
    const std::vector<Tensor> cpu = trained(kCpu, StepGraph::Use::Off);
    for (const StepGraph::Use use : {StepGraph::Use::Off, StepGraph::Use::Auto}) {
      const std::vector<Tensor> gpu = trained(cuda_device(0), use);
      REQUIRE(gpu.size() == cpu.size());
      for (size_t i = 0; i < cpu.size(); ++i) CHECK(same_bits(gpu[i], cpu[i]));
    }
  }

  TEST_CASE("the units that the tree of a model tells are those that are used") {
    if (cuda_device_count() == 0) return;
    const int64_t batch = 16 * 29;  // no other test multiplies such matrices
    for (const Math math : {Math::Fast, Math::Tf32, Math::Fp8})
      for (const char* forward : {"fp32", "e4m3", "fp16", "tf32", "e4m3-g16-scalef32", "nvfp4"}) {
        CAPTURE(std::string(to_string(math)));
        CAPTURE(forward);
        Run cpu(kCpu, 3), run(cuda_device(0), 3, math);
        const std::vector<int64_t> hidden{48, 80};
        const auto plan = nn::mlp(64, hidden, 10), net = nn::mlp(64, hidden, 10);
        for (const auto& model : {plan.get(), net.get()})
          nn::lower(*model, {nn::LayerType::Linear}, Quantizer::parse(forward), "e5m2");
        plan->initialise(cpu);
        net->initialise(run);
        Tape tape(run);
        tape.backward(ops::cross_entropy(
            tape, (*net)(tape, tape.constant(Tensor::zeros({batch, 64}, DType::F32, run.device()))),
            Tensor::zeros({batch}, DType::I32, run.device())));
        const std::vector<std::string> used = matrix_units_used();
        const nn::ModelTree tree(cpu, *plan, "mlp", {64});
        int64_t products = 0;
        for (const nn::TreeNode& node : tree.nodes())
          for (const nn::PlannedProduct& p : tree.products(node, batch, math)) {
            ++products;
            if (p.parts > 1) continue;  // shapes of parts are listed
            const std::string shape = std::to_string(p.m) + " x " + std::to_string(p.n) + " x " +
                                      std::to_string(p.k) + " ";
            const std::string unit = ": " + std::string(to_string(p.unit)) + ",";
            CAPTURE(nn::to_string(p));
            CHECK(std::any_of(used.begin(), used.end(), [&](const std::string& line) {
              return line.starts_with(shape) && line.find(unit) != std::string::npos;
            }));
          }
        CHECK(products == 8);
      }
  }
}
