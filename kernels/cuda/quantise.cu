#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/table_tree.cuh"

namespace ulp::cuda {
namespace {

/// Lattices in short form; nothing here calls a function with the segment in registers.
template <bool kTell>
__global__ void __launch_bounds__(kThreads, kTell ? 2 : 3)
    quantise_kernel(const __grid_constant__ QuantiseWork w) {
  using How = Rounder::How;
  using fast::Specials;
  const RandomSource random = w.rounder.random();
  quantise_segments<kTell>(w, [&](int64_t begin, Segment& x, uint32_t(&clamped)[kRows]) {
    const auto round = [&]<How kHow, Specials kSpecials>() {
      round_fast_segment<kHow>(random, begin, x, clamped, [&](int, float value, uint32_t word) {
        if constexpr (kHow == How::Copy)
          return Rounded{canonical(value), false};
        else
          return round_fast<kHow, kSpecials>(value, w.rounder, 0, word);
      });
    };
    const bool numbers = w.rounder.makes_no_nan && __all_sync(kFullWarp, all_finite(x));
    for_how(w.rounder.how, [&]<How kHow>() {
      if constexpr (is_lattice(kHow)) {
        if (kHow != How::Copy && numbers)
          round.template operator()<kHow, Specials::Absent>();
        else
          round.template operator()<kHow, Specials::Possible>();
      }
    });
  });
}

/// The same for tensors so small that segments would leave most of the GPU idle.
__global__ void __launch_bounds__(kThreads)
    quantise_small_kernel(const __grid_constant__ QuantiseWork w) {
  const RandomSource random = w.rounder.random();
  for_quads(w.n, [&](int64_t i, int count) {
    float x[kQuad];
    load_quad(w.in, i, count, x);
    round_quad(w.rounder, random, i, x);
    store_quad(w.out, i, count, x);
  });
}

/// Posits, and whatever has no short form.
template <bool kTell>
__global__ void __launch_bounds__(kThreads, 2)
    quantise_others_kernel(const __grid_constant__ QuantiseWork w) {
  using How = Rounder::How;
  const RandomSource random = w.rounder.random();
  quantise_segments<kTell>(w, [&](int64_t begin, Segment& x, uint32_t(&clamped)[kRows]) {
    if (w.rounder.how == How::NearestPosit) {
      round_fast_segment<How::NearestPosit>(
          random, begin, x, clamped, [&](int, float value, uint32_t word) {
            return round_fast<How::NearestPosit>(value, w.rounder, 0, word);
          });
    } else if (w.rounder.how == How::StochasticPosit) {
      uint32_t rest = 0, bit = 1;
      round_fast_segment<How::StochasticPosit>(
          random, begin, x, clamped, [&](int, float value, uint32_t word) {
            Rounded r;
            bool uneven = false;
            r.value = quantise_posit(value, w.rounder.grid, Rounding::Stochastic, word, &r.clamped,
                                     &uneven);
            rest |= uneven ? bit : 0u;
            bit <<= 1;
            r.value = uneven ? value : r.value;
            return r;
          });
      round_rest(rest, begin, x, [&](float value, int64_t i) {
        return round_any(value, w.rounder.grid, random.word(static_cast<uint64_t>(i))).value;
      });
    } else {
      round_slowly(w.rounder, random, begin, x, clamped, [&](int, float value, uint32_t word) {
        return round_any(value, w.rounder.grid, word);
      });
    }
  });
}

// ---- tables ---------------------------------------------------------------------------------------------------------
/// Rounding that draws: x lies in the interval from number i to the next. A share of it in fp32 decides, unless the word lies
/// so close that its errors matter: less than 2^12 of 2^32, for four roundings of 2^−24 and the word's own. Those elements
/// stay as they are, with their bits in the result.
__device__ __forceinline__ uint32_t draw_quad(const TableTree& tree, const PhiloxWords& words,
                                              float (&x)[kQuad]) {
  int32_t found[kQuad];
  uint32_t rest = 0;
#pragma unroll
  for (int k = 0; k < kQuad; ++k) x[k] = fminf(fmaxf(x[k], tree.lowest), tree.highest);
  tree.find(x, found);
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    const float low = tree.numbers[found[k]], high = tree.numbers[found[k] + 1];
    const float drawn = static_cast<float>(words.word[k]);
    const float share = (x[k] - low) * tree.inverses[found[k]];
    const bool sure = fabsf(drawn - share) > 0x1p12f;  // false for NaN
    const float y = drawn < share ? high : low;
    x[k] = sure ? y : x[k];
    rest |= sure ? 0u : 1u << k;
  }
  return rest;
}

template <bool kStochastic, bool kTell>
__global__ void __launch_bounds__(kThreads, kTell ? 2 : 3)
    quantise_table_kernel(const __grid_constant__ QuantiseWork w,
                          const __grid_constant__ TableTree table) {
  const TableTree tree = table.shared(kStochastic);
  const RandomSource random = w.rounder.random();
  quantise_segments<kTell>(w, [&](int64_t begin, Segment& x, uint32_t(&clamped)[kRows]) {
    if (!all_finite(x)) {  // then of this thread alone
      round_slowly(w.rounder, random, begin, x, clamped, [&](int, float value, uint32_t word) {
        return round_any(value, w.rounder.grid, word);
      });
      return;
    }
    uint32_t rest = 0;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      clamped[j] = 0;
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        if (kTell)
          clamped[j] |= static_cast<uint32_t>(x[j][k] < tree.lowest || x[j][k] > tree.highest) << k;
      if constexpr (kStochastic) {
        const PhiloxWords words = random.words(static_cast<uint64_t>(quad_at(begin, j)) / kQuad);
        rest |= draw_quad(tree, words, x[j]) << (kQuad * j);
      } else {
        int32_t found[kQuad];
        tree.find(x[j], found);
#pragma unroll
        for (int k = 0; k < kQuad; ++k) x[j][k] = tree.numbers[found[k]];
      }
    }
    if (kStochastic)
      round_rest(rest, begin, x, [&](float value, int64_t i) {
        return round_any(value, w.rounder.grid, random.word(static_cast<uint64_t>(i))).value;
      });
  });
}

