// One case a kernel: instances of every type, shape, format and rounding. A row of kernels.h without a case fails.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "core/sum.h"
#include "kernels/pack.h"
#include "kernels/quantised.h"
#include "kernels/state.h"
#include "tools/cases/case_tools.h"

namespace ulp::cases {
namespace {

// ---- one case a kernel -----------------------------------------------------------------------------------------------

constexpr const char* kElementwiseFormats[] = {"e4m3",
                                               "e5m2",
                                               "e6m9",
                                               "e4m3-fnuz",
                                               "e5m2-sat",
                                               "e3m2",
                                               "e2m1",
                                               "bf16",
                                               "fp16",
                                               "tf32",
                                               "e8m7-none",
                                               "e5m2-ftz",
                                               "fixed8.4",
                                               "fixed8.4-sym",
                                               "fixed16.8-wrap",
                                               "fixed8.6-u",
                                               "fixed12.3-noclamp",
                                               "binary8p3",
                                               "binary8p4-finite-unsigned",
                                               "posit8.1",
                                               "posit16.2",
                                               "nf4",
                                               "pow2x6"};
constexpr const char* kBlockFormats[] = {"bfp8",
                                         "bfp8-axis0",
                                         "bfp8-axis1",
                                         "bfp8-g32",
                                         "bfp16-g5",
                                         "bfp8-t4x8",
                                         "hbfp8-g32",
                                         "mxfp8",
                                         "mxfp8-e5m2-rceil",
                                         "mxfp6-ceil",
                                         "mxfp6-e3m2-even",
                                         "mxfp4",
                                         "mxint8",
                                         "e4m3-t16x16",
                                         "e2m1-axis0-rceil",
                                         "nvfp4",
                                         "nvfp4-t16x16",
                                         "e2m1-g16-scalee4m3",
                                         "e4m3-g16-scalef32",
                                         "nf4-g64-scalef32",
                                         "e4m3-t16x16-scalef32",
                                         "e4m3+scale=current",
                                         "posit8.1+scale=row",
                                         "mxfp4+q34",
                                         "fixed8.4-g32-scalef32",
                                         "e5m2+scale=delayed3"};
constexpr const char* kRoundings[] = {"rne", "rna", "rnu", "rtz",  "ru",  "rd",
                                      "odd", "sr",  "sr4", "sr4f", "sr4c"};

/// The types that a format's values are kept in.
std::vector<DType> stores_of(const Quantizer& format) {
  std::vector<DType> types = {DType::F32};
  if (format.has_factor()) return types;
  for (const DType dtype : {storage_type(format), gemm_type(format)})
    if (std::find(types.begin(), types.end(), dtype) == types.end()) types.push_back(dtype);
  return types;
}

bool same_stats(const Pair& stats) {
  QuantiseStats a, b;
  copy_bytes(&a, kCpu, stats.reference.raw(), stats.reference.device(), sizeof a);
  copy_bytes(&b, kCpu, stats.other.raw(), stats.other.device(), sizeof b);
  const auto bits = [](double x) { return __builtin_bit_cast(uint64_t, x); };
  return a.count == b.count && a.overflow == b.overflow && a.underflow == b.underflow &&
         a.nan == b.nan && a.infinite == b.infinite && a.finite == b.finite &&
         a.amax_bits == b.amax_bits && bits(a.error) == bits(b.error) &&
         bits(a.square_error) == bits(b.square_error) && bits(a.square) == bits(b.square);
}

/// Two calls: delayed scaling takes the second scale from the first.
void quantise_once(Comparison& compare, const Quantizer& q, const Pair& in, DType store,
                   bool with_mask, int group_axis = 0) {
  const Shape& shape = in.reference.shape();
  if (!compare.takes(shape.numel())) return;
  const auto same = [&](const Pair& pair, const char* what) {
    compare.same(pair, to_string(q), " of ", text(in.reference.dtype()), " ", to_string(shape),
                 " into ", text(store), ", group axis ", group_axis, ", ", what);
  };
  const Pair state = step_state(compare, some_step());
  const Pair out = compare.output(shape, store), mask = compare.output(shape, DType::U8);
  const bool delayed = q.scale.kind == Scale::Kind::Delayed;
  const Pair scaling = delayed ? compare.both(fresh_scaling(q, kCpu)) : Pair{};
  const auto arguments = [&](Side d) {
    QuantiseArgs args{in.on(d), out.on(d), q, group_axis, key_on(state, d), {}};
    if (with_mask) args.mask = mask.on(d);
    if (delayed) args.scaling = scaling.on(d);
    return args;
  };
  for (int call = 0; call < (delayed ? 2 : 1); ++call) {
    compare.run(kernels::quantise, arguments);
    same(out, "values");
    if (with_mask) same(mask, "mask");
    if (delayed) same(scaling, "scaling");
  }
  const Pair stats = compare.output({static_cast<int64_t>(sizeof(QuantiseStats))}, DType::U8);
  compare.run(kernels::quantise, [&](Side d) {
    QuantiseArgs args = arguments(d);
    args.stats = stats.on(d);
    return args;
  });
  compare.check(same_stats(stats), to_string(q), " of ", text(in.reference.dtype()), " ",
                to_string(shape), ", statistics");
  if (!q.has_factor()) return;
  const Pair apart = compare.output(shape, gemm_type(q)),
             factors = compare.output({factor_count(q, shape, group_axis)});
  compare.run(kernels::quantise, [&](Side d) {
    QuantiseArgs args = arguments(d);
    args.out = apart.on(d);
    args.factors = factors.on(d);
    return args;
  });
  same(apart, "values without factors");
  same(factors, "factors");
}

/// Blocks in every layout that has a kernel of its own, some of them longer than a warp's or a thread block's share, with
/// tails of all kinds; and those that no layout takes.
void check_quantise_layouts(Comparison& compare) {
  struct Layout {
    Shape shape;
    int group_axis;
    std::vector<const char*> formats;
  };
  const std::vector<Layout> layouts = {
      {{64, 1024},
       1,
       {"bfp8-g1024", "bfp8-g4", "bfp8-g2", "mxfp8", "mxfp4", "nvfp4", "bfp8-axis0", "bfp8-axis1",
        "e4m3-g128-scalef32", "e4m3+scale=row", "mxint8-ceil"}},
      {{5, 4096}, 1, {"bfp8-g4096", "bfp8-g2048", "bfp8-axis0", "e4m3+scale=row", "hbfp8-g256"}},
      {{3, 5000}, 1, {"bfp8-g2048", "bfp8-g1024"}},
      {{48, 784},
       1,
       {"mxfp8", "bfp8-g512", "bfp8-g112", "bfp8-g1024", "e4m3-g128-scalef32", "bfp8-axis0",
        "nvfp4", "bfp8-g96"}},
      {{131, 96},
       0,
       {"mxfp8", "mxfp4+q34", "nvfp4", "bfp8-g100", "bfp8-g64", "bfp8-g17", "bfp8-axis0",
        "bfp8-axis1", "e4m3-g40-scalef32", "e4m3+scale=row"}},
      {{3, 70, 132}, 1, {"mxfp8", "bfp8-axis1", "bfp8-axis2", "bfp8-g200", "nvfp4-t16x16"}},
      {{3, 5, 1024}, 0, {"bfp8-axis1", "bfp8-axis0", "mxfp8", "bfp8-axis2"}},
      {{300007},
       0,
       {"bfp8", "e4m3+scale=current", "e5m2+scale=delayed2", "nvfp4", "mxfp8", "e4m3", "fixed8.6",
        "posit8.1", "nf4", "pow2x8", "bf16", "fixed8.4-u"}},
      {{1048576}, 0, {"bfp8", "nvfp4", "mxfp8", "e4m3", "fixed8.4-g32-scalef32", "nf4"}}};
  for (const Layout& layout : layouts) {
    const int64_t n = layout.shape.numel();
    if (compare.options().extent == Extent::Quick && n > 1 << 17) continue;
    const Pair narrow = compare.input(layout.shape, DType::BF16, Domain::Modest, 10);
    std::vector<Pair> inputs;
    for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard})
      inputs.push_back(compare.input(layout.shape, DType::F32, domain, 9));
    for (const char* format : layout.formats)
      for (const char* rounding : {"rne", "sr"}) {
        const Quantizer q = Quantizer::parse(std::string(format) + ":" + rounding);
        for (const Pair& in : inputs)
          for (const DType store : stores_of(q))
            quantise_once(compare, q, in, store, &in == &inputs[1], layout.group_axis);
        quantise_once(compare, q, narrow, DType::F32, true, layout.group_axis);
      }
  }

