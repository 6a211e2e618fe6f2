#pragma once

#include "core/codes.h"

namespace ulp {

/// The code of a number that a quantizer of the rule's format made. NaN becomes 0 where the format has no code for it.
ULP_HD uint32_t number_code(const CodeRule& rule, float y) {
  const bool is_nan = (bits_of(y) & ~kSignBit) > kInfinityBits;
  uint32_t code = 0;
  switch (rule.kind) {
    case CodeRule::Kind::Float: code = float_code(rule, y); break;
    case CodeRule::Kind::Integer: code = select_bits(is_nan, 0u, integer_code(rule, y)); break;
    case CodeRule::Kind::Posit: code = posit_code(rule, y); break;
    case CodeRule::Kind::Table: code = select_bits(is_nan, 0u, table_code(rule, y)); break;
    case CodeRule::Kind::None: break;
  }
  return select_bits(code == kNoCode, 0u, code);
}

/// An element of a group with an F32 factor: its code, and the number that it stands for there.
ULP_HD uint32_t grouped_code(uint32_t code, float factor) {
  return select_bits(factor != factor, 0u, code);
}
ULP_HD float grouped_number(float number, float factor) { return canonical(number * factor); }

}  // namespace ulp
