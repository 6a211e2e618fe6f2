#pragma once

#include <optional>

#include "autograd/embedding.h"
#include "nn/incremental.h"
#include "nn/unit_scaling.h"

namespace ulp::nn {

/// ops::embedding: tokens (…) I32 in [0, vocabulary) → (…, width).  Parameter: weight (vocabulary, width), uniform with the
/// deviation 0.02 of GPT-2.
class Embedding : public Module {
 public:
  /// Throws unless both sizes are at least 1.
  Embedding(int64_t vocabulary, int64_t width, OpFormats formats = {});

  Var forward(Tape& tape, const Var& tokens) override;
  std::string describe() const override;
  LayerType type() const override { return LayerType::Embedding; }
  OpFormats* formats() override { return &formats_; }
  std::vector<const char*> roles() const override {
    return {"weight", "output", "grad_output_dw", "grad_weight"};
  }
  /// dtable · √(vocabulary/tokens): equally frequent tokens meet a row tokens/vocabulary times.
  bool unit_scale(const UnitPlace&) override;

  int64_t vocabulary() const { return vocabulary_; }
  int64_t width() const { return width_; }
  Parameter& weight() { return *weight_; }

 private:
  int64_t vocabulary_, width_;
  OpFormats formats_;
  bool unit_ = false;
  Parameter* weight_;
};

/// y = x tableᵀ, with the table of an Embedding, which must outlive it: the logits of every token.  x: (…, width) → (…, vocabulary).
/// It has no parameters of its own; the table gets the gradients of both. Formats: ops::linear.
class TiedLinear : public Module {
 public:
  explicit TiedLinear(Embedding& table, OpFormats formats = {});

  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override;
  LayerType type() const override { return LayerType::Linear; }
  OpFormats* formats() override { return &formats_; }
  std::vector<const char*> roles() const override;
  std::optional<ProductShapes> product_shapes(const Shape& x, const Shape& y) const override {
    return table_.product_shapes(x, y);
  }

 private:
  Embedding& table_;
  OpFormats formats_;
};

/// ops::add_positions of x (N, T, width), T ≤ context.  Parameter: weight (context, width), uniform with the deviation 0.02.
/// Piece by piece, the first element of a piece has the number after the last one before it.
class LearnedPositions : public Module, public Incremental {
 public:
  /// Throws unless both sizes are at least 1.
  LearnedPositions(int64_t context, int64_t width, OpFormats formats = {});

  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override;
  LayerType type() const override { return LayerType::Embedding; }
  OpFormats* formats() override { return &formats_; }
  std::vector<const char*> roles() const override {
    return {"output", "grad_input", "grad_weight"};
  }
  /// y · √½, dtable · N^−½.
  bool unit_scale(const UnitPlace& place) override;

  void begin(int64_t batch, int64_t longest) override;
  void end() override { offset_ = -1; }
  std::string obstacle() const override;

 private:
  int64_t context_, width_;
  OpFormats formats_;
  std::optional<Gains> unit_;
  Parameter* weight_;
  int64_t offset_ = -1;  // of the next piece; −1: whole sequences
};

}  // namespace ulp::nn
