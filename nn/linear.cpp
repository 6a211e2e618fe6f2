#include "nn/linear.h"

#include <algorithm>

namespace ulp::nn {

Linear::Linear(int64_t in_features, int64_t out_features, OpFormats formats, Bias bias)
    : Linear(in_features, out_features, std::move(formats), bias,
             Initialiser::kaiming_uniform(std::max<int64_t>(1, in_features))) {}

Linear::Linear(int64_t in_features, int64_t out_features, OpFormats formats, Bias bias,
               const Initialiser& init)
    : in_(in_features), out_(out_features), formats_(std::move(formats)) {
  ULP_CHECK(in_ >= 1 && out_ >= 1, "Linear: sizes must be at least 1, got {} → {}", in_, out_);
  weight_ = &add_parameter("weight", {out_, in_}, init);
  if (bias == Bias::Yes) bias_ = &add_parameter("bias", {out_}, Initialiser::zeros());
}

Var Linear::forward(Tape& tape, const Var& x) {
  const Var bias = bias_ == nullptr ? Var{} : tape.watch(*bias_);
  const ProductFactors factors =
      unit_ && x.value.defined() ? factors_of(x.value.numel() / in_) : factors_;
  return ops::linear(tape, x, tape.watch(*weight_), bias, formats_, site(), factors);
}

void Linear::set_weight(const Initialiser& init, const ProductFactors& factors) {
  set_initialiser(*weight_, init);
  factors_ = factors;
}

ProductFactors Linear::factors_of(int64_t rows) const {
  return unit_factors(static_cast<double>(in_),
                      static_cast<double>(out_) / static_cast<double>(parts_), rows, *unit_);
}

bool Linear::unit_scale(const UnitPlace& place) {
  set_initialiser(*weight_, unit_weights());
  unit_ = place.edge;
  set_scaled(unit_text(factors_of(1)));
  return true;
}

std::string Linear::describe() const {
  return "Linear " + std::to_string(in_) + " → " + std::to_string(out_) +
         (bias_ == nullptr ? ", no bias" : "");
}

std::vector<const char*> Linear::roles() const {
  return {"input",      "weight",         "output",   "grad_output_dx", "weight_dx",
          "grad_input", "grad_output_dw", "input_dw", "grad_weight"};
}

}  // namespace ulp::nn
