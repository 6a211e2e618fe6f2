#pragma once

// What the kernels of norms share: where an element lies, statistics and parameters, the roundings of an interior.

#include "kernels/cuda/interior.cuh"
#include "kernels/norm.h"

namespace ulp::cuda {

/// NormLayout with what kernels divide by. Rows of 2^31 elements and more are refused.
struct Layout {
  int64_t rows;
  uint32_t channels, width, groups;
  int64_t span;
  bool per_channel;

  __device__ int64_t statistic(int64_t row, uint32_t channel) const {
    if (per_channel) return channel;
    const int64_t block = span == 1 ? row : row / span;
    return groups == 1 ? block : block * groups + channel / width;
  }
};

struct Statistics {
  const float *mean, *inverse;  // mean: null is zero
  Layout layout;
  bool aligned;  // four neighbours from a multiple of four on are one access

  __device__ __forceinline__ float mean_of(int64_t i) const {
    return mean == nullptr ? 0.0f : mean[i];
  }
};

/// One number a channel; no data: the same for all.
struct Channels {
  Source source;
  float other;

  __device__ __forceinline__ float at(uint32_t channel) const {
    if (source.data == nullptr) return other;
    return source.dtype == DType::F32 ? static_cast<const float*>(source.data)[channel]
                                      : load_one(source.data, source.dtype, channel);
  }
};

/// Where an element lies.
struct Place {
  int64_t row;
  uint32_t channel;

  __device__ void next(uint32_t channels) {
    if (++channel == channels) channel = 0, ++row;
  }
};

__device__ __forceinline__ Place place_of(int64_t i, uint32_t channels) {
  if (i <= UINT32_MAX) {
    const auto small = static_cast<uint32_t>(i);
    return {small / channels, small % channels};
  }
  return {i / channels, static_cast<uint32_t>(i % channels)};
}

/// One value, whatever its neighbours are, in the short forms too.
__device__ __noinline__ inline float round_apart(const Rounder& rounder, const RandomSource& random,
                                                 int64_t i, float value) {
  float result = value;
  for_how(rounder.how, [&]<Rounder::How kHow>() {
    if constexpr (kHow == Rounder::How::Copy) {
      result = canonical(value);
    } else if constexpr (kHow == Rounder::How::Any) {
      const bool draws = rounder.grid.rounding == Rounding::Stochastic;
      result =
          round_any(value, rounder.grid, draws ? random.word(static_cast<uint64_t>(i)) : 0u).value;
    } else {
      uint32_t word = 0;
      if constexpr (Rounder::draws(kHow)) word = random.word(static_cast<uint64_t>(i));
      result = round_fast<kHow>(value, rounder, 0, word).value;
    }
  });
  return result;
}

/// Mostly there is nothing to do.
__device__ __forceinline__ float round_single(const Rounder& rounder, const RandomSource& random,
                                              int64_t i, float value) {
  if (rounder.how == Rounder::How::Copy) return canonical(value);
  return round_apart(rounder, random, i, value);
}
__device__ __forceinline__ float round_single(const InteriorRounder& rounder,
                                              const RandomSource& random, int64_t i, float value) {
  if (rounder.how == Rounder::How::Copy) return canonical(value);
  rounder.note(i, value);
  return round_apart(rounder, random, i, value);
}

/// Elements i, i + step … In line to nearest, where no word is drawn.
template <int kCount>
__device__ __forceinline__ void round_rows(const Rounder& rounder, const RandomSource& random,
                                           int64_t i, int64_t step, float (&x)[kCount]) {
  using How = Rounder::How;
  const auto nearest = [&]<How kHow>() {
#pragma unroll
    for (int k = 0; k < kCount; ++k) x[k] = round_fast<kHow>(x[k], rounder, 0, 0u).value;
  };
  switch (rounder.how) {
    case How::Nearest: return nearest.template operator()<How::Nearest>();
    case How::NearestCut: return nearest.template operator()<How::NearestCut>();
    default:
#pragma unroll
      for (int k = 0; k < kCount; ++k) x[k] = round_single(rounder, random, i + k * step, x[k]);
  }
}

/// The draws 0 … 3 of a norm: mean, variance, inverse deviation, normalised value.
struct Interior {
  InteriorRounder at[4];
  __device__ float one(int which, int64_t i, float value) const {
    return round_single(at[which], at[which].random(), i, value);
  }
};

inline Interior interior_of(const char* kernel, Stream stream, const NormInterior& n) {
  Interior interior;
  make_interior(kernel, stream, n.format, n.key, n.trace, interior.at);
  return interior;
}

inline Layout layout_of(const char* kernel, const NormLayout& l) {
  ULP_CHECK(l.channels < INT32_MAX, "{}: {} channels are more than its CUDA kernel takes", kernel,
            l.channels);
  return {l.rows,
          static_cast<uint32_t>(l.channels),
          static_cast<uint32_t>(l.width()),
          static_cast<uint32_t>(l.groups),
          std::max<int64_t>(1, l.span),
          l.per_channel()};
}

inline const float* floats_of(const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; }
inline float* written_floats(const Tensor& t) {
  return t.defined() ? static_cast<float*>(written(t)) : nullptr;
}
inline bool aligned_floats(const Tensor& t) {
  return !t.defined() || is_aligned(t.raw(), DType::F32);
}
inline Statistics statistics_of(const char* kernel, const Tensor& mean, const Tensor& inverse,
                                const NormLayout& layout) {
  return {floats_of(mean), floats_of(inverse), layout_of(kernel, layout),
          aligned_floats(mean) && aligned_floats(inverse)};
}
inline Channels channels_of(const Tensor& t, float other) {
  return {t.defined() ? source_of(t) : Source{}, other};
}

/// What the kernels of norms read; grad: backward.
struct NormInput {
  Source x, grad;
};

/// What becomes of normalised values, or of their gradients.
struct NormOutput {
  Channels weight, bias;
  bool affine;  // forward: there is one of these
  Rounder output;
  Sink out;
};

/// The work of a kernel as far as it follows from what all their Args have: a NormInput, and a NormOutput where there is one.
template <class Work, class Args>
Work norm_work(const char* kernel, Stream stream, const Args& args) {
  check_no_f64(kernel, args.x);
  Work w{};
  w.x = source_of(args.x);
  if constexpr (requires { args.grad; }) w.grad = source_of(args.grad);
  if constexpr (requires { args.out; }) {
    w.weight = channels_of(args.weight, 1);
    w.output = make_elementwise_rounder(kernel, stream.device, args.output, args.key);
    w.out = sink_of(args.out);
    if constexpr (requires { args.bias; }) {
      w.bias = channels_of(args.bias, 0);
      w.affine = args.weight.defined() || args.bias.defined();
    }
  }
  return w;
}

}  // namespace ulp::cuda
