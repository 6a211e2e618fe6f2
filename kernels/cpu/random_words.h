#pragma once

#include "core/random.h"

namespace ulp::cpu {

inline constexpr int64_t kWordSlack = 128;

/// The words of elements index … index + n − 1; returns the first one's place. `buffer` has room for n + kWordSlack.
const uint32_t* random_words(const RandomSource& random, int64_t index, int64_t n,
                             uint32_t* buffer);

}  // namespace ulp::cpu
