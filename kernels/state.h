#pragma once

// States of optimizers in their formats. Groups of a state run along its elements in row-major order, whatever its shape;
// rows, axes and tiles are those of its shape.

#include "kernels/kernels.h"

namespace ulp {

/// True if a state of this format is kept as codes (core/packed.h): its numbers have fewer bits than any native type that
/// holds them, or blocks. Else it is kept in storage_type.
bool is_packed(const Quantizer& quantizer);

/// True if optimizer_step rounds and stores a state of this format itself: element-wise ones, and groups of 4 to 256 elements,
/// a power of two, with F32 scales.
bool in_kernel(const Quantizer& quantizer);

/// A state of a shape, its elements the format's numbers nearest to zero.
StoredState make_state(Stream stream, const Quantizer& quantizer, const Shape& shape);

/// Stores what the quantizer makes of `values` (F32), unless `step` is given and its found_inf is set; returns those
/// numbers. scaling: as in QuantiseArgs.
Tensor write_state(Stream stream, const Tensor& values, const Quantizer& quantizer,
                   const RandomKey& key, const StoredState& state, const StepState* step = nullptr,
                   const Tensor& scaling = {});

/// What write_state would return, as F32; stores nothing, and counts in `stats` (QuantiseArgs) what rounding does. Delayed
/// scaling takes what `scaling` remembers and leaves it.
Tensor count_state(Stream stream, const Tensor& values, const Quantizer& quantizer,
                   const RandomKey& key, const Tensor& scaling, const Tensor& stats);

/// The numbers, F32, in a shape.
Tensor read_state(Stream stream, const StoredState& state, const Quantizer& quantizer,
                  const Shape& shape);

/// Bytes of all its tensors.
int64_t state_bytes(const StoredState& state);

}  // namespace ulp
