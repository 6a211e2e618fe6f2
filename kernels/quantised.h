#pragma once

// Whole quantizers: rotations, squeezing, factors and what delayed scaling remembers, made of kernel rows.

#include "core/hadamard.h"
#include "kernels/kernels.h"

namespace ulp {

/// One use of a quantizer. Groups, rows and rotations run along `axis`. The seed of `key` also draws a rotation's signs.
struct QuantiseUse {
  Quantizer quantizer;
  int axis = 0;
  RandomKey key;
  Tensor scaling{};  // +scale=delayedN: see QuantiseArgs; fresh_scaling makes one
  bool frozen = false;
  Tensor mask{},
      stats{};  // see QuantiseArgs; of a rotated or squeezed tensor they are those of what is rounded
  bool gaps = false;         // see QuantiseArgs
  Math math = Math::Strict;  // of the product that reads an operand
};

/// {1, 0 …}: what delayed scaling remembers before its first call.
Tensor fresh_scaling(const Quantizer& quantizer, Device device);

/// What `in` becomes, factors and turning back included. dtype: one that holds it, F32 or storage_type.
Tensor quantised(Stream stream, const Tensor& in, const QuantiseUse& use, DType dtype = DType::F32);

/// An operand of a product: exact narrow values in operand_type (rotated, if the quantizer rotates) and factors.
struct Operand {
  Tensor values;
  Factors factors;
  int hadamard = 0;
  bool fits_tf32 = false;  // the values, also those kept in F32

  bool has_factors() const { return factors.values.defined(); }
};

/// in: (rows, columns), reduced along use.axis. `side` matters to rotations only. Without a quantizer it is `in` itself.
Operand quantised_operand(Stream stream, const Tensor& in, const QuantiseUse& use, Side side);

/// out (M, N) = a · bᵀ or a · b … of operands: args.a and args.b are views of their values (M, K) and (K, N), a_factors and
/// b_factors as in ScaledAddArgs. Where factors differ within an operand, partial sums over the k of equal factors are scaled
/// and added in ascending order.
void scaled_matmul(Stream stream, const MatmulArgs& args, const Factors& a_factors,
                   const Factors& b_factors);

/// The factors of the transposed matrix.
Factors transposed(Stream stream, const Factors& factors, const Shape& matrix);

}  // namespace ulp
