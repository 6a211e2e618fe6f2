#include "kernels/augment.h"
#include "kernels/cuda/launch.cuh"

namespace ulp::cuda {
namespace {

struct Augment {
  const void* in;
  bool bytes;              // else F32
  const int32_t* indices;  // null: row n is image n
  float* out;
  const float* normal;  // null: scale
  float scale;
  int64_t rows;
  int32_t height, width, channels;
  bool by_four;  // four values are written at once
  Augmentation how;
  RandomKey key;
  const int32_t* labels;
  int32_t* out_labels;
  StepState* state;  // null: begin at 0
};

/// Blocks of the kernel that is running that have read the state. Kernels of a device's one stream take turns.
__device__ unsigned int augment_blocks_done = 0;

/// Value i of a row, of its pixel (y, x) and channel c.
__device__ __forceinline__ float value_at(const Augment& w, const ImageChange& change,
                                          int64_t image, uint32_t i) {
  const auto channels = static_cast<uint32_t>(w.channels), width = static_cast<uint32_t>(w.width);
  const uint32_t pixel = i / channels, c = i - pixel * channels, y = pixel / width;
  const PixelSource from =
      source_of(change, w.how.cutout, w.height, w.width, static_cast<int32_t>(y),
                static_cast<int32_t>(pixel - y * width));
  if (from.cut) return 0.0f;
  float x = 0.0f;
  if (from.inside) {
    const int64_t at = image + (int64_t{from.y} * w.width + from.x) * w.channels + c;
    x = w.bytes ? static_cast<float>(static_cast<const uint8_t*>(w.in)[at])
                : static_cast<const float*>(w.in)[at];
  }
  return w.normal == nullptr ? canonical(x * w.scale)
                             : normalised(x, w.normal[c], w.normal[channels + c]);
}

/// One image a block at a time.
__global__ void __launch_bounds__(kThreads) augment_rows_kernel(const __grid_constant__ Augment w) {
  const int64_t begin = w.state == nullptr ? 0 : w.state->batch_offset;
  const RandomSource random = w.how.any() ? RandomSource(w.key) : RandomSource();
  const uint32_t values = static_cast<uint32_t>(w.height * w.width * w.channels);
  for (int64_t row = blockIdx.x; row < w.rows; row += gridDim.x) {
    const ImageChange change = draw_change(w.how, random, begin + row, w.height, w.width);
    const int64_t from = w.indices == nullptr ? row : w.indices[begin + row];
    const int64_t image = from * values;
    float* const out = w.out + row * values;
    if (w.by_four)
      for (uint32_t i = 4 * threadIdx.x; i < values; i += 4 * kThreads)
        *reinterpret_cast<float4*>(out + i) =
            make_float4(value_at(w, change, image, i), value_at(w, change, image, i + 1),
                        value_at(w, change, image, i + 2), value_at(w, change, image, i + 3));
    else
      for (uint32_t i = threadIdx.x; i < values; i += kThreads)
        out[i] = value_at(w, change, image, i);
    if (threadIdx.x == 0) w.out_labels[row] = w.labels[from];
  }
  if (w.state == nullptr) return;
  __syncthreads();  // this block has read the offset
  if (threadIdx.x == 0 && atomicInc(&augment_blocks_done, gridDim.x - 1) == gridDim.x - 1)
    w.state->batch_offset = begin + w.rows;
}

}  // namespace

void augment_rows(Stream stream, const AugmentRowsArgs& args) {
  check_augment_rows(stream, args);
  Augment w{};
  w.in = args.in.raw();
  w.bytes = args.in.dtype() == DType::U8;
  if (args.indices.defined()) w.indices = args.indices.data<int32_t>();
  w.out = static_cast<float*>(written(args.out));
  if (args.normal.defined()) w.normal = args.normal.data<float>();
  w.scale = args.scale;
  w.rows = args.rows();
  w.height = args.height;
  w.width = args.width;
  w.channels = args.channels;
  w.by_four = args.out.size(1) % 4 == 0 && reinterpret_cast<uintptr_t>(w.out) % 16 == 0;
  w.how = args.how;
  w.key = args.key;
  w.labels = args.labels.data<int32_t>();
  w.out_labels = static_cast<int32_t*>(written(args.out_labels));
  w.state = args.state;
  launch("augment_rows", stream, blocks_for(w.rows, 1), kThreads, augment_rows_kernel, w);
}

}  // namespace ulp::cuda
