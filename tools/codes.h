#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/format.h"

namespace ulp::tools {

// The bits of a format's numbers, for looking at: sign first, codes of floats ascending with magnitude, fixed point and
// posits in two's complement, tables by index.

/// Bits of one number; 0 where a number has no code of its own (unbounded fixed point, elements of bfp and hbfp).
int code_bits(const Format& format);

/// The code of a number of the format, of Inf or NaN; none if there is no such code.
std::optional<uint32_t> encode(const Format& format, float number);
/// The number of a code below 2^code_bits.
float decode(const Format& format, uint32_t code);

/// "0x1D", as many digits as the format's codes have.
std::string code_text(const Format& format, uint32_t code);

/// One part of a code: its name, its bits, what it stands for. ASCII.
struct CodeField {
  std::string name, bits, meaning;
};
std::vector<CodeField> code_fields(const Format& format, uint32_t code);

}  // namespace ulp::tools
