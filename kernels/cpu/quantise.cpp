// Quantising a tensor: the largest magnitude of every block, then one pass over the elements in row-major order. Where a
// block's elements lie together, both happen in the same pass.

#include <algorithm>
#include <array>
#include <mutex>
#include <vector>

#include "core/block_map.h"
#include "kernels/cpu/amax.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/quantise_stats.h"
#include "kernels/cpu/spans.h"
#include "kernels/cpu/stream_store.h"
#include "kernels/kernels.h"

namespace ulp::cpu {
namespace {

constexpr int64_t kMostFused =
    65536;  // elements of a block that are looked at again while they are in the cache

/// Rows of consecutive elements; those of a row lie in consecutive blocks, `run` each.
struct Rows {
  int64_t length, run;
};

Rows rows_of(const BlockMap& map, int64_t n) {
  if (map.blocks == 1) return {n, n};
  if (map.inner == 1) {
    const bool flat = map.outer_step != 0 && map.axis % map.group == 0;
    return {flat ? n : map.axis, map.group};
  }
  if (map.inner_step == 0)
    return map.outer == 1 && map.group == 1 ? Rows{n, map.inner} : Rows{map.inner, map.inner};
  return {map.inner, std::min(map.columns, map.inner)};
}

/// One call's tensors and all that follows from its quantizer.
struct Work {
  const void* in;
  DType in_type;
  void* out;
  DType out_type;
  uint8_t* mask;
  int64_t n;
  bool streams;   // the result is too long to stay in a cache
  SpanGrid grid;  // of blocks: at shift 0
  Grid element;
  RandomSource random;
  StatsSum* stats = nullptr;
  // blocks
  bool blocks = false, apart = false;
  BlockRule rule{};
  BlockMap map;
  Rows rows{1, 1};
  float tensor = 1, last = 1;  // E4M3Tensor: S, and what remains to be multiplied
};

/// Per block, for all of them or those of a span.
struct StepArrays {
  std::vector<uint32_t> amax;
  std::vector<int32_t> shift;
  std::vector<float> before, after;

