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
  Strict,  // fp32 fma in the order of core/sum.h
  Fp32,    // fp32 fma in the library's order
  Tf32,    // tensor cores
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
UnitChoice matrix_unit(const MatmulArgs& args);
/// The same for a product (m, k) · (k, n) of operands of these types.
UnitChoice matrix_unit(Math math, DType a, DType b, int64_t m, int64_t k, int64_t n,
                       bool fits_tf32);

/// What quantise writes for a product in that math: gemm_type, or an 8-bit type for Math::Fp8 where one fits.
DType operand_type(const Quantizer& quantizer, Math math);

/// True if tf32 holds every value exactly, factors apart: ≤ 11 significant bits, none below 2^−136.
bool fits_tf32(const Quantizer& quantizer);

/// The products that this process has computed on matrix units so far, one line for each shape and unit in order of first
/// use: "128 x 1024 x 784 (m n k): bf16 tensor cores, cuBLASLt 13.0.1 algorithm 66 …". Strict products are not listed.
std::vector<std::string> matrix_units_used();

}  // namespace ulp
