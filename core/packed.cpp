#include "core/packed.h"

#include "core/error.h"

namespace ulp {
namespace {

float step_of(const Quantizer& q, uint32_t code) {
  if (code == kNanScale) return float_of(kNanBits);
  return pow2(max_of(static_cast<int32_t>(code) - kStepBias - q.format.word_bits, -149));
}

}  // namespace

PackedScale packed_scale(const Quantizer& q) {
  if (q.format.kind == FormatKind::BlockFloat || q.format.kind == FormatKind::Hbfp)
    return PackedScale::Step;
  switch (q.scale.kind) {
    case Scale::Kind::None:
    case Scale::Kind::Squeeze: return PackedScale::None;
    case Scale::Kind::PowerOfTwo: return PackedScale::PowerOfTwo;
    case Scale::Kind::E4M3:
    case Scale::Kind::E4M3Tensor: return PackedScale::E4M3;
    case Scale::Kind::F32:
    case Scale::Kind::Delayed: return PackedScale::Factor;
  }
  return PackedScale::None;
}

float scale_of_code(const Quantizer& q, uint32_t code) {
  switch (packed_scale(q)) {
    case PackedScale::PowerOfTwo: return decode_e8m0(code);
    case PackedScale::Step: return step_of(q, code);
    case PackedScale::E4M3: return decode(float_format(4, 3), code);
    default: return 1.0f;
  }
}

ScaleRule make_scale_rule(const Quantizer& q, DType out) {
  return {packed_scale(q), make_block_rule(q, out), make_grid(q),
          make_code_rule(float_format(4, 3))};
}

void check_packable(const Quantizer& q, const char* name) {
  ULP_CHECK(code_bits(q.format) > 0,
            "{}: {} has no bounds and so no codes of a fixed size; leave -noclamp out", name,
            q.format);
  ULP_CHECK(q.transform.hadamard == 0,
            "{}: {} rotates the values back after rounding, so they are no numbers of {}; pack "
            "the rotated tensor without +rht{}",
            name, q, q.format, static_cast<int>(q.transform.hadamard));
  ULP_CHECK(q.scale.kind != Scale::Kind::Squeeze,
            "{}: {} turns the values back after rounding, so they are no numbers of {}", name, q,
            q.format);
}

int64_t packed_bytes(int64_t count, int bits) {
  return count / 8 * bits + (count % 8 * bits + 7) / 8;
}

int64_t PackedTensor::bytes() const {
  const int64_t of_factor = how.scale.kind == Scale::Kind::E4M3Tensor ? 4 : 0;
  return (codes.defined() ? codes.bytes() : 0) + (scales.defined() ? scales.bytes() : 0) +
         of_factor;
}

double PackedTensor::bits_per_element() const {
  const int64_t n = shape.numel();
  return n == 0 ? 0 : 8 * static_cast<double>(bytes()) / static_cast<double>(n);
}

std::string to_string(const PackedTensor& packed) {
  return format_message("{} {}, {:.4g} bits per element",
                        {to_string(packed.how), packed.shape, packed.bits_per_element()});
}

}  // namespace ulp