  // Unaligned, and in place.
  for (const char* format : {"mxfp8:sr", "bfp8", "e4m3", "bfp8-g1024"}) {
    const Quantizer q = Quantizer::parse(format);
    const Pair state = step_state(compare, some_step());
    const Pair in = unaligned(compare.input({4097}, DType::F32, Domain::Wide, 5)),
               in_place = unaligned(compare.input({4097}, DType::F32, Domain::Wide, 5));
    const Pair out = unaligned(compare.output({4097}));
    compare.run(kernels::quantise, [&](Side d) {
      return QuantiseArgs{in.on(d), out.on(d), q, 0, key_on(state, d), {}};
    });
    compare.same(out, std::string(format), " of unaligned F32");
    compare.run(kernels::quantise, [&](Side d) {
      return QuantiseArgs{in_place.on(d), in_place.on(d), q, 0, key_on(state, d), {}};
    });
    compare.same(in_place, std::string(format), " in place");
  }
}

/// What the kernel quantise does of a quantizer: rotations are a kernel of their own.
Quantizer unrotated(const std::string& text) {
  Quantizer q = Quantizer::parse(text);
  q.transform.hadamard = 0;
  return q;
}

/// Every format under every rounding; given ones that name a rounding under that one.
std::vector<Quantizer> quantizers(std::vector<std::string> formats) {
  if (formats.empty()) {
    formats.assign(std::begin(kElementwiseFormats), std::end(kElementwiseFormats));
    formats.insert(formats.end(), std::begin(kBlockFormats), std::end(kBlockFormats));
  }
  std::vector<Quantizer> all;
  for (const std::string& format : formats) {
    const Quantizer q = unrotated(format);
    if (q.is_identity() || format.find(':') != std::string::npos) {
      all.push_back(q);
      continue;
    }
    for (const char* rounding : kRoundings) all.push_back(unrotated(format + ":" + rounding));
  }
  return all;
}

void check_quantise(Comparison& compare) {
  const Pair hard = compare.input({61, 67}, DType::F32, Domain::Hard, 1);
  const Pair wide = compare.input({61, 67}, DType::F32, Domain::Wide, 2);
  const Pair modest = compare.input({61, 67}, DType::F32, Domain::Modest, 3);
  for (const Quantizer& q : quantizers(compare.options().formats))
    for (const Pair& in : {hard, wide, modest})
      for (const DType store : stores_of(q))
        for (const bool mask : {false, true})
          for (const int axis : {0, 1})
            if (axis == 0 || q.follows_reduction())
              quantise_once(compare, q, in, store, mask, axis);

  // Input types, ranks, and sizes that leave tails or nothing; blocks along every axis.
  const std::vector<Shape> shapes = {
      {},     {0},        {1},          {7},           {8},       {0, 5},   {5, 0},
      {1, 1}, {3, 7, 11}, {2, 3, 5, 9}, {4, 1, 8, 16}, {5, 2049}, {2049, 3}};
  std::vector<std::string> formats = compare.options().formats;
  if (formats.empty())
    formats = {"fp32",
               "e4m3",
               "e5m2:sr",
               "fixed8.4:sr4c",
               "bfp8",
               "bfp8-axis0:sr",
               "bfp8-axis1",
               "bfp8-g32:sr",
               "bfp16-g5:rnu",
               "mxfp4:sr",
               "e4m3-t2x3",
               "posit8.2:sr",
               "nf4",
               "nvfp4:sr",
               "e4m3-g5-scalef32",
               "e4m3+scale=row",
               "e5m2+scale=delayed2"};
  for (const Shape& shape : shapes)
    for (const DType dtype : kFloats)
      for (const std::string& format : formats) {
        const Quantizer q = unrotated(format);
        if (q.block.kind == Block::Kind::Axis && q.block.axis >= shape.rank()) continue;
        for (int axis = 0; axis < std::max(1, shape.rank()); ++axis) {
          if (axis > 0 && !q.follows_reduction()) break;
          if (q.follows_reduction() && shape.rank() == 0) break;
          for (const Domain domain : {Domain::Modest, Domain::Hard})
            quantise_once(compare, q, compare.input(shape, dtype, domain, 4), storage_type(q),
                          axis % 2 == 0, axis);
        }
      }

  // Unaligned input, output and mask.
  for (const char* format : {"e4m3:sr", "bfp8-g32:sr", "e5m2"})
    for (const DType dtype : kFloats) {
      if (!compare.takes(4099)) continue;
      const Quantizer q = Quantizer::parse(format);
      const Pair state = step_state(compare, some_step());
      const Pair in = unaligned(compare.input({4100}, dtype, Domain::Wide, 5));
      const Pair out = unaligned(compare.output({4100}, storage_type(q)));
      const Pair mask = unaligned(compare.output({4100}, DType::U8));
      compare.run(kernels::quantise, [&](Side d) {
        return QuantiseArgs{in.on(d), out.on(d), q, 0, key_on(state, d), mask.on(d)};
      });
      compare.same(out, std::string(format), " of unaligned ", text(dtype));
      compare.same(mask, std::string(format), " of unaligned ", text(dtype), ", mask");
    }
  if (compare.options().formats.empty()) check_quantise_layouts(compare);
  if (compare.options().extent == Extent::Quick) return;
  // Large enough for segments, without and with Inf and NaN, neither masks nor statistics.
  for (const Domain domain : {Domain::Modest, Domain::Hard})
    for (const char* format :
         {"e4m3:sr", "e4m3", "e5m2:sr", "fp16", "bf16:sr", "bf16", "fixed8.6", "fixed8.6-sat:sr",
          "e4m3-nan", "e6m9-ftz:sr", "posit8.1:sr", "nf4:sr", "nvfp4:sr"}) {
      const Quantizer q = Quantizer::parse(format);
      const Pair in = compare.input({2061, 1056}, DType::F32, domain, 7);
      quantise_once(compare, q, in, DType::F32, false, 1);
      if (storage_type(q) != DType::F32 && !q.has_factor())
        quantise_once(compare, q, in, storage_type(q), false, 1);
    }
  const Pair large = compare.input({17000003}, DType::F32, Domain::Wide, 6);
  quantise_once(compare, Quantizer::parse("e4m3:sr"), large, DType::F8E4M3, true);
  quantise_once(compare, Quantizer::parse("bfp8:sr"), large, DType::BF16, false);
}

