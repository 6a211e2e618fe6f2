#pragma once

#include <string>

#include "core/packed.h"

namespace ulp {

/// A tensor to be packed. All on one device, contiguous; x and values any float of up to 32 bits, of one shape.
///  values      what `how` made of x; with the factors kept apart where there are any
///  x           what was quantised: its blocks' largest magnitudes decide their scales. Only for formats with blocks
///  factor      +scale=delayedN only: the factor that the quantiser used
///  group_axis  as in QuantiseArgs
///  name        for messages: "weights"
struct PackArgs {
  Tensor values, x;
  Quantizer how;
  int group_axis = 0;
  float factor = 1;
  std::string name = "tensor";
};

/// Throws ulp::Error, naming the tensor and the element, for a value that is no number of the format under its block's
/// scale: then values is not what `how` makes of x, or it is NaN and the format has no code for that.
PackedTensor pack(const PackArgs& args);

/// The values, F32 on the codes' device, times the factors: pack(quantised) comes back to the bit.
/// Throws ulp::Error if codes and scales do not go with shape and format.
Tensor unpack(const PackedTensor& packed);

}  // namespace ulp
