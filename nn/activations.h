#pragma once

#include "nn/module.h"

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

 protected:
  OpFormats formats_;
};

/// max(x, 0).
class ReLU : public Activation {
 public:
  explicit ReLU(OpFormats formats = {}) : Activation(std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override { return ops::relu(tape, x, formats_, site()); }
  std::string describe() const override { return "ReLU"; }
};

/// x·Φ(x), or its tanh form.
class GELU : public Activation {
 public:
  explicit GELU(ops::Gelu form = ops::Gelu::Erf, OpFormats formats = {})
      : Activation(std::move(formats)), form_(form) {}
  Var forward(Tape& tape, const Var& x) override {
    return ops::gelu(tape, x, form_, formats_, site());
  }
  std::string describe() const override { return form_ == ops::Gelu::Erf ? "GELU" : "GELU (tanh)"; }

 private:
  ops::Gelu form_;
};

}  // namespace ulp::nn