/// Packed, on both devices: scales, codes and what they stand for.
void pack_once(Comparison& compare, const Quantizer& q, const Tensor& x, int group_axis,
               DType store, bool askew) {
  if (!compare.takes(x.numel())) return;
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

void check_scaled_add(Comparison& compare) {
  struct Each {
    int64_t rows, columns;
  };
  const int64_t depth = 96;
  for (const Shape& shape : {Shape{1, 1}, Shape{37, 70}, Shape{0, 3}, Shape{128, 64}})
    for (const Each& a : {Each{0, 0}, Each{1, 96}, Each{1, 32}, Each{16, 16}})
      for (const Each& b : {Each{0, 0}, Each{128, 96}, Each{1, 32}})
        for (const char* rounding : {"fp32", "e4m3:sr"}) {
          if (!compare.takes(3 * shape.numel())) continue;
          const auto factors = [&](const Each& e, int64_t rows, uint64_t seed) {
            if (e.rows == 0) return Pair{};
            const int64_t count = ((rows + e.rows - 1) / e.rows) * (depth / e.columns);
            return compare.input({count}, DType::F32, Domain::Modest, seed);
          };
          const Pair fa = factors(a, shape[0], 9), fb = factors(b, shape[1], 10);
          const Pair state = step_state(compare, some_step());
          const Pair sums = compare.input(shape, DType::F32, Domain::Hard, 11),
                     bias = compare.input({shape[1]}, DType::BF16, Domain::Modest, 12),
                     out = compare.output(shape);
          for (const int64_t k : {0, 32, 64}) {
            compare.run(kernels::scaled_add, [&](Side d) {
              ScaledAddArgs args;
              args.sums = sums.on(d);
              args.out = out.on(d);
              args.a_factors = {fa.on(d), std::max<int64_t>(1, a.rows),
                                std::max<int64_t>(1, a.columns)};
              args.b_factors = {fb.on(d), std::max<int64_t>(1, b.rows),
                                std::max<int64_t>(1, b.columns)};
              args.k = k;
              args.depth = depth;
              args.first = k == 0;
              args.last = k == 64;
              args.bias = bias.on(d);
              args.output = rounding;
              args.key = key_on(state, d);
              return args;
            });
            compare.same(out, "scaled_add ", to_string(shape), " at ", k, " into ",
                         std::string(rounding));
          }
        }
}

struct MatmulCase {
  int64_t m, k, n;
  DType a = DType::F32, b = DType::F32;
  Domain domain = Domain::Modest;
  int layout = 0;  // bits: 1 a transposed, 2 b transposed, 4 both sliced
  const char* output = "fp32";
  bool bias = false;
  bool factors = false;
};

/// A matrix that lies in memory as the case's layout says.
Pair operand(const Comparison& compare, int64_t rows, int64_t columns, DType dtype,
             const MatmulCase& c, bool transposed, uint64_t seed) {
  const int64_t margin = (c.layout & 4) != 0 ? 3 : 0;
  Shape shape = {rows + margin, columns + 2 * margin};
  if (transposed) std::swap(shape[0], shape[1]);
  return view(compare.input(shape, dtype, c.domain, seed), [&](Tensor t) {
    if (transposed) t = t.transpose(0, 1);
    return t.slice(0, margin, margin + rows).slice(1, margin, margin + columns);
  });
}

void matmul_once(Comparison& compare, const MatmulCase& c) {
  if (!compare.takes(c.m * c.k * c.n)) return;
  const Pair a = operand(compare, c.m, c.k, c.a, c, (c.layout & 1) != 0, 11);
  const Pair b = operand(compare, c.k, c.n, c.b, c, (c.layout & 2) != 0, 12);
  const Pair bias = compare.input({c.n}, DType::F32, c.domain, 13);
  const Pair factors[] = {compare.both(Tensor::from(std::vector<float>{0.3f}, {1})),
                          compare.both(Tensor::from(std::vector<float>{-1.7f}, {1}))};
  const Pair out = compare.output({c.m, c.n}), state = step_state(compare, some_step());
  const Quantizer q = Quantizer::parse(c.output);
  const auto args_on = [&](Side d) {
    MatmulArgs args;
    args.a = a.on(d);
    args.b = b.on(d);
    args.out = out.on(d);
    if (c.bias) args.bias = bias.on(d);
    if (c.factors) args.a_factor = factors[0].on(d);
    if (c.factors && !c.bias) args.b_factor = factors[1].on(d);
    args.output = q;
    args.key = key_on(state, d);
    return args;
  };
  compare.run(kernels::matmul, args_on);
  compare.same(out, "(", c.m, ", ", c.k, ") · (", c.k, ", ", c.n, "), ", text(c.a), " · ",
               text(c.b), ", layout ", c.layout, ", domain ", static_cast<int>(c.domain), ", bias ",
               c.bias, ", factors ", c.factors, ", output ", std::string(c.output));
  const DType store = storage_type(q);
  const Device other = compare.place(Side::Other).device;
  if (store == DType::F32 || other.type == DeviceType::Cpu) return;
  MatmulArgs narrow = args_on(Side::Other);  // the same values in the format's own type
  narrow.out = Tensor::empty({c.m, c.n}, store, other);
  kernels::matmul(stream_of(other), narrow);
  Tensor widened = Tensor::empty({c.m, c.n}, DType::F32, other);
  kernels::copy(stream_of(other), {narrow.out, widened});
  compare.same({out.reference, widened}, "(", c.m, ", ", c.k, ") · (", c.k, ", ", c.n, "), output ",
               std::string(c.output), " into ", text(store));
}

void check_matmul(Comparison& compare) {
  for (const auto& [m, k, n] : std::vector<std::array<int64_t, 3>>{{1, 1, 1},
                                                                   {5, 0, 7},
                                                                   {0, 5, 3},
                                                                   {3, 5, 0},
                                                                   {3, 1, 2},
                                                                   {17, 31, 33},
                                                                   {64, 64, 64},
                                                                   {65, 129, 130},
                                                                   {8, 4095, 11},
                                                                   {8, 4096, 11},
                                                                   {8, 4097, 11},
                                                                   {33, 10000, 65},
                                                                   {259, 515, 1031}})
    for (const bool bias : {false, true}) {
      MatmulCase c{m, k, n};
      c.bias = bias;
      matmul_once(compare, c);
    }
  matmul_once(compare, {1600, 70, 1500});    // the large tile
  matmul_once(compare, {1536, 4200, 1536});  // the large tile carrying its sums from chunk to chunk
  // Every tile on a GPU of about 132 multiprocessors, and four neighbours at a time: rows and columns that end inside a
  // tile, k that ends inside a slice.
  for (const int layout : {0, 1, 2, 3})
    for (const auto& [m, k, n] : std::vector<std::array<int64_t, 3>>{{1500, 76, 1612},
                                                                     {828, 52, 788},
                                                                     {332, 76, 420},
                                                                     {92, 4, 44},
                                                                     {68, 4124, 36},
                                                                     {28, 20004, 16}})
      for (const auto& [a, b] : {std::pair{DType::F32, DType::F32},
                                 {DType::BF16, DType::F8E4M3},
                                 {DType::F8E5M2, DType::F32},
                                 {DType::F16, DType::F16}}) {
        MatmulCase c{m, k, n, a, b};
        c.layout = layout;
        matmul_once(compare, c);
      }
  for (const Domain domain : {Domain::Hard, Domain::Tiny, Domain::Wide})
    for (const int64_t k : {1, 3, 15, 16, 17, 100}) {
      MatmulCase c{37, k, 70};
      c.domain = domain;
      matmul_once(compare, c);
      c.bias = true;
      matmul_once(compare, c);
    }
  for (const int layout : {1, 2, 3, 4, 5, 6, 7})
    for (const int64_t k : {40, 4100}) {
      MatmulCase c{67, k, 41};
      c.layout = layout;
      matmul_once(compare, c);
    }
  for (const DType a : kFloats)
    for (const DType b : kFloats)
      for (const int layout : {0, 3, 7}) {
        MatmulCase c{35, 77, 66};
        c.a = a;
        c.b = b;
        c.layout = layout;
        matmul_once(compare, c);
        c.domain = Domain::Hard;
        matmul_once(compare, c);
      }
  for (const char* format :
       {"e4m3", "e5m2:sr", "bf16:sr4f", "fixed8.4:rnu", "fixed16.8-wrap", "e6m9:sr"})
    for (const bool bias : {false, true})
      for (const int64_t k : {50, 9000}) {
        MatmulCase c{45, k, 67};
        c.output = format;
        c.bias = bias;
        matmul_once(compare, c);
        c.factors = true;
        matmul_once(compare, c);
      }
}

void check_sum(Comparison& compare) {
  const auto once = [&](int64_t outer, int64_t axis, int64_t inner, DType dtype, Domain domain,
                        bool shifted) {
    if (!compare.takes(outer * axis * inner)) return;
    Pair in = compare.input({outer * axis * inner + 1}, dtype, domain, 31);
    in = shifted ? unaligned(in)
                 : view(in, [](const Tensor& t) { return t.slice(0, 0, t.size(0) - 1); });
    const Pair out = compare.output({outer, inner});
    compare.run(kernels::sum, [&](Side d) {
      SumArgs args;
      args.in = in.on(d);
      args.out = out.on(d);
      args.outer = outer;
      args.axis = axis;
      args.inner = inner;
      args.factor = inner == 1 ? 1 : 1.0 / 3;
      return args;
    });
    compare.same(out, "(", outer, ", ", axis, ", ", inner, ") ", text(dtype), " domain ",
                 static_cast<int>(domain));
  };
  const std::vector<std::array<int64_t, 3>> shapes = {
      {1, 0, 1},      {3, 0, 5},     {0, 5, 3},    {2, 5, 0},     {1, 1, 1},      {4, 1, 6},
      {1, 31, 1},     {1, 32, 1},    {3, 33, 1},   {1, 63, 1},    {5, 64, 1},     {5, 65, 1},
      {3, 4095, 1},   {3, 4096, 1},  {3, 4097, 1}, {2, 10000, 1}, {1, 300001, 1}, {1, 1, 7},
      {2, 63, 33},    {1, 64, 32},   {2, 65, 31},  {1, 128, 515}, {2, 4096, 5},   {3, 4097, 5},
      {2, 10000, 37}, {1000, 10, 1}, {10, 1000, 3}};
  for (const auto& [outer, axis, inner] : shapes)
    for (const DType dtype : kFloats)
      for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard})
        once(outer, axis, inner, dtype, domain, outer % 2 == 0);
  once(1, kSumChunk * kSumChunk + 5000, 1, DType::F32, Domain::Modest, false);  // three levels
}

