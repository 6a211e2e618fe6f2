#include "kernels/cpu/spans.h"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <vector>

#include "core/codebook.h"
#include "core/error.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/random_words.h"
#include "kernels/cpu/table_search.h"

namespace ulp::cpu {

/// A table as loops read it. Rounding that draws nothing is a staircase: from first[i] on, x becomes values[i].
struct TableSteps {
  std::vector<float> first, values;
  TableSearch search;  // of long ones: in `first`, or in `values` where the rounding draws
};

namespace {

constexpr size_t kShortTable = 32;  // numbers; longer ones are searched (TableSearch)

using WordBuffer = std::array<uint32_t, kBlock + kWordSlack>;

/// How many of n ≤ kBlock bytes are 1; the others are 0. Eight are added at once: no byte of `words` passes 255.
ULP_HD int64_t count_ones(const uint8_t* bytes, int64_t n) {
  static_assert(kBlock / 8 <= 255);
  uint64_t words = 0;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t word;
    __builtin_memcpy(&word, bytes + i, sizeof word);
    words += word;
  }
  int64_t total = 0;
  for (; words != 0; words >>= 8) total += static_cast<int64_t>(words & 255);
  for (; i < n; ++i) total += bytes[i];
  return total;
}

void add_ones(const uint8_t* bytes, int64_t n, int64_t* count) {
  with_isa([=]() ULP_INLINE { *count += count_ones(bytes, n); });
}

bool draws_plainly(const Grid& grid) {
  return grid.rounding == Rounding::Stochastic && grid.bits == RandomBits{};
}

/// What a loop that stores bytes uses, copied to where these stores cannot change it.
struct Loop {
  const float* in;
  float* out;
  const uint32_t* words;
  uint8_t* mask;  // or codes
  int64_t n;
};

// ---- tables ---------------------------------------------------------------------------------------------------------
TableSteps make_table_steps(const Grid& grid) {
  TableSteps steps;
  steps.values.assign(grid.table, grid.table + grid.table_size);
  const bool stochastic = grid.rounding == Rounding::Stochastic;
  if (!stochastic) steps.first = staircase(grid);
  if (steps.values.size() > kShortTable)
    steps.search = TableSearch(stochastic ? steps.values : steps.first);
  return steps;
}

const TableSteps* steps_of(const Grid& grid, int table) {
  if (grid.kind != GridKind::Table) return nullptr;
  if (grid.rounding == Rounding::Stochastic && !draws_plainly(grid)) return nullptr;
  static std::mutex mutex;
  static auto& known = *new std::map<std::pair<int, Rounding>, TableSteps>;  // never freed: few
  const std::lock_guard lock(mutex);
  const auto [at, is_new] = known.try_emplace({table, grid.rounding});
  if (is_new) at->second = make_table_steps(grid);
  return &at->second;
}

/// Elements of a loop over a table's numbers that stay in registers.
constexpr int64_t kTogether = 32;
using Together = std::array<float, kTogether>;

/// Inf, NaN and the ends of the table.
ULP_HD void finish_table(const float* x, const float* y, float* out, uint8_t* mask, int64_t n,
                         float lowest, float highest) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const float within = x[i] <= lowest ? lowest : (x[i] >= highest ? highest : y[i]);
    const bool finite = (bits_of(x[i]) & ~kSignBit) < kInfinityBits;
    mask[i] = finite && (x[i] < lowest || x[i] > highest) ? 1 : 0;
    out[i] = finite ? within : float_of(kNanBits);
  }
}

void table_span(const float* in, float* out, int64_t n, const TableSteps& steps, uint8_t* mask) {
  const float* first = steps.first.data();
  const float* values = steps.values.data();
  const auto last = static_cast<int64_t>(steps.values.size()) - 1;
  with_isa([=]() ULP_INLINE {
    Together x{}, y;
    for (int64_t begin = 0; begin < n; begin += kTogether) {
      const int64_t count = begin + kTogether < n ? kTogether : n - begin;
      for (int64_t i = 0; i < count; ++i) x[static_cast<size_t>(i)] = in[begin + i];
      y.fill(values[0]);
      for (int64_t v = 1; v <= last; ++v) {
        const float from = first[v], value = values[v];
        for (size_t i = 0; i < kTogether; ++i) y[i] = x[i] >= from ? value : y[i];
      }
      finish_table(x.data(), y.data(), out + begin, mask + begin, count, values[0], values[last]);
    }
  });
}

