#pragma once

// Which unit computes a product. Decided here alone: kernels follow it, tools print it.

#include <string>
#include <string_view>
#include <vector>

#include "kernels/kernels.h"

namespace ulp {

/// "strict", "fast", "tf32", "fp8". parse_math throws ulp::Error for any other text.
std::string_view to_string(Math math);
Math parse_math(std::string_view text);

enum class MatrixUnit : uint8_t {
  Strict,     // fp32 fma in the order of core/sum.h
  Simulated,  // an accumulator of core/accumulator.h, term by term
  Fp32,       // fp32 fma in the library's order
  Tf32,       // tensor cores
  F16,
  BF16,
  Fp8,
};
std::string_view to_string(MatrixUnit unit);

/// The unit of a product and the types that it reads. An operand of another type is converted first; that is exact.
struct UnitChoice {
  MatrixUnit unit;
  DType a, b;
};

/// Fast: the narrowest unit whose products are exact: BF16 for operands of ≤ 8 significant bits, F16 or Tf32 for ≤ 11, else
/// Fp32. Tf32: also Tf32 instead of Fp32. Fp8: also Fp8 for F8E4M3 and F8E5M2 operands with M, N and K multiples of 16; the
/// hardware has no product of two F8E5M2 operands, and asking for one throws.
/// NaNs: everywhere else a stored NaN is kNanBits, and so it is here where anything comes after the sums (another output format
/// or type, a bias of another type, any bias of an Fp8 product). A plain F32 out, with or without factors and an F32
/// bias, is written by cuBLASLt alone, and so is a BF16 out rounded to nearest bf16, without bias or with one of BF16. Its NaNs
/// have bits of their own: a pass that made them kNanBits would read and write out once more. The next kernel that computes with them stores kNanBits again.
UnitChoice matrix_unit(const MatmulArgs& args);
/// The same before there are tensors: what it depends on. a: (m, k), b: (k, n).
struct ProductKind {
  DType a = DType::F32, b = DType::F32;
  int64_t m = 1, n = 1, k = 1;
  Math math = Math::Strict;
  bool fits_tf32 = false;  // as in MatmulArgs
  bool simulated = false;  // an accumulator other than fp32
};
UnitChoice matrix_unit(const ProductKind& product);

/// What quantise writes for a product in that math: gemm_type, or an 8-bit type for Math::Fp8 where one fits.
DType operand_type(const Quantizer& quantizer, Math math);

/// True if a fast product can be written rounded so: bf16 to nearest, which is what the library does to its fp32 sums.
bool unit_rounds(const Quantizer& output);

/// True if tf32 holds every value exactly, factors apart: ≤ 11 significant bits, none below 2^−136.
bool fits_tf32(const Quantizer& quantizer);

/// The products that this process has computed on matrix units so far, one line for each shape and unit in order of first
/// use: "128 x 1024 x 784 (m n k): bf16 tensor cores, cuBLASLt 13.0.1 algorithm 66 …". Strict products are not listed.
std::vector<std::string> matrix_units_used();

}  // namespace ulp
