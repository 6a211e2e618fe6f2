#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "autograd/tape.h"

namespace ulp::optim {

/// Stochastic gradient descent with every state in a format of its own.
struct SgdOptions {
  double lr = 0.1;
  double momentum = 0;
  double weight_decay = 0;
  bool nesterov = false;
  double grad_scaling = 1;  // gradients are multiplied by it before they are quantised
  Quantizer weight{};       // what the layers read, stored in its storage_type
  std::optional<Quantizer>
      accumulator{};  // the master copy; none: the stored weight is the only copy
  Quantizer grad{};
  Quantizer momentum_format{};
};

/// One step for every parameter that has a gradient, in OptimLP's order:
///   g ← Qg(g·grad_scaling);  p ← accumulator;  d ← g + weight_decay·p;  m ← momentum·m + d;
///   p ← p − lr·(nesterov ? d + momentum·m : m), with the unrounded new m;  accumulator ← Qacc(p), p ← same;
///   weight ← Qw(p);  stored m ← Qm(m).
/// Unlike there: gradients are scaled with or without a gradient format, and weights are quantised before the first step.
/// Groups of block formats run along the last axis; axis blocks of a vector are one element each, whatever axis is named.  Source: QPyTorch, qtorch.optim.OptimLP.
class Sgd {
 public:
  /// Takes over the parameters: makes masters and momenta and quantises the weights at once (draws of step 0). The model
  /// must be initialised. Several optimizers may share a run if each has its own parameters. Throws for a negative or infinite coefficient, nesterov without momentum, or a block axis that
  /// a parameter lacks (naming it).
  Sgd(Run& run, std::vector<Parameter*> parameters, const SgdOptions& options);

  /// Updates in place, forgets the gradients, and moves the run on to the next step.
  void step();
  void zero_grad();

  /// The rates of the next steps, in the device's memory; the last one stays. Not within a recorded step (StepGraph).
  void set_rates(std::span<const float> rates);
  /// One rate from now on.
  void set_lr(double lr);
  /// That of the next step.
  double lr() const;
  const SgdOptions& options() const { return options_; }

  /// What the optimizer holds for one parameter; undefined where it holds none.
  struct State {
    Parameter* parameter;
    Tensor master, momentum;
  };
  const std::vector<State>& states() const { return states_; }
  /// What a resumed run needs beside the weights, `fc1.weight.master`, `fc1.weight.momentum`: handles to the memory itself;
  /// and the name of the format of each. The rates are the caller's to set again.
  std::map<std::string, Tensor> tensors() const;
  std::map<std::string, std::string> formats() const;

 private:
  RandomKey key(const Parameter& parameter, const char* role) const;
  Tensor quantised(const Tensor& in, const Quantizer& quantizer, const RandomKey& key,
                   DType dtype) const;
  SgdArgs arguments() const;
  void update_fused();
  void update_blocks(State& state);

  Run& run_;
  SgdOptions options_;
  std::vector<State> states_;
  std::vector<float> rates_;
  int64_t updates_ = 0;                         // steps made since the rates were set
  Tensor rates_on_device_, updates_on_device_;  // F32 (S), I32 (1)
};

}  // namespace ulp::optim
