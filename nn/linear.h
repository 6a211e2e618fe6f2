#pragma once

#include <optional>

#include "nn/product_layer.h"
#include "nn/unit_scaling.h"

namespace ulp::nn {

/// y = x wᵀ + b.  x: (…, In) → y: (…, Out).  Parameters: weight (Out, In), Kaiming uniform unless said otherwise; bias (Out), zeros.
/// Formats and their meaning: ops::linear.
class Linear : public Module, public ProductLayer {
 public:
  enum class Bias : uint8_t { Yes, No };
  /// Throws unless both sizes are at least 1.
  Linear(int64_t in_features, int64_t out_features, OpFormats formats = {}, Bias bias = Bias::Yes);
  Linear(int64_t in_features, int64_t out_features, OpFormats formats, Bias bias,
         const Initialiser& init);

  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override;
  LayerType type() const override { return LayerType::Linear; }
  OpFormats* formats() override { return &formats_; }
  std::vector<const char*> roles() const override;
  int64_t fan_in() const override { return in_; }
  void set_weight(const Initialiser& init, const ProductFactors& factors) override;
  bool unit_scale(const UnitPlace& place) override;
  /// The outputs are those of so many layers side by side, as q, k and v: unit scaling takes each as a layer of its own.
  void set_parts(int64_t parts) { parts_ = parts; }

 private:
  ProductFactors factors_of(int64_t rows) const;

  int64_t in_, out_, parts_ = 1;
  OpFormats formats_;
  ProductFactors factors_;
  std::optional<Edge> unit_;
  Parameter* weight_ = nullptr;
  Parameter* bias_ = nullptr;
};

}  // namespace ulp::nn
