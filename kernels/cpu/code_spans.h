#pragma once

// Rounding of consecutive elements straight to the bytes of their codes, and back, where core/fast_codes.h has a short way.

#include <cstdint>

#include "core/fast_codes.h"
#include "core/random.h"

namespace ulp::cpu {

/// Codes of so many bits are written and read here.
inline bool has_code_spans(const FastCodes& codes) {
  return codes.possible && (codes.bits == 4 || codes.bits == 8 || codes.bits == 16);
}

/// What the elements of each run are multiplied by: element i with each[i / run]. run 0: with nothing.
struct RunFactors {
  int64_t run = 0;
  const float* each = nullptr;
};

/// The codes of values[i] · factor, rounded with word `index + i` of the source where the rounding draws, from a byte boundary
/// on. n ≤ kBlock; the last byte is filled up with zeros.
void write_rounded(const float* values, int64_t n, RunFactors factors, const FastCodes& codes,
                   const RandomSource& random, int64_t index, uint8_t* out);
/// out[i] = the number of code i · factor, NaNs canonical.
void read_numbers(const uint8_t* in, int64_t n, RunFactors factors, const FastCodes& codes,
                  float* out);
/// values[i] *= factor, NaNs canonical.
void multiply_runs(float* values, int64_t n, RunFactors factors);

}  // namespace ulp::cpu
