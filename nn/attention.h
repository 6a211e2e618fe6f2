#pragma once

#include <optional>

#include "autograd/attention.h"
#include "autograd/rotary.h"
#include "nn/incremental.h"
#include "nn/linear.h"

namespace ulp::nn {

/// One part of an attention, which holds the formats of its roles for policies and says what they are for. It computes nothing:
/// forward passes on what comes.
class AttentionPart : public Module {
 public:
  /// What it multiplies for a y (N, T, W) of the attention; by default nothing.
  using Products = std::function<std::optional<ProductShapes>(const Shape& y)>;
  AttentionPart(std::string text, std::vector<const char*> roles, Products products = {})
      : text_(std::move(text)), roles_(std::move(roles)), products_(std::move(products)) {}
  Var forward(Tape&, const Var& x) override { return x; }
  std::string describe() const override { return text_; }
  LayerType type() const override { return LayerType::Attention; }
  OpFormats* formats() override { return &formats_; }
  std::vector<const char*> roles() const override { return roles_; }
  bool unit_scale(const UnitPlace&) override { return true; }  // the attention's rule
  std::optional<ProductShapes> product_shapes(const Shape&, const Shape& y) const override {
    return products_ ? products_(y) : std::nullopt;
  }

 private:
  std::string text_;
  std::vector<const char*> roles_;
  Products products_;
  OpFormats formats_;
};

struct AttentionSettings {
  bool causal = false;
  bool rotary = false;  // q and k are turned by their positions (ops::rotary)
  double rotary_base = ops::kRotaryBase;
  Linear::Bias bias = Linear::Bias::Yes;
  int64_t context = 0;  // the longest sequence; 0: unknown
  /// Of the weights of qkv and out; without, Kaiming uniform.
  std::optional<Initialiser> qkv_init{}, out_init{};
};

/// y = out(attention(qkv(x))) over heads of width W / heads.  x: (N, T, W) → (N, T, W).  Children: the Linear layers qkv (W → 3·W:
/// q, k, v) and out (W → W); qk, softmax and pv hold the formats of ops::attention. Without rotary positions qkv goes there in one
/// piece.
/// Piece by piece (Incremental, causal only) the keys and values of all pieces are kept, N·T·W numbers of F32 each.
class MultiHeadAttention : public Module, public Incremental {
 public:
  /// `formats`: of qkv and out. Throws unless the heads divide the width, with rotary positions into even ones.
  MultiHeadAttention(int64_t width, int64_t heads, const AttentionSettings& settings = {},
                     OpFormats formats = {});

  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override;
  std::vector<Child> children() override;

  /// ops::AttentionOptions::keys are those of a longest sequence, whatever the length of the one that comes: otherwise the function
  /// would depend on it. A causal query sees fewer, and its probabilities are larger. Throws where the length is unknown.
  bool unit_scale(const UnitPlace&) override;

  void begin(int64_t batch, int64_t longest) override;
  void end() override;
  std::string obstacle() const override;

  /// Keys that sequence n has, (N) I32; the others are padding. Undefined, as at first: all.
  void set_lengths(const Tensor& lengths) { lengths_ = lengths; }

 private:
  ops::AttentionFormats part_formats() const;
  /// Column block i of qkv: q, k or v, turned where they are.
  Var part_of(Tape& tape, const Var& qkv, int64_t i, int64_t offset);

  int64_t width_, heads_;
  AttentionSettings settings_;
  Linear qkv_, out_;
  mutable AttentionPart qk_, softmax_, pv_;
  Tensor lengths_;
  double keys_for_scale_ = 0;  // 0: not scaled
  bool in_pieces_ = false;
  int64_t batch_ = 0, longest_ = 0;
  Tensor keys_, values_;  // of the pieces so far; undefined before the first
};

}  // namespace ulp::nn
