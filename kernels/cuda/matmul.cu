// out (M, N) = a (M, K) · b (K, N) in the strict order of core/sum.h.
//
// A block of 256 threads makes a square tile of out; each thread keeps kT × kT sums in registers and adds k in ascending
// order, so the tile size never shows. Where k has several chunks of 4096 and the tiles alone would not fill the GPU, each
// chunk gets its own plane of sums and the planes are added in ascending order afterwards: the same additions.

#include <cstdlib>

#include "core/sum.h"
#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/rounder.cuh"

namespace ulp::cuda {
namespace {

constexpr int kDepth = 16;  // steps of k in shared memory at a time
constexpr int kSide = 16;   // threads along each side of a tile
static_assert(kSide * kSide == kThreads && kMatmulChunk % kDepth == 0);

/// One operand, seen from out: `outer` is its row of out (a) or column of out (b).
struct Operand {
  const void* data;
  DType dtype;
  int64_t extent, outer_stride, k_stride;
  bool k_fast;  // neighbours along k lie closer together
};

struct Product {
  Operand a, b;
  float* sums;  // (planes, M, N)
  int64_t m, n, k, chunks, tiles, tiles_n;
  bool split;  // one plane a chunk
};

/// One thread's share of an operand's slice (kTile × kDepth): neighbouring threads read along the axis that lies closer in
/// memory. Element j lies `outer_step` (or `depth_step`) further than element j − 1.
template <int kTile>
struct Loader {
  static constexpr int kHeld = kTile * kDepth / kThreads, kPitch = kTile + 4;
  DType dtype;
  const char* at;            // this thread's element 0 at k = 0
  int64_t j_bytes, k_bytes;  // from element to element, from k to k + 1
  int outer, depth, outer_step, depth_step, outer_left;

  __device__ Loader(const Operand& x, int64_t first) : dtype(x.dtype) {
    const int thread = static_cast<int>(threadIdx.x);
    const auto bytes = static_cast<int64_t>(size_of(x.dtype));
    outer = x.k_fast ? thread / kDepth : thread % kTile;
    depth = x.k_fast ? thread % kDepth : thread / kTile;
    outer_step = x.k_fast ? kThreads / kDepth : 0;
    depth_step = x.k_fast ? 0 : kThreads / kTile;
    outer_left = x.extent - first < kTile ? static_cast<int>(x.extent - first) : kTile;
    at = static_cast<const char*>(x.data) +
         ((first + outer) * x.outer_stride + depth * x.k_stride) * bytes;
    j_bytes = (outer_step * x.outer_stride + depth_step * x.k_stride) * bytes;
    k_bytes = x.k_stride * bytes;
  }