void check_log_softmax(Comparison& compare) {
  const Pair state = step_state(compare, some_step());
  const auto once = [&](const Pair& in, const char* interior) {
    if (!compare.takes(in.reference.numel())) return;
    const int64_t rows = in.reference.size(0);
    const Pair out = compare.output(in.reference.shape()), losses = compare.output({rows});
    const Pair labels = labels_for(compare, rows, in.reference.size(1), 43);
    compare.run(kernels::log_softmax, [&](Side d) {
      return LogSoftmaxArgs{in.on(d),         out.on(d),    Quantizer::parse(interior),
                            key_on(state, d), labels.on(d), losses.on(d)};
    });
    compare.same(out, to_string(in.reference.shape()), " interior ", std::string(interior));
    compare.same(losses, "losses of ", to_string(in.reference.shape()), " interior ",
                 std::string(interior));
    compare.run(kernels::log_softmax, [&](Side d) {
      return LogSoftmaxArgs{in.on(d), out.on(d), Quantizer::parse(interior), key_on(state, d)};
    });
    compare.same(out, to_string(in.reference.shape()), " interior ", std::string(interior));
  };
  // A logarithm that rounds to zero shows which of two zeros was the largest.
  once(compare.both(Tensor::from(std::vector<float>{-0.0f, 0.0f, 0.0f, -0.0f}, {2, 2})),
       "e2m1-bias0:rtz");
  for (const char* interior :
       {"fp32", "e5m2", "bf16:sr", "fixed8.4:sr", "fixed8.-2", "e4m3:rtz", "e6m9:sr4c"}) {
    for (const Shape& shape : kRows)
      for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Few})
        once(compare.input(shape, DType::F32, domain, 41), interior);
    for (const int64_t columns : {1, 2, 3, 40}) once(special_rows(compare, columns), interior);
    once(compare.input({300, 3}, DType::F32, Domain::Hard, 42), interior);
  }
}

void check_log_softmax_backward(Comparison& compare) {
  for (const Shape& shape : kRows)
    for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard}) {
      if (!compare.takes(shape.numel())) continue;
      const Pair grad = compare.input(shape, DType::F32, domain, 51),
                 y = compare.input(shape, DType::F32, domain, 52);
      const Pair out = compare.output(shape);
      compare.run(kernels::log_softmax_backward, [&](Side d) {
        return LogSoftmaxBackwardArgs{grad.on(d), y.on(d), out.on(d)};
      });
      compare.same(out, to_string(shape), " domain ", static_cast<int>(domain));
    }
}

void check_cross_entropy_backward(Comparison& compare) {
  for (const Shape& shape : kRows)
    for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard})
      for (const double alpha : {1.0, 1.0 / 3.0}) {
        if (!compare.takes(shape.numel())) continue;
        const Pair log_probs = compare.input(shape, DType::F32, domain, 71),
                   grad = compare.input({1}, DType::F32, Domain::Modest, 72);
        const Pair labels = labels_for(compare, shape[0], shape[1], 73),
                   out = compare.output(shape);
        compare.run(kernels::cross_entropy_backward, [&](Side d) {
          return CrossEntropyBackwardArgs{log_probs.on(d), labels.on(d), grad.on(d), out.on(d),
                                          alpha};
        });
        compare.same(out, to_string(shape), " alpha ", alpha);
      }
}

void check_tally(Comparison& compare) {
  const auto once = [&](const Pair& logits, float loss) {
    const int64_t rows = logits.reference.size(0);
    for (const uint64_t seed : {81, 82, 83}) {
      if (!compare.takes(logits.reference.numel())) continue;
      const Pair labels = labels_for(
          compare, rows, std::min<int64_t>(logits.reference.size(1), seed == 81 ? 1 : 3), seed);
      ScoreTotals before;
      before.correct = 5;
      before.loss = 0.1;
      std::vector<uint8_t> bytes(sizeof before);
      std::memcpy(bytes.data(), &before, sizeof before);
      const Pair totals = compare.both(Tensor::from(bytes, {sizeof before}));
      const Pair mean = compare.both(Tensor::from(std::vector<float>{loss}, {}));
      for (int batch = 0; batch < 2; ++batch)
        compare.run(kernels::tally, [&](Side d) {
          return TallyArgs{mean.on(d), logits.on(d), labels.on(d), totals.on(d)};
        });
      compare.same(totals, to_string(logits.reference.shape()), " ", loss);
    }
  };
  for (const Shape& shape : kRows)
    for (const Domain domain : {Domain::Few, Domain::Modest})
      once(compare.input(shape, DType::F32, domain, 84), 0.7f);
  for (const int64_t columns : {1, 2, 3, 40}) once(special_rows(compare, columns), -INFINITY);
  once(compare.input({500, 3}, DType::F32, Domain::Hard, 85), 1e-3f);
}

