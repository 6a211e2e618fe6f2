#pragma once

#include "autograd/activations.h"
#include "nn/unit_scaling.h"

namespace ulp::nn {

/// What element-wise layers share: roles input, output, grad_output_dx and grad_input of ops::relu and its like.
class Activation : public Module {
 public:
  explicit Activation(OpFormats formats) : formats_(std::move(formats)) {}
  LayerType type() const override { return LayerType::Activation; }
  OpFormats* formats() override { return &formats_; }
  std::vector<const char*> roles() const override {
    return {"input", "output", "grad_output_dx", "grad_input"};
  }
  /// Gains of the function itself (unit_gains), which come after its formats.
  bool unit_scale(const UnitPlace& place) override;

 protected:
  /// How many neighbours in a row make one result.
  virtual int inputs() const { return 1; }
  Var result(Tape& tape, const Var& y) const { return scaled(tape, y, gains_); }

  OpFormats formats_;

 private:
  Gains gains_;
};

/// max(x, 0).
class ReLU : public Activation {
 public:
  explicit ReLU(OpFormats formats = {}) : Activation(std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override {
    return result(tape, ops::relu(tape, x, formats_, site()));
  }
  std::string describe() const override { return "ReLU"; }
};

/// x·Φ(x), or its tanh form.
class GELU : public Activation {
 public:
  explicit GELU(ops::Gelu form = ops::Gelu::Erf, OpFormats formats = {})
      : Activation(std::move(formats)), form_(form) {}
  Var forward(Tape& tape, const Var& x) override {
    return result(tape, ops::gelu(tape, x, form_, formats_, site()));
  }
  std::string describe() const override { return form_ == ops::Gelu::Erf ? "GELU" : "GELU (tanh)"; }

 private:
  ops::Gelu form_;
};

/// min(max(x, 0), 6).
class ReLU6 : public Activation {
 public:
  explicit ReLU6(OpFormats formats = {}) : Activation(std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override {
    return result(tape, ops::relu6(tape, x, formats_, site()));
  }
  std::string describe() const override { return "ReLU6"; }
};

/// x, or slope·x where x ≤ 0.
class LeakyReLU : public Activation {
 public:
  explicit LeakyReLU(double slope = 0.01, OpFormats formats = {})
      : Activation(std::move(formats)), slope_(slope) {}
  Var forward(Tape& tape, const Var& x) override {
    return result(tape, ops::leaky_relu(tape, x, slope_, formats_, site()));
  }
  std::string describe() const override;

 private:
  double slope_;
};

/// x, or alpha·(e^x − 1) where x ≤ 0.
class ELU : public Activation {
 public:
  explicit ELU(double alpha = 1, OpFormats formats = {})
      : Activation(std::move(formats)), alpha_(alpha) {}
  Var forward(Tape& tape, const Var& x) override {
    return result(tape, ops::elu(tape, x, alpha_, formats_, site()));
  }
  std::string describe() const override;

 private:
  double alpha_;
};

/// min(max(x, low), high).
class Hardtanh : public Activation {
 public:
  explicit Hardtanh(double low = -1, double high = 1, OpFormats formats = {})
      : Activation(std::move(formats)), low_(low), high_(high) {}
  Var forward(Tape& tape, const Var& x) override {
    return result(tape, ops::hardtanh(tape, x, low_, high_, formats_, site()));
  }
  std::string describe() const override;

 private:
  double low_, high_;
};

/// 1 / (1 + e^−x).
class Sigmoid : public Activation {
 public:
  explicit Sigmoid(OpFormats formats = {}) : Activation(std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override {
    return result(tape, ops::sigmoid(tape, x, formats_, site()));
  }
  std::string describe() const override { return "Sigmoid"; }
};

class Tanh : public Activation {
 public:
  explicit Tanh(OpFormats formats = {}) : Activation(std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override {
    return result(tape, ops::tanh(tape, x, formats_, site()));
  }
  std::string describe() const override { return "Tanh"; }
};

/// x·σ(x).
class SiLU : public Activation {
 public:
  explicit SiLU(OpFormats formats = {}) : Activation(std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override {
    return result(tape, ops::silu(tape, x, formats_, site()));
  }
  std::string describe() const override { return "SiLU"; }
};

/// ln(1 + e^(beta·x)) / beta, or x where beta·x > threshold.
class Softplus : public Activation {
 public:
  explicit Softplus(double beta = 1, double threshold = 20, OpFormats formats = {})
      : Activation(std::move(formats)), beta_(beta), threshold_(threshold) {}
  Var forward(Tape& tape, const Var& x) override {
    return result(tape, ops::softplus(tape, x, beta_, threshold_, formats_, site()));
  }
  std::string describe() const override;

 private:
  double beta_, threshold_;
};

/// What layers of rows (…, C) share: roles interior, output and grad_input.
class RowActivation : public Activation {
 public:
  using Activation::Activation;
  std::vector<const char*> roles() const override { return {"interior", "output", "grad_input"}; }
  bool unit_scale(const UnitPlace&) override { return false; }
};

/// exp(x − max) / Σ exp(x − max) along the last axis.
class Softmax : public RowActivation {
 public:
  explicit Softmax(OpFormats formats = {}) : RowActivation(std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override { return ops::softmax(tape, x, formats_, site()); }
  std::string describe() const override { return "Softmax"; }
};

/// x − max − ln Σ exp(x − max) along the last axis.
class LogSoftmax : public RowActivation {
 public:
  explicit LogSoftmax(OpFormats formats = {}) : RowActivation(std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override {
    return ops::log_softmax(tape, x, formats_, site());
  }
  std::string describe() const override { return "LogSoftmax"; }
};

}  // namespace ulp::nn
