#pragma once

// out (M, N) = a (M, K) · b (K, N) in the strict order of core/sum.h.
//
// A block makes a tile of out; each of its threads keeps a few sums in registers and adds k in ascending order, so the cut
// of the work never shows. The operands pass through slices of shared memory in turn, as fp32 and with their outer axis
// contiguous: while one is summed, the next ones are on their way from global memory. Where k has several chunks of 4096 and
// the tiles alone would not fill the GPU, each chunk gets its own plane of sums, and the planes are added in ascending
// order: the same additions.

#include <cuda_pipeline_primitives.h>

#include <cstdlib>

#include "core/sum.h"
#include "kernels/cuda/pack.cuh"

namespace ulp::cuda::strict {

/// One operand, seen from out: `outer` is its row of out (a) or column of out (b).
struct Operand {
  const void* data;
  DType dtype;
  int64_t extent, outer_stride, k_stride;
  bool k_fast;  // neighbours along k lie closer together
  bool quads;   // four neighbours can be read at once
};

/// A and B: what the loaders of the two operands read.
template <class A, class B>
struct Product {
  A a;
  B b;
  float* sums;  // (planes, M, N)
  int64_t m, n, k, chunks, tiles, tiles_n;
  bool split;  // one plane a chunk
};

/// How operands pass through registers, where they are decoded: four neighbours at once or one by one.
enum class Access : uint8_t { Quads, Elements };

/// How a block's work is cut: sums of a thread, warps of a block (of 4 × 8 threads), steps of k in a slice, slices in shared
/// memory for asynchronous copies (others have two), steps whose operands a thread reads at once (while it sums the ones
/// before), blocks an SM must hold.
template <int kSumsM, int kSumsN, int kWarpsM, int kWarpsN, int kSteps, int kSlices, int kGroup,
          int kResident>
struct Cut {
  static constexpr int kM = kSumsM, kN = kSumsN, kColumnWarps = kWarpsN, kDepth = kSteps,
                       kStages = kSlices, kAhead = kGroup, kBlocks = kResident;
  static constexpr int kBlockThreads = kWarpsM * kWarpsN * kWarp;
  static constexpr int kLanesM = 4, kLanesN = 8;
  static constexpr int kRows = kWarpsM * kLanesM * kM, kColumns = kWarpsN * kLanesN * kN;
  static_assert(kMatmulChunk % kDepth == 0 && kDepth / kAhead % 2 == 0);
};

/// Floats from one step of a slice to the next: whole 16-byte lines, and eight steps lie in different banks.
constexpr int pitch_of(int tile) { return tile + 4; }

/// A block's share of an fp32 operand (kTile × kDepth), copied in the background: 16 bytes at once where four neighbours
/// along the outer axis allow it, else element by element, neighbours in memory by neighbouring threads.
template <class Cut, int kTile>
struct AsyncLoader {
  using Source = Operand;
  static constexpr bool kAsync = true;
  enum class Order : uint8_t { KFast, OuterFast, OuterQuads };
  static constexpr int kThreads = Cut::kBlockThreads, kDepth = Cut::kDepth;
  static constexpr int kStepLanes = kThreads / kTile > 8 ? kThreads / kTile : 8;
  static constexpr int kOuterLanes = kTile < kThreads ? kTile : kThreads;
  static constexpr int kQuadLanes = kTile / 4 < kThreads ? kTile / 4 : kThreads;

  Order order;
  const char* at;  // this thread's first element, in the slice that is fetched next
  int64_t outer_bytes, step_bytes;
  int outer, depth, extent;

  __device__ AsyncLoader(const Operand& x, int64_t first, int64_t k)
      : order(x.k_fast  ? Order::KFast
              : x.quads ? Order::OuterQuads
                        : Order::OuterFast),
        outer_bytes(x.outer_stride * 4),
        step_bytes(x.k_stride * 4),
        extent(static_cast<int>(x.extent - first < kTile ? x.extent - first : kTile)) {
    const int thread = static_cast<int>(threadIdx.x);
    const int lanes = order == Order::OuterFast ? kOuterLanes : kQuadLanes;
    outer = order == Order::KFast       ? thread / kStepLanes
            : order == Order::OuterFast ? thread % lanes
                                        : thread % lanes * 4;
    depth = order == Order::KFast ? thread % kStepLanes : thread / lanes;
    at =
        static_cast<const char*>(x.data) + (first + outer) * outer_bytes + (k + depth) * step_bytes;
  }

