#include "core/sum.h"
#include "kernels/cuda/quads.cuh"
#include "kernels/embedding.h"
#include "kernels/embedding_math.h"

namespace ulp::cuda {
namespace {

// ---- embedding -----------------------------------------------------------------------------------------------------

struct Gather {
  Source table;
  const int32_t* tokens;
  Sink out;
  Rounder output;
  int64_t count, columns, n;  // n: elements of out
  bool quads;                 // each row is a number of whole, aligned quads
};

__device__ __forceinline__ float table_element(const Gather& w, int64_t i) {
  const int64_t row = i / w.columns;
  const int32_t token = w.tokens[row];
  if (token < 0 || token >= w.count) return float_of(kNanBits);
  return load_one(w.table.data, w.table.dtype, token * w.columns + (i - row * w.columns));
}

__global__ void __launch_bounds__(kThreads) embedding_kernel(const __grid_constant__ Gather w) {
  const RandomSource random = w.output.random();
  for_quads(w.n, [&](int64_t i, int count) {
    float x[kQuad];
    if (w.quads) {
      const int64_t row = i / w.columns;
      const int32_t token = w.tokens[row];
      if (token >= 0 && token < w.count) {
        load_quad(w.table, token * w.columns + (i - row * w.columns), x);
      } else {
#pragma unroll
        for (int k = 0; k < kQuad; ++k) x[k] = float_of(kNanBits);
      }
    } else {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) x[k] = k < count ? table_element(w, i + k) : 0.0f;
    }
    round_quad(w.output, random, i, x);
    store_quad(w.out, i, count, x);
  });
}

// ---- positions sorted by token: a stable radix sort, eight bits a pass ----------------------------------------------

constexpr int kDigits = 256;
constexpr int kDigitBits = 8;
constexpr int64_t kTile = 1024;  // positions a block sorts, kThreads at a time
static_assert(kDigits == kThreads);

struct Sort {
  const int32_t* keys;    // of the tokens, or in the order of the pass before
  const int32_t* places;  // null: 0, 1, 2 …
  int32_t* keys_out;
  int32_t* places_out;
  int32_t* counts;  // (kDigits, tiles): how many of a digit a tile has; then where they go
  int64_t n, tiles;
  int32_t none;  // the key of tokens below 0 or from `none` on
  int shift;
};

__device__ __forceinline__ int32_t key_at(const Sort& w, int64_t i) {
  const int32_t key = w.keys[i];
  return key < 0 || key > w.none ? w.none : key;
}
__device__ __forceinline__ uint32_t digit_of(const Sort& w, int32_t key) {
  return static_cast<uint32_t>(key) >> w.shift & (kDigits - 1);
}

__global__ void __launch_bounds__(kThreads) count_digits_kernel(const __grid_constant__ Sort w) {
  __shared__ int32_t counts[kDigits];
  for (int64_t tile = blockIdx.x; tile < w.tiles; tile += gridDim.x) {
    counts[threadIdx.x] = 0;
    __syncthreads();
    const int64_t end = tile * kTile + kTile < w.n ? tile * kTile + kTile : w.n;
    for (int64_t i = tile * kTile + threadIdx.x; i < end; i += kThreads)
      atomicAdd(&counts[digit_of(w, key_at(w, i))], 1);  // whole numbers: any order
    __syncthreads();
    w.counts[threadIdx.x * w.tiles + tile] = counts[threadIdx.x];
    __syncthreads();
  }
}

constexpr int kScanThreads = 1024;

/// Exclusive sums in place, by one block.
__global__ void __launch_bounds__(kScanThreads) scan_counts_kernel(int32_t* counts, int64_t n) {
  __shared__ int32_t sums[kScanThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t each = (n + kScanThreads - 1) / kScanThreads;
  const int64_t begin = thread * each < n ? thread * each : n;
  const int64_t end = begin + each < n ? begin + each : n;
  int32_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += counts[i];
  sums[thread] = sum;
  __syncthreads();
  for (int width = 1; width < kScanThreads; width *= 2) {
    const int32_t before = thread >= width ? sums[thread - width] : 0;
    __syncthreads();
    sums[thread] += before;
    __syncthreads();
  }
  int32_t at = thread == 0 ? 0 : sums[thread - 1];
  for (int64_t i = begin; i < end; ++i) {
    const int32_t own = counts[i];
    counts[i] = at;
    at += own;
  }
}

/// Moves each tile's positions to where their digits go, equal ones in the order that they stand in.
__global__ void __launch_bounds__(kThreads) scatter_kernel(const __grid_constant__ Sort w) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ int32_t next[kDigits];  // where the next of a digit goes
  __shared__ int32_t of_warp[kWarps][kDigits];
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t tile = blockIdx.x; tile < w.tiles; tile += gridDim.x) {
    next[threadIdx.x] = w.counts[threadIdx.x * w.tiles + tile];
    const int64_t end = tile * kTile + kTile < w.n ? tile * kTile + kTile : w.n;
    for (int64_t begin = tile * kTile; begin < end; begin += kThreads) {
#pragma unroll
      for (int k = 0; k < kWarps; ++k) of_warp[k][threadIdx.x] = 0;
      __syncthreads();
      const int64_t i = begin + threadIdx.x;
      const bool there = i < end;
      const int32_t key = there ? key_at(w, i) : 0;
      const uint32_t digit = there ? digit_of(w, key) : kDigits;  // a digit of its own
      const uint32_t alike = __match_any_sync(kFullWarp, digit);
      const int rank = __popc(alike & ((1u << lane) - 1u));
      if (there && rank == 0) of_warp[warp][digit] = __popc(alike);
      __syncthreads();
      int32_t at = next[threadIdx.x];  // this thread's digit: where each warp's begin
#pragma unroll
      for (int k = 0; k < kWarps; ++k) {
        const int32_t own = of_warp[k][threadIdx.x];
        of_warp[k][threadIdx.x] = at;
        at += own;
      }
      next[threadIdx.x] = at;
      __syncthreads();
      if (there) {
        const int32_t to = of_warp[warp][digit] + rank;
        w.keys_out[to] = key;
        w.places_out[to] = w.places == nullptr ? static_cast<int32_t>(i) : w.places[i];
      }
      __syncthreads();
    }
  }
}

