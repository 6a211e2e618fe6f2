#pragma once

// Rounding of consecutive elements, at most kBlock at a time, so that what a span needs stays in the first-level cache.

#include <cstdint>

#include "core/fast_grid.h"
#include "core/random.h"
#include "kernels/cpu/blocks.h"

namespace ulp::cpu {

struct TableSteps;

/// A grid with what makes spans of it fast. For one block of a block format: its grid at shift 0 (make_block_grid).
struct SpanGrid {
  Grid grid{};
  FastGrid fast{};
  const TableSteps* steps = nullptr;

  SpanGrid() = default;
  SpanGrid(const Grid& grid, const Quantizer& quantizer);
};

/// Where rounded values lay beyond the bounds: one byte an element, 1 or 0, and how many more. Either may be null.
struct Clamped {
  uint8_t* mask = nullptr;
  int64_t* count = nullptr;
};

/// out[i] = quantise_value(in[i]) with word `index + i` of the source. n ≤ kBlock; out may be in.
void quantise_span(const float* in, float* out, int64_t n, const SpanGrid& grid,
                   const RandomSource& random, int64_t index, Clamped clamped = {});

/// For long tables the numbers' indices only, 0 for NaN; false, and nothing done, for every other grid.
bool round_to_table_codes(const float* in, int64_t n, const SpanGrid& grid,
                          const RandomSource& random, int64_t index, uint8_t* codes);

/// What a loop needs to know of consecutive blocks (see BlockScale).
struct BlockSteps {
  const uint32_t* amax = nullptr;
  const int32_t* shift = nullptr;
  const float *before = nullptr, *after = nullptr;

  BlockSteps from(int64_t block) const {
    return {amax + block, shift + block, before + block, after + block};
  }
};

/// Fills shift, and where scales are no powers of two before and after, of n blocks from their largest magnitudes. `apart`: the factor is not part of `after`.
/// E4M3Tensor's factor never is.
void make_steps(const BlockRule& rule, float tensor, bool apart, int64_t n, const uint32_t* amax,
                int32_t* shift, float* before, float* after);

/// The same for elements whose blocks are runs of `run` elements, the first of which began `phase` elements before in[0].
struct RunLayout {
  int64_t run = 1, phase = 0;
};
struct BlockSpan {
  const SpanGrid& base;  // at shift 0
  const Grid& element;   // make_grid(quantizer)
  const BlockRule& rule;
  float tensor;      // tensor_scale
  BlockSteps steps;  // of the block of in[0], and on
  RunLayout layout;
};
void quantise_block_span(const float* in, float* out, int64_t n, const BlockSpan& blocks,
                         const RandomSource& random, int64_t index, Clamped clamped = {});

/// max(amax, |in[i]| as bits): exact in any order; Inf and NaN sort above all numbers.
uint32_t amax_span(const float* in, int64_t n, uint32_t amax);
/// amax[i] = max(amax[i], |in[i]| as bits).
void amax_each(const float* in, int64_t n, uint32_t* amax);
/// amax[i] = the largest |in[i·run … ]| as bits, for n / run whole runs.
void amax_runs(const float* in, int64_t n, int64_t run, uint32_t* amax);

/// values[i] *= factor.
void scale_span(float* values, int64_t n, float factor);

/// An element-wise quantizer ready to be applied to blocks; does nothing if the quantizer is the identity.
class BlockQuantiser {
 public:
  BlockQuantiser(const Quantizer& quantizer, const RandomKey& key);
  /// In place; `index` is the logical index of values[0].
  void apply(float* values, int64_t n, int64_t index) const {
    if (active_) quantise_span(values, values, n, grid_, random_, index);
  }
  bool active() const { return active_; }

 private:
  bool active_;
  SpanGrid grid_{};
  RandomSource random_{};
};

}  // namespace ulp::cpu