void check_copy(Comparison& compare) {
  const auto once = [&](const Pair& in, DType to) {
    if (!compare.takes(in.reference.numel())) return;
    const Pair out = compare.output(in.reference.shape(), to);
    compare.run(kernels::copy, [&](Side d) { return CopyArgs{in.on(d), out.on(d)}; });
    const auto same = [&](const Pair& pair) {
      compare.same(pair, text(in.reference.dtype()), " to ", text(to), " ",
                   to_string(in.reference.shape()));
    };
    same(out);
    for (const uint32_t found_inf : {1u, 0u}) {  // what is skipped is not written
      StepState step;
      step.found_inf = found_inf;
      const Pair state = step_state(compare, step), kept = compare.output(in.reference.shape(), to);
      compare.run(kernels::copy, [&](Side d) {
        return CopyArgs{in.on(d), kept.on(d), state_on(state, d)};
      });
      same(kept);
    }
  };
  for (const DType dtype : {DType::F32, DType::F64, DType::BF16, DType::F16, DType::F8E4M3,
                            DType::F8E5M2, DType::I32, DType::I8, DType::U8}) {
    const Pair cube = compare.input({6, 35, 4, 9}, dtype, Domain::Hard, 91),
               matrix = compare.input({67, 130}, dtype, Domain::Hard, 92);
    const std::vector<Pair> views = {
        matrix,
        cube,
        unaligned(compare.input({1001}, dtype, Domain::Hard, 93)),
        compare.input({}, dtype, Domain::Hard, 94),
        compare.input({3, 0}, dtype, Domain::Hard, 95),
        view(matrix, [](const Tensor& t) { return t.transpose(0, 1); }),
        view(matrix, [](const Tensor& t) { return t.slice(1, 3, 4); }),
        view(matrix, [](const Tensor& t) { return t.slice(0, 5, 60).slice(1, 1, 99); }),
        view(cube, [](const Tensor& t) { return t.transpose(1, 3); }),
        view(cube,
             [](const Tensor& t) { return t.transpose(0, 2).slice(1, 4, 31).transpose(2, 3); })};
    for (const Pair& in : views) {
      once(in, dtype);
      if (is_float_up_to_32(dtype)) once(in, DType::F32);
    }
  }
}

void check_fill(Comparison& compare) {
  for (const DType dtype : {DType::F32, DType::F64})
    for (const int64_t n : {0, 1, 5, 4099})
      for (const double value : {0.0, -0.0, 1.0 / 3.0, 1e-42, std::nan("")}) {
        if (!compare.takes(n)) continue;
        const Pair out = compare.output({n}, dtype);
        compare.run(kernels::fill, [&](Side d) { return FillArgs{out.on(d), value}; });
        compare.same(out, text(dtype), " ", n, " ", value);
      }
  const Pair state = step_state(compare, some_step()), scale = compare.output({1});
  compare.run(kernels::fill, [&](Side d) {
    return FillArgs{scale.on(d), 1.0 / 3.0, state_on(state, d)};
  });
  compare.same(scale, "the state's loss scale");
  compare.run(kernels::fill, [&](Side d) {
    return FillArgs{scale.on(d), 0.1, nullptr, state_on(state, d)};
  });
  compare.same(scale, "the state's gradient factor");
}

void check_uniform(Comparison& compare) {
  const Pair state = step_state(compare, some_step());
  for (const int64_t n : {0, 1, 2, 3, 4, 5, 8, 9, 4099, 100000})
    for (const bool shifted : {false, true}) {
      if (!compare.takes(n)) continue;
      const Pair whole = compare.output({n + 1});
      const Pair out =
          shifted ? unaligned(whole)
                  : view(whole, [](const Tensor& t) { return t.slice(0, 0, t.size(0) - 1); });
      compare.run(kernels::uniform, [&](Side d) {
        return UniformArgs{out.on(d), -0.3f, 1.7f, key_on(state, d)};
      });
      compare.same(whole, n);  // the element beside the slice too
    }
}

void check_gather_rows(Comparison& compare) {
  for (const DType dtype : {DType::U8, DType::F32})
    for (const int64_t width : {1, 3, 4, 10, 784})
      for (const int64_t rows : {0, 1, 65})
        for (const bool shifted : {false, true})
          for (const bool stateful : {false, true}) {
            if (!compare.takes(rows * width)) continue;
            Pair in = compare.input({51, width}, dtype, Domain::Hard, 101);
            if (shifted) in = unaligned(in);
            const Pair indices = labels_for(compare, rows + 20, 50, 102),
                       out = compare.output({rows, width});
            const Pair labels = labels_for(compare, in.reference.size(0), 10, 103),
                       out_labels = compare.output({rows}, DType::I32);
            StepState step = some_step();
            step.batch_offset = 13;
            const Pair state = step_state(compare, step);
            const auto same = [&](const Pair& pair) {
              compare.same(pair, text(dtype), " ", rows, " rows of ", width);
            };
            compare.run(kernels::gather_rows, [&](Side d) {
              GatherRowsArgs args{in.on(d), indices.on(d), out.on(d), 1.0f / 255.0f};
              if (!stateful) return args;
              args.labels = labels.on(d);
              args.out_labels = out_labels.on(d);
              args.state = const_cast<StepState*>(state_on(state, d));
              return args;
            });
            for (const Pair& pair : {out, out_labels, state}) same(pair);
            if (rows > 50) continue;
            compare.run(kernels::gather_rows, [&](Side d) {
              return GatherRowsArgs{in.on(d),         {}, out.on(d), 0.5f, labels.on(d),
                                    out_labels.on(d), 7};
            });
            for (const Pair& pair : {out, out_labels}) same(pair);
          }
}

void check_advance_step(Comparison& compare) {
  for (const uint32_t found_inf : {0u, 1u}) {
    StepState step = some_step();
    step.found_inf = found_inf;
    const Pair state = step_state(compare, step);
    const Pair updates = compare.both(Tensor::from(std::vector<int32_t>{41}, {1}));
    const Pair steps = compare.both(Tensor::from(std::vector<int32_t>{40}, {1}));
    compare.run(kernels::advance_step, [&](Side d) {
      return AdvanceStepArgs{const_cast<StepState*>(state_on(state, d)), updates.on(d),
                             steps.on(d)};
    });
    compare.same(steps, "steps, found_inf ", found_inf);
    compare.same(state, "state, found_inf ", found_inf);
    compare.same(updates, "updates, found_inf ", found_inf);
  }
}

struct OptimizerCase {
  UpdateRule rule = UpdateRule::Sgd;
  const char* weight = "fp32";
  const char* grad = "fp32";
  const char* master = nullptr;        // nullptr: none
  const char* moment1 = "fp32";        // where the rule has one
  const char* moment2 = "fp32";        // where the rule has one
  const char* compensation = nullptr;  // nullptr: plain
  bool narrow = true;                  // states in their format's own type or codes; else F32
  GradOrder order = GradOrder::ScaleFirst;
  bool scaled = false;
  bool nesterov = false, decoupled = false, found_inf = false, shifted = false;
  float weight_decay = 0, grad_scaling = 1;
  int64_t n = 4099;
  int64_t copies = 1;  // parameters of one step, of n, n + 1, … elements
};

struct StatePair {
  Pair data, scales;
  StoredState on(Side side) const { return {data.on(side), scales.on(side)}; }
};

