#include "kernels/cpu/blocks.h"

#include "core/convert.h"
#include "core/error.h"
#include "kernels/cpu/isa.h"

namespace ulp::cpu {
namespace {

template <class Code, class Decode>
void decode(const void* data, int64_t begin, int64_t n, float* out, Decode function) {
  const Code* codes = static_cast<const Code*>(data) + begin;
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) out[i] = function(codes[i]);
  });
}

template <class Code, class Encode>
void encode(void* data, int64_t begin, int64_t n, const float* in, Encode function) {
  Code* codes = static_cast<Code*>(data) + begin;
  with_isa([=]() ULP_INLINE {
    // Copies, which stores of bytes cannot change: the loop vectorises.
    Code* const to = codes;
    const float* const from = in;
    const int64_t count = n;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Code>(function(from[i]));
  });
}

}  // namespace

const float* read_block(const void* data, DType dtype, int64_t begin, int64_t n, float* buffer) {
  switch (dtype) {
    case DType::F32: return static_cast<const float*>(data) + begin;
    case DType::BF16:
      decode<uint16_t>(data, begin, n, buffer,
                       [](uint16_t c) ULP_INLINE { return bf16_to_float(c); });
      break;
    case DType::F16:
      decode<uint16_t>(data, begin, n, buffer,
                       [](uint16_t c) ULP_INLINE { return f16_to_float(c); });
      break;
    case DType::F8E4M3:
      decode<uint8_t>(data, begin, n, buffer,
                      [](uint8_t c) ULP_INLINE { return e4m3_to_float(c); });
      break;
    case DType::F8E5M2:
      decode<uint8_t>(data, begin, n, buffer,
                      [](uint8_t c) ULP_INLINE { return e5m2_to_float(c); });
      break;
    default:
      for (int64_t i = 0; i < n; ++i) buffer[i] = load_as_float(data, dtype, begin + i);
  }
  return buffer;
}

void write_block(void* data, DType dtype, int64_t begin, int64_t n, const float* values) {
  switch (dtype) {
    case DType::F32:
      encode<float>(data, begin, n, values, [](float v) ULP_INLINE { return canonical(v); });
      break;
    case DType::BF16:
      encode<uint16_t>(data, begin, n, values, [](float v) ULP_INLINE { return float_to_bf16(v); });
      break;
    case DType::F16:
      encode<uint16_t>(data, begin, n, values, [](float v) ULP_INLINE { return float_to_f16(v); });
      break;
    case DType::F8E4M3:
      encode<uint8_t>(data, begin, n, values, [](float v) ULP_INLINE { return float_to_e4m3(v); });
      break;
    case DType::F8E5M2:
      encode<uint8_t>(data, begin, n, values, [](float v) ULP_INLINE { return float_to_e5m2(v); });
      break;
    default: throw_error("internal error: fp32 values cannot be written as {}", dtype);
  }
}

void check_output_type(const char* kernel, const Tensor& out, const Quantizer& quantizer) {
  ULP_CHECK(is_float_up_to_32(out.dtype()) && fits(quantizer, out.dtype()),
            "{}: {} values do not fit the output's {}", kernel, quantizer, out.dtype());
}

}  // namespace ulp::cpu
