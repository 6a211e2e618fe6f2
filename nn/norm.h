#pragma once

#include <array>

#include "autograd/norm.h"
#include "nn/unit_scaling.h"

namespace ulp::nn {

/// What norms share: roles input, output, grad_output_dx, grad_input and interior, and the parameters weight (C), ones, and
/// bias (C), zeros, where they are wanted.
class Norm : public Module {
 public:
  /// Which parameters there are.
  enum class Affine : uint8_t { None, Weight, WeightAndBias };

  LayerType type() const override { return LayerType::Normalization; }
  OpFormats* formats() override { return &formats_; }
  std::vector<const char*> roles() const override {
    return {"input", "output", "grad_output_dx", "grad_input", "interior"};
  }
  /// Results have size 1 as they are; the gradients of weight and bias are multiplied by rows^−½.
  bool unit_scale(const UnitPlace&) override;

 protected:
  /// Throws unless there is a channel.
  Norm(const char* name, int64_t channels, Affine affine, OpFormats formats);
  Var weight(Tape& tape, const Var& x) const { return watched(tape, weight_, x); }
  Var bias(Tape& tape, const Var& x) const { return watched(tape, bias_, x); }
  /// "16, no bias"
  std::string size_text() const;

  int64_t channels_;
  OpFormats formats_;

 private:
  Var watched(Tape& tape, Parameter* p, const Var& x) const;

  bool unit_ = false;
  Parameter* weight_ = nullptr;
  Parameter* bias_ = nullptr;
};

/// Options of BatchNorm.
struct BatchNormSettings {
  double eps = 1e-5;
  double momentum = 0.1;  // of the new statistics in the running ones
  Norm::Affine affine = Norm::Affine::WeightAndBias;
};

/// ops::batch_norm of (N, H, W, C) or (N, C).  Buffers: running_mean (C), zeros, and running_var (C), ones. In Mode::Train they
/// change with each forward pass; in Mode::Evaluate they serve as statistics. They are saved with the model.
class BatchNorm : public Norm {
 public:
  explicit BatchNorm(int64_t channels, const BatchNormSettings& settings = {},
                     OpFormats formats = {});
  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override;

  double momentum() const { return settings_.momentum; }
  /// From the next forward pass on, but in no step that was recorded before. Throws unless it is from 0 to 1.
  void set_momentum(double momentum);
  /// Mean and variance.
  std::array<Buffer*, 2> running_statistics() const { return {running_mean_, running_variance_}; }

 private:
  BatchNormSettings settings_;
  Buffer* running_mean_;
  Buffer* running_variance_;
};

/// ops::layer_norm of (…, C).
class LayerNorm : public Norm {
 public:
  explicit LayerNorm(int64_t channels, double eps = 1e-5, Affine affine = Affine::WeightAndBias,
                     OpFormats formats = {});
  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override;

 private:
  double eps_;
};

/// ops::rms_norm of (…, C). It has no bias.
class RMSNorm : public Norm {
 public:
  explicit RMSNorm(int64_t channels, double eps = 1e-6, Affine affine = Affine::Weight,
                   OpFormats formats = {});
  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override;

 private:
  double eps_;
};

/// ops::group_norm of (N, …, C).  Throws unless the groups divide the channels.
class GroupNorm : public Norm {
 public:
  GroupNorm(int64_t groups, int64_t channels, double eps = 1e-5,
            Affine affine = Affine::WeightAndBias, OpFormats formats = {});
  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override;

 private:
  int64_t groups_;
  double eps_;
};

}  // namespace ulp::nn