/// starts[v] = the first i with keys[i] ≥ v, for the sorted keys.
__global__ void __launch_bounds__(kThreads)
    starts_kernel(const int32_t* keys, int64_t n, int32_t* starts, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i <= n; i += step) {
    const int64_t first = i == 0 ? 0 : static_cast<int64_t>(keys[i - 1]) + 1;
    const int64_t last = i == n ? count - 1 : static_cast<int64_t>(keys[i]);
    for (int64_t v = first; v <= last; ++v) starts[v] = static_cast<int32_t>(i);
  }
}

// ---- sums of gradient rows -------------------------------------------------------------------------------------------

constexpr int kLaneRows = 16;  // threads along the rows; each keeps four of the 64 lanes
constexpr int64_t kMostChunks = kSumChunk;

struct Scatter {
  Source grad;
  const int32_t *order, *starts;
  Sink out;
  Rounder output;
  int64_t count, columns;
};

/// The lanes of threads (x, y), y + 16·q being lane y + 16 q of column x: valid in row y = 0.
__device__ __forceinline__ float add_lanes(float (&lanes)[kLaneRows][kWarp], const float (&sum)[4],
                                           int x, int y) {
  lanes[y][x] = (sum[0] + sum[2]) + (sum[1] + sum[3]);  // widths 32 and 16
  __syncthreads();
#pragma unroll
  for (int width = kLaneRows / 2; width > 0; width /= 2) {
    if (y < width) lanes[y][x] += lanes[y + width][x];
    __syncthreads();
  }
  const float total = lanes[0][x];
  __syncthreads();
  return total;
}

/// 32 columns of one token a block: thread (x, y) keeps lanes y, y + 16, y + 32 and y + 48 of column x.
__global__ void __launch_bounds__(kWarp* kLaneRows)
    embedding_backward_kernel(const __grid_constant__ Scatter w, int64_t tasks) {
  __shared__ float lanes[kLaneRows][kWarp];
  const RandomSource random = w.output.random();
  const int64_t tiles = (w.columns + kWarp - 1) / kWarp;
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const int64_t token = task / tiles, column = task % tiles * kWarp + x;
    const int64_t first = w.starts[token], rows = w.starts[token + 1] - first;
    float total = 0;
    float above[4] = {};  // the lanes of the chunks' sums
    for (int64_t begin = 0, chunk = 0; begin < rows; begin += kSumChunk, ++chunk) {
      const int64_t n = rows - begin < kSumChunk ? rows - begin : kSumChunk;
      const int32_t* order = w.order + first + begin;
      float sum[4] = {};
      if (column < w.columns) {
        for_plain_type(w.grad.dtype, [&]<DType kType>() {
          const auto value = [&](int64_t k) {
            return load_plain<kType>(w.grad, order[k] * w.columns + column);
          };
          int64_t k = y;
#pragma unroll 4  // so many loads wait together
          for (; k + 3 * kLaneRows < n; k += kSumLanes) {
#pragma unroll
            for (int q = 0; q < 4; ++q) sum[q] += value(k + q * kLaneRows);
          }
#pragma unroll
          for (int q = 0; q < 4; ++q)
            if (k + q * kLaneRows < n) sum[q] += value(k + q * kLaneRows);
        });
      }
      total = add_lanes(lanes, sum, x, y);
      if (rows <= kSumChunk) break;
      const int64_t lane = chunk % kSumLanes;
#pragma unroll
      for (int q = 0; q < 4; ++q)
        if (lane == y + q * kLaneRows) above[q] += total;
    }
    if (rows > kSumChunk) total = add_lanes(lanes, above, x, y);
    if (y == 0 && column < w.columns) {
      const int64_t i = token * w.columns + column;
      store_one(w.out.data, w.out.dtype, i, round_one(w.output, random, i, canonical(total)));
    }
  }
}

