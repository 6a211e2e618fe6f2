#include "core/random.h"
#include "core/scalar_math.h"
#include "kernels/cuda/pack.cuh"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

/// A strided tensor; axes that run into each other are merged.
struct Layout {
  int rank = 0;
  int64_t extents[kMaxRank];
  int64_t strides[kMaxRank];
};

Layout merge_axes(const Tensor& t) {
  Layout layout;
  for (int axis = 0; axis < t.rank(); ++axis) {
    const int64_t extent = t.size(axis), stride = t.strides()[axis];
    if (extent == 1) continue;
    const int last = layout.rank - 1;
    if (last >= 0 && layout.strides[last] == stride * extent) {
      layout.extents[last] *= extent;
      layout.strides[last] = stride;
    } else {
      layout.extents[layout.rank] = extent;
      layout.strides[layout.rank++] = stride;
    }
  }
  return layout;
}

__device__ __forceinline__ int64_t offset_of(const Layout& layout, int64_t i) {
  int64_t offset = 0;
  for (int axis = layout.rank - 1; axis > 0; --axis) {
    offset += i % layout.extents[axis] * layout.strides[axis];
    i /= layout.extents[axis];
  }
  return layout.rank == 0 ? offset : offset + i * layout.strides[0];
}

/// Calls body(i) for this thread's elements of [0, n).
template <class Body>
__device__ __forceinline__ void for_elements(int64_t n, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step)
    body(i);
}

template <class Word>
__global__ void __launch_bounds__(kThreads)
    copy_kernel(const Word* in, Word* out, Layout layout, int64_t n) {
  for_elements(n, [&](int64_t i) { out[i] = in[offset_of(layout, i)]; });
}

__global__ void __launch_bounds__(kThreads)
    convert_kernel(const void* in, DType dtype, float* out, Layout layout, int64_t n) {
  for_elements(
      n, [&](int64_t i) { out[i] = canonical(load_as_float(in, dtype, offset_of(layout, i))); });
}

template <class Word>
void copy_words(Stream stream, const Tensor& in, void* out) {
  launch("copy", stream, blocks_for(in.numel(), kThreads), kThreads, copy_kernel<Word>,
         static_cast<const Word*>(in.raw()), static_cast<Word*>(out), merge_axes(in), in.numel());
}

template <class T>
__global__ void __launch_bounds__(kThreads) fill_kernel(T* out, T value, int64_t n) {
  for_elements(n, [&](int64_t i) { out[i] = value; });
}

__global__ void __launch_bounds__(kThreads)
    uniform_kernel(Sink out, float low, float width, RandomKey key, int64_t n) {
  const RandomSource random(key);
  for_packs(n, [&](int64_t i, int count) {
    float values[kPack];
#pragma unroll
    for (int q = 0; q < kPack / 4; ++q) {
      const PhiloxWords words = random.words(static_cast<uint64_t>(i) / 4 + q);
#pragma unroll
      for (int k = 0; k < 4; ++k) values[4 * q + k] = fma_of(width, uniform01(words.word[k]), low);
    }
    store_pack(out, i, count, values);
  });
}

/// Rows of `width` elements, four elements a thread where `by_four`.
struct Gather {
  const void* in;
  DType dtype;
  const int32_t* indices;
  float* out;
  int64_t width, n;  // n = indices · width
  float scale;
  bool by_four;
};

__global__ void __launch_bounds__(kThreads) gather_rows_kernel(Gather w) {
  const int64_t pack = w.by_four ? 4 : 1;
  for_elements(w.n / pack, [&](int64_t item) {
    const int64_t i = item * pack, row = i / w.width, column = i % w.width;
    const int64_t from = w.indices[row] * w.width + column;
    if (!w.by_four) {
      w.out[i] = canonical(load_one(w.in, w.dtype, from) * w.scale);
      return;
    }
    float4 values;
    if (w.dtype == DType::U8) {
      const uchar4 bytes =
          *reinterpret_cast<const uchar4*>(static_cast<const uint8_t*>(w.in) + from);
      values = make_float4(bytes.x, bytes.y, bytes.z, bytes.w);
    } else {
      values = *reinterpret_cast<const float4*>(static_cast<const float*>(w.in) + from);
    }
    *reinterpret_cast<float4*>(w.out + i) =
        make_float4(canonical(values.x * w.scale), canonical(values.y * w.scale),
                    canonical(values.z * w.scale), canonical(values.w * w.scale));
  });
}

