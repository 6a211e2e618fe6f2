#pragma once

// The role `interior` of an op: the draws of its kernel, and what they met where roles are counted.

#include <initializer_list>

#include "autograd/quantised.h"
#include "kernels/interior.h"

namespace ulp::ops {

/// The key of an interior format that draws so often; none is taken for the identity.
RandomKey interior_key(const RoleUse& use, const Quantizer& interior, uint32_t draws);

/// Where the kernel of a forward pass leaves what each draw meets, a tensor of each shape; nothing unless roles are counted and
/// there is a format. A draw without elements has none.
InteriorTrace interior_trace(const RoleUse& use, const Quantizer& interior,
                             std::initializer_list<Shape> shapes);

/// Counts what the kernel left: one use of the role for each draw, with the words that the kernel took.
void count_interior(const RoleUse& use, const Quantizer& interior, const RandomKey& key,
                    const InteriorTrace& trace);

}  // namespace ulp::ops