  template <int kLanes, int kWidth, bool kWhole>
  __device__ __forceinline__ void copy(float* to, int k_left) const {
    constexpr int kSteps = kThreads / kLanes, kOuter = kLanes * kWidth;
    static_assert(kTile % kOuter == 0 && kDepth % kSteps == 0);
    const char* line = at;
#pragma unroll(kWhole || kTile < 64 ? kDepth / kSteps : 1)
    for (int d = 0; d < kDepth; d += kSteps, line += kSteps * step_bytes) {
      const char* from = line;
#pragma unroll(kWhole || kTile < 64 ? kTile / kOuter : 1)
      for (int o = 0; o < kTile; o += kOuter, from += kOuter * outer_bytes)
        if (kWhole || (outer + o < extent && depth + d < k_left))
          __pipeline_memcpy_async(to + d * pitch_of(kTile) + o, from, kWidth * 4);
    }
  }

  template <bool kWhole>
  __device__ __forceinline__ void copy_in_order(float* to, int k_left) const {
    switch (order) {
      case Order::KFast: copy<kThreads / kStepLanes, 1, kWhole>(to, k_left); break;
      case Order::OuterFast: copy<kOuterLanes, 1, kWhole>(to, k_left); break;
      case Order::OuterQuads: copy<kQuadLanes, 4, kWhole>(to, k_left); break;
    }
  }

  /// Starts the next slice, of which k_left steps exist; what lies beyond stays as it is, and no kept sum reads it.
  __device__ __forceinline__ void fetch(float* slice, int k_left) {
    float* to = slice + depth * pitch_of(kTile) + outer;
    if (extent == kTile && k_left >= kDepth)
      copy_in_order<true>(to, k_left);
    else
      copy_in_order<false>(to, k_left);
    at += kDepth * step_bytes;
  }

  __device__ __forceinline__ void land(float*) const {}
};

/// The same for an operand of any type, through registers: quads along the axis that lies closer in memory.
template <class Cut, int kTile, Access kAccess>
struct Loader {
  using Source = Operand;
  static constexpr bool kAsync = false;
  static constexpr int kThreads = Cut::kBlockThreads, kDepth = Cut::kDepth;
  static constexpr int kQuads = kTile * kDepth / 4 / kThreads, kPitch = pitch_of(kTile);
  static_assert(kQuads >= 1);
  DType dtype;
  bool k_fast;
  const char* at;  // this thread's first element, in the slice that is fetched next
  int64_t quad_bytes, slice_bytes, element_bytes;
  int outer, depth, outer_step,
      depth_step;            // quad j lies `outer_step` or `depth_step` further than quad j − 1
  int outer_left;            // from `outer` to the operand's end
  uint32_t held[kQuads][4];  // raw words of the slice on its way

  __device__ Loader(const Operand& x, int64_t first, int64_t k) : dtype(x.dtype), k_fast(x.k_fast) {
    const int thread = static_cast<int>(threadIdx.x);
    const auto bytes = static_cast<int64_t>(size_of(x.dtype));
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
                                                 uint32_t (&words)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i, from += element_bytes) {
      words[i] = 0;
      if (i < there) words[i] = *reinterpret_cast<const Word*>(from);
    }
  }

