#include "nn/shape_layers.h"

#include <fmt/core.h>

#include <cmath>

#include "autograd/scaling.h"
#include "nn/unit_scaling.h"

namespace ulp::nn {

Var Reshape::forward(Tape& tape, const Var& x) {
  ULP_CHECK(x.value.defined() && x.shape().rank() >= 1, "{}: Reshape wants (N, …), got {}", path(),
            x.value);
  int64_t elements = 1;
  std::vector<int64_t> extents = {x.shape()[0]};
  for (int axis = 1; axis < x.shape().rank(); ++axis) elements *= x.shape()[axis];
  for (int axis = 0; axis < sample_.rank(); ++axis) extents.push_back(sample_[axis]);
  ULP_CHECK(elements == sample_.numel(),
            "{}: Reshape: samples of {} hold {} elements each, and {} wants {}", path(), x.value,
            elements, sample_, sample_.numel());
  return ops::reshape(tape, x, Shape(std::span<const int64_t>(extents)));
}

Var Flatten::forward(Tape& tape, const Var& x) {
  ULP_CHECK(x.value.defined() && x.shape().rank() >= 1, "{}: Flatten wants (N, …), got {}", path(),
            x.value);
  return ops::flatten(tape, x);
}

Pad::Pad(std::vector<ops::PadAxis> axes, double value, OpFormats formats)
    : axes_(std::move(axes)), value_(value), formats_(std::move(formats)) {
  for (const ops::PadAxis& by : axes_)
    ULP_CHECK(by.before >= 0 && by.after >= 0, "Pad: wanted numbers >= 0, got {} and {}", by.before,
              by.after);
}

Var Pad::forward(Tape& tape, const Var& x) {
  const int given = static_cast<int>(axes_.size());
  ULP_CHECK(x.value.defined() && x.shape().rank() > given,
            "{}: Pad wants (N, …) with {} axes or more after the first, got {}", path(), given,
            x.value);
  std::vector<ops::PadAxis> axes(static_cast<size_t>(x.shape().rank()));
  std::copy(axes_.begin(), axes_.end(), axes.begin() + 1);
  return ops::pad(tape, x, axes, value_, formats_, site());
}

std::string Pad::describe() const {
  std::string text = "Pad";
  for (const ops::PadAxis& by : axes_) text += fmt::format(" ({}, {})", by.before, by.after);
  return value_ == 0 ? text : text + fmt::format(" with {}", value_);
}

Residual::Residual(std::unique_ptr<Module> body, std::unique_ptr<Module> shortcut,
                   OpFormats formats)
    : body_(std::move(body)), shortcut_(std::move(shortcut)), formats_(std::move(formats)) {
  ULP_CHECK(body_ != nullptr, "Residual: the body is no module");
}

Var Residual::forward(Tape& tape, const Var& x) {
  const double body = tau_ == 0 ? 1 : std::sqrt(tau_), rest = std::sqrt(1 - tau_);
  const Var y = ops::scaling(tape, (*body_)(tape, ops::scaling(tape, x, 1, body)), body, 1);
  Var other = ops::scaling(tape, x, 1, rest);
  if (shortcut_ != nullptr) other = (*shortcut_)(tape, other);
  other = ops::scaling(tape, other, rest, 1);
  ULP_CHECK(y.shape() == other.shape(),
            "{}: Residual: body and shortcut must make one shape of {}, got {} and {}", path(),
            x.shape(), y.shape(), other.shape());
  return ops::add(tape, y, other, formats_, site());
}

bool Residual::unit_scale(const UnitPlace& place) {
  tau_ = place.tau;
  set_scaled(fmt::format("body × {:.4g}, x × {:.4g}", std::sqrt(tau_), std::sqrt(1 - tau_)));
  return true;
}

std::string Residual::describe() const {
  return shortcut_ == nullptr ? "Residual body(x) + x" : "Residual body(x) + shortcut(x)";
}

std::vector<Module::Child> Residual::children() {
  std::vector<Child> all = {{"body", body_.get()}};
  if (shortcut_ != nullptr) all.push_back({"shortcut", shortcut_.get()});
  return all;
}

}  // namespace ulp::nn
