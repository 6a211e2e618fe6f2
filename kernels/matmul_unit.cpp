#include "kernels/matmul_unit.h"

#include <algorithm>

namespace ulp {

#if defined(ULP_HAS_CUDA)
namespace cuda {
std::vector<std::string> matrix_units_used();
}
#endif

namespace {

constexpr std::string_view kMathNames[] = {"strict", "fast", "tf32", "fp8"};

constexpr bool is_f8(DType dtype) { return dtype == DType::F8E4M3 || dtype == DType::F8E5M2; }

/// True if `wide` (BF16 or F16) holds every number of `narrow`.
constexpr bool holds(DType wide, DType narrow) { return narrow == wide || is_f8(narrow); }

}  // namespace

std::string_view to_string(Math math) { return kMathNames[static_cast<size_t>(math)]; }

Math parse_math(std::string_view text) {
  const auto found = std::find(std::begin(kMathNames), std::end(kMathNames), text);
  ULP_CHECK(found != std::end(kMathNames), "math: wanted strict, fast, tf32 or fp8, got {}",
            std::string(text));
  return static_cast<Math>(found - std::begin(kMathNames));
}

std::string_view to_string(MatrixUnit unit) {
  switch (unit) {
    case MatrixUnit::Strict: return "fp32 in strict order";
    case MatrixUnit::Simulated: return "simulated sums";
    case MatrixUnit::Fp32: return "fp32";
    case MatrixUnit::Tf32: return "tf32 tensor cores";
    case MatrixUnit::F16: return "fp16 tensor cores";
    case MatrixUnit::BF16: return "bf16 tensor cores";
    case MatrixUnit::Fp8: return "fp8 tensor cores";
  }
  return "?";
}

UnitChoice matrix_unit(const MatmulArgs& args) {
  return matrix_unit(ProductKind{args.a.dtype(), args.b.dtype(), args.a.size(0), args.b.size(1),
                                 args.a.size(1), args.math, args.fits_tf32,
                                 args.sums.how.is_simulated()});
}

UnitChoice matrix_unit(const ProductKind& product) {
  const DType a = product.a, b = product.b;
  if (product.simulated) return {MatrixUnit::Simulated, a, b};
  if (product.math == Math::Strict) return {MatrixUnit::Strict, a, b};
  if (product.math == Math::Fp8 && is_f8(a) && is_f8(b)) {
    ULP_CHECK(a == DType::F8E4M3 || b == DType::F8E4M3,
              "matmul: fp8 tensor cores have no product of two e5m2 operands (e5m2 x e5m2); make "
              "one of them e4m3, or use fast math, which is exact for both");
    if (product.m % 16 == 0 && product.k % 16 == 0 && product.n % 16 == 0)
      return {MatrixUnit::Fp8, a, b};
  }
  const auto suits = [&](DType type) { return holds(type, a) && holds(type, b); };
  if (suits(DType::BF16)) return {MatrixUnit::BF16, DType::BF16, DType::BF16};
  if (suits(DType::F16)) return {MatrixUnit::F16, DType::F16, DType::F16};
  const bool exact = product.fits_tf32 || (a != DType::F32 && b != DType::F32);
  return {exact || product.math == Math::Tf32 ? MatrixUnit::Tf32 : MatrixUnit::Fp32, DType::F32,
          DType::F32};
}

DType operand_type(const Quantizer& quantizer, Math math) {
  if (math == Math::Fp8)
    for (const DType dtype : {DType::F8E4M3, DType::F8E5M2})
      if (fits(quantizer, dtype)) return dtype;
  return gemm_type(quantizer);
}

bool unit_rounds(const Quantizer& output) {
  static const Quantizer bf16("bf16");
  return output == bf16;
}

bool fits_tf32(const Quantizer& q) {
  if (q.scale.kind == Scale::Kind::Squeeze) return false;
  if (q.scale.kind == Scale::Kind::PowerOfTwo) return false;  // reaches below tf32's range
  const FormatLimits limits = limits_of(q.format);
  const bool scaled = q.scale.kind == Scale::Kind::E4M3 || q.scale.kind == Scale::Kind::E4M3Tensor;
  constexpr int kScaleBits = 4, kLeastScale = -9;  // of e4m3
  const int bits = limits.significant_bits + (scaled ? kScaleBits : 0);
  const int quantum = limits.quantum + (scaled ? kLeastScale : 0);
  return bits <= 11 && quantum >= -136;
}

std::vector<std::string> matrix_units_used() {
#if defined(ULP_HAS_CUDA)
  return cuda::matrix_units_used();
#else
  return {};
#endif
}

}  // namespace ulp