  __device__ __forceinline__ void fetch(float*, int k_left) {
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
      } else if (size_of(dtype) == 4) {
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

  __device__ __forceinline__ void decode_quad(const uint32_t (&raw)[4], float (&values)[4]) const {
    uint32_t words[4] = {raw[0], raw[1], raw[2], raw[3]};
    if (kAccess == Access::Quads && size_of(dtype) == 2) {
      words[1] = raw[0] >> 16, words[0] = raw[0] & 0xFFFFu;
      words[3] = raw[1] >> 16, words[2] = raw[1] & 0xFFFFu;
    }
    if (kAccess == Access::Quads && size_of(dtype) == 1) {
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = raw[0] >> (8 * i) & 0xFFu;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = decode(words[i], dtype);
  }

  __device__ __forceinline__ void land(float* slice) const {
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

/// Where a thread's sums lie in the tile of a block: runs of up to four, a warp's width apart. Lanes 2i and 2i + 1 share
/// their column and lanes i and i ^ 2 their row, so that one pass through shared memory serves half a warp.
template <class Cut>
struct Placement {
  static constexpr int kRunM = Cut::kM < 4 ? Cut::kM : 4, kRunN = Cut::kN < 4 ? Cut::kN : 4;
  static constexpr int kStepM = Cut::kLanesM * kRunM, kStepN = Cut::kLanesN * kRunN;
  int row0, column0;
  __device__ Placement() {
    const int lane = static_cast<int>(threadIdx.x) % kWarp,
              warp = static_cast<int>(threadIdx.x) / kWarp;
    row0 = warp / Cut::kColumnWarps * (Cut::kLanesM * Cut::kM) + (lane % 2 + lane / 16 * 2) * kRunM;
    column0 = warp % Cut::kColumnWarps * (Cut::kLanesN * Cut::kN) + lane / 2 % 8 * kRunN;
  }
  __device__ int row(int i) const { return row0 + i / kRunM * kStepM + i % kRunM; }
  __device__ int column(int j) const { return column0 + j / kRunN * kStepN + j % kRunN; }
};

/// values = kCount floats of one step: runs of kRun, `kStep` apart.
template <int kRun, int kStep, int kCount>
__device__ __forceinline__ void read_runs(const float* from, float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += kRun, from += kStep) {
    if constexpr (kRun == 4) {
      const float4 run = *reinterpret_cast<const float4*>(from);
      values[i] = run.x, values[i + 1] = run.y, values[i + 2] = run.z, values[i + 3] = run.w;
    } else if constexpr (kRun == 2) {
      const float2 run = *reinterpret_cast<const float2*>(from);
      values[i] = run.x, values[i + 1] = run.y;
    } else {
      values[i] = *from;
    }
  }
}

template <class Cut, int kTile>
using QuadLoader = Loader<Cut, kTile, Access::Quads>;
template <class Cut, int kTile>
using ElementLoader = Loader<Cut, kTile, Access::Elements>;

/// A loader is made for the outer index and the k that a block begins with; fetch() starts the next slice of shared memory,
/// land() completes it there.
template <class Cut, class LoadA, class LoadB>
__global__ void __launch_bounds__(Cut::kBlockThreads, Cut::kBlocks) strict_kernel(
    const __grid_constant__ Product<typename LoadA::Source, typename LoadB::Source> p) {
  constexpr int kStages = LoadA::kAsync && LoadB::kAsync ? Cut::kStages : 2;
  constexpr int kM = Cut::kM, kN = Cut::kN, kDepth = Cut::kDepth, kAhead = Cut::kAhead,
                kGroups = kDepth / kAhead;
  constexpr int kAPitch = pitch_of(Cut::kRows), kBPitch = pitch_of(Cut::kColumns);
  constexpr int kSliceA = kDepth * kAPitch, kSlice = kSliceA + kDepth * kBPitch;
  using Place = Placement<Cut>;
  alignas(16) __shared__ float slices[kStages * kSlice];
  const int64_t plane = blockIdx.x / p.tiles;
  const int64_t tile = blockIdx.x % p.tiles;
  const int64_t row0 = tile / p.tiles_n * Cut::kRows, column0 = tile % p.tiles_n * Cut::kColumns;
  float* const sums = p.sums + plane * p.m * p.n;
  const int64_t chunk_end = p.split ? plane + 1 : p.chunks;
  const Place place;
  LoadA a_loader(p.a, row0, plane * kMatmulChunk);
  LoadB b_loader(p.b, column0, plane * kMatmulChunk);
  const auto fetch = [&](float* slice, int k_left) {
    if (k_left > 0) {
      a_loader.fetch(slice, k_left);
      b_loader.fetch(slice + kSliceA, k_left);
    }
    __pipeline_commit();
  };
  // The oldest slice on its way is there for all threads, and all have read the one before.
  const auto land = [&](float* slice) {
    a_loader.land(slice);
    b_loader.land(slice + kSliceA);
    __pipeline_wait_prior(kStages - 2);
    __syncthreads();
  };
  const auto next = [&](float* slice) {
    return slice == slices + (kStages - 1) * kSlice ? slices : slice + kSlice;
  };

  for (int64_t chunk = plane; chunk < chunk_end; ++chunk) {
    const int64_t left = p.k - chunk * kMatmulChunk;
    int k_left = static_cast<int>(left < kMatmulChunk ? left : kMatmulChunk);
    float sum[kM][kN] = {};
    float a[2][kAhead][kM], b[2][kAhead][kN];
    const auto read = [&](const float* slice, int d, float(&a_step)[kM], float(&b_step)[kN]) {
      read_runs<Place::kRunM, Place::kStepM>(slice + d * kAPitch + place.row0, a_step);
      read_runs<Place::kRunN, Place::kStepN>(slice + kSliceA + d * kBPitch + place.column0, b_step);
    };
    const auto add = [&](const float(&a_step)[kM], const float(&b_step)[kN]) {
#pragma unroll
      for (int i = 0; i < kM; ++i)
#pragma unroll
        for (int j = 0; j < kN; ++j) sum[i][j] = fmaf(a_step[i], b_step[j], sum[i][j]);
    };

    float *now = slices, *coming = slices + (kStages - 1) * kSlice;
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) fetch(slices + s * kSlice, k_left - s * kDepth);
    land(slices);
#pragma unroll
    for (int d = 0; d < kAhead; ++d) read(now, d, a[0][d], b[0][d]);
    for (; k_left >= kDepth; k_left -= kDepth) {
      fetch(coming, k_left - (kStages - 1) * kDepth);
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        if (group == kGroups - 1) {
          now = next(now), coming = next(coming);
          land(now);
        }
#pragma unroll
        for (int d = 0; d < kAhead; ++d)
          read(now, (group + 1) % kGroups * kAhead + d, a[(group + 1) % 2][d],
               b[(group + 1) % 2][d]);
#pragma unroll
        for (int d = 0; d < kAhead; ++d) add(a[group % 2][d], b[group % 2][d]);
      }
    }
    // No padded steps: +0·+0 would turn a sum that is −0 (an underflowed product) into +0.
#pragma unroll 1
    for (int d = 0; d < k_left; ++d) {
      read(now, d, a[0][0], b[0][0]);
      add(a[0][0], b[0][0]);
    }
    __syncthreads();
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

/// sums[i] = Σ planes[·][i] over `count` values each, in ascending order.
static __global__ void __launch_bounds__(kThreads)
    add_planes_kernel(const float* __restrict__ planes, int64_t plane_count, int64_t count,
                      float* __restrict__ sums) {
  constexpr int kBatch = 16;  // on their way together
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    float total = planes[i];
    for (int64_t plane = 1; plane < plane_count; plane += kBatch) {
      float next[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        next[b] = plane + b < plane_count ? planes[(plane + b) * count + i] : 0.0f;
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (plane + b < plane_count) total += next[b];
    }
    sums[i] = canonical(total);
  }
}

using Large = Cut<16, 8, 2, 2, 8, 3, 1, 2>;
using Medium = Cut<8, 4, 2, 2, 16, 3, 1, 4>;
using Small = Cut<4, 2, 2, 2, 32, 3, 2, 4>;
using Thin = Cut<2, 1, 2, 1, 64, 4, 8, 4>;

/// True if the operand's neighbours can be read four at a time.
inline bool has_quads(const Operand& x, int64_t k) {
  const int64_t fast = x.k_fast ? x.k_stride : x.outer_stride,
                slow = x.k_fast ? x.outer_stride : x.k_stride;
  return fast == 1 && slow % 4 == 0 && (x.k_fast ? k : x.extent) % 4 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % (4 * size_of(x.dtype)) == 0;
}

inline Operand operand(const Tensor& t, int outer_axis) {
  const int64_t outer = t.strides()[outer_axis], k = t.strides()[1 - outer_axis];
  Operand x{t.raw(), t.dtype(), t.size(outer_axis), outer, k, std::abs(k) < std::abs(outer), false};
  x.quads = has_quads(x, t.size(1 - outer_axis));
  return x;
}

inline int multiprocessors(Device device) {
  int count = 0;
  ULP_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.index));
  return count;
}

/// The part of out that one block makes: 128 × 128, 64 × 64, 32 × 32 or 16 × 8.
enum class Tile : uint8_t { Large, Medium, Small, Thin };

/// How a product is cut: the largest tiles that fill the GPU. No choice here shows in a result.
struct Plan {
  Tile tile = Tile::Large;
  int64_t chunks = 1;  // of k
  int64_t planes = 1;  // of sums: 1, or one a chunk where the tiles alone would not fill the GPU
};

inline Plan make_plan(Device device, int64_t m, int64_t k, int64_t n) {
  constexpr int64_t kMostPlaneBytes = int64_t{256} << 20;
  const int64_t fill = multiprocessors(device);
  Plan plan;
  plan.chunks = std::max<int64_t>(1, (k + kMatmulChunk - 1) / kMatmulChunk);
  const int64_t plane_bytes = plan.chunks * m * n * static_cast<int64_t>(sizeof(float));
  const auto fills = [&](Tile tile, int64_t rows, int64_t columns) {
    const int64_t tiles = (m + rows - 1) / rows * ((n + columns - 1) / columns);
    plan.tile = tile;
    plan.planes = tiles < fill && plane_bytes <= kMostPlaneBytes ? plan.chunks : 1;
    return tiles * plan.planes >= fill;
  };
  if (!fills(Tile::Large, Large::kRows, Large::kColumns) &&
      !fills(Tile::Medium, Medium::kRows, Medium::kColumns) &&
      !fills(Tile::Small, Small::kRows, Small::kColumns))
    fills(Tile::Thin, Thin::kRows, Thin::kColumns);
  return plan;
}

template <class Cut, class LoadA, class LoadB, class P>
void launch_cut(const char* kernel, Stream stream, P p, int64_t planes) {
  p.tiles_n = (p.n + Cut::kColumns - 1) / Cut::kColumns;
  p.tiles = (p.m + Cut::kRows - 1) / Cut::kRows * p.tiles_n;
  launch(kernel, stream, p.tiles * planes, Cut::kBlockThreads, strict_kernel<Cut, LoadA, LoadB>, p);
}

/// sums (m, n) = a · b, m and n > 0.
template <template <class, int> class LoadA, template <class, int> class LoadB, class A, class B>
void run(const char* kernel, Stream stream, const A& a, const B& b, int64_t m, int64_t k, int64_t n,
         float* sums) {
  const Plan plan = make_plan(stream.device, m, k, n);
  Product<A, B> p{};
  p.a = a;
  p.b = b;
  p.m = m;
  p.n = n;
  p.k = k;
  p.chunks = plan.chunks;
  p.split = plan.planes > 1;
  Tensor planes;
  if (p.split) planes = Tensor::empty({plan.planes, m, n}, DType::F32, stream.device);
  p.sums = p.split ? planes.mutable_data<float>() : sums;
  const auto with = [&]<class Cut>() {
    launch_cut<Cut, LoadA<Cut, Cut::kRows>, LoadB<Cut, Cut::kColumns>>(kernel, stream, p,
                                                                       plan.planes);
  };
  switch (plan.tile) {
    case Tile::Large: with.template operator()<Large>(); break;
    case Tile::Medium: with.template operator()<Medium>(); break;
    case Tile::Small: with.template operator()<Small>(); break;
    case Tile::Thin: with.template operator()<Thin>(); break;
  }
  if (p.split)
    launch(kernel, stream, blocks_for(m * n, kThreads), kThreads, add_planes_kernel,
           static_cast<const float*>(p.sums), plan.planes, m * n, sums);
}

}  // namespace ulp::cuda::strict