void table_draw_span(const float* in, float* out, int64_t n, const TableSteps& steps,
                     const uint32_t* words, uint8_t* mask) {
  const float* values = steps.values.data();
  const auto last = static_cast<int64_t>(steps.values.size()) - 1;
  with_isa([=]() ULP_INLINE {
    Together x{}, y, low, high;
    std::array<uint32_t, kTogether> word{};
    for (int64_t begin = 0; begin < n; begin += kTogether) {
      const int64_t count = begin + kTogether < n ? kTogether : n - begin;
      for (int64_t i = 0; i < count; ++i) {
        x[static_cast<size_t>(i)] = in[begin + i];
        word[static_cast<size_t>(i)] = words[begin + i];
      }
      low.fill(values[0]);
      high.fill(values[1]);
      for (int64_t v = 1; v < last; ++v) {
        const float value = values[v], next = values[v + 1];
        // Two loops: in one, GCC 12 branches around masked stores.
        for (size_t i = 0; i < kTogether; ++i) low[i] = x[i] >= value ? value : low[i];
        for (size_t i = 0; i < kTogether; ++i) high[i] = x[i] >= value ? next : high[i];
      }
      for (size_t i = 0; i < kTogether; ++i)
        y[i] = word[i] < fraction_between(x[i], low[i], high[i]) ? high[i] : low[i];
      finish_table(x.data(), y.data(), out + begin, mask + begin, count, values[0], values[last]);
    }
  });
}

/// The number of a long table that a word picks; below: the last one that is ≤ x.
struct Picked {
  int32_t index;
  float value;
};
ULP_HD Picked pick(float x, uint32_t word, const float* values, int32_t last, int32_t below) {
  const int32_t at = below < last ? below : last - 1;
  const float low = values[at], high = values[at + 1];
  const bool up = word < fraction_between(x, low, high);
  return {at + (up ? 1 : 0), up ? high : low};
}

/// Long tables; words: null for roundings that draw nothing.
void long_table_span(const float* in, float* out, int64_t n, const TableSteps& steps,
                     const uint32_t* words, uint8_t* mask) {
  std::array<int32_t, kBlock> buffer;
  BlockBuffer rounded;
  int32_t* found = buffer.data();
  float* y = rounded.data();
  steps.search.find(in, n, found);
  const float* values = steps.values.data();
  const auto last = static_cast<int32_t>(steps.values.size()) - 1;
  with_isa([=]() ULP_INLINE {
    if (words == nullptr) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) y[i] = values[found[i]];
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) y[i] = pick(in[i], words[i], values, last, found[i]).value;
    }
    finish_table(in, y, out, mask, n, values[0], values[last]);
  });
}

/// The numbers' indices; 0 for Inf and NaN.
void long_table_codes(const float* in, int64_t n, const TableSteps& steps, const uint32_t* words,
                      uint8_t* codes) {
  std::array<int32_t, kBlock> buffer;
  steps.search.find(in, n, buffer.data());
  with_isa([=, found = buffer.data(), values = steps.values.data(),
            end = static_cast<int32_t>(steps.values.size()) - 1]() ULP_INLINE {
    const Loop l{in, nullptr, words, codes, n};
    const int32_t* const below = found;
    const float* const table = values;
    const int32_t last = end;
    const float lowest = table[0], highest = table[last];
    const auto code = [=](float x, int32_t index) ULP_INLINE {
      return static_cast<uint8_t>((bits_of(x) & ~kSignBit) < kInfinityBits ? index : 0);
    };
    if (l.words == nullptr) {
#pragma GCC ivdep
      for (int64_t i = 0; i < l.n; ++i) l.mask[i] = code(l.in[i], below[i]);
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < l.n; ++i) {
        const float x = l.in[i];
        const int32_t index = pick(x, l.words[i], table, last, below[i]).index;
        l.mask[i] = code(x, x <= lowest ? 0 : x >= highest ? last : index);
      }
    }
  });
}

