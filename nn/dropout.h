#pragma once

#include "autograd/dropout.h"
#include "nn/unit_scaling.h"

namespace ulp::nn {

/// ops::dropout in Mode::Train; y = x in Mode::Evaluate, but for its formats. Roles: input, output, grad_output_dx, grad_input.
class Dropout : public Module {
 public:
  /// Throws unless 0 ≤ p < 1.
  explicit Dropout(double p = 0.5, OpFormats formats = {});
  Var forward(Tape& tape, const Var& x) override {
    return scaled(tape, ops::dropout(tape, x, p_, mode() == Mode::Train, formats_, site()), gains_);
  }
  std::string describe() const override;
  LayerType type() const override { return LayerType::Dropout; }
  OpFormats* formats() override { return &formats_; }
  /// "mask" draws, and is no format.
  std::vector<const char*> roles() const override {
    return {"input", "output", "grad_output_dx", "grad_input"};
  }
  /// √(1 − p) both ways and in both modes: what is left in training has that size less.
  bool unit_scale(const UnitPlace& place) override;

 private:
  double p_;
  Gains gains_;
  OpFormats formats_;
};

}  // namespace ulp::nn
