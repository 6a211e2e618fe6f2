#pragma once

// A quantizer with its draws, as kernels apply it. The rounding that a launch needs is the same for all its threads, so it
// is a branch, not a template: the short forms of core/fast_grid.h are inlined, everything else is one function.

#include "core/fast_grid.h"
#include "core/random.h"
#include "kernels/cuda/pack.cuh"

namespace ulp::cuda {

struct Rounder {
  enum class How : uint8_t {
    Copy,
    Nearest,     // Spaced
    Stochastic,  // Spaced, Bounds::Plain
    StochasticBounded,
    NearestCut,
    StochasticCut,
    NearestPosit,
    StochasticPosit,
    Any,
  };
  How how = How::Copy;
  Grid grid{};
  FastGrid fast{};            // of blocks: at shift 0
  bool makes_no_nan = false;  // the short form makes no NaN of finite values
  RandomKey key{};

  /// Draws plainly: one word an element, all of it.
  static constexpr bool draws(How how) {
    return how == How::Stochastic || how == How::StochasticBounded || how == How::StochasticCut ||
           how == How::StochasticPosit;
  }
  __device__ RandomSource random() const {
    return how != How::Copy && grid.rounding == Rounding::Stochastic ? RandomSource(key)
                                                                     : RandomSource();
  }
};

/// The numbers of a codebook in a device's memory, copied there once.
const float* table_on(Device device, int table);

/// `fast` follows from the given grid: the quantizer's own, or that of its blocks at shift 0 (make_block_grid).
inline Rounder make_rounder(Device device, const Quantizer& quantizer, const RandomKey& key,
                            const Grid& fast_of) {
  using How = Rounder::How;
  Rounder rounder;
  rounder.grid = make_grid(quantizer);
  rounder.key = key;
  rounder.how = How::Any;
  if (rounder.grid.kind == GridKind::Table)
    rounder.grid.table = table_on(device, quantizer.format.table);
  rounder.fast = make_fast_grid(fast_of);
  rounder.makes_no_nan = makes_no_nan(rounder.fast);
  const bool stochastic = quantizer.rounding == Rounding::Stochastic;
  const bool plain = rounder.fast.bounds == FastGrid::Bounds::Plain;
  if (rounder.fast.form == FastGrid::Form::Spaced)
    rounder.how = !stochastic ? How::Nearest : plain ? How::Stochastic : How::StochasticBounded;
  if (rounder.fast.form == FastGrid::Form::CutBits)
    rounder.how = stochastic ? How::StochasticCut : How::NearestCut;
  if (rounder.grid.kind == GridKind::Posit && quantizer.rounding == Rounding::NearestEven)
    rounder.how = How::NearestPosit;
  if (rounder.grid.kind == GridKind::Posit && stochastic && quantizer.bits == RandomBits{})
    rounder.how = How::StochasticPosit;
  return rounder;
}

/// Element-wise.
inline Rounder make_rounder(Device device, const Quantizer& quantizer, const RandomKey& key) {
  if (quantizer.is_identity()) return {};
  return make_rounder(device, quantizer, key, make_grid(quantizer));
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

/// Kernels pass a grid of their __grid_constant__ parameters: a reference costs no copy.
__device__ __noinline__ inline Rounded round_any(float x, const Grid& grid, uint32_t random) {
  Rounded r;
  r.value = quantise_value(x, grid, grid.rounding, random, &r.clamped);
  return r;
}

/// One value with its word in a short form; blocks lie `shift` above the rounder's grid.
template <Rounder::How kHow, fast::Specials kSpecials = fast::Specials::Possible>
__device__ __forceinline__ Rounded round_fast(float x, const Rounder& rounder, int32_t shift,
                                              uint32_t random) {
  using How = Rounder::How;
  constexpr auto kBounds =
      kHow == How::Stochastic ? FastGrid::Bounds::Plain : FastGrid::Bounds::Any;
  const FastGrid& fast = rounder.fast;
  Rounded r;
  if constexpr (kHow == How::Nearest) {
    r.value = fast::nearest_spaced<kBounds, kSpecials>(x, fast, shift, r.clamped);
  } else if constexpr (kHow == How::Stochastic || kHow == How::StochasticBounded) {
    r.value = fast::stochastic_spaced<kBounds, kSpecials>(x, fast, shift, random, r.clamped);
  } else if constexpr (kHow == How::NearestCut) {
    r.value = fast::nearest_cut<kBounds, kSpecials>(x, fast, r.clamped);
  } else if constexpr (kHow == How::StochasticCut) {
    r.value = fast::stochastic_cut<kBounds, kSpecials>(x, fast, random, r.clamped);
  } else if constexpr (kHow == How::NearestPosit) {
    r.value = quantise_posit(x, rounder.grid, Rounding::NearestEven, 0, &r.clamped);
  } else {
    bool uneven = false;
    r.value = quantise_posit(x, rounder.grid, Rounding::Stochastic, random, &r.clamped, &uneven);
    if (uneven) r = round_any(x, rounder.grid, random);
  }
  return r;
}

/// Calls body.operator()<how>(): one branch for all that the body unrolls.
template <class Body>
__device__ __forceinline__ void for_how(Rounder::How how, const Body& body) {
  using How = Rounder::How;
  switch (how) {
    case How::Copy: return body.template operator()<How::Copy>();
    case How::Nearest: return body.template operator()<How::Nearest>();
    case How::Stochastic: return body.template operator()<How::Stochastic>();
    case How::StochasticBounded: return body.template operator()<How::StochasticBounded>();
    case How::NearestCut: return body.template operator()<How::NearestCut>();
    case How::StochasticCut: return body.template operator()<How::StochasticCut>();
    case How::NearestPosit: return body.template operator()<How::NearestPosit>();
    case How::StochasticPosit: return body.template operator()<How::StochasticPosit>();
    case How::Any: return body.template operator()<How::Any>();
  }
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
  using How = Rounder::How;
  uint32_t clamped = 0;
  for_how(rounder.how, [&]<How kHow>() {
    if constexpr (kHow == How::Copy) {
#pragma unroll
      for (int k = 0; k < kPack; ++k) values[k] = canonical(values[k]);
    } else {
      uint32_t words[kPack] = {};
      if (Rounder::draws(kHow) ||
          (kHow == How::Any && rounder.grid.rounding == Rounding::Stochastic))
        random_words(random, i, words);
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        Rounded r;
        if constexpr (kHow == How::Any)
          r = round_any(values[k], rounder.grid, words[k]);
        else
          r = round_fast<kHow>(values[k], rounder, 0, words[k]);
        values[k] = r.value;
        clamped |= static_cast<uint32_t>(r.clamped) << k;
      }
    }
  });
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
