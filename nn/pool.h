#pragma once

#include <optional>

#include "autograd/pool.h"
#include "nn/unit_scaling.h"

namespace ulp::nn {

/// What pools share: roles input, output, grad_output_dx and grad_input.
class Pool : public Module {
 public:
  LayerType type() const override { return LayerType::Pool; }
  OpFormats* formats() override { return &formats_; }
  std::vector<const char*> roles() const override {
    return {"input", "output", "grad_output_dx", "grad_input"};
  }
  /// With n pixels a window and r times as many pixels in x as in y. Largest: y · 1/√E[M²], M the largest of n normal numbers, and
  /// dx · √r, as each window passes its gradient to one pixel. Averages: y as it is, for what is averaged has a mean, and
  /// dx · √(n·r), as each pixel gets g/n of n/r windows.
  bool unit_scale(const UnitPlace& place) override;

 protected:
  enum class Kind : uint8_t { Largest, Average };
  Pool(Kind kind, OpFormats formats) : formats_(std::move(formats)), kind_(kind) {}
  /// window: pixels; 0: all of an image.
  Var result(Tape& tape, const Var& x, const Var& y, int64_t window) const;

  OpFormats formats_;

 private:
  Kind kind_;
  std::optional<Edge> unit_;
};

/// A pool over windows.
class WindowPool : public Pool {
 public:
  std::string describe() const override;

 protected:
  WindowPool(Kind kind, const char* name, int axes, const ops::PoolOptions& options,
             OpFormats formats)
      : Pool(kind, std::move(formats)), options_(options), name_(name), axes_(axes) {}
  Var pooled(Tape& tape, const Var& x, const Var& y) const {
    return result(tape, x, y, options_.kernel.first * (axes_ == 1 ? 1 : options_.kernel.second));
  }

  ops::PoolOptions options_;

 private:
  const char* name_;
  int axes_;
};

/// ops::max_pool2d: nn::MaxPool2d({.kernel = {3, 3}, .stride = {2, 2}, .padding = {1, 1}}).
class MaxPool2d : public WindowPool {
 public:
  explicit MaxPool2d(const ops::PoolOptions& options, OpFormats formats = {})
      : WindowPool(Kind::Largest, "MaxPool2d", 2, options, std::move(formats)) {}
  /// A square window, moved on by its size.
  explicit MaxPool2d(int64_t kernel, OpFormats formats = {})
      : MaxPool2d(ops::PoolOptions{.kernel = {kernel, kernel}}, std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override {
    return pooled(tape, x, ops::max_pool2d(tape, x, options_, formats_, site()));
  }
};

/// ops::avg_pool2d.
class AvgPool2d : public WindowPool {
 public:
  explicit AvgPool2d(const ops::PoolOptions& options, OpFormats formats = {})
      : WindowPool(Kind::Average, "AvgPool2d", 2, options, std::move(formats)) {}
  explicit AvgPool2d(int64_t kernel, OpFormats formats = {})
      : AvgPool2d(ops::PoolOptions{.kernel = {kernel, kernel}}, std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override {
    return pooled(tape, x, ops::avg_pool2d(tape, x, options_, formats_, site()));
  }
};

/// ops::max_pool1d and ops::avg_pool1d: the first of each pair of the options serves.
class MaxPool1d : public WindowPool {
 public:
  explicit MaxPool1d(const ops::PoolOptions& options, OpFormats formats = {})
      : WindowPool(Kind::Largest, "MaxPool1d", 1, options, std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override {
    return pooled(tape, x, ops::max_pool1d(tape, x, options_, formats_, site()));
  }
};
class AvgPool1d : public WindowPool {
 public:
  explicit AvgPool1d(const ops::PoolOptions& options, OpFormats formats = {})
      : WindowPool(Kind::Average, "AvgPool1d", 1, options, std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override {
    return pooled(tape, x, ops::avg_pool1d(tape, x, options_, formats_, site()));
  }
};

/// ops::global_avg_pool: (N, H, W, C) or (N, L, C) → (N, C).
class GlobalAvgPool : public Pool {
 public:
  explicit GlobalAvgPool(OpFormats formats = {}) : Pool(Kind::Average, std::move(formats)) {}
  Var forward(Tape& tape, const Var& x) override {
    return result(tape, x, ops::global_avg_pool(tape, x, formats_, site()), 0);
  }
  std::string describe() const override { return "GlobalAvgPool"; }
};

}  // namespace ulp::nn
