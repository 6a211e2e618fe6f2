#include "core/random.h"
#include "core/scalar_math.h"
#include "kernels/cuda/pack.cuh"
#include "kernels/kernels.h"

namespace ulp::cuda {

void set_most_blocks(int64_t blocks) {
  static const int64_t usual = most_blocks;
  most_blocks = blocks > 0 ? blocks : usual;
}

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

/// The same in pieces of `elements` neighbours.
Layout in_pieces(Layout layout, int64_t elements) {
  if (elements == 1) return layout;
  const int last = layout.rank - 1;
  layout.extents[last] /= elements;
  for (int axis = 0; axis < last; ++axis) layout.strides[axis] /= elements;
  return layout;
}

/// How many neighbours can be moved at once, 16 bytes at most: runs, what lies between them and both addresses are multiples.
int64_t piece_of(const Layout& layout, size_t size, const void* in, const void* out) {
  const int last = layout.rank - 1;
  if (last < 0 || layout.strides[last] != 1) return 1;
  auto all = static_cast<uint64_t>(layout.extents[last]);
  for (int axis = 0; axis < last; ++axis) all |= static_cast<uint64_t>(layout.strides[axis]);
  const uint64_t bytes =
      all * size | reinterpret_cast<uintptr_t>(in) | reinterpret_cast<uintptr_t>(out) | 16;
  return std::max<int64_t>(1, static_cast<int64_t>((bytes & ~(bytes - 1)) / size));
}

/// True if neither an index nor an offset needs more than 32 bits, whose divisions are several times faster.
bool is_small(const Layout& layout, int64_t n) {
  if (n > INT32_MAX) return false;
  int64_t reach = 0;
  for (int axis = 0; axis < layout.rank; ++axis)
    reach += (layout.extents[axis] - 1) * std::abs(layout.strides[axis]);
  return reach <= INT32_MAX;
}

template <class Index>
__device__ __forceinline__ int64_t offset_of(const Layout& layout, int64_t at) {
  auto i = static_cast<Index>(at);
  Index offset = 0;
  for (int axis = layout.rank - 1; axis > 0; --axis) {
    const auto extent = static_cast<Index>(layout.extents[axis]);
    const Index rest = i / extent;
    offset += (i - rest * extent) * static_cast<Index>(layout.strides[axis]);
    i = rest;
  }
  if (layout.rank > 0) offset += i * static_cast<Index>(layout.strides[0]);
  return static_cast<int64_t>(offset);
}

/// Calls body(i) for this thread's elements of [0, n).
template <class Body>
__device__ __forceinline__ void for_elements(int64_t n, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step)
    body(i);
}

__device__ __forceinline__ bool skipped(const StepState* state) {
  return state != nullptr && state->found_inf != 0;
}

template <class Word, class Index>
__global__ void __launch_bounds__(kThreads)
    copy_kernel(const Word* in, Word* out, Layout layout, int64_t n, const StepState* state) {
  if (skipped(state)) return;
  for_elements(n, [&](int64_t i) { out[i] = in[offset_of<Index>(layout, i)]; });
}

template <class Index>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const void* in, DType dtype, float* out, Layout layout, int64_t n,
                   const StepState* state) {
  if (skipped(state)) return;
  for_elements(n, [&](int64_t i) {
    out[i] = canonical(load_as_float(in, dtype, offset_of<Index>(layout, i)));
  });
}

