#pragma once

#include <cstdint>
#include <string>

#include "core/block_map.h"
#include "core/codes.h"
#include "core/grid.h"
#include "core/quantizer.h"
#include "core/tensor.h"

namespace ulp {

/// A quantised tensor as codes of code_bits(how.format) bits. kernels/pack.h makes and reads it.
///  codes   U8 (bytes): elements in row-major order, rows not padded. Code i has the bits [i·b, (i+1)·b) of the stream, which
///          fills each byte from its least significant bit: of two FP4 codes the first is the low nibble, four FP6 codes
///          take three bytes, wider codes are little-endian. The last byte is filled up with zeros.
///  scales  one a block, in row-major order of the blocks; undefined for element-wise formats.
///          U8   power of two: OCP's e8m0 code X of 2^(X−127). bfp, hbfp: S, the step being 2^(S−125−word_bits), so that
///               values stay below 2^(S−126); for bfp S is the exponent field of the block's largest magnitude, at least 1.
///               0xFF: the block is NaN, its elements' codes are 0
///          U8   -scalee4m3, nvfp4: the e4m3 code of the block's scale d; 0x7F: NaN, as above
///          F32  -scalef32, +scale=: the factor
///  factor  what every value is multiplied by in the end (nvfp4, +q34)
/// An element of a block is number(code) · scale, exactly; the multiplication by a factor rounds to fp32.
struct PackedTensor {
  Tensor codes, scales;
  Shape shape;
  Quantizer how;
  int group_axis = 0;
  float factor = 1;

  /// Codes, scales and nvfp4's factor.
  int64_t bytes() const;
  /// bytes() over the elements; 0 for an empty tensor.
  double bits_per_element() const;
};

/// "mxfp4 (4, 64), 4.25 bits per element".
std::string to_string(const PackedTensor& packed);

/// Bytes that `count` codes of `bits` bits take.
int64_t packed_bytes(int64_t count, int bits);

/// What stands in the scales of a packed tensor; Factor: fp32, the others: U8.
enum class PackedScale : uint8_t { None, PowerOfTwo, Step, E4M3, Factor };
PackedScale packed_scale(const Quantizer& quantizer);

/// A U8 scale's number, which elements are multiplied by: a power of two or an e4m3 number; NaN.
float scale_of_code(const Quantizer& quantizer, uint32_t code);

/// bfp, hbfp: scale code − this − word_bits is the exponent of the step. Steps go from 2^−149 to 2^(129−W).
inline constexpr int32_t kStepBias = 125;
/// The U8 scale of a block that is NaN, E4M3 apart.
inline constexpr uint32_t kNanScale = 0xFF;

/// How a block's scale follows from its largest magnitude. `out`: the type that the values are kept in (make_block_rule).
struct ScaleRule {
  PackedScale kind;
  BlockRule block;
  Grid grid;      // Step: make_grid
  CodeRule e4m3;  // E4M3
};
ScaleRule make_scale_rule(const Quantizer& quantizer, DType out);

/// PackedTensor::factor.
ULP_HD float tensor_factor(const ScaleRule& rule, float tensor) {
  return rule.kind == PackedScale::Factor ? 1.0f : block_scale(rule.block, 0, tensor).factor;
}

/// The U8 scale of a block with the largest magnitude amax; `tensor` is what tensor_scale says.
ULP_HD uint32_t scale_code(const ScaleRule& rule, uint32_t amax_bits, float tensor) {
  if (rule.kind == PackedScale::E4M3) {
    const BlockScale scale = block_scale(rule.block, amax_bits, tensor);
    const bool is_nan = scale.before != scale.before;
    return encode(rule.e4m3, is_nan ? float_of(kNanBits) : scale.after);
  }
  if (amax_bits >= kInfinityBits) return kNanScale;
  if (rule.kind == PackedScale::PowerOfTwo)
    return static_cast<uint32_t>(scale_exponent(rule.block, amax_bits));
  Grid grid = rule.grid;
  set_block(grid, rule.block, amax_bits);
  return static_cast<uint32_t>(grid.min_quantum + kStepBias + rule.block.word_bits);
}

/// Throws ulp::Error, naming `name`, if values of the quantizer have no packed form.
void check_packable(const Quantizer& quantizer, const char* name);

/// The code of a value in a block with that scale (1: no block); kNoCode if it has none. In a NaN block: 0 for NaN.
/// An infinite value of a scaled block is the element that stands for 2^128, where fp32 ends. A block of scale zero (e4m3)
/// holds ±0 only, and any negative element makes −0 there.
ULP_HD uint32_t encode_scaled(const CodeRule& rule, float value, float scale) {
  const uint32_t a = bits_of(value) & ~kSignBit, sign = bits_of(value) & kSignBit;
  const bool infinite = a == kInfinityBits;
  const float finite = float_of(select_bits(infinite, bits_of(0x1p127f), a));
  const float magnitude = finite / scale * (infinite ? 2.0f : 1.0f);
  const uint32_t in_zeros = select_bits(sign != 0, bits_of(pow2(rule.quantum)), 0u);
  const float element = float_of(select_bits(scale == 0.0f, in_zeros, bits_of(magnitude)) | sign);
  const bool is_exact = bits_of(canonical(element * scale)) == bits_of(canonical(value));
  const uint32_t code = select_bits(is_exact, encode(rule, element), kNoCode);
  return select_bits(scale != scale, select_bits(a > kInfinityBits, 0u, kNoCode), code);
}

/// The value of a code: its number times scale, times factor.
ULP_HD float decode_scaled(const CodeRule& rule, uint32_t code, float scale, float factor) {
  return canonical(decode(rule, code) * scale * factor);
}

}  // namespace ulp
