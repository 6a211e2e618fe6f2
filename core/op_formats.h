#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/accumulator.h"
#include "core/quantizer.h"

namespace ulp {

/// The number formats of one op, forward and backward. Immutable once an op has it; the default quantises nothing.
/// Blocks that follow the reduction run along in_features forward, out_features for dx, the batch for dw.
struct OpFormats {
  Quantizer input, weight, output;                  // y  = x wᵀ
  Quantizer grad_output_dx, weight_dx, grad_input;  // dx = g w
  Quantizer grad_output_dw, input_dw, grad_weight;  // dw = gᵀ x
  Quantizer interior;                               // named intermediates of norms and softmax
  bool clamp_mask =
      false;  // of linear and conv: dx is 0 where the rounded x lay beyond the bounds of `input`
  Accumulator forward_acc, dx_acc, dw_acc;

  bool operator==(const OpFormats&) const = default;
  bool is_identity() const { return *this == OpFormats{}; }

  /// The usual pair: `forward` for input, weight, weight_dx and input_dw; `backward` for both uses of the gradient.
  static OpFormats make(std::string_view forward, std::string_view backward);
};

/// One quantised role of an op. Its name is the command-line flag (with - for _) and the end of its random stream.
struct Role {
  const char* name;
  Quantizer OpFormats::*quantizer;
  const char* meaning;
};
inline constexpr std::array<Role, 10> kRoles = {{
    {"input", &OpFormats::input, "x in y = x wT"},
    {"weight", &OpFormats::weight, "w in y = x wT"},
    {"output", &OpFormats::output, "y, the layer's result"},
    {"grad_output_dx", &OpFormats::grad_output_dx, "g in dx = g w"},
    {"weight_dx", &OpFormats::weight_dx, "w in dx = g w"},
    {"grad_input", &OpFormats::grad_input, "dx, the gradient passed on"},
    {"grad_output_dw", &OpFormats::grad_output_dw, "g in dw = gT x"},
    {"input_dw", &OpFormats::input_dw, "x in dw = gT x"},
    {"grad_weight", &OpFormats::grad_weight, "dw, the weight's gradient"},
    {"interior", &OpFormats::interior, "intermediates of softmax and norms"},
}};

/// One of the three products of an op: its result's role and how its sums are kept. `sums` is a key of policies and ends the
/// random stream of their draws.
struct ProductRole {
  const char* result;
  Quantizer OpFormats::*rounding;
  const char* sums;
  Accumulator OpFormats::*accumulator;
};
inline constexpr ProductRole kForwardProduct{"output", &OpFormats::output, "forward_acc",
                                             &OpFormats::forward_acc},
    kDxProduct{"grad_input", &OpFormats::grad_input, "dx_acc", &OpFormats::dx_acc},
    kDwProduct{"grad_weight", &OpFormats::grad_weight, "dw_acc", &OpFormats::dw_acc};
inline constexpr std::array<ProductRole, 3> kProductRoles = {kForwardProduct, kDxProduct,
                                                             kDwProduct};

}  // namespace ulp