// ---- posits ---------------------------------------------------------------------------------------------------------
void posit_span(const float* in, float* out, int64_t n, const Grid& given, uint8_t* mask) {
  with_isa([=]() ULP_INLINE {
    const Grid grid = given;
    const Loop l{in, out, nullptr, mask, n};
#pragma GCC ivdep
    for (int64_t i = 0; i < l.n; ++i) {
      bool clamped = false;
      l.out[i] = quantise_posit(l.in[i], grid, Rounding::NearestEven, 0u, &clamped);
      l.mask[i] = clamped ? 1 : 0;
    }
  });
}

void posit_draw_span(const float* in, float* out, int64_t n, const Grid& given,
                     const uint32_t* words, uint8_t* mask) {
  BlockBuffer result;
  std::array<uint8_t, kBlock> again;
  float* y = result.data();
  uint8_t* redo = again.data();
  with_isa([=]() ULP_INLINE {
    const Grid grid = given;
    const Loop l{in, y, words, mask, n};
    uint8_t* flags = redo;
#pragma GCC ivdep
    for (int64_t i = 0; i < l.n; ++i) {
      bool clamped = false, uneven = false;
      l.out[i] = quantise_posit(l.in[i], grid, Rounding::Stochastic, l.words[i], &clamped, &uneven);
      flags[i] = uneven ? 1 : 0;
      l.mask[i] = clamped ? 1 : 0;
    }
  });
  for (int64_t i = 0; i < n; ++i)
    if (redo[i] != 0) y[i] = quantise_posit(in[i], given, Rounding::Stochastic, words[i], nullptr);
  std::copy(y, y + n, out);
}

// ---- lattices -------------------------------------------------------------------------------------------------------
template <class Call>
void for_rounding(Rounding rounding, Call call) {
  switch (rounding) {
    case Rounding::NearestEven: return call.template operator()<Rounding::NearestEven>();
    case Rounding::NearestAway: return call.template operator()<Rounding::NearestAway>();
    case Rounding::NearestUp: return call.template operator()<Rounding::NearestUp>();
    case Rounding::TowardZero: return call.template operator()<Rounding::TowardZero>();
    case Rounding::Up: return call.template operator()<Rounding::Up>();
    case Rounding::Down: return call.template operator()<Rounding::Down>();
    case Rounding::Odd: return call.template operator()<Rounding::Odd>();
    case Rounding::Stochastic: return call.template operator()<Rounding::Stochastic>();
  }
}

bool is_plain(const Grid& grid) {
  return grid.kind == GridKind::Lattice && grid.wrap_bits == 0 && grid.bits == RandomBits{};
}

/// A grid whose rare cases are known to be absent, so that the loop around it vectorises.
ULP_HD Grid plain(const Grid& grid) {
  Grid g = grid;
  g.kind = GridKind::Lattice;
  g.wrap_bits = 0;
  g.bits = RandomBits{};
  return g;
}

/// Any rounding of any grid: out = quantise_value(in · before) · after.
void general_span(const float* in, float* out, int64_t n, const Grid& grid, const BlockScale& scale,
                  const uint32_t* words, uint8_t* mask) {
  const float before = scale.before, after = scale.after;
  if (!is_plain(grid)) {
    for (int64_t i = 0; i < n; ++i) {
      bool clamped = false;
      out[i] = quantise_value(in[i] * before, grid, grid.rounding, words == nullptr ? 0u : words[i],
                              &clamped) *
               after;
      mask[i] = clamped ? 1 : 0;
    }
    return;
  }
  for_rounding(grid.rounding, [&]<Rounding kMode>() {
    with_isa([=]() ULP_INLINE {
      const Grid g = plain(grid);
      const Loop l{in, out, words, mask, n};
      const float first = before, last = after;
#pragma GCC ivdep
      for (int64_t i = 0; i < l.n; ++i) {
        bool clamped = false;
        l.out[i] = quantise_value(l.in[i] * first, g, kMode,
                                  kMode == Rounding::Stochastic ? l.words[i] : 0u, &clamped) *
                   last;
        l.mask[i] = clamped ? 1 : 0;
      }
    });
  });
}

/// Which fast form a loop is made for.
struct Fast {
  bool stochastic, cut;
  FastGrid::Bounds bounds;
};