  template <class Word>
  __device__ __forceinline__ void fetch_words(int64_t k, int k_left,
                                              uint32_t (&held)[kHeld]) const {
    const char* from = at + k * k_bytes;
#pragma unroll
    for (int j = 0; j < kHeld; ++j, from += j_bytes) {
      held[j] = 0;
      if (outer + j * outer_step < outer_left && depth + j * depth_step < k_left)
        held[j] = *reinterpret_cast<const Word*>(from);
    }
  }
  /// Raw elements from k on; 0 beyond the operand or k_left steps, which nobody uses.
  __device__ __forceinline__ void fetch(int64_t k, int64_t k_end, uint32_t (&held)[kHeld]) const {
    const int k_left = k_end - k < kDepth ? static_cast<int>(k_end - k) : kDepth;
    switch (size_of(dtype)) {
      case 4: return fetch_words<uint32_t>(k, k_left, held);
      case 2: return fetch_words<uint16_t>(k, k_left, held);
      default: return fetch_words<uint8_t>(k, k_left, held);
    }
  }
  __device__ __forceinline__ void put(const uint32_t (&held)[kHeld], float* slice) const {
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
      slice[(depth + j * depth_step) * kPitch + outer + j * outer_step] = decode(held[j], dtype);
  }
};

/// Row (or column) of the tile that thread t of a side keeps as its i-th: runs of four, 4·kSide apart.
__device__ __forceinline__ int place(int t, int i) { return (i / 4) * 4 * kSide + t * 4 + i % 4; }

template <int kT>
__global__ void __launch_bounds__(kThreads, 2) matmul_kernel(Product p) {
  constexpr int kTile = kSide * kT, kPitch = Loader<kTile>::kPitch;
  alignas(16) __shared__ float a_slice[kDepth * kPitch];
  alignas(16) __shared__ float b_slice[kDepth * kPitch];
  const int tx = static_cast<int>(threadIdx.x) % kSide, ty = static_cast<int>(threadIdx.x) / kSide;
  const int64_t plane = blockIdx.x / p.tiles, tile = blockIdx.x % p.tiles;
  const int64_t row0 = tile / p.tiles_n * kTile, column0 = tile % p.tiles_n * kTile;
  float* const sums = p.sums + plane * p.m * p.n;
  const Loader<kTile> a_loader(p.a, row0), b_loader(p.b, column0);
  const int64_t chunk_end = p.split ? plane + 1 : p.chunks;

  for (int64_t chunk = plane; chunk < chunk_end; ++chunk) {
    const int64_t k_begin = chunk * kMatmulChunk;
    const int64_t k_end = p.k - k_begin < kMatmulChunk ? p.k : k_begin + kMatmulChunk;
    float sum[kT][kT] = {};
    uint32_t a_held[Loader<kTile>::kHeld], b_held[Loader<kTile>::kHeld];
    a_loader.fetch(k_begin, k_end, a_held);
    b_loader.fetch(k_begin, k_end, b_held);
    for (int64_t k = k_begin; k < k_end; k += kDepth) {
      __syncthreads();  // the slices' last readers are done
      a_loader.put(a_held, a_slice);
      b_loader.put(b_held, b_slice);
      __syncthreads();
      if (k + kDepth < k_end) {
        a_loader.fetch(k + kDepth, k_end, a_held);
        b_loader.fetch(k + kDepth, k_end, b_held);
      }
      const auto step = [&](int d) {
        float a[kT], b[kT];
#pragma unroll
        for (int i = 0; i < kT; i += 4) {
          const float4 a4 = *reinterpret_cast<const float4*>(a_slice + d * kPitch + place(ty, i));
          const float4 b4 = *reinterpret_cast<const float4*>(b_slice + d * kPitch + place(tx, i));
          a[i] = a4.x, a[i + 1] = a4.y, a[i + 2] = a4.z, a[i + 3] = a4.w;
          b[i] = b4.x, b[i + 1] = b4.y, b[i + 2] = b4.z, b[i + 3] = b4.w;
        }
#pragma unroll
        for (int i = 0; i < kT; ++i)
#pragma unroll
          for (int j = 0; j < kT; ++j) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
      };
      // No padded steps: +0·+0 would turn a sum that is −0 (an underflowed product) into +0.
      if (k + kDepth <= k_end) {
#pragma unroll 2
        for (int d = 0; d < kDepth; ++d) step(d);
      } else {
#pragma unroll 1
        for (int d = 0; d < static_cast<int>(k_end - k); ++d) step(d);
      }
    }
#pragma unroll
    for (int i = 0; i < kT; ++i) {
      const int64_t row = row0 + place(ty, i);
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        const int64_t column = column0 + place(tx, j);
        if (row >= p.m || column >= p.n) continue;
        float* const total = sums + row * p.n + column;  // this thread's alone
        *total = canonical(chunk == plane ? sum[i][j] : *total + sum[i][j]);
      }
    }
  }
}

/// out = quantise(Σ planes, ascending, + bias).
struct Finish {
  const float* sums;  // (planes, M·N)
  bool aligned;       // every plane, to 16 bytes
  int64_t planes;
  const void* bias;  // null: none
  DType bias_type;
  Sink out;
  Rounder rounder;
  int64_t n, count;  // count = M·N
};

__global__ void __launch_bounds__(kThreads) finish_kernel(Finish w) {
  const RandomSource random = w.rounder.random();
  for_packs(w.count, [&](int64_t i, int count) {
    float total[kPack], next[kPack];
    load_pack({w.sums, DType::F32, w.aligned}, i, count, total);
    for (int64_t plane = 1; plane < w.planes; ++plane) {
      load_pack({w.sums + plane * w.count, DType::F32, w.aligned}, i, count, next);
#pragma unroll
      for (int k = 0; k < kPack; ++k) total[k] += next[k];
    }
    if (w.bias != nullptr) {
      int64_t column = i % w.n;
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        if (k < count) total[k] += load_one(w.bias, w.bias_type, column);
        if (++column == w.n) column = 0;
      }
    }
    round_pack(w.rounder, random, i, total);
    store_pack(w.out, i, count, total);
  });
}

Operand operand(const Tensor& t, int outer_axis) {
  const int64_t outer = t.strides()[outer_axis], k = t.strides()[1 - outer_axis];
  return {t.raw(), t.dtype(), t.size(outer_axis), outer, k, std::abs(k) < std::abs(outer)};
}

int multiprocessors(Device device) {
  int count = 0;
  ULP_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.index));
  return count;
}