/// n words; strides and extents count them.
template <class Word>
void copy_words(Stream stream, const CopyArgs& args, void* out, const Layout& layout, int64_t n) {
  launch("copy", stream, blocks_for(n, kThreads), kThreads,
         is_small(layout, n) ? copy_kernel<Word, uint32_t> : copy_kernel<Word, int64_t>,
         static_cast<const Word*>(args.in.raw()), static_cast<Word*>(out), layout, n, args.state);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    fill_kernel(T* out, T value, int64_t n, const StepState* loss_scale_of,
                const StepState* grad_factor_of) {
  if (loss_scale_of != nullptr) value = static_cast<float>(value) * loss_scale_of->loss_scale;
  if (grad_factor_of != nullptr) value = static_cast<float>(value) * grad_factor_of->grad_factor;
  value = canonical(value);
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

/// Rows of `width` elements, four at a time where `by_four`.
struct Gather {
  const void* in;
  DType dtype;
  const int32_t* indices;  // null: rows as they stand
  float* out;
  int64_t width, rows;
  float scale;
  bool by_four;
  const int32_t* labels;  // null: none
  int32_t* out_labels;
  int64_t begin;
  StepState* state;  // null: begin at `begin`
};

/// Blocks of the gather that is running that have read the state. Kernels of a device's one stream take turns.
__device__ unsigned int gather_blocks_done = 0;

/// One row a block at a time.
__global__ void __launch_bounds__(kThreads) gather_rows_kernel(const __grid_constant__ Gather w) {
  const int64_t begin = w.state == nullptr ? w.begin : w.state->batch_offset;
  for (int64_t row = blockIdx.x; row < w.rows; row += gridDim.x) {
    const int64_t from = w.indices == nullptr ? begin + row : w.indices[begin + row];
    float* const out = w.out + row * w.width;
    if (w.by_four && w.dtype == DType::U8) {
      const auto* in =
          reinterpret_cast<const uchar4*>(static_cast<const uint8_t*>(w.in) + from * w.width);
      for (int64_t j = threadIdx.x; j < w.width / 4; j += kThreads) {
        const uchar4 x = in[j];
        reinterpret_cast<float4*>(out)[j] =
            make_float4(static_cast<float>(x.x) * w.scale, static_cast<float>(x.y) * w.scale,
                        static_cast<float>(x.z) * w.scale, static_cast<float>(x.w) * w.scale);
      }
    } else if (w.by_four) {
      const auto* in =
          reinterpret_cast<const float4*>(static_cast<const float*>(w.in) + from * w.width);
      for (int64_t j = threadIdx.x; j < w.width / 4; j += kThreads) {
        const float4 x = in[j];
        reinterpret_cast<float4*>(out)[j] =
            make_float4(canonical(x.x * w.scale), canonical(x.y * w.scale),
                        canonical(x.z * w.scale), canonical(x.w * w.scale));
      }
    } else {
      for (int64_t j = threadIdx.x; j < w.width; j += kThreads)
        out[j] = canonical(load_one(w.in, w.dtype, from * w.width + j) * w.scale);
    }
    if (w.labels != nullptr && threadIdx.x == 0) w.out_labels[row] = w.labels[from];
  }
  if (w.state == nullptr) return;
  __syncthreads();  // this block has read the offset
  if (threadIdx.x == 0 && atomicInc(&gather_blocks_done, gridDim.x - 1) == gridDim.x - 1)
    w.state->batch_offset = begin + w.rows;
}

__global__ void advance_step_kernel(StepState* state, int32_t* updates, int32_t* steps) {
  if (steps != nullptr && state->found_inf == 0) ++*steps;
  advance(*state);
  ++*updates;
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
    if (in.is_contiguous() && args.state == nullptr)
      return copy_bytes(out, stream.device, in.raw(), stream.device,
                        static_cast<size_t>(in.bytes()));
    const Layout layout = merge_axes(in);
    const int64_t piece = piece_of(layout, size_of(in.dtype()), in.raw(), out),
                  words = in.numel() / piece;
    const Layout pieces = in_pieces(layout, piece);
    switch (size_of(in.dtype()) * static_cast<size_t>(piece)) {
      case 1: return copy_words<uint8_t>(stream, args, out, pieces, words);
      case 2: return copy_words<uint16_t>(stream, args, out, pieces, words);
      case 4: return copy_words<uint32_t>(stream, args, out, pieces, words);
      case 8: return copy_words<uint64_t>(stream, args, out, pieces, words);
      default: return copy_words<uint4>(stream, args, out, pieces, words);
    }
  }
  ULP_CHECK(args.out.dtype() == DType::F32 && is_float_up_to_32(in.dtype()),
            "copy: {} to {} is a conversion that rounds; quantise it", in.dtype(),
            args.out.dtype());
  const Layout layout = merge_axes(in);
  launch("copy", stream, blocks_for(in.numel(), kThreads), kThreads,
         is_small(layout, in.numel()) ? convert_kernel<uint32_t> : convert_kernel<int64_t>,
         in.raw(), in.dtype(), static_cast<float*>(out), layout, in.numel(), args.state);
}

void fill(Stream stream, const FillArgs& args) {
  check_kernel_tensor("fill", stream, args.out, args.out.shape());
  const int64_t n = args.out.numel(), blocks = blocks_for(n, kThreads);
  if (args.out.dtype() == DType::F64)
    return launch("fill", stream, blocks, kThreads, fill_kernel<double>,
                  static_cast<double*>(written(args.out)), args.value, n, args.loss_scale_of,
                  args.grad_factor_of);
  check_type("fill", args.out, DType::F32);
  launch("fill", stream, blocks, kThreads, fill_kernel<float>,
         static_cast<float*>(written(args.out)), static_cast<float>(args.value), n,
         args.loss_scale_of, args.grad_factor_of);
}

void uniform(Stream stream, const UniformArgs& args) {
  check_kernel_tensor("uniform", stream, args.out, args.out.shape());
  check_type("uniform", args.out, DType::F32);
  launch("uniform", stream, pack_blocks(args.out.numel()), kThreads, uniform_kernel,
         sink_of(args.out), args.low, args.high - args.low, args.key, args.out.numel());
}

void gather_rows(Stream stream, const GatherRowsArgs& args) {
  check_gather_rows(stream, args);
  Gather w{};
  w.in = args.in.raw();
  w.dtype = args.in.dtype();
  if (args.indices.defined()) w.indices = args.indices.data<int32_t>();
  w.out = static_cast<float*>(written(args.out));
  w.width = args.in.size(1);
  w.rows = args.out.size(0);
  w.scale = args.scale;
  w.by_four = w.width % 4 == 0 && divides(16, w.out) && divides(4 * size_of(w.dtype), w.in);
  if (args.labels.defined()) {
    w.labels = args.labels.data<int32_t>();
    w.out_labels = static_cast<int32_t*>(written(args.out_labels));
  }
  w.begin = args.begin;
  w.state = args.state;
  launch("gather_rows", stream, blocks_for(w.rows, 1), kThreads, gather_rows_kernel, w);
}

void advance_step(Stream stream, const AdvanceStepArgs& args) {
  ULP_CHECK(args.state != nullptr, "advance_step: the step state is missing");
  check_kernel_tensor("advance_step", stream, args.updates, args.updates.shape());
  ULP_CHECK(args.updates.numel() == 1, "advance_step: updates must be one value");
  check_type("advance_step", args.updates, DType::I32);
  int32_t* steps = nullptr;
  if (args.steps.defined()) {
    check_kernel_tensor("advance_step", stream, args.steps, args.steps.shape());
    check_type("advance_step", args.steps, DType::I32);
    steps = static_cast<int32_t*>(written(args.steps));
  }
  launch("advance_step", stream, 1, 1, advance_step_kernel, args.state,
         static_cast<int32_t*>(written(args.updates)), steps);
}

}  // namespace ulp::cuda