template <Fast kFast, fast::Specials kSpecials = fast::Specials::Possible>
ULP_HD float fast_value(float x, const FastGrid& g, int32_t shift, uint32_t word, bool& clamped) {
  if constexpr (kFast.cut && kFast.stochastic)
    return fast::stochastic_cut<kFast.bounds, kSpecials>(x, g, word, clamped);
  else if constexpr (kFast.cut)
    return fast::nearest_cut<kFast.bounds, kSpecials>(x, g, clamped);
  else if constexpr (kFast.stochastic)
    return fast::stochastic_spaced<kFast.bounds, kSpecials>(x, g, shift, word, clamped);
  else
    return fast::nearest_spaced<kFast.bounds, kSpecials>(x, g, shift, clamped);
}

/// For loops that always make a mask.
Clamped with_mask(Clamped to, std::array<uint8_t, kBlock>& unwanted) {
  return {to.mask != nullptr ? to.mask : unwanted.data(), to.count};
}
/// Counts where only a mask was made.
void count_mask(const Clamped& made, int64_t n) {
  if (made.mask != nullptr && made.count != nullptr) add_ones(made.mask, n, made.count);
}

/// What a loop tells of clamping.
enum class Tell : uint8_t { Nothing, Mask, Count };

Tell tell_of(const Clamped& clamped) {
  if (clamped.mask != nullptr) return Tell::Mask;
  return clamped.count != nullptr ? Tell::Count : Tell::Nothing;
}

template <class Call>
void for_fast(const FastGrid& g, bool stochastic, Tell tell, Call call) {
  const auto with = [&]<Fast kFast>() {
    switch (tell) {
      case Tell::Nothing: return call.template operator()<kFast, Tell::Nothing>();
      case Tell::Mask: return call.template operator()<kFast, Tell::Mask>();
      case Tell::Count: return call.template operator()<kFast, Tell::Count>();
    }
  };
  const auto with_form = [&]<bool kStochastic, bool kCut>() {
    using Bounds = FastGrid::Bounds;
    switch (g.bounds) {
      case Bounds::Plain: return with.template operator()<Fast{kStochastic, kCut, Bounds::Plain}>();
      case Bounds::Signed:
        return with.template operator()<Fast{kStochastic, kCut, Bounds::Signed}>();
      case Bounds::Any: return with.template operator()<Fast{kStochastic, kCut, Bounds::Any}>();
    }
  };
  const bool cut = g.form == FastGrid::Form::CutBits;
  if (stochastic)
    cut ? with_form.template operator()<true, true>()
        : with_form.template operator()<true, false>();
  else
    cut ? with_form.template operator()<false, true>()
        : with_form.template operator()<false, false>();
}

void fast_span(const float* in, float* out, int64_t n, const FastGrid& given, const uint32_t* words,
               Clamped to) {
  for_fast(given, words != nullptr, tell_of(to), [&]<Fast kFast, Tell kTell>() {
    with_isa([=]() ULP_INLINE {
      const FastGrid g = given;
      const Loop l{in, out, words, to.mask, n};
      int32_t count = 0;
#pragma GCC ivdep
      for (int64_t i = 0; i < l.n; ++i) {
        bool clamped = false;
        l.out[i] = fast_value<kFast>(l.in[i], g, 0, kFast.stochastic ? l.words[i] : 0u, clamped);
        if (kTell == Tell::Mask) l.mask[i] = clamped ? 1 : 0;
        if (kTell == Tell::Count) count += clamped ? 1 : 0;
      }
      if (kTell == Tell::Count) *to.count += count;
    });
  });
}

// ---- blocks ---------------------------------------------------------------------------------------------------------
/// Elements [begin, end) of a span that lie in block number `block` of it.
template <class Body>
ULP_HD void for_runs(int64_t n, RunLayout layout, const Body& body) {
  int64_t begin = 0, block = 0, end = layout.run - layout.phase;
  while (begin < n) {
    body(begin, end < n ? end : n, block);
    begin = end;
    end += layout.run;
    ++block;
  }
}

int64_t blocks_of(int64_t n, RunLayout layout) {
  return (layout.phase + n + layout.run - 1) / layout.run;
}

/// Some block is not just its grid's shift: before and after say more than whether it holds Inf or NaN.
bool is_multiplied(const BlockRule& rule) {
  return rule.kind == BlockRule::Kind::Scaled &&
         (rule.scale.kind != Scale::Kind::PowerOfTwo || rule.three_quarters);
}

