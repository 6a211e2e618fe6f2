#pragma once

// A quantizer with its draws, as kernels apply it. The rounding that a launch needs is the same for all its threads, so it
// is a branch, not a template: nearest-even and 32-bit stochastic rounding are inlined, everything else is one function.

#include "core/grid.h"
#include "core/random.h"
#include "kernels/cuda/pack.cuh"

namespace ulp::cuda {

struct Rounder {
  enum class How : uint8_t { Copy, Nearest, Stochastic, Any };
  How how = How::Copy;
  Grid grid{};
  RandomKey key{};

  __device__ RandomSource random() const {
    return how != How::Copy && grid.rounding == Rounding::Stochastic ? RandomSource(key)
                                                                     : RandomSource();
  }
};

/// The numbers of a codebook in a device's memory, copied there once.
const float* table_on(Device device, int table);

/// Block formats included: their grid is set later, by set_block.
inline Rounder make_rounder(Device device, const Quantizer& quantizer, const RandomKey& key) {
  Rounder rounder;
  if (quantizer.is_identity()) return rounder;
  rounder.grid = make_grid(quantizer);
  rounder.key = key;
  rounder.how = Rounder::How::Any;
  if (rounder.grid.kind == GridKind::Table)
    rounder.grid.table = table_on(device, quantizer.format.table);
  if (rounder.grid.kind != GridKind::Lattice || rounder.grid.wrap_bits > 0) return rounder;
  if (quantizer.rounding == Rounding::NearestEven) rounder.how = Rounder::How::Nearest;
  if (quantizer.rounding == Rounding::Stochastic && quantizer.bits == RandomBits{})
    rounder.how = Rounder::How::Stochastic;
  return rounder;
}

inline Rounder make_elementwise_rounder(const char* kernel, Device device,
                                        const Quantizer& quantizer, const RandomKey& key) {
  ULP_CHECK(quantizer.is_elementwise(),
            "{}: {}: block formats cannot be applied inside this kernel", kernel, quantizer);
  return make_rounder(device, quantizer, key);
}

/// Throws unless `out` is contiguous, of this shape, and of a float type that holds what the quantizer makes.
inline void check_output(const char* kernel, const Tensor& out, const Quantizer& quantizer) {
  check_float(kernel, out);
  ULP_CHECK(fits(quantizer, out.dtype()), "{}: {} values do not fit the output's {}", kernel,
            quantizer, out.dtype());
}

struct Rounded {
  float value;
  bool clamped;
};

__device__ __noinline__ inline Rounded round_any(float x, Grid grid, uint32_t random) {
  Rounded r;
  r.value = quantise_value(x, grid, grid.rounding, random, &r.clamped);
  return r;
}

/// One value with its word. `grid` may be the rounder's own or that of a block; `how` is not Copy.
__device__ __forceinline__ Rounded round_with(Rounder::How how, const Grid& grid, float x,
                                              uint32_t random) {
  if (how == Rounder::How::Any) return round_any(x, grid, random);
  Grid plain = grid;  // the rare cases are absent: they fold away
  plain.kind = GridKind::Lattice;
  plain.wrap_bits = 0;
  plain.bits = RandomBits{};
  Rounded r;
  r.value = how == Rounder::How::Nearest
                ? quantise_value(x, plain, Rounding::NearestEven, 0, &r.clamped)
                : quantise_value(x, plain, Rounding::Stochastic, random, &r.clamped);
  return r;
}

/// Words of elements i … i + kPack − 1; i is a multiple of four.
__device__ __forceinline__ void random_words(const RandomSource& random, int64_t i,
                                             uint32_t (&words)[kPack]) {
#pragma unroll
  for (int q = 0; q < kPack / 4; ++q) {
    const PhiloxWords four = random.words(static_cast<uint64_t>(i) / 4 + q);
#pragma unroll
    for (int k = 0; k < 4; ++k) words[4 * q + k] = four.word[k];
  }
}

/// Rounds elements i … i + kPack − 1; bit k of the result tells whether element i + k was clamped.
__device__ __forceinline__ uint32_t round_pack(const Rounder& rounder, const RandomSource& random,
                                               int64_t i, float (&values)[kPack]) {
  uint32_t clamped = 0;
  const auto apply = [&](Rounder::How how, const uint32_t(&words)[kPack]) {
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const Rounded r = round_with(how, rounder.grid, values[k], words[k]);
      values[k] = r.value;
      clamped |= static_cast<uint32_t>(r.clamped) << k;
    }
  };
  uint32_t words[kPack] = {};
  switch (rounder.how) {
    case Rounder::How::Copy:
#pragma unroll
      for (int k = 0; k < kPack; ++k) values[k] = canonical(values[k]);
      break;
    case Rounder::How::Nearest: apply(Rounder::How::Nearest, words); break;
    case Rounder::How::Stochastic:
      random_words(random, i, words);
      apply(Rounder::How::Stochastic, words);
      break;
    case Rounder::How::Any:
      if (rounder.grid.rounding == Rounding::Stochastic) random_words(random, i, words);
      apply(Rounder::How::Any, words);
      break;
  }
  return clamped;
}

/// Rounds one element, whatever its index.
__device__ __forceinline__ float round_one(const Rounder& rounder, const RandomSource& random,
                                           int64_t i, float value) {
  if (rounder.how == Rounder::How::Copy) return canonical(value);
  const bool stochastic = rounder.grid.rounding == Rounding::Stochastic;
  return round_any(value, rounder.grid, stochastic ? random.word(static_cast<uint64_t>(i)) : 0u)
      .value;
}

}  // namespace ulp::cuda
