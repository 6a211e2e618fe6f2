// out (M, N) = a (M, K) · b (K, N) in the strict order of core/sum.h.
//
// A block of 256 threads makes a tile of out; each thread keeps kM × kN sums in registers and adds k in ascending order, so
// the tile size never shows. The operands pass through two slices of shared memory in turn, decoded and with their outer
// axis contiguous: while one is summed, the next one is on its way from global memory. Where k has several chunks of 4096
// and the tiles alone would not fill the GPU, each chunk gets its own plane of sums; whoever reads them adds the planes in
// ascending order: the same additions.

#include <cstdlib>

#include "core/sum.h"
#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/pack.cuh"

namespace ulp::cuda {
namespace {

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

/// How four neighbours of an operand are read: at once as fp32, at once as a narrower type, or one by one.
enum class Access : uint8_t { F32Quads, Quads, Elements };

/// One thread's share of an operand's slice (kTile × kDepth): quads along the axis that lies closer in memory.
template <int kTile, int kDepth, Access kAccess>
struct Loader {
  static constexpr int kQuads = kTile * kDepth / 4 / kThreads, kPitch = kTile + 4;
  static_assert(kQuads >= 1);
  DType dtype;
  bool k_fast;
  const char* at;  // this thread's first element, in the slice that is fetched next
  int64_t quad_bytes, slice_bytes, element_bytes;
  int outer, depth, outer_step,
      depth_step;  // quad j lies `outer_step` or `depth_step` further than quad j − 1
  int outer_left;  // from `outer` to the operand's end

  __device__ Loader(const Operand& x, int64_t first, int64_t k) : dtype(x.dtype), k_fast(x.k_fast) {
    const int thread = static_cast<int>(threadIdx.x);
    const auto bytes = static_cast<int64_t>(kAccess == Access::F32Quads ? 4 : size_of(x.dtype));
    constexpr int kPerRow = kDepth / 4, kPerStep = kTile / 4;
    outer = k_fast ? thread / kPerRow : thread % kPerStep * 4;
    depth = k_fast ? thread % kPerRow * 4 : thread / kPerStep;
    outer_step = k_fast ? kThreads / kPerRow : 0;
    depth_step = k_fast ? 0 : kThreads / kPerStep;
    outer_left = static_cast<int>(x.extent - first < kTile ? x.extent - first : kTile) - outer;
    at = static_cast<const char*>(x.data) +
         ((first + outer) * x.outer_stride + (k + depth) * x.k_stride) * bytes;
    quad_bytes = (outer_step * x.outer_stride + depth_step * x.k_stride) * bytes;
    slice_bytes = kDepth * x.k_stride * bytes;
    element_bytes = (k_fast ? x.k_stride : x.outer_stride) * bytes;
  }

  template <class Word>
  __device__ __forceinline__ void fetch_elements(const char* from, int there,
                                                 uint32_t (&held)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i, from += element_bytes) {
      held[i] = 0;
      if (i < there) held[i] = *reinterpret_cast<const Word*>(from);
    }
  }

  /// Raw words of the next slice, of which k_left steps exist.
  __device__ __forceinline__ void fetch(int k_left, uint32_t (&held)[kQuads][4]) {
    const char* from = at;
#pragma unroll
    for (int j = 0; j < kQuads; ++j, from += quad_bytes) {
      const int outers = outer_left - j * outer_step, steps = k_left - depth - j * depth_step;
      if (outers <= 0 || steps <= 0) continue;
      if constexpr (kAccess == Access::Elements) {
        const int there = k_fast ? steps : outers;
        switch (size_of(dtype)) {
          case 4: fetch_elements<uint32_t>(from, there, held[j]); break;
          case 2: fetch_elements<uint16_t>(from, there, held[j]); break;
          default: fetch_elements<uint8_t>(from, there, held[j]);
        }
      } else if (kAccess == Access::F32Quads || size_of(dtype) == 4) {
        const uint4 quad = __ldg(reinterpret_cast<const uint4*>(from));
        held[j][0] = quad.x, held[j][1] = quad.y, held[j][2] = quad.z, held[j][3] = quad.w;
      } else if (size_of(dtype) == 2) {
        const uint2 quad = __ldg(reinterpret_cast<const uint2*>(from));
        held[j][0] = quad.x, held[j][1] = quad.y;
      } else {
        held[j][0] = __ldg(reinterpret_cast<const uint32_t*>(from));
      }
    }
    at += slice_bytes;
  }

