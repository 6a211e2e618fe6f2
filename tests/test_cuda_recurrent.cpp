#include <doctest/doctest.h>

#include <vector>

#include "autograd/step_graph.h"
#include "nn/models/char_rnn.h"
#include "optim/optimizer.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

/// Steps of a character model on one batch; every weight afterwards, then the logits.
std::vector<Tensor> trained(Device device, StepGraph::Use use, nn::RecurrentKind kind,
                            const char* format, const char* states) {
  Run run(device, 4);
  const auto net = nn::char_rnn(kind, 11, 33, {2, 0.25, true}, OpFormats::make(format, format));
  net->initialise(run);
  for (nn::Module* module : net->modules()) {
    OpFormats* f = module->formats();
    if (f == nullptr || module->type() != nn::LayerType::Recurrent) continue;
    for (const char* role : module->roles()) {
      if (std::string(role) == "output") f->output = Quantizer::parse(states);
      if (std::string(role) == "grad_input") f->grad_input = Quantizer::parse(states);
      if (std::string(role) == "interior") f->interior = Quantizer::parse("bf16:sr");
    }
  }
  optim::Optimizer sgd(run, net->parameters(), {.lr = 0.1, .momentum = 0.9, .weight = "bf16:sr"});
  std::vector<int32_t> tokens, labels;
  for (int32_t i = 0; i < 5 * 9; ++i) {
    tokens.push_back(i * 7 % 11);
    labels.push_back((i * 7 + 3) % 11);
  }
  const Tensor x = Tensor::from(tokens, {5, 9}).to(device),
               y = Tensor::from(labels, {45}).to(device);
  StepGraph graph(run, use);
  for (int i = 0; i < 6; ++i)
    graph.run([&] {
      Tape tape(run);
      const Var logits = (*net)(tape, tape.constant(x));
      tape.backward(ops::cross_entropy(tape, ops::reshape(tape, logits, {45, 11}), y));
      sgd.step();
    });
  CHECK((graph.nodes() > 0) == graph.enabled());
  std::vector<Tensor> all;
  for (const Parameter* p : net->parameters()) all.push_back(p->value.to(kCpu));
  const nn::EvaluationMode evaluation(*net);
  Tape tape(run, Tape::Recording::Off);
  all.push_back((*net)(tape, tape.constant(x)).value.to(kCpu));
  return all;
}

}  // namespace

TEST_SUITE("cuda_recurrent") {
  TEST_CASE("character models train to the same bits on the CPU, on CUDA and as a recorded step") {
    if (cuda_device_count() == 0) return;
    const Device gpu = cuda_device();
    for (const nn::RecurrentKind kind : {nn::RecurrentKind::Lstm, nn::RecurrentKind::Gru})
      for (const auto& [format, states] :
           {std::pair{"fp32", "fp32"}, std::pair{"e4m3:sr", "e5m2:sr"},
            std::pair{"bfp8:sr", "bfp8:sr"}, std::pair{"mxfp8", "fp32"}}) {
        CAPTURE(static_cast<int>(kind));
        CAPTURE(std::string(format));
        const auto cpu = trained(kCpu, StepGraph::Use::Off, kind, format, states);
        const auto plain = trained(gpu, StepGraph::Use::Off, kind, format, states);
        const auto recorded = trained(gpu, StepGraph::Use::Auto, kind, format, states);
        for (size_t k = 0; k < cpu.size(); ++k) {
          CAPTURE(k);
          CHECK(same_bits(cpu[k], plain[k]));
          CHECK(same_bits(cpu[k], recorded[k]));
        }
      }
  }
}
