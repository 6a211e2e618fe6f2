#pragma once

#include "autograd/conv.h"
#include "kernels/windows.h"
#include "nn/linear.h"
#include "nn/role_limits.h"

namespace ulp::nn {

/// What convolutions share.  Parameters: weight (Out, …, In/groups), Kaiming uniform over KH·KW·In/groups; bias (Out), zeros.
/// Refuses the formats that ops::windows_misfit names where its windows are more than single pixels.
class Convolution : public Module, public RoleLimits, public ProductLayer {
 public:
  using Bias = Linear::Bias;

  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override;
  LayerType type() const override { return LayerType::Conv; }
  OpFormats* formats() override { return &formats_; }
  std::vector<const char*> roles() const override;
  std::string misfit(const Role& role, const Quantizer& quantizer) const override;
  int64_t fan_in() const override { return fan_in_; }
  void set_weight(const Initialiser& init, const ProductFactors& factors) override;
  bool unit_scale(const UnitPlace& place) override;

 protected:
  /// Throws unless all sizes are at least 1 and In and Out are multiples of groups. kernel: one size an axis.
  Convolution(const char* name, int64_t in, int64_t out, const std::vector<int64_t>& kernel,
              int64_t groups, OpFormats formats, Bias bias);
  virtual Var apply(Tape& tape, const Var& x, const Var& w, const Var& b,
                    const ProductFactors& factors) = 0;
  /// Pixels of the image that each window is apart from the next, all axes together, and windows in x. None: there is no rule.
  struct Steps {
    int64_t pixels, windows;
  };
  virtual std::optional<Steps> steps(const Shape&) const { return {}; }
  /// Options that differ from their defaults: ", stride 2 × 2".
  virtual std::string options_text() const = 0;
  /// The windows of an image of one pixel, as far as Windows::is_image() depends on them.
  virtual Windows windows() const = 0;

  OpFormats formats_;
  ProductFactors factors_;
  std::vector<int64_t> kernel_;

 private:
  std::string name_;
  ProductFactors factors_of(const Shape& x) const;

  int64_t in_, out_, fan_in_;
  std::optional<Edge> unit_;
  Parameter* weight_ = nullptr;
  Parameter* bias_ = nullptr;
};

/// ops::conv2d.  x: (N, H, W, In) → y: (N, OH, OW, Out).
class Conv2d : public Convolution {
 public:
  Conv2d(int64_t in_channels, int64_t out_channels, ops::Pair kernel, ops::ConvOptions options = {},
         OpFormats formats = {}, Bias bias = Bias::Yes);

 private:
  Var apply(Tape& tape, const Var& x, const Var& w, const Var& b,
            const ProductFactors& factors) override;
  std::string options_text() const override;
  Windows windows() const override;
  std::optional<Steps> steps(const Shape& x) const override;
  ops::ConvOptions options_;
};

/// ops::conv_transpose2d.  x: (N, H, W, In) → y: (N, OH, OW, Out).
class ConvTranspose2d : public Convolution {
 public:
  ConvTranspose2d(int64_t in_channels, int64_t out_channels, ops::Pair kernel,
                  ops::ConvTransposeOptions options = {}, OpFormats formats = {},
                  Bias bias = Bias::Yes);

 private:
  Var apply(Tape& tape, const Var& x, const Var& w, const Var& b,
            const ProductFactors& factors) override;
  std::string options_text() const override;
  Windows windows() const override;
  ops::ConvTransposeOptions options_;
};

/// ops::conv1d.  x: (N, L, In) → y: (N, OL, Out).
class Conv1d : public Convolution {
 public:
  Conv1d(int64_t in_channels, int64_t out_channels, int64_t kernel, ops::Conv1dOptions options = {},
         OpFormats formats = {}, Bias bias = Bias::Yes);

 private:
  Var apply(Tape& tape, const Var& x, const Var& w, const Var& b,
            const ProductFactors& factors) override;
  std::string options_text() const override;
  Windows windows() const override;
  std::optional<Steps> steps(const Shape& x) const override;
  ops::Conv1dOptions options_;
};

}  // namespace ulp::nn
