#pragma once

// What ops that are matrix products share.

#include "autograd/product_factors.h"
#include "autograd/quantised.h"

namespace ulp::ops {

/// A saved operand: values as the tape keeps them, and the rest.
struct SavedOperand {
  Saved values;
  Factors factors;
  int hadamard = 0;
  bool fits_tf32 = false;

  SavedOperand() = default;
  SavedOperand(Tape& tape, const char* op, const Operand& o)
      : values(tape.save(op, o.values)),
        factors(o.factors),
        hadamard(o.hadamard),
        fits_tf32(o.fits_tf32) {}
  Operand get() const { return {values.get(), factors, hadamard, fits_tf32}; }
};

/// The transposed matrix.
Operand turned(Stream stream, const Operand& o);

/// True if tf32 holds the values of both.
inline bool fit_tf32(const Operand& a, const Operand& b) {
  return (a.fits_tf32 || a.values.dtype() != DType::F32) &&
         (b.fits_tf32 || b.values.dtype() != DType::F32);
}

/// What a product makes beside its operands.
struct Outcome {
  /// F32, or what the run keeps such a result in.
  enum class Type : uint8_t { F32, Kept };

  const Quantizer& rounding;
  const char* role;
  const Accumulator& accumulator;
  const char* sums_role;
  double factor;  // of the sums
  Type type;

  Outcome(const OpFormats& formats, const ProductRole& product, double sums_factor,
          Type kept = Type::F32)
      : rounding(formats.*product.rounding),
        role(product.result),
        accumulator(formats.*product.accumulator),
        sums_role(product.sums),
        factor(sums_factor),
        type(kept) {}
};

/// factor · (a · bᵀ) (+ bias), a: (M, K), b: (N, K), its sums kept by the accumulator: → (M, N), rounded if the quantizer is
/// element-wise; else F32.
Tensor unfinished_product(const RoleUse& use, const char* op, const Operand& a, const Operand& b,
                          const Tensor& bias, const Outcome& outcome);

/// The same, rounded; groups run along the rows' axis 1.
Tensor product(const RoleUse& use, const char* op, const Operand& a, const Operand& b,
               const Tensor& bias, const Outcome& outcome);

}  // namespace ulp::ops
