#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace ulp::cpu {

/// to[i·to_step + j] = from[j·from_step + i] for i, j < 8.
ULP_HD void transpose8(float* to, int64_t to_step, const float* from, int64_t from_step) {
  using Eight = float __attribute__((vector_size(32)));
  Eight x[8], y[8];
  for (int j = 0; j < 8; ++j) std::memcpy(&x[j], from + j * from_step, sizeof(Eight));
  for (int j = 0; j < 8; j += 2) {
    y[j] = __builtin_shufflevector(x[j], x[j + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    y[j + 1] = __builtin_shufflevector(x[j], x[j + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int j = 0; j < 8; j += 4)
    for (int h = 0; h < 2; ++h) {
      x[j + 2 * h] = __builtin_shufflevector(y[j + h], y[j + 2 + h], 0, 1, 8, 9, 4, 5, 12, 13);
      x[j + 2 * h + 1] =
          __builtin_shufflevector(y[j + h], y[j + 2 + h], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int j = 0; j < 4; ++j) {
    y[j] = __builtin_shufflevector(x[j], x[j + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    y[j + 4] = __builtin_shufflevector(x[j], x[j + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int i = 0; i < 8; ++i) std::memcpy(to + i * to_step, &y[i], sizeof(Eight));
}

}  // namespace ulp::cpu
