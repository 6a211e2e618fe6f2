#pragma once

// The roundings of an interior: a format for the named intermediates of a kernel, element-wise, each with a draw of its own.

#include <array>
#include <span>

#include "core/quantise_stats.h"
#include "core/random.h"
#include "core/tensor.h"
#include "kernels/kernel.h"

namespace ulp {

/// Where a kernel leaves what its interior's roundings meet, by number of the draw: contiguous F32, element i what word i rounds,
/// canonical; kGapBits where nothing is rounded. However often a kernel makes an intermediate, it lies here once. All undefined,
/// as at first: nowhere, and the kernel does nothing for it. For statistics: quantising these tensors with the same draws is what
/// the kernel does.
struct InteriorTrace {
  std::array<Tensor, 4> at{};
};

/// Throws unless each tensor that is defined has its shape.
void check_interior_trace(const char* kernel, Stream stream, const InteriorTrace& trace,
                          std::span<const Shape> shapes);
/// The same of a softmax of rows (N, C): of the difference and its exp, of the sum and, with four draws, its logarithm.
void check_softmax_trace(const char* kernel, Stream stream, const InteriorTrace& trace,
                         const Tensor& rows, size_t draws);

/// The same format with a later draw.
inline RandomKey later_draw(RandomKey key, uint32_t by) {
  key.ordinal += by;
  return key;
}

}  // namespace ulp