// ---- rotary ----------------------------------------------------------------------------------------------------------

struct Turn {
  Source in;
  const float* turns;
  Sink out;
  Rounder output;
  int64_t length, heads, size, n;
  float sign;
  bool quads;
};

__device__ __forceinline__ float turned(const Turn& w, int64_t i, float x, float y) {
  const int64_t row = i / w.size, at = i - row * w.size, half = w.size / 2;
  const bool second = at >= half;
  const float* turn = w.turns + row / w.heads % w.length * w.size + 2 * (second ? at - half : at);
  return functors::first_turned(x, y, turn[0], (second ? -w.sign : w.sign) * turn[1]);
}

__global__ void __launch_bounds__(kThreads) rotary_kernel(const __grid_constant__ Turn w) {
  const RandomSource random = w.output.random();
  const int64_t half = w.size / 2;
  for_quads(w.n, [&](int64_t i, int count) {
    float x[kQuad], y[kQuad] = {};
    if (w.quads) {  // half is a multiple of four: the partners are neighbours too
      load_quad(w.in, i, x);
      load_quad(w.in, i % w.size < half ? i + half : i - half, y);
    } else {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        x[k] = k < count ? load_one(w.in.data, w.in.dtype, i + k) : 0.0f;
        if (k < count)
          y[k] = load_one(w.in.data, w.in.dtype,
                          (i + k) % w.size < half ? i + k + half : i + k - half);
      }
    }
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      if (k < count) x[k] = turned(w, i + k, x[k], y[k]);
    round_quad(w.output, random, i, x);
    store_quad(w.out, i, count, x);
  });
}

// ---- swiglu ----------------------------------------------------------------------------------------------------------

struct Gated {
  Source in, grad;  // grad: backward only
  Sink out;
  Rounder output;
  int64_t columns, n;  // columns: C; n: elements of out
  bool quads;
};

__global__ void __launch_bounds__(kThreads) swiglu_kernel(const __grid_constant__ Gated w) {
  const RandomSource random = w.output.random();
  for_quads(w.n, [&](int64_t i, int count) {
    float a[kQuad] = {}, b[kQuad] = {};
    if (w.quads) {
      const int64_t at = i + i / w.columns * w.columns;  // rows of in are twice as long
      load_quad(w.in, at, a);
      load_quad(w.in, at + w.columns, b);
    } else {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        if (k >= count) continue;
        const int64_t at = i + k + (i + k) / w.columns * w.columns;
        a[k] = load_one(w.in.data, w.in.dtype, at);
        b[k] = load_one(w.in.data, w.in.dtype, at + w.columns);
      }
    }
#pragma unroll
    for (int k = 0; k < kQuad; ++k) a[k] = functors::swiglu_of(a[k], b[k]);
    round_quad(w.output, random, i, a);
    store_quad(w.out, i, count, a);
  });
}

__device__ __forceinline__ float swiglu_gradient(bool value, float a, float b, float g) {
  return value ? functors::swiglu_value_gradient(a, g) : functors::swiglu_gate_gradient(a, b, g);
}

