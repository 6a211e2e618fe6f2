// Packed codes and rotations.

#include <cstring>
#include <limits>
#include <optional>
#include <string>

#include "kernels/pack.h"
#include "kernels/quantised.h"
#include "tools/cases/core_cases.h"

namespace ulp::cases {

namespace {

/// Packed, on both devices: scales, codes and what they stand for. spoil: put in the middle, where it need have no code.
void pack_once(Comparison& compare, const Quantizer& q, const Tensor& x, int group_axis,
               DType store, bool askew, std::optional<float> spoil = {}) {
  const std::string kind = to_string(q) + (x.numel() > 10000 ? " long" : "");
  if (!compare.takes(x.numel(), x.numel() < 1000 || askew ? "" : kind)) return;
  const auto same = [&](const Pair& pair, const char* what) {
    compare.same(pair, what, " of packed ", to_string(q), " of ", to_string(x), " kept as ",
                 text(store), ", group axis ", group_axis, askew ? ", askew" : "");
  };
  const auto put = [&](const Tensor& t) {  // askew: from element 1 on
    if (!askew) return compare.both(t);
    const int64_t n = t.numel();
    Tensor wide = Tensor::empty({n + 1}, t.dtype(), kCpu);
    std::memcpy(static_cast<char*>(wide.mutable_raw()) + size_of(t.dtype()), t.raw(),
                static_cast<size_t>(t.bytes()));
    return view(compare.both(wide),
                [&](const Tensor& w) { return w.slice(0, 1, n + 1).reshape(t.shape()); });
  };
  Tensor y = Tensor::empty(x.shape(), store, kCpu);
  QuantiseArgs args{x, y, q, group_axis, {}, {}};
  if (q.has_factor())
    args.factors = Tensor::empty({factor_count(q, x.shape(), group_axis)}, DType::F32, kCpu);
  kernels::quantise(stream_of(kCpu), args);
  if (spoil) y.mutable_data<float>()[y.numel() / 2] = *spoil;
  const Pair values = put(y), from = put(x);
  const Pair factor = compare.output({1}), no_code = compare.output({8}, DType::U8);
  Pair scales;
  if (packed_scale(q) != PackedScale::None) {
    const int64_t blocks = make_block_map(q, x.shape(), group_axis).blocks;
    scales =
        compare.output({blocks}, packed_scale(q) == PackedScale::Factor ? DType::F32 : DType::U8);
    compare.run(kernels::pack_scales, [&](Side d) {
      return PackScalesArgs{from.on(d), scales.on(d), factor.on(d), q, group_axis, store};
    });
    same(scales, "scales");
    same(factor, "factor");
  }
  const int64_t bytes = packed_bytes(x.numel(), code_bits(q.format));
  const Pair codes = askew ? unaligned(compare.output({bytes + 1}, DType::U8))
                           : compare.output({bytes}, DType::U8);
  compare.run(kernels::pack_codes, [&](Side d) {
    return PackCodesArgs{values.on(d), scales.on(d), codes.on(d), no_code.on(d), q, group_axis};
  });
  same(no_code, "first element without a code");
  const bool all_coded = *static_cast<const int64_t*>(no_code.reference.raw()) == x.numel();
  if (!all_coded) return;  // the CPU stops there
  same(codes, "codes");
  const Pair back =
      askew ? put(Tensor::zeros(x.shape(), DType::F32, kCpu)) : compare.output(x.shape());
  compare.run(kernels::unpack_codes, [&](Side d) {
    return UnpackCodesArgs{codes.on(d), scales.on(d), back.on(d), q, group_axis, 0.3f};
  });
  same(back, "numbers");
}

}  // namespace

void check_pack(Comparison& compare) {
  const char* formats[] = {"e4m3",
                           "e5m2",
                           "fp32",
                           "fp16",
                           "bf16",
                           "e2m1",
                           "e2m3",
                           "e3m2",
                           "e4m3-fnuz",
                           "fixed8.4",
                           "fixed4.0-u",
                           "fixed6.2",
                           "fixed16.8",
                           "fixed5.2",
                           "posit8.1",
                           "posit6.2",
                           "nf4",
                           "pow2x6",
                           "binary8p3",
                           "bfp8",
                           "bfp6-g16",
                           "bfp4-g8",
                           "bfp16-g64",
                           "bfp8-axis0",
                           "bfp8-axis1",
                           "hbfp5-g32",
                           "hbfp7-t4x8",
                           "mxfp8",
                           "mxfp8-e5m2",
                           "mxfp6",
                           "mxfp6-e3m2",
                           "mxfp4",
                           "mxfp4+q34",
                           "mxint8",
                           "nvfp4",
                           "nvfp4-t16x16",
                           "e4m3-g12",
                           "e2m1-g16-scalee4m3",
                           "e4m3-g128-scalef32",
                           "nf4-g64-scalef32",
                           "e4m3+scale=current",
                           "e5m2+scale=row"};
  for (const char* format : formats)
    for (const char* rounding : {"rne", "sr"}) {
      Quantizer q = Quantizer::parse(format);
      if (!q.is_identity()) q = Quantizer::parse(std::string(format) + ":" + rounding);
      for (const Shape& shape : {Shape{40, 384}, Shape{3, 5, 7}, Shape{2, 1030}, Shape{0, 4}})
        for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard})
          for (const int axis : {0, shape.rank() - 1}) {
            if (axis == 0 && !q.follows_reduction() && shape.rank() > 1) continue;
            const Tensor x = values(shape, DType::F32, domain, compare.options().seed * 1000 + 31);
            for (const bool askew : {false, true})
              pack_once(compare, q, x, axis, q.has_factor() ? gemm_type(q) : storage_type(q),
                        askew);
            pack_once(compare, q, x, axis, DType::F32, false);
          }
    }
  // What is no number of the format, in small ways and large ones.
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const char* format : {"e4m3", "e5m2", "e2m1", "e3m2", "e6m1", "fp16", "bf16", "fixed8.4",
                             "mxfp8", "mxfp6", "mxfp4", "mxint8", "e4m3-g128-scalef32"})
    for (const float spoil : {0x1.000002p0f, 0x1.FFFFFEp-1f, 0x1.08p0f, 0x1p-149f, -0x1p-60f,
                              0x1p20f, -0x1.FFFFFEp127f, -0.0f, kInfinity, -kInfinity}) {
      const Tensor x =
          values({4, 1024}, DType::F32, Domain::Modest, compare.options().seed * 1000 + 32);
      pack_once(compare, Quantizer::parse(format), x, 1, DType::F32, false, spoil);
    }
}

void check_rotate(Comparison& compare) {
  for (const Shape& shape :
       {Shape{64}, Shape{5}, Shape{0}, Shape{3, 0, 5}, Shape{37, 70}, Shape{3, 33, 50}})
    for (const DType dtype : kFloats)
      for (int axis = 0; axis < shape.rank(); ++axis)
        for (const int size : {16, 32})
          for (const bool inverse : {false, true}) {
            if (!compare.takes(shape.numel())) continue;
            const Pair in = compare.input(shape, dtype, inverse ? Domain::Hard : Domain::Modest, 8);
            const Pair out = compare.output(shape);
            compare.run(kernels::rotate, [&](Side d) {
              return RotateArgs{in.on(d), out.on(d), axis, size, -2, 99, inverse};
            });
            compare.same(out, "rotate ", to_string(shape), " along ", axis);
          }
}

}  // namespace ulp::cases