/// How the strict product is cut; no choice here shows in a result.
struct Plan {
  bool small;  // tiles of 64 instead of 128
  int64_t tiles_m, tiles_n, chunks, planes;
};

Plan make_plan(const MatmulArgs& args, int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kMostPlaneBytes = int64_t{256} << 20;
  const int64_t fill = multiprocessors(args.a.device());
  Plan plan{};
  plan.chunks = std::max<int64_t>(1, (k + kMatmulChunk - 1) / kMatmulChunk);
  const auto cut = [&](int64_t side) {
    plan.tiles_m = (m + side - 1) / side;
    plan.tiles_n = (n + side - 1) / side;
    const int64_t bytes = plan.chunks * m * n * static_cast<int64_t>(sizeof(float));
    const bool split = plan.tiles_m * plan.tiles_n < fill && bytes <= kMostPlaneBytes;
    plan.planes = split ? plan.chunks : 1;
  };
  cut(128);
  plan.small = plan.tiles_m * plan.tiles_n * plan.planes < fill;
  if (plan.small) cut(64);
  return plan;
}

void strict_sums(Stream stream, const MatmulArgs& args, const Plan& plan, float* sums) {
  const Product p{operand(args.a, 0), operand(args.b, 1), sums,        args.a.size(0),
                  args.b.size(1),     args.a.size(1),     plan.chunks, plan.tiles_m * plan.tiles_n,
                  plan.tiles_n,       plan.planes > 1};
  const int64_t blocks = p.tiles * plan.planes;
  if (plan.small)
    launch("matmul", stream, blocks, kThreads, matmul_kernel<4>, p);
  else
    launch("matmul", stream, blocks, kThreads, matmul_kernel<8>, p);
}

void check_operand(Stream stream, const char* name, const Tensor& t) {
  ULP_CHECK(t.defined() && t.rank() == 2, "matmul: {} must be a matrix, got {}", name, t);
  ULP_CHECK(t.device() == stream.device, "matmul: {} must be on {}, got one on {}", name,
            stream.device, t.device());
  check_float("matmul", t);
}

}  // namespace

void matmul(Stream stream, const MatmulArgs& args) {
  check_operand(stream, "a", args.a);
  check_operand(stream, "b", args.b);
  const int64_t m = args.a.size(0), k = args.a.size(1), n = args.b.size(1);
  ULP_CHECK(args.b.size(0) == k, "matmul: a {} and b {} do not fit: {} columns, {} rows",
            args.a.shape(), args.b.shape(), k, args.b.size(0));
  check_kernel_tensor("matmul", stream, args.out, {m, n});
  check_output("matmul", args.out, args.output);
  if (args.bias.defined()) {
    ULP_CHECK(args.bias.shape() == Shape{n}, "matmul: bias must be ({}), got {}", n, args.bias);
    ULP_CHECK(args.bias.device() == stream.device, "matmul: bias must be on {}, got one on {}",
              stream.device, args.bias.device());
    check_float("matmul", args.bias);
  }
  ULP_CHECK(args.accumulator.kind == Accumulator::Kind::Fp32,
            "matmul: this build has only the fp32 accumulator");
  Finish finish{};
  finish.rounder = make_elementwise_rounder("matmul", stream.device, args.output, args.key);
  if (m == 0 || n == 0) return;

  const bool fast = args.math == Math::Fast && k > 0;
  const Plan plan = make_plan(args, m, n, k);
  finish.planes = fast ? 1 : plan.planes;
  finish.out = sink_of(args.out);
  const bool in_place = finish.planes == 1 && args.out.dtype() == DType::F32;
  Tensor scratch;
  if (!in_place) scratch = Tensor::empty({finish.planes, m, n}, DType::F32, stream.device);
  float* sums = in_place ? static_cast<float*>(finish.out.data) : scratch.mutable_data<float>();
  if (fast)
    matmul_fast(stream, args.a, args.b, sums);
  else
    strict_sums(stream, args, plan, sums);
  if (in_place && !args.bias.defined() && args.output.is_identity()) return;
  finish.sums = sums;
  finish.n = n;
  finish.count = m * n;
  finish.aligned = is_aligned(sums, DType::F32) && (finish.planes == 1 || finish.count % 4 == 0);
  Tensor bias;
  if (args.bias.defined()) {
    bias = kernels::contiguous(stream, args.bias);
    finish.bias = bias.raw();
    finish.bias_type = bias.dtype();
  }
  launch("matmul", stream, pack_blocks(finish.count), kThreads, finish_kernel, finish);
}

}  // namespace ulp::cuda