__global__ void __launch_bounds__(kThreads)
    swiglu_backward_kernel(const __grid_constant__ Gated w) {
  const RandomSource random = w.output.random();
  const int64_t wide = 2 * w.columns;
  for_quads(w.n, [&](int64_t i, int count) {
    float y[kQuad] = {};
    if (w.quads) {
      const int64_t row = i / wide, column = i - row * wide;
      const bool value = column >= w.columns;
      const int64_t own = value ? column - w.columns : column, at = row * wide + own;
      float a[kQuad], b[kQuad] = {}, g[kQuad];
      load_quad(w.in, at, a);
      if (!value) load_quad(w.in, at + w.columns, b);
      load_quad(w.grad, row * w.columns + own, g);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) y[k] = swiglu_gradient(value, a[k], b[k], g[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        if (k >= count) continue;
        const int64_t row = (i + k) / wide, column = (i + k) - row * wide;
        const bool value = column >= w.columns;
        const int64_t own = value ? column - w.columns : column, at = row * wide + own;
        y[k] = swiglu_gradient(value, load_one(w.in.data, w.in.dtype, at),
                               load_one(w.in.data, w.in.dtype, at + w.columns),
                               load_one(w.grad.data, w.grad.dtype, row * w.columns + own));
      }
    }
    round_quad(w.output, random, i, y);
    store_quad(w.out, i, count, y);
  });
}

// ---- windows of a text -----------------------------------------------------------------------------------------------

struct Windows {
  const void* text;
  bool bytes;  // else I32
  int32_t *out, *labels;
  bool random;
  RandomKey key;
  int64_t begin, length, windows, tokens;
  StepState* state;        // null: `begin`
  const StepState* epoch;  // null: none
};

/// Blocks of the kernel that is running that have read the state. Kernels of a device's one stream take turns.
__device__ unsigned int window_blocks_done = 0;

__device__ __forceinline__ int32_t token_at(const Windows& w, int64_t i) {
  return w.bytes ? static_cast<const uint8_t*>(w.text)[i] : static_cast<const int32_t*>(w.text)[i];
}

/// One window a block at a time.
__global__ void __launch_bounds__(kThreads) windows_kernel(const __grid_constant__ Windows w) {
  const int64_t begin = w.state == nullptr ? w.begin : w.state->batch_offset;
  const int64_t first = begin + (w.epoch == nullptr ? 0 : w.epoch->batch_offset);
  const RandomSource random = w.random ? RandomSource(w.key) : RandomSource();
  for (int64_t n = blockIdx.x; n < w.windows; n += gridDim.x) {
    const int64_t start = window_start(w.random, random, first + n, w.tokens, w.length);
    for (int64_t t = threadIdx.x; t < w.length; t += kThreads) {
      w.out[n * w.length + t] = token_at(w, start + t);
      w.labels[n * w.length + t] = token_at(w, start + t + 1);
    }
  }
  if (w.state == nullptr) return;
  __syncthreads();  // this block has read the offset
  if (threadIdx.x == 0 && atomicInc(&window_blocks_done, gridDim.x - 1) == gridDim.x - 1)
    w.state->batch_offset = begin + w.windows;
}

}  // namespace

void gather_windows(Stream stream, const GatherWindowsArgs& args) {
  check_gather_windows(stream, args);
  Windows w{};
  w.text = args.text.raw();
  w.bytes = args.text.dtype() == DType::U8;
  w.out = static_cast<int32_t*>(written(args.out));
  w.labels = static_cast<int32_t*>(written(args.labels));
  w.random = args.random;
  w.key = args.key;
  w.begin = args.begin;
  w.length = args.length();
  w.windows = args.windows();
  w.tokens = args.text.numel();
  w.state = args.state;
  w.epoch = args.epoch;
  launch("gather_windows", stream, blocks_for(w.windows, 1), kThreads, windows_kernel, w);
}

void embedding(Stream stream, const EmbeddingArgs& args) {
  check_embedding(stream, args);
  check_no_f64("embedding", args.out);
  Gather w{};
  w.table = source_of(args.table);
  w.tokens = args.tokens.data<int32_t>();
  w.out = sink_of(args.out);
  w.output = make_elementwise_rounder("embedding", stream.device, args.output, args.key);
  w.count = args.table.size(0);
  w.columns = args.table.size(1);
  w.n = args.out.numel();
  w.quads = w.columns % kQuad == 0 && w.table.aligned;
  launch("embedding", stream, quad_blocks(w.n), kThreads, embedding_kernel, w);
}

