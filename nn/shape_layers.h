#pragma once

#include <memory>

#include "autograd/shape_ops.h"
#include "nn/module.h"

namespace ulp::nn {

/// (N, …) → (N, shape…): each sample's elements in another shape, as {H, W, C} makes images of rows. No formats.
/// forward throws if a sample has another number of elements.
class Reshape : public Module {
 public:
  explicit Reshape(const Shape& sample) : sample_(sample) {}
  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override { return "Reshape " + to_string(sample_); }

 private:
  Shape sample_;
};

/// (N, …) → (N, D), D the elements of a sample. No formats.
class Flatten : public Module {
 public:
  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override { return "Flatten"; }
};

/// `value` around the axes after the first: (N, H, W, C) with {{1, 2}, {3, 4}} → (N, 1 + H + 2, 3 + W + 4, C). Axes without an
/// entry stay. Formats: output, grad_input (ops::pad). Throws if an entry is negative.
class Pad : public Module {
 public:
  explicit Pad(std::vector<ops::PadAxis> axes, double value = 0, OpFormats formats = {});
  /// The same number on both sides of H and W.
  explicit Pad(int64_t border, double value = 0, OpFormats formats = {})
      : Pad({{border, border}, {border, border}}, value, std::move(formats)) {}

  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override;
  LayerType type() const override { return LayerType::Pad; }
  OpFormats* formats() override { return &formats_; }
  std::vector<const char*> roles() const override { return {"output", "grad_input"}; }
  bool unit_scale(const UnitPlace&) override { return true; }  // the pixels of x stay as they are

 private:
  std::vector<ops::PadAxis> axes_;
  double value_;
  OpFormats formats_;
};

/// y = body(x) + shortcut(x); without a shortcut body(x) + x. Formats: those of the addition (ops::add): output, grad_input.
/// Children: "body", and "shortcut" if there is one. forward throws if the two have different shapes.
class Residual : public Module {
 public:
  /// Throws if there is no body.
  explicit Residual(std::unique_ptr<Module> body, std::unique_ptr<Module> shortcut = nullptr,
                    OpFormats formats = {});

  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override;
  OpFormats* formats() override { return &formats_; }
  std::vector<const char*> roles() const override { return {"output", "grad_input"}; }
  std::vector<Child> children() override;
  /// y = √tau · body(x) + √(1 − tau) · x. On its way back the gradient meets √tau where it leaves the body, not where it enters:
  /// all gradients in the body have the size of y's.
  bool unit_scale(const UnitPlace& place) override;

 private:
  double tau_ = 0;  // 0: a plain sum
  std::unique_ptr<Module> body_, shortcut_;
  OpFormats formats_;
};

}  // namespace ulp::nn
