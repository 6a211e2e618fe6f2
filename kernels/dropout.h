#pragma once

// Dropout. kernel.h says what a row means.

#include "core/macros.h"
#include "core/quantizer.h"
#include "core/random.h"
#include "kernels/kernel.h"

namespace ulp {

/// out[i] = in[i]·scale where word i of `mask` is at least `threshold`, else +0 (NaN where in[i] is NaN), then `output`
/// (element-wise) rounds. in: any float. The backward pass is the same kernel with the same mask.
struct DropoutArgs {
  Tensor in, out;
  uint32_t threshold = 0;  // p · 2^32
  double scale = 1;        // 1 / (1 − p)
  RandomKey mask;
  Quantizer output{};
  RandomKey key{};
};

#define ULP_DROPOUT_KERNELS(X) X(dropout, DropoutArgs)

ULP_DROPOUT_KERNELS(ULP_DECLARE_KERNEL)

/// Throws unless the arguments are as the row says.
void check_dropout(Stream stream, const DropoutArgs& args);

namespace drop {

/// One element with its word.
template <class T>
ULP_HD T dropped(T x, uint32_t word, uint32_t threshold, T scale) {
  const T kept = x * scale;
  return word >= threshold ? kept : x == x ? T(0) : x;
}

}  // namespace drop

}  // namespace ulp