void group_tokens(Stream stream, const GroupTokensArgs& args) {
  check_group_tokens(stream, args);
  const int64_t n = args.tokens.numel(), count = args.starts.numel();
  auto* const starts = static_cast<int32_t*>(written(args.starts));
  auto* const order = static_cast<int32_t*>(written(args.order));
  ULP_CHECK(count - 1 < INT32_MAX, "group_tokens: {} tokens are too many to tell apart", count - 1);
  Sort w{};
  w.keys = args.tokens.data<int32_t>();
  w.n = n;
  w.tiles = (n + kTile - 1) / kTile;
  w.none = static_cast<int32_t>(count - 1);
  int passes = 1;
  while (passes < 4 && w.none >> (passes * kDigitBits) > 0) ++passes;
  const auto room = [&] {
    return Tensor::empty({std::max<int64_t>(n, 1)}, DType::I32, stream.device);
  };
  Tensor keys[2] = {room(), room()}, places = room();
  Tensor counts =
      Tensor::empty({std::max<int64_t>(kDigits * w.tiles, 1)}, DType::I32, stream.device);
  w.counts = counts.mutable_data<int32_t>();
  for (int pass = 0; pass < passes && n > 0; ++pass) {
    w.shift = pass * kDigitBits;
    w.keys_out = keys[pass % 2].mutable_data<int32_t>();
    // The last pass writes to `order`.
    w.places_out = (passes - pass) % 2 == 1 ? order : places.mutable_data<int32_t>();
    const int64_t blocks = blocks_for(w.tiles, 1);
    launch("group_tokens", stream, blocks, kThreads, count_digits_kernel, w);
    launch("group_tokens", stream, 1, kScanThreads, scan_counts_kernel, w.counts,
           kDigits * w.tiles);
    launch("group_tokens", stream, blocks, kThreads, scatter_kernel, w);
    w.keys = w.keys_out;
    w.places = w.places_out;
  }
  launch("group_tokens", stream, blocks_for(n + 1, kThreads), kThreads, starts_kernel, w.keys, n,
         starts, count);
}

void embedding_backward(Stream stream, const EmbeddingBackwardArgs& args) {
  check_embedding_backward(stream, args);
  check_no_f64("embedding_backward", args.out);
  ULP_CHECK(args.grad.size(0) <= kMostChunks * kSumChunk,
            "embedding_backward: {} tokens in one call are more than {}", args.grad.size(0),
            kMostChunks * kSumChunk);
  Scatter w{};
  w.grad = source_of(args.grad);
  w.order = args.order.data<int32_t>();
  w.starts = args.starts.data<int32_t>();
  w.out = sink_of(args.out);
  w.output = make_elementwise_rounder("embedding_backward", stream.device, args.output, args.key);
  w.count = args.out.size(0);
  w.columns = args.out.size(1);
  const int64_t tasks = w.count * ((w.columns + kWarp - 1) / kWarp);
  launch("embedding_backward", stream, blocks_for(tasks, 1), dim3(kWarp, kLaneRows),
         embedding_backward_kernel, w, tasks);
}

void rotary(Stream stream, const RotaryArgs& args) {
  check_rotary(stream, args);
  check_no_f64("rotary", args.out);
  Turn w{};
  w.in = source_of(args.in);
  w.turns = args.turns.data<float>();
  w.out = sink_of(args.out);
  w.output = make_elementwise_rounder("rotary", stream.device, args.output, args.key);
  w.length = args.in.size(1);
  w.heads = args.in.size(2);
  w.size = args.in.size(3);
  w.n = args.in.numel();
  w.sign = args.inverse ? -1.0f : 1.0f;
  w.quads = w.size % (2 * kQuad) == 0 && w.in.aligned;
  launch("rotary", stream, quad_blocks(w.n), kThreads, rotary_kernel, w);
}

void swiglu(Stream stream, const SwigluArgs& args) {
  check_swiglu(stream, args);
  check_no_f64("swiglu", args.out);
  Gated w{};
  w.in = source_of(args.in);
  w.out = sink_of(args.out);
  w.output = make_elementwise_rounder("swiglu", stream.device, args.output, args.key);
  w.columns = args.out.size(1);
  w.n = args.out.numel();
  w.quads = w.columns % kQuad == 0 && w.in.aligned;
  launch("swiglu", stream, quad_blocks(w.n), kThreads, swiglu_kernel, w);
}

void swiglu_backward(Stream stream, const SwigluBackwardArgs& args) {
  check_swiglu_backward(stream, args);
  check_no_f64("swiglu_backward", args.out);
  Gated w{};
  w.in = source_of(args.in);
  w.grad = source_of(args.grad);
  w.out = sink_of(args.out);
  w.output = make_elementwise_rounder("swiglu_backward", stream.device, args.output, args.key);
  w.columns = args.grad.size(1);
  w.n = args.out.numel();
  w.quads = w.columns % kQuad == 0 && w.in.aligned && w.grad.aligned;
  launch("swiglu_backward", stream, quad_blocks(w.n), kThreads, swiglu_backward_kernel, w);
}

}  // namespace ulp::cuda
