#pragma once

// Moving values about. kernel.h says what a row means.

#include "kernels/kernels.h"

namespace ulp {

/// out[begin + step · i] = in[i] for every index i of in; everything else of out becomes `value` where `rest` says so, or stays.
/// in: any strides. Shapes of one rank; begin ≥ 0 and step ≥ 1, one an axis. Any dtype, the same for both, or any float → F32.
/// Of types other than F32 and F64 the rest can become 0 only.
struct PlaceArgs {
  enum class Rest : uint8_t { Stays, Filled };
  Tensor in, out;
  Shape begin, step;
  Rest rest = Rest::Stays;
  double value = 0;
};

#define ULP_PLACE_KERNELS(X) X(place, PlaceArgs)

ULP_PLACE_KERNELS(ULP_DECLARE_KERNEL)

/// Throws unless the arguments are as the row says.
void check_place(Stream stream, const PlaceArgs& args);

/// An axis of `place`, after those that run into each other were merged: index i of `count` lies `from` · i in the input and
/// begin + step · i in an output of `extent`.
struct PlaceAxis {
  int64_t count, from, extent, begin, step;
};
/// The axes, outermost first; one at least.
struct PlaceAxes {
  int rank = 0;
  PlaceAxis axes[kMaxRank];
};
PlaceAxes place_axes(const PlaceArgs& args);

/// The bits of the rest: as wide as an element of out.
uint64_t place_rest(const PlaceArgs& args);

}  // namespace ulp
