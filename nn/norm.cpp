#include "nn/norm.h"

#include "autograd/scaling.h"

namespace ulp::nn {

Norm::Norm(const char* name, int64_t channels, Affine affine, OpFormats formats)
    : channels_(channels), formats_(std::move(formats)) {
  ULP_CHECK(channels >= 1, "{}: it must have at least 1 channel, got {}", name, channels);
  if (affine != Affine::None) weight_ = &add_parameter("weight", {channels}, Initialiser::value(1));
  if (affine == Affine::WeightAndBias)
    bias_ = &add_parameter("bias", {channels}, Initialiser::zeros());
}

Var Norm::watched(Tape& tape, Parameter* p, const Var& x) const {
  if (p == nullptr) return {};
  const Var parameter = tape.watch(*p);
  if (!unit_ || !x.value.defined()) return parameter;
  return ops::scaling(tape, parameter, 1, unit_rows(x.value.numel() / channels_));
}

bool Norm::unit_scale(const UnitPlace&) {
  unit_ = true;
  if (weight_ != nullptr) set_scaled("dw × rows^−½");
  return true;
}

std::string Norm::size_text() const {
  const char* const without = weight_ == nullptr ? ", no weight"
                              : bias_ == nullptr ? ", no bias"
                                                 : "";
  return std::to_string(channels_) + without;
}

BatchNorm::BatchNorm(int64_t channels, const BatchNormSettings& settings, OpFormats formats)
    : Norm("BatchNorm", channels, settings.affine, std::move(formats)), settings_(settings) {
  set_momentum(settings.momentum);
  running_mean_ = &add_buffer("running_mean", {channels}, 0);
  running_variance_ = &add_buffer("running_var", {channels}, 1);
}

void BatchNorm::set_momentum(double momentum) {
  ULP_CHECK(momentum >= 0 && momentum <= 1, "BatchNorm: momentum must be from 0 to 1, got {}",
            momentum);
  settings_.momentum = momentum;
}

Var BatchNorm::forward(Tape& tape, const Var& x) {
  ops::BatchNormOptions options;
  options.eps = settings_.eps;
  options.momentum = settings_.momentum;
  options.training = mode() == Mode::Train;
  return ops::batch_norm(tape, x, weight(tape, x), bias(tape, x),
                         {running_mean_->value, running_variance_->value}, options, formats_,
                         site());
}

std::string BatchNorm::describe() const { return "BatchNorm " + size_text(); }

LayerNorm::LayerNorm(int64_t channels, double eps, Affine affine, OpFormats formats)
    : Norm("LayerNorm", channels, affine, std::move(formats)), eps_(eps) {}

Var LayerNorm::forward(Tape& tape, const Var& x) {
  return ops::layer_norm(tape, x, weight(tape, x), bias(tape, x), eps_, formats_, site());
}

std::string LayerNorm::describe() const { return "LayerNorm " + size_text(); }

RMSNorm::RMSNorm(int64_t channels, double eps, Affine affine, OpFormats formats)
    : Norm("RMSNorm", channels, affine, std::move(formats)), eps_(eps) {
  ULP_CHECK(affine != Affine::WeightAndBias, "RMSNorm: it has no bias");
}

Var RMSNorm::forward(Tape& tape, const Var& x) {
  return ops::rms_norm(tape, x, weight(tape, x), eps_, formats_, site());
}

std::string RMSNorm::describe() const { return "RMSNorm " + size_text(); }

GroupNorm::GroupNorm(int64_t groups, int64_t channels, double eps, Affine affine, OpFormats formats)
    : Norm("GroupNorm", channels, affine, std::move(formats)), groups_(groups), eps_(eps) {
  ULP_CHECK(groups >= 1 && channels % groups == 0, "GroupNorm: {} groups do not divide {} channels",
            groups, channels);
}

Var GroupNorm::forward(Tape& tape, const Var& x) {
  return ops::group_norm(tape, x, groups_, weight(tape, x), bias(tape, x), eps_, formats_, site());
}

std::string GroupNorm::describe() const {
  return "GroupNorm " + size_text() + ", " + std::to_string(groups_) + " groups";
}

}  // namespace ulp::nn
