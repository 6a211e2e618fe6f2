#pragma once

// What CPU kernels are made of: they cut their work into blocks that stay in the first-level cache, decode a block of any
// storage type to fp32, compute, round, and encode it again.

#include <array>
#include <cstdint>

#include "core/dtype.h"
#include "core/grid.h"
#include "core/random.h"
#include "core/tensor.h"

namespace ulp::cpu {

inline constexpr int64_t kBlock = 1024;   // elements
inline constexpr int64_t kGrain = 65536;  // least elements worth a thread
using BlockBuffer = std::array<float, kBlock>;

/// Elements [begin, begin + n) of an array, n ≤ kBlock, as fp32: a pointer into the array itself if it is F32, else into
/// `buffer`.
const float* read_block(const void* data, DType dtype, int64_t begin, int64_t n, float* buffer);

/// Writes values that `dtype` holds exactly, NaNs canonical. `values` may point into the array itself.
void write_block(void* data, DType dtype, int64_t begin, int64_t n, const float* values);

/// out[i] = quantise_value(in[i]) with word `index + i` of the source. n ≤ kBlock; out may be in. mask (optional): where the
/// rounded value lay beyond the bounds.
void quantise_span(const float* in, float* out, int64_t n, const Grid& grid,
                   const RandomSource& random, int64_t index, uint8_t* mask = nullptr);

/// The same where element i belongs to a block of its own with the largest magnitude amax[i].
void quantise_span_blocks(const float* in, float* out, int64_t n, const Grid& grid,
                          const BlockRule& rule, const RandomSource& random, int64_t index,
                          const uint32_t* amax);

/// max(amax, |in[i]| as bits): exact in any order; Inf and NaN sort above all numbers.
uint32_t amax_span(const float* in, int64_t n, uint32_t amax);

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
  Grid grid_{};
  RandomSource random_{};
};

/// Throws unless out's type is F32, or a float type that holds every value of the quantizer's format.
void check_output_type(const char* kernel, const Tensor& out, const Quantizer& quantizer);

}  // namespace ulp::cpu
