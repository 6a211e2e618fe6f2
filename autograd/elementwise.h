#pragma once

// What ops of element-wise kernels share.

#include "autograd/quantised.h"

namespace ulp::ops {

using ElementwiseKernel = Kernel<ElementwiseArgs>;

/// The random stream of the second input's gradient: both gradients have the format grad_input and draws of their own.
inline constexpr const char* kSecond = "grad_input2";

/// The scalar arguments of a kernel.
struct Scalars {
  double alpha = 0, beta = 0;
};

/// Runs an element-wise kernel over contiguous inputs and rounds its result by `rounding`.
Tensor apply(const RoleUse& use, const ElementwiseKernel& kernel,
             std::initializer_list<Tensor> inputs, Scalars scalars, const Quantizer& rounding,
             const char* role);

/// Throws unless both hold tensors of one shape.
void check_same(const char* op, const Var& a, const Var& b);

/// What an activation keeps for its backward pass. Result: y where x would take as much memory and nothing rounds y, for a
/// backward(y, g) that equals backward(x, g). The op after it mostly keeps y too, and then nobody keeps x.
enum class Keeps : uint8_t { Input, Result };

/// y = f(x) with dx = backward(x, g). The kernels live as long as the program.
Var activation(Tape& tape, const char* op, const ElementwiseKernel& forward,
               const ElementwiseKernel& backward, Scalars scalars, const Var& x, const OpFormats& f,
               RandomSite site, Keeps keeps = Keeps::Input);

}  // namespace ulp::ops
