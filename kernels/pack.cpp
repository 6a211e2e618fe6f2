#include "kernels/pack.h"

#include "core/convert.h"
#include "kernels/kernels.h"

namespace ulp {
namespace {

void check_tensor(const PackArgs& args, const char* which, const Tensor& t) {
  ULP_CHECK(t.defined() && t.shape() == args.values.shape() && is_float_up_to_32(t.dtype()) &&
                t.device() == args.values.device() && t.is_contiguous(),
            "{}: to pack it as {}, {} must be floats of up to 32 bits of one shape, contiguous and "
            "on one device; got {}",
            args.name, args.how, which, t);
}

[[noreturn]] void throw_no_code(const PackArgs& args, int64_t element) {
  const Tensor flat = args.values.reshape({args.values.numel()});
  const float x = flat.slice(0, element, element + 1).to_floats()[0];
  if (x != x)
    throw_error("{}: element {} is NaN, and {} has no code for it", args.name, element,
                args.how.format);
  throw_error("{}: element {} is {}, which {} does not make there; pack what quantise returned",
              args.name, element, x, args.how);
}

DType scales_type(const Quantizer& how) {
  return packed_scale(how) == PackedScale::Factor ? DType::F32 : DType::U8;
}

/// The scales and the factor of what is to be packed, from the largest magnitudes in its blocks.
void set_scales(Stream stream, PackedTensor& packed, const PackArgs& args) {
  const Quantizer& q = args.how;
  if (packed_scale(q) == PackedScale::None) return;
  const int64_t blocks = make_block_map(q, packed.shape, args.group_axis).blocks;
  packed.scales = Tensor::empty({blocks}, scales_type(q), stream.device);
  if (q.scale.kind == Scale::Kind::Delayed)
    return kernels::fill(stream, {packed.scales, static_cast<double>(args.factor)});
  const Tensor factor = Tensor::empty({1}, DType::F32, stream.device);
  kernels::pack_scales(stream,
                       {args.x, packed.scales, factor, q, args.group_axis, args.values.dtype()});
  packed.factor = factor.to_floats()[0];
}

void check_packed(const PackedTensor& p, int64_t blocks, int bits) {
  const PackedScale kind = packed_scale(p.how);
  const int64_t bytes = packed_bytes(p.shape.numel(), bits);
  ULP_CHECK(p.codes.defined() && p.codes.dtype() == DType::U8 && p.codes.numel() == bytes,
            "unpack: {} of shape {} has {} bytes of codes, got {}", p.how, p.shape, bytes, p.codes);
  const DType type = scales_type(p.how);
  ULP_CHECK(kind == PackedScale::None ||
                (p.scales.defined() && p.scales.dtype() == type && p.scales.numel() == blocks),
            "unpack: {} of shape {} has {} scales as {}, got {}", p.how, p.shape, blocks, type,
            p.scales);
  for (const Tensor& t : {p.codes, p.scales})
    ULP_CHECK(!t.defined() || (t.device() == p.codes.device() && t.is_contiguous()),
              "unpack: codes and scales must be contiguous and on one device, got {}", t);
}

}  // namespace

PackedTensor pack(const PackArgs& args) {
  check_packable(args.how, args.name.c_str());
  check_tensor(args, "the values", args.values);
  if (!args.how.is_elementwise() && args.how.scale.kind != Scale::Kind::Delayed)
    check_tensor(args, "x", args.x);
  const Shape& shape = args.values.shape();
  const Stream stream = stream_of(args.values.device());
  PackedTensor packed{{}, {}, shape, args.how, args.group_axis, 1.0f};
  packed.codes = Tensor::empty({packed_bytes(shape.numel(), code_bits(args.how.format))}, DType::U8,
                               stream.device);
  set_scales(stream, packed, args);
  const Tensor no_code = Tensor::empty({sizeof(int64_t)}, DType::U8, stream.device);
  kernels::pack_codes(
      stream, {args.values, packed.scales, packed.codes, no_code, args.how, args.group_axis});
  const int64_t bad = *static_cast<const int64_t*>(no_code.to(kCpu).raw());
  if (bad < shape.numel()) throw_no_code(args, bad);
  return packed;
}

Tensor unpack(const PackedTensor& packed) {
  check_packable(packed.how, "unpack");
  const int64_t blocks = make_block_map(packed.how, packed.shape, packed.group_axis).blocks;
  check_packed(packed, blocks, code_bits(packed.how.format));
  const Stream stream = stream_of(packed.codes.device());
  Tensor values = Tensor::empty(packed.shape, DType::F32, stream.device);
  kernels::unpack_codes(
      stream, {packed.codes, packed.scales, values, packed.how, packed.group_axis, packed.factor});
  return values;
}

}  // namespace ulp