/// A state with some numbers of its format.
StatePair state_pair(Comparison& compare, const OptimizerCase& c, const char* format, int64_t n,
                     uint64_t seed) {
  if (format == nullptr) return {};
  const Quantizer q = Quantizer::parse(format);
  if (!is_packed(q) || (!c.narrow && q.is_elementwise())) {
    const DType dtype = c.narrow ? storage_type(q) : DType::F32;
    const Pair whole = compare.input({n + 1}, dtype, Domain::Modest, seed);
    const auto cut = [](const Tensor& t) { return t.slice(0, 0, t.size(0) - 1); };
    return {c.shifted ? unaligned(whole) : view(whole, cut), {}};
  }
  const Stream stream = stream_of(kCpu);
  const StoredState state = make_state(stream, q, {n});
  write_state(stream, values({n}, DType::F32, Domain::Modest, seed), q, {}, state);
  StatePair pair;
  pair.data = compare.both(state.data);
  if (state.scales.defined()) pair.scales = compare.both(state.scales);
  return pair;
}

void optimizer_once(Comparison& compare, const OptimizerCase& c) {
  if (!compare.takes(c.n)) return;
  StepState step = some_step();
  step.found_inf = c.found_inf ? 1 : 0;
  step.grad_factor = 0.75f;
  const Pair state = step_state(compare, step);
  const auto quantizer = [](const char* format) {
    return format == nullptr ? Quantizer{} : Quantizer::parse(format);
  };
  const bool first = c.rule != UpdateRule::Sgd, second = c.rule == UpdateRule::Adam;
  struct States {
    StatePair weight, master, moment1, moment2, compensation;
    Pair grad;
  };
  std::vector<States> all;
  for (int64_t k = 0; k < c.copies; ++k) {
    const int64_t n = c.n + k;
    OptimizerCase native = c;  // weights are what layers read
    native.narrow = c.narrow && !is_packed(quantizer(c.weight));
    States s;
    const char* weight = native.narrow ? c.weight : "fp32";
    s.weight = state_pair(compare, native, weight, n, 111);
    s.master = state_pair(compare, c, c.master, n, 112);
    s.moment1 = state_pair(compare, c, first ? c.moment1 : nullptr, n, 113);
    s.moment2 = state_pair(compare, c, second ? c.moment2 : nullptr, n, 115);
    s.compensation = state_pair(compare, c, c.compensation, n, 116);
    s.grad = compare.input({n}, DType::F32, n % 2 == 0 ? Domain::Hard : Domain::Modest, 114);
    all.push_back(s);
  }
  const Pair rates = compare.both(Tensor::from(std::vector<float>{0.5f, 0.05f, 0.2f}, {3}));
  const Pair updates = compare.both(Tensor::from(std::vector<int32_t>{c.nesterov ? 1 : 9}, {1}));
  const Pair steps = compare.both(Tensor::from(std::vector<int32_t>{c.decoupled ? 0 : 1234}, {1}));
  compare.run(kernels::optimizer_step, [&](Side d) {
    OptimizerArgs args;
    uint32_t stream = 0;
    for (const States& s : all) {
      OptimizerParameter p;
      p.weight = s.weight.data.on(d);
      p.grad = s.grad.on(d);
      p.master = s.master.on(d);
      p.moment1 = s.moment1.on(d);
      p.moment2 = s.moment2.on(d);
      p.compensation = s.compensation.on(d);
      for (RandomKey* key : {&p.weight_key, &p.grad_key, &p.master_key, &p.moment1_key,
                             &p.moment2_key, &p.compensation_key})
        *key = key_on(state, d, ++stream);
      args.parameters.push_back(p);
    }
    if (c.copies > 2) args.parameters[1].grad = {};  // left as it is
    args.weight_format = quantizer(c.weight);
    args.grad_format = quantizer(c.grad);
    args.master_format = quantizer(c.master);
    args.moment1_format = quantizer(c.moment1);
    args.moment2_format = quantizer(c.moment2);
    args.compensation_format = quantizer(c.compensation);
    UpdateSettings& s = args.settings;
    s.rule = c.rule;
    s.nesterov = c.nesterov;
    s.decoupled = c.decoupled;
    s.grad_scaling = c.grad_scaling;
    s.grad_order = c.order;
    s.scaled = c.scaled;
    s.lr_factor = 0.5f;
    s.weight_decay = c.weight_decay;
    s.eps = 1e-8f;
    s.beta1 = 0.9;
    s.beta2 = 0.999;
    args.rates = rates.on(d);
    args.updates = updates.on(d);
    args.steps = steps.on(d);
    args.state = state_on(state, d);
    return args;
  });
  const auto same = [&](const Pair& pair, const char* what) {
    if (!pair.reference.defined()) return;
    const auto name = [](const char* format) { return format == nullptr ? "none" : format; };
    compare.same(pair, what, " of rule ", static_cast<int>(c.rule), ", weight ", name(c.weight),
                 ", master ", name(c.master), ", moments ", name(c.moment1), " ", name(c.moment2),
                 ", compensation ", name(c.compensation), ", grad ", name(c.grad), ", narrow ",
                 c.narrow, ", nesterov ", c.nesterov, ", decay ", c.weight_decay, ", decoupled ",
                 c.decoupled, ", found_inf ", c.found_inf, ", n ", c.n);
  };
  for (const States& s : all) {
    same(s.weight.data, "weight");
    for (const auto& [pair, what] :
         {std::pair{&s.master, "master"}, std::pair{&s.moment1, "moment1"},
          std::pair{&s.moment2, "moment2"}, std::pair{&s.compensation, "compensation"}}) {
      same(pair->data, what);
      same(pair->scales, what);
    }
  }
}

constexpr UpdateRule kRules[] = {UpdateRule::Sgd, UpdateRule::Momentum, UpdateRule::Adam,
                                 UpdateRule::Lion};

