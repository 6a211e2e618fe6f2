#pragma once

#include "autograd/rotary.h"
#include "nn/activations.h"

namespace ulp::nn {

/// ops::swiglu: (…, 2·C) → (…, C).
class SwiGLU : public Activation {
 public:
  explicit SwiGLU(OpFormats formats = {}) : Activation(std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override {
    return result(tape, ops::swiglu(tape, x, formats_, site()));
  }
  std::string describe() const override { return "SwiGLU"; }

 private:
  int inputs() const override { return 2; }
};

}  // namespace ulp::nn