bool all_fast(const BlockSpan& b, int64_t n) {
  if (b.base.fast.form == FastGrid::Form::None) return false;
  const int64_t count = blocks_of(n, b.layout);
  const int32_t low = b.base.fast.least_shift, high = b.base.fast.most_shift;
  const BlockSteps steps = b.steps;
  int32_t others = 0;
  int32_t* result = &others;
  with_isa([=]() ULP_INLINE {
    int32_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t s = steps.shift[i];
      found |= (s < low ? 1 : 0) | (s > high ? 1 : 0) | (steps.amax[i] >= kInfinityBits ? 1 : 0);
    }
    *result = found;
  });
  return others == 0;
}

void fast_block_span(const float* in, float* out, int64_t n, const BlockSpan& b,
                     const uint32_t* words, Clamped to) {
  constexpr int64_t kPiece = 16;
  const BlockSteps steps = b.steps;
  const RunLayout layout = b.layout;
  const auto call = [&]<Fast kFast, Tell kTell, bool kScaled>() {
    with_isa([=, given = b.base.fast]() ULP_INLINE {
      const FastGrid g = given;
      const Loop l{in, out, words, to.mask, n};
      const BlockSteps at = steps;
      int32_t counts[kPiece] = {};
      const auto one = [=](int64_t i, int32_t shift, float before, float after,
                           int32_t& count) ULP_INLINE {
        bool clamped = false;
        const float x = kScaled ? l.in[i] * before : l.in[i];
        // A block with Inf or NaN does not come here, but x · before may be Inf.
        constexpr auto kSpecials = kScaled ? fast::Specials::Possible : fast::Specials::Absent;
        const float y =
            fast_value<kFast, kSpecials>(x, g, shift, kFast.stochastic ? l.words[i] : 0u, clamped);
        l.out[i] = kScaled ? y * after : y;
        if (kTell == Tell::Mask) l.mask[i] = clamped ? 1 : 0;
        if (kTell == Tell::Count) count += clamped ? 1 : 0;
      };
      if (layout.run == 1) {
        int32_t count = 0;
#pragma GCC ivdep
        for (int64_t i = 0; i < l.n; ++i)
          one(i, at.shift[i], kScaled ? at.before[i] : 1, kScaled ? at.after[i] : 1, count);
        counts[0] = count;
      } else if (layout.run % kPiece == 0 && layout.phase == 0 && n % layout.run == 0) {
        const int64_t blocks = n / layout.run, pieces = layout.run / kPiece;
        for (int64_t block = 0; block < blocks; ++block) {
          const int32_t shift = steps.shift[block];
          const float before = steps.before[block], after = steps.after[block];
          for (int64_t piece = 0; piece < pieces; ++piece) {
            const int64_t begin = block * layout.run + piece * kPiece;
#pragma GCC ivdep
            for (int64_t i = 0; i < kPiece; ++i) one(begin + i, shift, before, after, counts[i]);
          }
        }
      } else {
        for_runs(n, layout, [=, &counts](int64_t begin, int64_t end, int64_t block) ULP_INLINE {
          const int32_t shift = steps.shift[block];
          const float before = steps.before[block], after = steps.after[block];
          int32_t count = 0;
#pragma GCC ivdep
          for (int64_t i = begin; i < end; ++i) one(i, shift, before, after, count);
          counts[0] += count;
        });
      }
      if (kTell == Tell::Count)
        for (const int32_t count : counts) *to.count += count;
    });
  };
  for_fast(b.base.fast, words != nullptr, tell_of(to), [&]<Fast kFast, Tell kTell>() {
    if (is_multiplied(b.rule))
      call.template operator()<kFast, kTell, true>();
    else
      call.template operator()<kFast, kTell, false>();
  });
}

/// The grid and the scales of one block, from the definition.
BlockScale set_element(Grid& grid, const BlockSpan& b, int64_t block) {
  grid = b.element;
  BlockScale scale = set_block(grid, b.rule, b.steps.amax[block], b.tensor);
  if (is_multiplied(b.rule)) {  // the factor may be folded in
    scale.before = b.steps.before[block];
    scale.after = b.steps.after[block];
  }
  return scale;
}

