#pragma once

// Pooling kernels. kernel.h says what a row means.

#include "core/quantizer.h"
#include "core/random.h"
#include "kernels/kernel.h"

namespace ulp {

/// Windows over images (N, H, W, C): output pixel (i, j) sees the rows i·stride − padding … + kernel − 1, likewise the columns,
/// as far as they are in the image.
struct PoolWindow {
  int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, padding_h = 0, padding_w = 0;

  int64_t size() const { return kernel_h * kernel_w; }
};

/// Whether the padding counts in an average's divisor (in a window that reaches beyond it, what is beyond never does).
enum class PoolDivisor : uint8_t { Window, Inside };

/// out (N, OH, OW, C) = the largest value of each window; of equal ones the first, and the first NaN before all numbers. Its place
/// in the window, row by row, goes to index (optional; U8 for windows of at most 256, else I32). in: any float; `output`
/// (element-wise) rounds.
struct MaxPoolArgs {
  Tensor in, out, index;
  PoolWindow window;
  Quantizer output{};
  RandomKey key{};
};

/// out (N, H, W, C) = the sum of grad (N, OH, OW, C) over the windows whose largest value it was, in ascending order from +0.
struct MaxPoolBackwardArgs {
  Tensor grad, index, out;
  PoolWindow window;
  Quantizer output{};
  RandomKey key{};
};

/// out (N, OH, OW, C) = Σ / divisor over each window: one fp32 accumulator from +0, ascending rows and columns.
struct AveragePoolArgs {
  Tensor in, out;
  PoolWindow window;
  PoolDivisor divisor = PoolDivisor::Window;
  Quantizer output{};
  RandomKey key{};
};

/// out (N, H, W, C) = Σ grad / divisor over the windows that an element is in, in ascending order from +0.
struct AveragePoolBackwardArgs {
  Tensor grad, out;
  PoolWindow window;
  PoolDivisor divisor = PoolDivisor::Window;
  Quantizer output{};
  RandomKey key{};
};

/// out (N, S, C) = grad (N, C) · factor: the backward pass of a mean over S.
struct SpreadArgs {
  Tensor grad, out;
  double factor = 1;
  Quantizer output{};
  RandomKey key{};
};

// clang-format off
#define ULP_POOL_KERNELS(X)                             \
  X(max_pool, MaxPoolArgs)                              \
  X(max_pool_backward, MaxPoolBackwardArgs)             \
  X(average_pool, AveragePoolArgs)                      \
  X(average_pool_backward, AveragePoolBackwardArgs)     \
  X(spread, SpreadArgs)
// clang-format on

ULP_POOL_KERNELS(ULP_DECLARE_KERNEL)

/// Windows of more elements have indices of type I32.
inline constexpr int64_t kMostByteIndices = 256;

/// Throw unless the arguments of a row are as it says.
void check_max_pool(Stream stream, const MaxPoolArgs& args);
void check_max_pool_backward(Stream stream, const MaxPoolBackwardArgs& args);
void check_average_pool(Stream stream, const AveragePoolArgs& args);
void check_average_pool_backward(Stream stream, const AveragePoolBackwardArgs& args);
void check_spread(Stream stream, const SpreadArgs& args);

}  // namespace ulp
