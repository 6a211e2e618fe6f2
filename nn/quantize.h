#pragma once

#include "nn/module.h"

namespace ulp::nn {

/// A quantizer anywhere in a network: values by `forward`, gradients by `backward`, optionally zero where a value was
/// clamped. See ops::quantize.
class Quantize : public Module {
 public:
  explicit Quantize(ops::QuantizeFormats formats) : formats_(std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override {
    return ops::quantize(tape, x, formats_, site());
  }
  std::string describe() const override {
    return "Quantize " + to_string(formats_.forward) + ", backward " +
           to_string(formats_.backward) + (formats_.clamp_mask ? ", clamp mask" : "");
  }
  std::vector<const char*> roles() const override { return {"forward", "backward"}; }
  bool unit_scale(const UnitPlace&) override { return true; }  // sizes stay

 private:
  ops::QuantizeFormats formats_;
};

}  // namespace ulp::nn