void check_optimizer_step(Comparison& compare) {
  // Native types.
  for (const UpdateRule rule : kRules)
    for (const char* master : {static_cast<const char*>(nullptr), "fp32", "bf16:sr"})
      for (const char* moment : {"fp32", "e5m2:sr", "bf16:sr4c"})
        for (const char* weight : {"fp32", "e4m3", "e5m2:sr", "fixed8.6:rnu"})
          for (const bool narrow : {false, true})
            for (const float decay : {0.0f, 0.01f})
              for (const int64_t n : {0, 1, 4099, 2050}) {
                if (rule == UpdateRule::Sgd && std::string_view(moment) != "fp32") continue;
                OptimizerCase c;
                c.rule = rule;
                c.weight = weight;
                c.master = master;
                c.moment1 = moment;
                c.moment2 = narrow ? "bf16" : moment;
                c.grad = narrow ? "e5m2:sr" : "fp32";
                c.narrow = narrow;
                c.nesterov = narrow;
                c.decoupled = n == 2050;
                c.weight_decay = decay;
                c.n = n;
                c.shifted = n == 2050;
                c.grad_scaling = decay > 0 ? 0.37f : 1.0f;
                optimizer_once(compare, c);
                if (n != 1) continue;
                c.found_inf = true;
                optimizer_once(compare, c);
              }
  for (const char* grad : {"fp32", "e5m2:sr", "fixed8.4"}) {
    OptimizerCase c;
    c.grad = grad;
    c.grad_scaling = 0.37f;
    c.order = GradOrder::QuantiseFirst;
    optimizer_once(compare, c);
    c.order = GradOrder::ScaleFirst;
    c.scaled = true;
    optimizer_once(compare, c);
  }
  // Codes, with and without groups.
  const char* formats[] = {"fixed8.6:sr",
                           "e3m4",
                           "e6m9:sr",
                           "fixed12.9",
                           "tf32",
                           "posit8.1",
                           "posit16.1:sr",
                           "nf4",
                           "e2m1",
                           "e2m3:sr",
                           "dynamic8",
                           "dynamic8u:sr",
                           "e3m4-none:odd",
                           "binary8p3:sr4c",
                           "dynamic8-g256-scalef32",
                           "dynamic8u-g256-scalef32:sr",
                           "nf4-g64-scalef32:sr4",
                           "e4m3-g64-scalef32:sr",
                           "e5m2-g8-scalef32",
                           "e2m1-g32-scalef32",
                           "e2m1-g4-scalef32:sr",
                           "fixed8.7-g128-scalef32",
                           "posit8.1-g16-scalef32",
                           "e6m9-g256-scalef32:sr",
                           "e2m3-g256-scalef32"};
  for (const char* format : formats)
    for (const UpdateRule rule : kRules)
      for (const bool kahan : {false, true})
        for (const int64_t n : {1, 3, 255, 256, 257, 2047, 2048, 4099}) {
          OptimizerCase c;
          c.rule = rule;
          c.moment1 = c.moment2 = format;
          const bool grouped = !Quantizer::parse(format).is_elementwise();
          if (kahan) c.compensation = format;
          if (kahan || rule == UpdateRule::Sgd) {
            c.weight = "bf16";
            c.master = kahan && grouped ? "e6m9" : format;
          }
          c.decoupled = kahan;
          c.weight_decay = 0.01f;
          c.n = n;
          optimizer_once(compare, c);
        }
  // Kahan on weights, and combinations of layouts.
  for (const char* weight : {"bf16", "bf16:sr", "e4m3", "fp32"})
    for (const UpdateRule rule : kRules)
      for (const int64_t n : {5, 2048, 3001}) {
        OptimizerCase c;
        c.rule = rule;
        c.weight = weight;
        c.compensation = "bf16";
        c.moment1 = "e4m3-g256-scalef32";
        c.moment2 = "fixed12.9:sr";
        c.n = n;
        optimizer_once(compare, c);
      }
  for (const int64_t copies : {0, 2, 33, 300}) {  // one launch takes 256
    OptimizerCase c;
    c.rule = copies == 33 ? UpdateRule::Adam : UpdateRule::Momentum;
    c.weight = "e4m3";
    c.master = "e6m9:sr";
    c.moment1 = "bf16:sr";
    c.moment2 = "dynamic8u-g256-scalef32";
    c.grad = "e5m2:sr";
    c.n = copies == 300 ? 7 : 2047;
    c.copies = copies;
    optimizer_once(compare, c);
  }
}

void check_check_gradients(Comparison& compare) {
  struct Case {
    std::vector<int64_t> sizes;
    DType dtype = DType::F32;
    Domain domain = Domain::Wide;
    float clip = 0;
    bool shifted = false;
    uint32_t interval = 1;
  };
  std::vector<Case> all = {
      {{}}, {{0}}, {{1}}, {{64, 0, 65, 4096, 4097}, DType::F32, Domain::Modest, 1}};
  for (const DType dtype : kFloats)
    for (const Domain domain : {Domain::Modest, Domain::Hard, Domain::Tiny})
      all.push_back({{5, 4095, 12289, 1}, dtype, domain, 0.5f, dtype == DType::BF16, 3});
  all.push_back({std::vector<int64_t>(90, 33), DType::F32, Domain::Wide, 1e-3f});
  all.push_back({std::vector<int64_t>(91, 4100), DType::F32, Domain::Modest, 1e6f, true});
  all.push_back({std::vector<int64_t>(200, 7), DType::BF16, Domain::Modest, 3});
  all.push_back({{3, 4096 * 4096 + 4097, 3}, DType::F32, Domain::Modest, 10});
  for (const Case& c : all) {
    int64_t work = 0;
    for (const int64_t n : c.sizes) work += n;
    if (!compare.takes(work)) continue;
    std::vector<Pair> gradients;
    for (const int64_t n : c.sizes) {
      const Pair whole = compare.input({n + 1}, c.dtype, c.domain, 131);
      gradients.push_back(c.shifted ? unaligned(whole) : view(whole, [](const Tensor& t) {
        return t.slice(0, 0, t.size(0) - 1);
      }));
    }
    for (const bool dynamic : {false, true}) {
      StepState step = some_step();
      step.good_steps = 2;
      step.loss_scale = 3;
      const Pair state = step_state(compare, step);
      compare.run(kernels::check_gradients, [&](Side d) {
        CheckGradientsArgs args;
        for (const Pair& gradient : gradients) args.gradients.push_back(gradient.on(d));
        args.policy.clip_norm = c.clip;
        args.policy.grad_scaling = 0.3f;
        args.policy.undo_loss_scale = dynamic;
        if (dynamic) args.policy.scaling.interval = c.interval;
        args.state = const_cast<StepState*>(state_on(state, d));
        return args;
      });
      compare.same(state, c.sizes.size(), " gradients of ", work, " ", text(c.dtype), ", clip ",
                   c.clip, ", dynamic ", dynamic);
    }
  }
}

void check_settle_scalings(Comparison& compare) {
  for (const int64_t count : {0, 1, 3, 128, 300})
    for (const uint32_t found_inf : {0u, 1u}) {
      StepState step = some_step();
      step.found_inf = found_inf;
      const Pair state = step_state(compare, step);
      std::vector<std::pair<Pair, Pair>> all;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t n = 2 + i % 70;
        const auto seed = static_cast<uint64_t>(i);
        all.emplace_back(compare.input({n}, DType::F32, Domain::Modest, 200 + seed),
                         compare.input({n}, DType::F32, Domain::Modest, 600 + seed));
      }
      compare.run(kernels::settle_scalings, [&](Side d) {
        SettleScalingsArgs args{{}, state_on(state, d)};
        for (const auto& [now, kept] : all) args.scalings.push_back({now.on(d), kept.on(d)});
        return args;
      });
      for (const auto& [now, kept] : all) {
        compare.same(now, "now, of ", count, ", found_inf ", found_inf);
        compare.same(kept, "kept, of ", count, ", found_inf ", found_inf);
      }
    }
}

Pair average_state(const Comparison& compare, const AverageState& state) {
  std::vector<uint8_t> bytes(sizeof state);
  std::memcpy(bytes.data(), &state, sizeof state);
  return compare.both(Tensor::from(bytes, {static_cast<int64_t>(bytes.size())}));
}

AverageState* average_on(const Pair& state, Side side) {
  Tensor handle = state.on(side);
  return static_cast<AverageState*>(handle.mutable_raw());
}

void check_begin_average(Comparison& compare) {
  for (const bool exponential : {false, true})
    for (const uint32_t start : {0u, 3u})
      for (const uint32_t every : {1u, 2u}) {
        const Pair average = average_state(compare, {});
        StepState step = some_step();
        for (int i = 0; i < 9; ++i) {
          if (i != 4) ++step.optimizer_step;  // one is skipped
          const Pair state = step_state(compare, step);
          compare.run(kernels::begin_average, [&](Side d) {
            return BeginAverageArgs{
                average_on(average, d), state_on(state, d), {exponential, 0.1f, start, every}};
          });
          compare.same(average, "step ", i, ", exponential ", exponential, ", start ", start,
                       ", every ", every);
        }
      }
}

