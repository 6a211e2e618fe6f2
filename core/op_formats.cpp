#include "core/op_formats.h"

namespace ulp {

OpFormats OpFormats::make(std::string_view forward, std::string_view backward) {
  OpFormats f;
  f.input = f.weight = f.weight_dx = f.input_dw = Quantizer::parse(forward);
  f.grad_output_dx = f.grad_output_dw = Quantizer::parse(backward);
  return f;
}

}  // namespace ulp