void quantise_table(Stream stream, const QuantiseArgs& args, const QuantiseWork& w) {
  const bool tell = tells(w), stochastic = args.quantizer.rounding == Rounding::Stochastic;
  auto* kernel =
      stochastic
          ? (tell ? quantise_table_kernel<true, true> : quantise_table_kernel<true, false>)
          : (tell ? quantise_table_kernel<false, true> : quantise_table_kernel<false, false>);
  launch("quantise", stream, segment_blocks(w.n), kThreads, kernel, w,
         tree_on(stream.device, args.quantizer));
}

}  // namespace

void quantise(Stream stream, const QuantiseArgs& args) {
  const Quantizer& q = args.quantizer;
  check_quantise(stream, args);
  QuantiseWork w{};
  w.n = args.in.numel();
  w.in = source_of(args.in);
  w.out = sink_of(args.out);
  if (args.mask.defined()) {
    check_type("quantise", args.mask, DType::U8);
    w.mask = static_cast<uint8_t*>(written(args.mask));
    w.mask_aligned = is_aligned(w.mask, DType::U8);
  }
  Tensor sums;
  w.stats = stats_sink(stream, args, sums);
  if (q.block.kind != Block::Kind::None && !q.is_identity()) {
    const BlockRule rule = make_block_rule(q, args.out.dtype());
    w.rounder = make_rounder(stream.device, q, args.key, make_block_grid(q, rule));
    quantise_blocks(stream, args, w, rule);
  } else {
    w.rounder = make_rounder(stream.device, q, args.key);
    const bool tell = tells(w);
    auto* kernel = is_lattice(w.rounder.how)
                       ? (tell ? quantise_kernel<true> : quantise_kernel<false>)
                       : (tell ? quantise_others_kernel<true> : quantise_others_kernel<false>);
    constexpr int64_t kSmall = int64_t{1} << 21;
    if (w.rounder.grid.kind == GridKind::Table && q.bits == RandomBits{})
      quantise_table(stream, args, w);
    else if (w.n < kSmall && !tell && is_lattice(w.rounder.how))
      launch("quantise", stream, quad_blocks(w.n), kThreads, quantise_small_kernel, w);
    else
      launch("quantise", stream, segment_blocks(w.n), kThreads, kernel, w);
  }
  finish_stats(stream, w.stats, w.n);
}

}  // namespace ulp::cuda