  __device__ __forceinline__ void decode_quad(const uint32_t (&held)[4], float (&values)[4]) const {
    if constexpr (kAccess == Access::F32Quads) {
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] = float_of(held[i]);
      return;
    }
    uint32_t words[4] = {held[0], held[1], held[2], held[3]};
    if (kAccess == Access::Quads && size_of(dtype) == 2) {
      words[1] = held[0] >> 16, words[0] = held[0] & 0xFFFFu;
      words[3] = held[1] >> 16, words[2] = held[1] & 0xFFFFu;
    }
    if (kAccess == Access::Quads && size_of(dtype) == 1) {
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = held[0] >> (8 * i) & 0xFFu;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = decode(words[i], dtype);
  }

  __device__ __forceinline__ void put(const uint32_t (&held)[kQuads][4], float* slice) const {
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      float values[4];
      decode_quad(held[j], values);
      float* to = slice + (depth + j * depth_step) * kPitch + outer + j * outer_step;
      if (k_fast) {
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i * kPitch] = values[i];
      } else {
        *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
      }
    }
  }
};

/// Where a thread's sums lie in the tile of a block: 4 × 2 warps of 4 × 8 threads; runs of four, a warp's width apart, so
/// that the threads of a warp read the same few lines of shared memory.
template <int kM, int kN>
struct Placement {
  int row0, column0;
  __device__ Placement() {
    const int lane = static_cast<int>(threadIdx.x) % kWarp,
              warp = static_cast<int>(threadIdx.x) / kWarp;
    row0 = warp / 2 * (4 * kM) + lane / 8 * 4;
    column0 = warp % 2 * (8 * kN) + lane % 8 * 4;
  }
  __device__ int row(int i) const { return row0 + i / 4 * 16 + i % 4; }
  __device__ int column(int j) const { return column0 + j / 4 * 32 + j % 4; }
};

template <int kM, int kN, int kDepth, Access kAccess>
__global__ void __launch_bounds__(kThreads, 2) strict_kernel(Product p) {
  constexpr int kRows = 16 * kM, kColumns = 16 * kN;
  using ALoader = Loader<kRows, kDepth, kAccess>;
  using BLoader = Loader<kColumns, kDepth, kAccess>;
  static_assert(kMatmulChunk % kDepth == 0);
  alignas(16) __shared__ float a_slices[2][kDepth * ALoader::kPitch];
  alignas(16) __shared__ float b_slices[2][kDepth * BLoader::kPitch];
  const int64_t plane = blockIdx.x / p.tiles;
  const int64_t tile = blockIdx.x % p.tiles;
  const int64_t row0 = tile / p.tiles_n * kRows, column0 = tile % p.tiles_n * kColumns;
  float* const sums = p.sums + plane * p.m * p.n;
  const int64_t chunk_end = p.split ? plane + 1 : p.chunks;
  const Placement<kM, kN> place;
  ALoader a_loader(p.a, row0, plane * kMatmulChunk);
  BLoader b_loader(p.b, column0, plane * kMatmulChunk);

  for (int64_t chunk = plane; chunk < chunk_end; ++chunk) {
    const int64_t left = p.k - chunk * kMatmulChunk;
    int k_left = static_cast<int>(left < kMatmulChunk ? left : kMatmulChunk);
    float sum[kM][kN] = {};
    uint32_t a_held[ALoader::kQuads][4], b_held[BLoader::kQuads][4];
    a_loader.fetch(k_left, a_held);
    b_loader.fetch(k_left, b_held);
    a_loader.put(a_held, a_slices[0]);
    b_loader.put(b_held, b_slices[0]);
    __syncthreads();
    for (int now = 0; k_left > 0; now ^= 1, k_left -= kDepth) {
      const bool more = k_left > kDepth;
      if (more) {
        a_loader.fetch(k_left - kDepth, a_held);
        b_loader.fetch(k_left - kDepth, b_held);
      }
      const float* a_slice = a_slices[now] + place.row0;
      const float* b_slice = b_slices[now] + place.column0;
      const auto step = [&](int d) {
        float a[kM], b[kN];
#pragma unroll
        for (int i = 0; i < kM; i += 4) {
          const float4 a4 =
              *reinterpret_cast<const float4*>(a_slice + d * ALoader::kPitch + i / 4 * 16);
          a[i] = a4.x, a[i + 1] = a4.y, a[i + 2] = a4.z, a[i + 3] = a4.w;
        }
#pragma unroll
        for (int j = 0; j < kN; j += 4) {
          const float4 b4 =
              *reinterpret_cast<const float4*>(b_slice + d * BLoader::kPitch + j / 4 * 32);
          b[j] = b4.x, b[j + 1] = b4.y, b[j + 2] = b4.z, b[j + 3] = b4.w;
        }
#pragma unroll
        for (int i = 0; i < kM; ++i)
#pragma unroll
          for (int j = 0; j < kN; ++j) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
      };
      // No padded steps: +0·+0 would turn a sum that is −0 (an underflowed product) into +0.
      if (k_left >= kDepth) {
#pragma unroll
        for (int d = 0; d < kDepth; ++d) step(d);
      } else {
#pragma unroll 1
        for (int d = 0; d < k_left; ++d) step(d);
      }
      if (more) {
        a_loader.put(a_held, a_slices[now ^ 1]);
        b_loader.put(b_held, b_slices[now ^ 1]);
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kM; ++i) {
      const int64_t row = row0 + place.row(i);
      if (row >= p.m) continue;
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        const int64_t column = column0 + place.column(j);
        if (column >= p.n) continue;
        float* const total = sums + row * p.n + column;  // this thread's alone
        *total = canonical(chunk == plane ? sum[i][j] : *total + sum[i][j]);
      }
    }
  }
}