void check_average(Comparison& compare) {
  const auto once = [&](const std::vector<int64_t>& sizes, const char* format, DType weight_type,
                        bool shifted, bool taken) {
    int64_t work = 0;
    for (const int64_t n : sizes) work += n;
    if (!compare.takes(work)) return;
    const Quantizer q = Quantizer::parse(format);
    const Pair step = step_state(compare, some_step());
    AverageState own;
    own.factor = 0.3f;
    own.gate.found_inf = taken ? 0 : 1;
    const Pair state = average_state(compare, own);
    std::vector<std::pair<Pair, Pair>> all;
    for (const int64_t n : sizes) {
      const auto tensor = [&](DType dtype, uint64_t seed) {
        const Pair whole = compare.input({n + 1}, dtype, Domain::Modest, seed);
        return shifted ? unaligned(whole)
                       : view(whole, [](const Tensor& t) { return t.slice(0, 0, t.size(0) - 1); });
      };
      all.emplace_back(tensor(weight_type, 141), tensor(storage_type(q), 142));
    }
    compare.run(kernels::average, [&](Side d) {
      AverageArgs args{{}, q, average_on(state, d)};
      uint32_t stream = 0;
      for (const auto& [weight, average] : all)
        args.weights.push_back({weight.on(d), average.on(d), key_on(step, d, ++stream)});
      return args;
    });
    for (const auto& [weight, average] : all)
      compare.same(average, std::string(format), " of ", text(weight_type), ", ", sizes.size(),
                   " weights, shifted ", shifted, ", taken ", taken);
  };
  for (const char* format :
       {"fp32", "bf16:sr", "e4m3", "e5m2:sr4", "fixed8.6:sr", "posit8.1:sr", "nf4"})
    for (const DType dtype : {DType::F32, DType::BF16, DType::F8E4M3})
      for (const bool shifted : {false, true}) once({1, 4099, 0, 33}, format, dtype, shifted, true);
  once({70}, "bf16:sr", DType::F32, false, false);
  for (const int64_t count : {0, 64, 65, 130})
    once(std::vector<int64_t>(static_cast<size_t>(count), 1031), "e6m9:sr", DType::F32, false,
         true);
}

}  // namespace

void check_elementwise(Comparison& compare, const Kernel<ElementwiseArgs>& kernel, size_t inputs) {
  const Pair state = step_state(compare, some_step());
  // The first input once more is the third, where there is one.
  const auto once = [&](const std::array<Pair, 2>& in, const Pair& out, const char* format,
                        double alpha) {
    compare.run(kernel, [&](Side d) {
      ElementwiseArgs args;
      for (size_t k = 0; k < inputs; ++k) args.in[k] = in[k % 2].on(d);
      args.out = out.on(d);
      args.alpha = alpha;
      args.beta = 0.9;
      args.output = Quantizer::parse(format);
      args.key = key_on(state, d);
      return args;
    });
    compare.same(out, to_string(in[0].reference), ", ", to_string(in[1].reference), " to ",
                 to_string(out.reference), " as ", std::string(format));
  };
  const std::vector<Shape> shapes = {{},     {0},      {1},       {5},         {8},
                                     {4099}, {33, 65}, {3, 5, 7}, {2, 3, 5, 7}};
  for (const Shape& shape : shapes)
    for (const Domain domain : {Domain::Hard, Domain::Modest, Domain::Wide})
      for (const char* format : {"fp32", "e4m3", "e5m2:sr", "fixed16.8-wrap:sr4f"}) {
        if (!compare.takes(shape.numel())) continue;
        once({compare.input(shape, DType::F32, domain, 121),
              compare.input(shape, DType::F32, domain, 122)},
             compare.output(shape), format, -0.7);
      }
  for (const DType a : {DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2,
                        DType::I32, DType::I8, DType::U8})
    for (const DType b : kFloats)
      for (const char* format : {"fp32", "bf16", "e5m2:sr", "e4m3:rtz"}) {
        if (!compare.takes(5 * 1003)) continue;
        const Pair x = compare.input({1003}, a, Domain::Hard, 123),
                   y = compare.input({1003}, b, Domain::Hard, 124);
        const DType store = storage_type(Quantizer::parse(format));
        once({x, y}, compare.output({1003}, store), format, 1.5);
        once({unaligned(x), unaligned(y)}, compare.output({1002}, store), format, 1.5);
        once({unaligned(x), unaligned(y)}, unaligned(compare.output({1003}, store)), format, 1.5);
        const Pair one = compare.input({1}, b, Domain::Modest, 125);  // serves every element
        once({x, one}, compare.output({1003}, store), format, 1.5);
        once({one, y}, compare.output({1003}, store), format, 1.5);
      }
  // Large enough for tiles, whose ends and rows lie askew.
  for (const char* format : {"e5m2:sr", "posit8.1"}) {
    const Shape shape{2049, 1031};
    if (!compare.takes(shape.numel())) continue;
    const Shape second = inputs == 1 ? shape : Shape{shape[1]};
    once({compare.input(shape, DType::BF16, Domain::Modest, 131),
          compare.input(second, DType::F32, Domain::Hard, 132)},
         compare.output(shape, storage_type(Quantizer::parse(format))), format, 1.5);
  }
  for (const Shape& shape : {Shape{33, 65}, Shape{3, 5, 12}, Shape{7, 1024}})
    for (const DType b : {DType::F32, DType::BF16, DType::F8E4M3})
      for (const char* format : {"fp32", "e5m2:sr"}) {
        if (inputs < 2 || !compare.takes(shape.numel())) continue;
        const Pair row = compare.input({shape[shape.rank() - 1] + 1}, b, Domain::Modest, 128),
                   all = compare.input(shape, DType::F32, Domain::Hard, 129);
        const DType store = storage_type(Quantizer::parse(format));
        once({all, compare.input({shape[shape.rank() - 1]}, b, Domain::Modest, 130)},
             compare.output(shape, store), format, 1.5);
        once({all, unaligned(row)}, compare.output(shape, store), format, 1.5);
      }
  // In place.
  const Pair x = compare.input({2051}, DType::F32, Domain::Hard, 126);
  once({x, compare.input({2051}, DType::F32, Domain::Hard, 127)}, x, "fp32", 0.5);
}

std::span<const KernelCase> core_kernel_cases() {
#define ULP_ELEMENTWISE_CASE(name, Functor, inputs) \
  {#name, [](Comparison& compare) { check_elementwise(compare, kernels::name, inputs); }},
  static constexpr KernelCase kAll[] = {{"quantise", check_quantise},
                                        {"pack_scales", check_pack},
                                        {"pack_codes", nullptr, "pack_scales"},
                                        {"unpack_codes", nullptr, "pack_scales"},
                                        {"rotate", check_rotate},
                                        {"scaled_add", check_scaled_add},
                                        {"matmul", check_matmul},
                                        {"sum", check_sum},
                                        {"log_softmax", check_log_softmax},
                                        {"log_softmax_backward", check_log_softmax_backward},
                                        {"cross_entropy_backward", check_cross_entropy_backward},
                                        {"tally", check_tally},
                                        {"copy", check_copy},
                                        {"fill", check_fill},
                                        {"uniform", check_uniform},
                                        {"gather_rows", check_gather_rows},
                                        {"optimizer_step", check_optimizer_step},
                                        {"check_gradients", check_check_gradients},
                                        {"settle_scalings", check_settle_scalings},
                                        {"begin_average", check_begin_average},
                                        {"average", check_average},
                                        {"advance_step", check_advance_step},
                                        ULP_ELEMENTWISE_KERNELS(ULP_ELEMENTWISE_CASE)};
  return kAll;
}

}  // namespace ulp::cases
