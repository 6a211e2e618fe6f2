#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace ulp {

/// How bytes are stored. F64 exists for gradient checks only.
enum class DType : uint8_t { F32, F64, BF16, F16, F8E4M3, F8E5M2, I32, I8, U8 };

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::F64: return 8;
    case DType::F32:
    case DType::I32: return 4;
    case DType::BF16:
    case DType::F16: return 2;
    case DType::F8E4M3:
    case DType::F8E5M2:
    case DType::I8:
    case DType::U8: return 1;
  }
  return 0;
}

/// Name in messages and in safetensors headers.
constexpr std::string_view to_string(DType dtype) {
  switch (dtype) {
    case DType::F32: return "F32";
    case DType::F64: return "F64";
    case DType::BF16: return "BF16";
    case DType::F16: return "F16";
    case DType::F8E4M3: return "F8_E4M3";
    case DType::F8E5M2: return "F8_E5M2";
    case DType::I32: return "I32";
    case DType::I8: return "I8";
    case DType::U8: return "U8";
  }
  return "?";
}

/// True for the types whose elements are binary floating-point numbers that fp32 holds exactly.
constexpr bool is_float_up_to_32(DType dtype) {
  return dtype == DType::F32 || dtype == DType::BF16 || dtype == DType::F16 ||
         dtype == DType::F8E4M3 || dtype == DType::F8E5M2;
}

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::F32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::F64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::I32;
};
template <>
struct DTypeOf<int8_t> {
  static constexpr DType value = DType::I8;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::U8;
};

}  // namespace ulp