constexpr int kLarge = 8,
              kSmall = 4;  // sums of a thread along each side; a tile has 16 times as many
constexpr int kDepth = 16;

Operand operand(const Tensor& t, int outer_axis) {
  const int64_t outer = t.strides()[outer_axis], k = t.strides()[1 - outer_axis];
  return {t.raw(), t.dtype(), t.size(outer_axis), outer, k, std::abs(k) < std::abs(outer)};
}

/// True if the operand's neighbours can be read four at a time.
bool has_quads(const Operand& x, int64_t k) {
  const int64_t fast = x.k_fast ? x.k_stride : x.outer_stride,
                slow = x.k_fast ? x.outer_stride : x.k_stride;
  return fast == 1 && slow % 4 == 0 && (x.k_fast ? k : x.extent) % 4 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % (4 * size_of(x.dtype)) == 0;
}

Access access_of(const Product& p) {
  if (!has_quads(p.a, p.k) || !has_quads(p.b, p.k)) return Access::Elements;
  const bool f32 = p.a.dtype == DType::F32 && p.b.dtype == DType::F32;
  return f32 ? Access::F32Quads : Access::Quads;
}

template <int kSide>
void launch_strict(Stream stream, Product p, int64_t planes) {
  constexpr int64_t kTile = 16 * kSide;
  p.tiles_n = (p.n + kTile - 1) / kTile;
  p.tiles = (p.m + kTile - 1) / kTile * p.tiles_n;
  const auto with = [&](auto* kernel) {
    launch("matmul", stream, p.tiles * planes, kThreads, kernel, p);
  };
  switch (access_of(p)) {
    case Access::F32Quads: return with(strict_kernel<kSide, kSide, kDepth, Access::F32Quads>);
    case Access::Quads: return with(strict_kernel<kSide, kSide, kDepth, Access::Quads>);
    case Access::Elements: return with(strict_kernel<kSide, kSide, kDepth, Access::Elements>);
  }
}

int multiprocessors(Device device) {
  int count = 0;
  ULP_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.index));
  return count;
}

}  // namespace

StrictPlan plan_strict(const MatmulArgs& args) {
  constexpr int64_t kMostPlaneBytes = int64_t{256} << 20;
  const int64_t m = args.a.size(0), k = args.a.size(1), n = args.b.size(1);
  const int64_t fill = multiprocessors(args.a.device());
  StrictPlan plan;
  plan.chunks = std::max<int64_t>(1, (k + kMatmulChunk - 1) / kMatmulChunk);
  const int64_t plane_bytes = plan.chunks * m * n * static_cast<int64_t>(sizeof(float));
  const auto blocks_of = [&](int64_t side) {
    const int64_t tiles = (m + side - 1) / side * ((n + side - 1) / side);
    plan.planes = tiles < fill && plane_bytes <= kMostPlaneBytes ? plan.chunks : 1;
    return tiles * plan.planes;
  };
  plan.small = blocks_of(16 * kLarge) < fill;
  if (plan.small) blocks_of(16 * kSmall);
  return plan;
}

void matmul_strict(Stream stream, const MatmulArgs& args, const StrictPlan& plan, float* sums) {
  Product p{};
  p.a = operand(args.a, 0);
  p.b = operand(args.b, 1);
  p.sums = sums;
  p.m = args.a.size(0);
  p.n = args.b.size(1);
  p.k = args.a.size(1);
  p.chunks = plan.chunks;
  p.split = plan.planes > 1;
  if (plan.small)
    launch_strict<kSmall>(stream, p, plan.planes);
  else
    launch_strict<kLarge>(stream, p, plan.planes);
}

}  // namespace ulp::cuda
