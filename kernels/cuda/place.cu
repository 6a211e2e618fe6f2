#include "core/convert.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/place.h"

namespace ulp::cuda {
namespace {

/// Reads words as they are, or floats of any type as the bits of F32.
template <class Word>
struct Words {
  const Word* in;
  __device__ __forceinline__ Word operator()(int64_t i) const { return in[i]; }
};
struct Floats {
  const void* in;
  DType dtype;
  __device__ __forceinline__ uint32_t operator()(int64_t i) const {
    return bits_of(canonical(load_as_float(in, dtype, i)));
  }
};

/// This thread's elements of [0, n). Index: 32 bits where n and a step beyond it fit, since divisions of 64 are slow.
template <class Index, class Body>
__device__ __forceinline__ void for_indices(int64_t n, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step)
    body(static_cast<Index>(i));
}

/// n: elements of the input.
template <class Index, class Word, class Load>
__global__ void __launch_bounds__(kThreads)
    place_kernel(const __grid_constant__ PlaceAxes axes, Load load, Word* out, int64_t n) {
  for_indices<Index>(n, [&](Index rest) {
    int64_t from = 0, to = 0, width = 1;
    for (int k = axes.rank - 1; k >= 0; --k) {
      const PlaceAxis& axis = axes.axes[k];
      const auto count = static_cast<Index>(axis.count);
      const auto i = static_cast<int64_t>(k == 0 ? rest : rest % count);
      if (k > 0) rest /= count;
      from += i * axis.from;
      to += (axis.begin + axis.step * i) * width;
      width *= axis.extent;
    }
    out[to] = load(from);
  });
}

/// n: elements of the output, each of which is written once.
template <class Index, class Word, class Load>
__global__ void __launch_bounds__(kThreads)
    place_and_fill_kernel(const __grid_constant__ PlaceAxes axes, Load load, Word* out, Word value,
                          int64_t n) {
  for_indices<Index>(n, [&](Index at) {
    Index rest = at;
    int64_t from = 0;
    bool inside = true;
    for (int k = axes.rank - 1; k >= 0; --k) {
      const PlaceAxis& axis = axes.axes[k];
      const auto extent = static_cast<Index>(axis.extent);
      int64_t i = static_cast<int64_t>(k == 0 ? rest : rest % extent) - axis.begin;
      if (k > 0) rest /= extent;
      inside = inside && i >= 0;
      if (axis.step != 1 && inside) {
        const auto place = static_cast<Index>(i), step = static_cast<Index>(axis.step);
        inside = place % step == 0;
        i = static_cast<int64_t>(place / step);
      }
      inside = inside && i < axis.count;
      from += i * axis.from;
    }
    out[static_cast<int64_t>(at)] = inside ? load(from) : value;
  });
}

template <class Index, class Word, class Load>
void run_indexed(Stream stream, const PlaceArgs& args, const Load& load) {
  Word* out = static_cast<Word*>(written(args.out));
  if (args.rest == PlaceArgs::Rest::Stays) {
    const int64_t n = args.in.numel();
    return launch("place", stream, blocks_for(n, kThreads), kThreads,
                  place_kernel<Index, Word, Load>, place_axes(args), load, out, n);
  }
  const int64_t n = args.out.numel();
  launch("place", stream, blocks_for(n, kThreads), kThreads,
         place_and_fill_kernel<Index, Word, Load>, place_axes(args), load, out,
         static_cast<Word>(place_rest(args)), n);
}

template <class Word, class Load>
void run(Stream stream, const PlaceArgs& args, const Load& load) {
  // No extent, count or useful step is beyond the output's elements.
  if (args.out.numel() <= INT32_MAX)
    run_indexed<uint32_t, Word>(stream, args, load);
  else
    run_indexed<uint64_t, Word>(stream, args, load);
}

template <class Word>
void run_words(Stream stream, const PlaceArgs& args) {
  run<Word>(stream, args, Words<Word>{static_cast<const Word*>(args.in.raw())});
}

}  // namespace

void place(Stream stream, const PlaceArgs& args) {
  check_place(stream, args);
  if (args.in.dtype() == args.out.dtype()) {
    switch (size_of(args.in.dtype())) {
      case 1: return run_words<uint8_t>(stream, args);
      case 2: return run_words<uint16_t>(stream, args);
      case 4: return run_words<uint32_t>(stream, args);
      default: return run_words<uint64_t>(stream, args);
    }
  }
  run<uint32_t>(stream, args, Floats{args.in.raw(), args.in.dtype()});
}

}  // namespace ulp::cuda
