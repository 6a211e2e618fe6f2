#pragma once

#include <cstdint>
#include <string>

#include "nn/data/text.h"

namespace ulp::nn {

/// "1 character", "25 bytes".
std::string counted(int64_t tokens, TokenKind kind);

}  // namespace ulp::nn
