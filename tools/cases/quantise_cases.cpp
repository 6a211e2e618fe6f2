// How numbers become others: every format, rounding, layout of blocks and type.

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/quantised.h"
#include "kernels/squeeze.h"
#include "tools/cases/core_cases.h"

namespace ulp::cases {

namespace {

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
                                         "fixed8.7-sym+scale=shift",
                                         "e2m3-g32-shift",
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
                   bool with_mask, int group_axis = 0, const std::string& kind = {}) {
  const Shape& shape = in.reference.shape();
  if (!compare.takes(shape.numel(), kind)) return;
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
        quantise_once(compare, q, inputs[0], storage_type(q), false, layout.group_axis,
                      to_string(q) + to_string(layout.shape));
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

/// Statistics of tensors that have gaps.
void check_gaps(Comparison& compare) {
  const Pair state = step_state(compare, some_step());
  std::vector<float> x = compare.input({5003}, DType::F32, Domain::Hard, 12).reference.to_floats();
  for (size_t i = 0; i < x.size(); ++i)
    if (i / 1024 == 1 || i % 3 == 0 || i > 4990) x[i] = float_of(kGapBits);
  const Pair in = compare.both(Tensor::from(x, {5003}));
  for (const char* format : {"e4m3", "e5m2-sat:sr", "bf16:sr", "fixed8.4", "posit8.1:sr", "nf4"}) {
    const Quantizer q = Quantizer::parse(format);
    const Pair out = compare.output({5003}),
               stats = compare.output({static_cast<int64_t>(sizeof(QuantiseStats))}, DType::U8);
    compare.run(kernels::quantise, [&](Side d) {
      QuantiseArgs args{in.on(d), out.on(d), q, 0, key_on(state, d), {}};
      args.stats = stats.on(d);
      args.gaps = true;
      return args;
    });
    compare.same(out, std::string(format), " of F32 with gaps");
    compare.check(same_stats(stats), std::string(format), " of F32 with gaps, statistics");
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

}  // namespace

/// A kind for one deterministic and one stochastic rounding of each format.
std::string first_of(const Quantizer& q) {
  Quantizer same = q;
  if (q.rounding != Rounding::Stochastic) same.rounding = Rounding::NearestEven;
  same.bits = {};
  return to_string(same);
}

/// The kernels of +scale=squeeze.
void check_squeezing(Comparison& compare) {
  for (const Shape& shape : {Shape{}, Shape{0}, Shape{1}, Shape{61, 67}, Shape{5, 2049}})
    for (const DType dtype : kFloats)
      for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard}) {
        if (!compare.takes(shape.numel(), "squeeze")) continue;
        const Pair in = compare.input(shape, dtype, domain, 8);
        const Pair logs = compare.output(shape), sum = compare.output({1}),
                   out = compare.output(shape), back = compare.output(shape);
        const Pair totals =
            compare.output({static_cast<int64_t>(sizeof(SqueezeTotals))}, DType::U8);
        const auto same = [&](const Pair& pair, const char* what) {
          compare.same(pair, what, " of ", text(dtype), " ", to_string(shape));
        };
        compare.run(kernels::squeeze_logs, [&](Side d) {
          return SqueezeLogsArgs{in.on(d), logs.on(d), totals.on(d)};
        });
        same(logs, "logarithms");
        same(totals, "totals");
        compare.run(kernels::sum, [&](Side d) {
          return SumArgs{logs.on(d), sum.on(d), 1, shape.numel(), 1};
        });
        for (const bool inverse : {false, true}) {
          compare.run(kernels::squeeze, [&](Side d) {
            const Tensor& from = inverse ? out.on(d) : in.on(d);
            const Tensor& to = inverse ? back.on(d) : out.on(d);
            return SqueezeArgs{from, to, sum.on(d), totals.on(d), 15.0f, inverse};
          });
          same(inverse ? back : out, inverse ? "values turned back" : "squeezed values");
        }
      }
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
              quantise_once(compare, q, in, store, mask, axis, first_of(q));

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
  if (compare.options().formats.empty()) {
    check_quantise_layouts(compare);
    check_gaps(compare);
  }
  // Large enough for segments, without and with Inf and NaN, neither masks nor statistics.
  for (const Domain domain : {Domain::Modest, Domain::Hard})
    for (const char* format :
         {"e4m3:sr", "e4m3", "e5m2:sr", "fp16", "bf16:sr", "bf16", "fixed8.6", "fixed8.6-sat:sr",
          "e4m3-nan", "e6m9-ftz:sr", "posit8.1:sr", "nf4:sr", "nvfp4:sr"}) {
      const Quantizer q = Quantizer::parse(format);
      const bool kind = std::string_view(format) == "e4m3" || std::string_view(format) == "bf16:sr";
      if (compare.options().extent == Extent::Quick && !(kind && compare.options().formats.empty()))
        continue;
      const Pair in = repeated(compare, {2061, 1056}, DType::F32, domain, 7);
      quantise_once(compare, q, in, DType::F32, false, 1,
                    domain == Domain::Modest ? std::string("large ") + format : "");
      if (storage_type(q) != DType::F32 && !q.has_factor())
        quantise_once(compare, q, in, storage_type(q), false, 1);
    }
  if (compare.options().extent == Extent::Quick) return;
  const Pair large = compare.input({17000003}, DType::F32, Domain::Wide, 6);
  quantise_once(compare, Quantizer::parse("e4m3:sr"), large, DType::F8E4M3, true);
  quantise_once(compare, Quantizer::parse("bfp8:sr"), large, DType::BF16, false);
}

}  // namespace ulp::cases