  explicit StepArrays(int64_t n)
      : amax(static_cast<size_t>(n)),
        shift(static_cast<size_t>(n)),
        before(static_cast<size_t>(n)),
        after(static_cast<size_t>(n)) {}
  BlockSteps steps() const { return {amax.data(), shift.data(), before.data(), after.data()}; }
  void make(const Work& w, int64_t first, int64_t count) {
    make_steps(w.rule, w.tensor, w.apart, count, amax.data() + first, shift.data() + first,
               before.data() + first, after.data() + first);
  }
};

uint32_t amax_run(const Work& w, uint32_t amax, int64_t first, int64_t last) {
  return cpu::amax_run(w.in, w.in_type, amax, first, last);
}

uint32_t amax_of_all(const Work& w) { return amax_of(w.in, w.in_type, w.n); }

/// amax[k] = max(amax[k], |elements of a row in its block k|).
void amax_row(const Work& w, int64_t first, uint32_t* amax) {
  if (w.rows.run > 1) {
    for (int64_t at = 0, k = 0; at < w.rows.length; at += w.rows.run, ++k)
      amax[k] = amax_run(w, amax[k], first + at, first + std::min(w.rows.length, at + w.rows.run));
    return;
  }
  BlockBuffer buffer;
  for (int64_t at = 0; at < w.rows.length; at += kBlock) {
    const int64_t count = std::min(kBlock, w.rows.length - at);
    amax_each(read_block(w.in, w.in_type, first + at, count, buffer.data()), count, amax + at);
  }
}

int64_t base_of(const Work& w, int64_t row) {
  const int64_t element = row * w.rows.length;
  return w.map.block_of(element);
}

/// Blocks that several rows share.
void find_amax(const Work& w, std::vector<uint32_t>& amax) {
  std::fill(amax.begin(), amax.end(), 0u);
  if (w.map.blocks == 1) {
    amax[0] = amax_of_all(w);
    return;
  }
  if (w.rows.length == w.n && w.rows.run > 1) {  // whole blocks lie together
    parallel_for(w.map.blocks, std::max<int64_t>(1, kGrain / w.rows.run),
                 [&](int64_t first, int64_t last) {
                   for (int64_t b = first; b < last; ++b)
                     amax[static_cast<size_t>(b)] =
                         amax_run(w, 0, b * w.rows.run, std::min(w.n, (b + 1) * w.rows.run));
                 });
    return;
  }
  const int64_t rows = w.n / w.rows.length;
  const int64_t grain = std::max<int64_t>(1, kGrain / w.rows.length);
  if (w.map.outer_step == 0) {  // every thread meets all blocks
    std::mutex mutex;
    parallel_for(rows, grain, [&](int64_t r0, int64_t r1) {
      std::vector<uint32_t> own(amax.size(), 0u);
      for (int64_t r = r0; r < r1; ++r) amax_row(w, r * w.rows.length, own.data() + base_of(w, r));
      const std::lock_guard lock(mutex);
      for (size_t i = 0; i < own.size(); ++i) amax[i] = std::max(amax[i], own[i]);
    });
    return;
  }
  // Bands of rows have blocks of their own.
  const int64_t in_axis = w.map.inner == 1 ? 1 : w.map.axis;
  const int64_t group = std::min(w.map.inner == 1 ? 1 : w.map.group, in_axis);
  const int64_t bands = (in_axis + group - 1) / group;
  parallel_for(rows / in_axis * bands, std::max<int64_t>(1, grain / group),
               [&](int64_t first, int64_t last) {
                 for (int64_t band = first; band < last; ++band) {
                   const int64_t row = band / bands * in_axis + band % bands * group;
                   const int64_t end = std::min(row + group, (band / bands + 1) * in_axis);
                   for (int64_t r = row; r < end; ++r)
                     amax_row(w, r * w.rows.length, amax.data() + base_of(w, r));
                 }
               });
}

void put(const Work& w, int64_t begin, int64_t count, const float* values) {
  float* out = static_cast<float*>(w.out) + begin;
  if (w.out_type != DType::F32)
    write_block(w.out, w.out_type, begin, count, values);
  else if (w.streams)
    stream_store(out, values, count);
  else
    std::copy(values, values + count, out);
}

/// Calls round(in, to, begin, count, clamped) for the spans of [first, last), none of which crosses the end of a row.
template <class Round>
void for_spans(const Work& w, int64_t row_length, int64_t first, int64_t last, const Round& round) {
  BlockBuffer in_buffer, result;
  StatsWalk stats(w.stats, first);
  for (int64_t begin = first; begin < last;) {
    const int64_t row_end = (begin / row_length + 1) * row_length;
    const int64_t cut = (begin / kBlock + 1) * kBlock;
    const int64_t count = std::min({last, row_end, cut}) - begin;
    const float* in = read_block(w.in, w.in_type, begin, count, in_buffer.data());
    const bool direct =
        !w.streams && w.out_type == DType::F32 && (w.stats == nullptr || w.in != w.out);
    float* to = direct ? static_cast<float*>(w.out) + begin : result.data();
    const Clamped clamped{w.mask != nullptr ? w.mask + begin : nullptr,
                          w.stats != nullptr ? stats.overflow() : nullptr};
    round(in, to, begin, count, clamped);
    if (w.stats != nullptr) stats.add(in, to, count);
    if (!direct) put(w, begin, count, to);
    begin += count;
  }
  stats.finish();
  if (w.streams) stream_fence();
}

template <class Round>
void for_all_spans(const Work& w, int64_t row_length, const Round& round) {
  parallel_for_units(w.n, kStatsRun, kGrain, [&](int64_t first, int64_t last) {
    for_spans(w, row_length, first, last, round);
  });
}

BlockSpan block_span(const Work& w, BlockSteps steps, RunLayout layout) {
  return {w.grid, w.element, w.rule, w.tensor, steps, layout};
}

/// With the blocks' magnitudes known.
void quantise_known(const Work& w, BlockSteps steps) {
  for_all_spans(w, w.rows.length,
                [&](const float* in, float* to, int64_t begin, int64_t count, Clamped clamped) {
                  const int64_t row = begin / w.rows.length, at = begin % w.rows.length;
                  const RunLayout layout{w.rows.run, at % w.rows.run};
                  const int64_t block = base_of(w, row) + at / w.rows.run;
                  quantise_block_span(in, to, count, block_span(w, steps.from(block), layout),
                                      w.random, begin, clamped);
                  if (w.last != 1) scale_span(to, count, w.last);
                });
}

/// Each block lies in one row, and a span's blocks are measured just before they are rounded.
void quantise_fused(const Work& w, float* factors) {
  const int64_t runs_per_row = (w.rows.length + w.rows.run - 1) / w.rows.run;
  parallel_for_units(w.n, kStatsRun, kGrain, [&](int64_t first, int64_t last) {
    StepArrays own(kBlock / w.rows.run + 2);
    int64_t known = -1;  // the block whose magnitude is in own.amax[0]
    for_spans(w, w.rows.length, first, last,
              [&](const float* in, float* to, int64_t begin, int64_t count, Clamped clamped) {
                const int64_t row = begin / w.rows.length, at = begin % w.rows.length;
                const RunLayout layout{w.rows.run, at % w.rows.run};
                const int64_t row_begin = begin - at, block = at / w.rows.run;
                const int64_t blocks = (layout.phase + count + w.rows.run - 1) / w.rows.run;
                const int64_t id = row * runs_per_row + block;
                if (layout.phase == 0 && count % w.rows.run == 0) {
                  amax_runs(in, count, w.rows.run, own.amax.data());
                } else {
                  for (int64_t k = 0; k < blocks; ++k) {
                    if (k == 0 && id == known) continue;
                    const int64_t from = row_begin + (block + k) * w.rows.run;
                    const int64_t end = std::min(from + w.rows.run, row_begin + w.rows.length);
                    own.amax[static_cast<size_t>(k)] = amax_run(w, 0, from, end);
                  }
                }
                own.make(w, 0, blocks);
                if (factors != nullptr)  // those that begin here
                  for (int64_t k = layout.phase == 0 ? 0 : 1; k < blocks; ++k)
                    factors[id + k] =
                        block_scale(w.rule, own.amax[static_cast<size_t>(k)], w.tensor).factor;
                quantise_block_span(in, to, count, block_span(w, own.steps(), layout), w.random,
                                    begin, clamped);
                if (w.last != 1) scale_span(to, count, w.last);
                known = id + blocks - 1;
                own.amax[0] = own.amax[static_cast<size_t>(blocks - 1)];
              });
  });
}

void quantise_delayed(const Work& w, const QuantiseArgs& args) {
  Tensor scaling = args.scaling;
  float* state = scaling.mutable_data<float>();
  const uint32_t amax = amax_of_all(w);
  StepArrays steps(1);
  steps.before[0] = state[0];
  steps.after[0] = w.apart ? 1.0f : factor_of(state[0]);
  if (w.apart) Tensor(args.factors).mutable_data<float>()[0] = factor_of(state[0]);
  quantise_known(w, steps.steps());
  if (!args.frozen) update_delayed(w.rule, state, amax);
}

void quantise_blocks(Work& w, const QuantiseArgs& args) {
  const Quantizer& q = args.quantizer;
  if (q.scale.kind == Scale::Kind::Delayed) return quantise_delayed(w, args);
  if (q.scale.kind == Scale::Kind::E4M3Tensor) {
    w.tensor = tensor_scale(w.rule, amax_of_all(w));
    if (!w.apart) w.last = factor_of(w.tensor);
  }
  float* factors = w.apart ? Tensor(args.factors).mutable_data<float>() : nullptr;
  const bool one_factor = args.factors.defined() && args.factors.numel() == 1;
  if (one_factor && w.map.blocks != 1) {
    factors[0] = block_scale(w.rule, 0, w.tensor).factor;
    factors = nullptr;
  }
  const bool together = w.rows.run > 1 && w.rows.run <= kMostFused &&
                        (w.rows.length == w.n || (w.map.inner == 1 && w.map.outer_step != 0));
  if (together && w.map.blocks > 1 && w.in != w.out) return quantise_fused(w, factors);
  StepArrays steps(w.map.blocks);
  find_amax(w, steps.amax);
  parallel_for(w.map.blocks, kGrain,
               [&](int64_t first, int64_t last) { steps.make(w, first, last - first); });
  if (factors != nullptr)
    for (int64_t b = 0; b < w.map.blocks; ++b)
      factors[b] = block_scale(w.rule, steps.amax[static_cast<size_t>(b)], w.tensor).factor;
  quantise_known(w, steps.steps());
}

void copy_through(const Work& w) {
  for_all_spans(w, w.n, [&](const float* in, float* to, int64_t, int64_t count, Clamped clamped) {
    for (int64_t i = 0; i < count; ++i) to[i] = canonical(in[i]);
    if (clamped.mask != nullptr) std::fill(clamped.mask, clamped.mask + count, uint8_t{0});
  });
}

}  // namespace

void quantise(Stream stream, const QuantiseArgs& args) {
  const Quantizer& q = args.quantizer;
  check_quantise(stream, args);
  Tensor out = args.out, mask = args.mask, stats = args.stats;
  Work w{};
  w.in = args.in.raw();
  w.in_type = args.in.dtype();
  w.out = out.mutable_raw();
  w.out_type = out.dtype();
  w.mask = mask.defined() ? mask.mutable_data<uint8_t>() : nullptr;
  w.n = args.in.numel();
  w.streams = w.out_type == DType::F32 && worth_streaming(out.bytes());
  w.random = RandomSource(args.key);
  StatsSum sum(stats.defined() ? w.n : 0, args.gaps);
  if (stats.defined()) w.stats = &sum;
  if (q.is_identity()) {
    copy_through(w);
  } else if (w.n > 0) {
    w.element = make_grid(q);
    w.map = make_block_map(q, args.in.shape(), args.group_axis);
    w.blocks = q.block.kind != Block::Kind::None;
    if (!w.blocks) {
      w.grid = SpanGrid(w.element, q);
      for_all_spans(w, w.n,
                    [&](const float* in, float* to, int64_t begin, int64_t count, Clamped clamped) {
                      quantise_span(in, to, count, w.grid, w.random, begin, clamped);
                    });
    } else {
      w.apart = args.factors.defined();
      w.rule = make_block_rule(q, out.dtype());
      w.grid = SpanGrid(make_block_grid(q, w.rule), q);
      w.rows = rows_of(w.map, w.n);
      quantise_blocks(w, args);
    }
  }
  if (w.n == 0 && args.factors.defined()) {
    Tensor factors = args.factors;
    std::fill_n(factors.mutable_data<float>(), factors.numel(), 1.0f);
  }
  if (stats.defined()) *static_cast<QuantiseStats*>(stats.mutable_raw()) = sum.total();
}

}  // namespace ulp::cpu
