#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/format.h"

namespace ulp::tools {

// Codes (core/codes.h) as text, for looking at.

/// "0x1D", as many digits as the format's codes have.
std::string code_text(const Format& format, uint32_t code);

/// One part of a code: its name, its bits, what it stands for. ASCII.
struct CodeField {
  std::string name, bits, meaning;
};
std::vector<CodeField> code_fields(const Format& format, uint32_t code);

}  // namespace ulp::tools