/// Neighbours in different blocks, in a loop that vectorises.
void general_each_span(const float* in, float* out, int64_t n, const BlockSpan& b,
                       const uint32_t* words) {
  const BlockSteps steps = b.steps;
  const bool multiplied = is_multiplied(b.rule);
  for_rounding(b.element.rounding, [&]<Rounding kMode>() {
    with_isa([=, given = b.element, rule = b.rule, tensor = b.tensor]() ULP_INLINE {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) {
        Grid g = plain(given);
        const BlockScale own = set_block(g, rule, steps.amax[i], tensor);
        const float before = multiplied ? steps.before[i] : own.before;
        out[i] = quantise_value(in[i] * before, g, kMode,
                                kMode == Rounding::Stochastic ? words[i] : 0u) *
                 (multiplied ? steps.after[i] : 1.0f);
      }
    });
  });
}

}  // namespace

SpanGrid::SpanGrid(const Grid& g, const Quantizer& quantizer)
    : grid(g), fast(make_fast_grid(g)), steps(steps_of(g, quantizer.format.table)) {}

void quantise_span(const float* in, float* out, int64_t n, const SpanGrid& grid,
                   const RandomSource& random, int64_t index, Clamped to) {
  WordBuffer buffer;
  const bool stochastic = grid.grid.rounding == Rounding::Stochastic;
  const uint32_t* words = stochastic ? random_words(random, index, n, buffer.data()) : nullptr;
  if (grid.fast.form != FastGrid::Form::None) {
    fast_span(in, out, n, grid.fast, words, to);
    return count_mask(to, n);
  }
  std::array<uint8_t, kBlock> unwanted;
  to = with_mask(to, unwanted);
  if (grid.steps != nullptr && grid.steps->values.size() > kShortTable)
    long_table_span(in, out, n, *grid.steps, words, to.mask);
  else if (grid.steps != nullptr)
    stochastic ? table_draw_span(in, out, n, *grid.steps, words, to.mask)
               : table_span(in, out, n, *grid.steps, to.mask);
  else if (grid.grid.kind == GridKind::Posit && draws_plainly(grid.grid))
    posit_draw_span(in, out, n, grid.grid, words, to.mask);
  else if (grid.grid.kind == GridKind::Posit && grid.grid.rounding == Rounding::NearestEven)
    posit_span(in, out, n, grid.grid, to.mask);
  else
    general_span(in, out, n, grid.grid, {}, words, to.mask);
  count_mask(to, n);
}

bool round_to_table_codes(const float* in, int64_t n, const SpanGrid& grid,
                          const RandomSource& random, int64_t index, uint8_t* codes) {
  if (grid.steps == nullptr || grid.steps->values.size() <= kShortTable) return false;
  WordBuffer buffer;
  const bool stochastic = grid.grid.rounding == Rounding::Stochastic;
  const uint32_t* words = stochastic ? random_words(random, index, n, buffer.data()) : nullptr;
  long_table_codes(in, n, *grid.steps, words, codes);
  return true;
}

void make_steps(const BlockRule& rule, float tensor, bool apart, int64_t n, const uint32_t* amax,
                int32_t* shift, float* before, float* after) {
  const BlockShift block = make_block_shift(rule);
  with_isa([=]() ULP_INLINE {
    const BlockShift own = block;
    const int64_t count = n;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) shift[i] = block_shift(own, amax[i]);
  });
  if (!is_multiplied(rule)) return;
  const bool folded = !apart && rule.scale.kind != Scale::Kind::E4M3Tensor;
  // The kind is the same for all blocks; naming it lets the loop vectorise.
  const auto fill = [&]<Scale::Kind kScale>() {
    with_isa([=]() ULP_INLINE {
      BlockRule r = rule;
      r.kind = BlockRule::Kind::Scaled;
      r.scale.kind = kScale;
      const int64_t count = n;
#pragma GCC ivdep
      for (int64_t i = 0; i < count; ++i) {
        const BlockScale scale = block_scale(r, amax[i], tensor);
        before[i] = scale.before;
        after[i] = folded ? scale.after * scale.factor : scale.after;
      }
    });
  };
  switch (rule.scale.kind) {
    case Scale::Kind::E4M3: return fill.template operator()<Scale::Kind::E4M3>();
    case Scale::Kind::E4M3Tensor: return fill.template operator()<Scale::Kind::E4M3Tensor>();
    case Scale::Kind::F32:
    case Scale::Kind::Delayed: return fill.template operator()<Scale::Kind::F32>();
    default: return fill.template operator()<Scale::Kind::PowerOfTwo>();
  }
}

