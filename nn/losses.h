#pragma once

#include "autograd/losses.h"
#include "nn/module.h"

namespace ulp::nn {

/// A loss as a layer: it has a path, formats and random streams of its own, so that policies reach it. of(tape, prediction,
/// target) gives one value. Formats: interior and grad_input, as autograd/losses.h says.
class Loss : public Module {
 public:
  explicit Loss(OpFormats formats) : formats_(std::move(formats)) {}
  /// target: labels (N) I32, or a tensor of the prediction's shape; see the ops.
  virtual Var of(Tape& tape, const Var& prediction, const Var& target) = 0;

  /// Throws: a loss has two arguments.
  Var forward(Tape& tape, const Var& x) override;
  LayerType type() const override { return LayerType::Loss; }
  OpFormats* formats() override { return &formats_; }
  std::vector<const char*> roles() const override { return {"interior", "grad_input"}; }

 protected:
  OpFormats formats_;
};

class CrossEntropyLoss : public Loss {
 public:
  explicit CrossEntropyLoss(double label_smoothing = 0, OpFormats formats = {})
      : Loss(std::move(formats)), label_smoothing_(label_smoothing) {}
  Var of(Tape& tape, const Var& logits, const Var& labels) override {
    return ops::cross_entropy(tape, logits, labels.value, label_smoothing_, formats_, site());
  }
  std::string describe() const override;

 private:
  double label_smoothing_;
};

class NLLLoss : public Loss {
 public:
  explicit NLLLoss(OpFormats formats = {}) : Loss(std::move(formats)) {}
  Var of(Tape& tape, const Var& log_probs, const Var& labels) override {
    return ops::nll(tape, log_probs, labels.value, formats_, site());
  }
  std::string describe() const override { return "NLLLoss"; }
  std::vector<const char*> roles() const override { return {"grad_input"}; }
};

class SumOfSquaresLoss : public Loss {
 public:
  explicit SumOfSquaresLoss(OpFormats formats = {}) : Loss(std::move(formats)) {}
  Var of(Tape& tape, const Var& y, const Var& labels) override {
    return ops::sum_of_squares(tape, y, labels.value, formats_, site());
  }
  std::string describe() const override { return "SumOfSquaresLoss"; }
  std::vector<const char*> roles() const override { return {"grad_input"}; }
};

/// Formats: those of the difference (ops::mse): output, grad_input.
class MSELoss : public Loss {
 public:
  explicit MSELoss(OpFormats formats = {}) : Loss(std::move(formats)) {}
  Var of(Tape& tape, const Var& prediction, const Var& target) override {
    return ops::mse(tape, prediction, target, formats_, site());
  }
  std::string describe() const override { return "MSELoss"; }
  std::vector<const char*> roles() const override { return {"output", "grad_input"}; }
};

class L1Loss : public Loss {
 public:
  explicit L1Loss(OpFormats formats = {}) : Loss(std::move(formats)) {}
  Var of(Tape& tape, const Var& prediction, const Var& target) override {
    return ops::l1(tape, prediction, target, formats_, site());
  }
  std::string describe() const override { return "L1Loss"; }
};

class SmoothL1Loss : public Loss {
 public:
  explicit SmoothL1Loss(double beta = 1, OpFormats formats = {})
      : Loss(std::move(formats)), beta_(beta) {}
  Var of(Tape& tape, const Var& prediction, const Var& target) override {
    return ops::smooth_l1(tape, prediction, target, beta_, formats_, site());
  }
  std::string describe() const override;

 private:
  double beta_;
};

class HuberLoss : public Loss {
 public:
  explicit HuberLoss(double delta = 1, OpFormats formats = {})
      : Loss(std::move(formats)), delta_(delta) {}
  Var of(Tape& tape, const Var& prediction, const Var& target) override {
    return ops::huber(tape, prediction, target, delta_, formats_, site());
  }
  std::string describe() const override;

 private:
  double delta_;
};

class BCEWithLogitsLoss : public Loss {
 public:
  explicit BCEWithLogitsLoss(OpFormats formats = {}) : Loss(std::move(formats)) {}
  Var of(Tape& tape, const Var& logits, const Var& target) override {
    return ops::bce_with_logits(tape, logits, target, formats_, site());
  }
  std::string describe() const override { return "BCEWithLogitsLoss"; }
};

class KLDivergenceLoss : public Loss {
 public:
  explicit KLDivergenceLoss(OpFormats formats = {}) : Loss(std::move(formats)) {}
  Var of(Tape& tape, const Var& log_probs, const Var& target) override {
    return ops::kl_divergence(tape, log_probs, target, formats_, site());
  }
  std::string describe() const override { return "KLDivergenceLoss"; }
};

}  // namespace ulp::nn
