#include "nn/models.h"
#include "optim/optimizer.h"
#include "tools/cases/comparison.h"

namespace ulp::cases {
namespace {

constexpr int64_t kBatch = 37, kInputs = 64, kClasses = 10;

/// What the optimizer holds after some steps in strict math, by name, on the CPU.
std::vector<std::pair<std::string, Tensor>> trained(Device device, const TrainingCase& c, int steps,
                                                    uint64_t seed) {
  OpFormats formats = OpFormats::make(c.forward, c.backward);
  formats.output = formats.grad_input = formats.grad_weight = Quantizer::parse(c.results);
  formats.forward_acc = formats.dx_acc = formats.dw_acc = Accumulator::parse(c.sums);
  optim::OptimizerOptions options =
      optim::OptimizerOptions::of(optim::parse_algorithm(c.optimizer));
  const bool sgd_momentum = options.algorithm == optim::Algorithm::Sgd;
  options.lr = sgd_momentum ? 0.05 : 0.005;
  options.momentum = sgd_momentum ? 0.9 : 0;
  options.nesterov = sgd_momentum;
  options.weight_decay = 1e-4;
  options.grad_scaling = 0.25;
  options.weight = Quantizer::parse(c.weights);
  if (!c.accumulator.empty()) options.accumulator = Quantizer::parse(c.accumulator);
  options.grad = Quantizer::parse(c.grads);
  options.moment1 = Quantizer::parse(c.momentum);
  options.moment2 = Quantizer::parse(c.moment2);
  if (!c.compensation.empty()) {
    options.update = optim::Update::Kahan;
    options.compensation = Quantizer::parse(c.compensation);
  }

  Run run(device, seed, Math::Strict);
  const auto net = nn::mlp(kInputs, std::vector<int64_t>{48, 33}, kClasses, formats);
  net->initialise(run);
  optim::Optimizer sgd(run, net->parameters(), options);
  StepState state = run.state();
  state.loss_scale = 4;
  run.set_state(state);
  for (int step = 0; step < steps; ++step) {
    const uint64_t own = seed * 1000 + static_cast<uint64_t>(step);
    const Tensor images = values({kBatch, kInputs}, DType::F32, Domain::Modest, own).to(device);
    Words words(own);
    std::vector<int32_t> labels;
    for (int64_t i = 0; i < kBatch; ++i)
      labels.push_back(static_cast<int32_t>(words.below(kClasses)));
    Tape tape(run);
    tape.backward(ops::cross_entropy(tape, (*net)(tape, tape.constant(images)),
                                     Tensor::from(labels, {kBatch}, device)));
    sgd.step();
  }
  std::vector<std::pair<std::string, Tensor>> result;
  for (const auto& own : sgd.states())
    result.emplace_back(own.parameter->path, own.parameter->value.to(kCpu));
  for (const auto& [name, tensor] : sgd.tensors()) result.emplace_back(name, tensor.to(kCpu));
  return result;
}

}  // namespace

std::vector<TrainingCase> training_cases(const std::vector<std::string>& formats) {
  if (formats.empty())
    return {
        {"fp32", "fp32", "fp32", "fp32", "", "fp32", "fp32"},
        {"e4m3", "e5m2:sr", "fp32", "e4m3", "e6m9:sr", "fp32", "fp32"},
        {"e4m3:sr", "e5m2:sr", "e5m2:sr", "bf16:sr", "", "e5m2:sr", "bf16"},
        {"bfp8-axis0:sr", "bfp8-axis0:sr", "bfp8-axis0:sr", "bfp8-axis0:sr", "", "bfp8-axis0:sr",
         "bfp8-axis0:sr"},
        {"mxfp8", "mxfp8-e5m2:sr", "posit16.1", "mxfp6-rceil", "fp32", "fp32", "posit8.1"},
        {"bfp8-g16:sr", "bfp8-g16:sr", "bfp8", "fixed8.6:sr", "fp32", "fp32", "fp32"},
        {"nvfp4", "nvfp4:sr", "e4m3+scale=current", "nvfp4-t16x16", "fp32", "fp32", "fp32"},
        {"mxfp4+rht16", "mxfp4+rht16+q34:sr", "fp32", "e4m3-axis0-scalef32", "fp32", "fp32",
         "e5m2+scale=row"},
        {"e4m3+scale=delayed4", "e5m2+scale=delayed4:sr", "fp32", "fp32", "", "fp32", "fp32"},
        {"e4m3-g16-scalef32", "e4m3-t8x8-scalef32:sr", "nf4-g64-scalef32", "fp32", "", "fp32",
         "fp32"},
        {"fixed8.5:rtz", "fixed16.12:sr4c", "e6m9:ru", "e5m2", "fp32", "fp32", "e6m9:odd"},
        {"fp32", "fp32", "fp32", "fp32", "", "fp32", "fp32", "adam"},
        {"e5m2", "e5m2", "fp32", "e6m9:sr", "", "fp32", "e6m9:sr", "sgd", "fp32", "",
         "chunk64/e6m9:sr"},
        {"e4m3", "e5m2:sr", "fp32", "fp32", "", "fp32", "dynamic8-g256-scalef32", "adamw",
         "dynamic8u-g256-scalef32:sr"},
        {"e4m3", "e5m2:sr", "fp32", "e4m3", "e6m9:sr", "e5m2:sr", "e4m3-g64-scalef32:sr", "adam",
         "fixed16.14-u:sr"},
        {"fp32", "fp32", "fp32", "bf16", "", "fp32", "bf16:sr", "adamw", "bf16:sr", "bf16"},
        {"fp32", "fp32", "fp32", "bf16:sr", "", "fp32", "e2m1-g32-scalef32:sr", "lion"},
        {"fp32", "fp32", "fp32", "bfp8-g16", "fixed12.9:sr", "bfp8", "nvfp4:sr", "adamw",
         "mxfp8-rceil"},
        {"fp32", "fp32", "fp32", "e4m3", "e3m4", "fp32", "posit8.1", "lion", "fp32", "e2m3"},
    };
  std::vector<TrainingCase> cases;
  for (const std::string& format : formats)
    cases.push_back({format, format, "fp32", "fp32", "", "fp32", "fp32"});
  return cases;
}

Outcome compare_training(Comparison& comparison, const TrainingCase& training, int steps) {
  const std::string name = training.forward == training.backward
                               ? training.forward
                               : training.forward + " / " + training.backward;
  const std::string how = (training.optimizer == "sgd" ? "" : ", " + training.optimizer) +
                          (training.sums == "fp32" ? "" : ", sums " + training.sums);
  return comparison.outcome_of("training " + name + how, [&](Comparison& compare) {
    std::vector<std::pair<std::string, Tensor>> reference, other;
    compare.on_both([&](Side side) {
      (side == Side::Reference ? reference : other) =
          trained(compare.place(side).device, training, steps, compare.options().seed + 1);
    });
    ULP_ASSERT(reference.size() == other.size());
    for (size_t i = 0; i < reference.size(); ++i)
      compare.same({reference[i].second, other[i].second}, reference[i].first, " after ", steps,
                   " steps");
  });
}

}  // namespace ulp::cases