/// Blocks whose grid is the element's own: the scales around quantise_span.
static void scaled_span(const float* in, float* out, int64_t n, const BlockSpan& b,
                        const RandomSource& random, int64_t index, Clamped to) {
  BlockBuffer scaled{};
  for_runs(n, b.layout, [&](int64_t begin, int64_t end, int64_t block) {
    const float before = b.steps.before[block];
    for (int64_t i = begin; i < end; ++i) scaled[static_cast<size_t>(i)] = in[i] * before;
  });
  quantise_span(scaled.data(), out, n, b.base, random, index, to);
  for_runs(n, b.layout, [&](int64_t begin, int64_t end, int64_t block) {
    scale_span(out + begin, end - begin, b.steps.after[block]);
  });
}

void quantise_block_span(const float* in, float* out, int64_t n, const BlockSpan& b,
                         const RandomSource& random, int64_t index, Clamped to) {
  const bool own_grid =
      b.rule.kind != BlockRule::Kind::Scaled || b.rule.scale.kind == Scale::Kind::PowerOfTwo;
  if (!own_grid && b.base.fast.form == FastGrid::Form::None)
    return scaled_span(in, out, n, b, random, index, to);
  WordBuffer buffer;
  const bool stochastic = b.element.rounding == Rounding::Stochastic;
  const uint32_t* words = stochastic ? random_words(random, index, n, buffer.data()) : nullptr;
  if (all_fast(b, n)) {
    fast_block_span(in, out, n, b, words, to);
    return count_mask(to, n);
  }
  if (b.layout.run == 1 && tell_of(to) == Tell::Nothing && is_plain(b.element))
    return general_each_span(in, out, n, b, words);
  std::array<uint8_t, kBlock> unwanted;
  to = with_mask(to, unwanted);
  for_runs(n, b.layout, [&](int64_t begin, int64_t end, int64_t block) {
    Grid grid;
    const BlockScale scale = set_element(grid, b, block);
    general_span(in + begin, out + begin, end - begin, grid, scale,
                 stochastic ? words + begin : nullptr, to.mask + begin);
  });
  count_mask(to, n);
}

uint32_t amax_span(const float* in, int64_t n, uint32_t amax) {
  uint32_t result = amax;
  uint32_t* target = &result;
  with_isa([=]() ULP_INLINE {
    uint32_t most = *target;
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t a = bits_of(in[i]) & ~kSignBit;
      most = a > most ? a : most;
    }
    *target = most;
  });
  return result;
}

void amax_each(const float* in, int64_t n, uint32_t* amax) {
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t a = bits_of(in[i]) & ~kSignBit;
      amax[i] = a > amax[i] ? a : amax[i];
    }
  });
}

void amax_runs(const float* in, int64_t n, int64_t run, uint32_t* amax) {
  constexpr int64_t kPiece = 16;
  const int64_t blocks = n / run;
  if (run % kPiece != 0) {
    for (int64_t b = 0; b < blocks; ++b) amax[b] = amax_span(in + b * run, run, 0);
    return;
  }
  with_isa([=]() ULP_INLINE {
    for (int64_t b = 0; b < blocks; ++b) {
      uint32_t lane[kPiece] = {};
      for (int64_t begin = b * run; begin < (b + 1) * run; begin += kPiece)
        for (int64_t l = 0; l < kPiece; ++l) {
          const uint32_t a = bits_of(in[begin + l]) & ~kSignBit;
          lane[l] = a > lane[l] ? a : lane[l];
        }
      uint32_t most = 0;
      for (int64_t l = 0; l < kPiece; ++l) most = lane[l] > most ? lane[l] : most;
      amax[b] = most;
    }
  });
}

void scale_span(float* values, int64_t n, float factor) {
  with_isa([=]() ULP_INLINE {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) values[i] *= factor;
  });
}

BlockQuantiser::BlockQuantiser(const Quantizer& quantizer, const RandomKey& key)
    : active_(!quantizer.is_identity()) {
  ULP_CHECK(quantizer.is_elementwise(), "{}: block formats cannot be applied inside this kernel",
            quantizer);
  if (!active_) return;
  grid_ = SpanGrid(make_grid(quantizer), quantizer);
  random_ = RandomSource(key);
}

}  // namespace ulp::cpu