bool divides(uintptr_t bytes, const void* data) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

}  // namespace

void copy(Stream stream, const CopyArgs& args) {
  const Tensor& in = args.in;
  ULP_CHECK(in.defined(), "copy: the input is missing");
  ULP_CHECK(in.device() == stream.device, "copy: the input is on {}, the stream on {}", in.device(),
            stream.device);
  check_kernel_tensor("copy", stream, args.out, in.shape());
  void* out = written(args.out);
  if (in.dtype() == args.out.dtype()) {
    if (in.is_contiguous())
      return copy_bytes(out, stream.device, in.raw(), stream.device,
                        static_cast<size_t>(in.bytes()));
    switch (size_of(in.dtype())) {
      case 1: return copy_words<uint8_t>(stream, in, out);
      case 2: return copy_words<uint16_t>(stream, in, out);
      case 4: return copy_words<uint32_t>(stream, in, out);
      default: return copy_words<uint64_t>(stream, in, out);
    }
  }
  ULP_CHECK(args.out.dtype() == DType::F32 && is_float_up_to_32(in.dtype()),
            "copy: {} to {} is a conversion that rounds; quantise it", in.dtype(),
            args.out.dtype());
  launch("copy", stream, blocks_for(in.numel(), kThreads), kThreads, convert_kernel, in.raw(),
         in.dtype(), static_cast<float*>(out), merge_axes(in), in.numel());
}

void fill(Stream stream, const FillArgs& args) {
  check_kernel_tensor("fill", stream, args.out, args.out.shape());
  const int64_t n = args.out.numel(), blocks = blocks_for(n, kThreads);
  if (args.out.dtype() == DType::F64)
    return launch("fill", stream, blocks, kThreads, fill_kernel<double>,
                  static_cast<double*>(written(args.out)), args.value, n);
  check_type("fill", args.out, DType::F32);
  launch("fill", stream, blocks, kThreads, fill_kernel<float>,
         static_cast<float*>(written(args.out)), canonical(static_cast<float>(args.value)), n);
}

void uniform(Stream stream, const UniformArgs& args) {
  check_kernel_tensor("uniform", stream, args.out, args.out.shape());
  check_type("uniform", args.out, DType::F32);
  launch("uniform", stream, pack_blocks(args.out.numel()), kThreads, uniform_kernel,
         sink_of(args.out), args.low, args.high - args.low, args.key, args.out.numel());
}

void gather_rows(Stream stream, const GatherRowsArgs& args) {
  ULP_CHECK(args.in.defined() && args.in.rank() == 2, "gather_rows: wanted rows (R, D)");
  ULP_CHECK(args.indices.defined(), "gather_rows: the indices are missing");
  const int64_t rows = args.indices.numel(), width = args.in.size(1);
  check_kernel_tensor("gather_rows", stream, args.in, args.in.shape());
  check_kernel_tensor("gather_rows", stream, args.indices, {rows});
  check_kernel_tensor("gather_rows", stream, args.out, {rows, width});
  ULP_CHECK(args.in.dtype() == DType::U8 || args.in.dtype() == DType::F32,
            "gather_rows: rows must be U8 or F32, got {}", args.in.dtype());
  check_type("gather_rows", args.indices, DType::I32);
  check_type("gather_rows", args.out, DType::F32);
  Gather w{args.in.raw(),
           args.in.dtype(),
           args.indices.data<int32_t>(),
           static_cast<float*>(written(args.out)),
           width,
           rows * width,
           args.scale,
           false};
  w.by_four = width % 4 == 0 && divides(16, w.out) && divides(4 * size_of(w.dtype), w.in);
  launch("gather_rows", stream, blocks_for(w.by_four ? w.n / 4 : w.n, kThreads), kThreads,
         gather_rows_kernel, w);
}

}  // namespace ulp::cuda
