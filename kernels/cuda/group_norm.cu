#include "kernels/cuda/held_rows.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/sum.cuh"
#include "kernels/norm_math.h"

// Norms of groups of neighbours, whose statistics are their own.
namespace ulp::cuda {
namespace {

struct GroupWork : NormInput, NormOutput {
  bool centred;
  float *mean, *inverse;  // written forward, read backward
  Layout layout;
  int64_t statistics, size;
  float count, share, eps;
  Interior interior;
};

/// The elements of a group.
struct Group {
  int64_t index, begin;  // its first element in the tensor
  uint32_t channel;      // that element's
  const Layout& layout;

  __device__ __forceinline__ Group(const Layout& l, int64_t index) : index(index), layout(l) {
    channel = static_cast<uint32_t>(index % l.groups) * l.width;
    begin = index / l.groups * l.span * l.channels + channel;
  }
  struct Element {
    int64_t at;  // in the tensor
    uint32_t channel;
  };
  __device__ __forceinline__ Element element(int64_t j) const {
    if (layout.span == 1) return {begin + j, channel + static_cast<uint32_t>(j)};
    const auto small = static_cast<uint32_t>(j);  // sizes are below kMostGroup
    const uint32_t s = small / layout.width, d = small % layout.width;
    return {begin + static_cast<int64_t>(s) * layout.channels + d, channel + d};
  }
};

__device__ __forceinline__ float load_float(const Source& s, int64_t i) {
  return s.dtype == DType::F32    ? static_cast<const float*>(s.data)[i]
         : s.dtype == DType::BF16 ? bf16_to_float(static_cast<const uint16_t*>(s.data)[i])
         : s.dtype == DType::F16  ? f16_to_float(static_cast<const uint16_t*>(s.data)[i])
                                  : load_one(s.data, s.dtype, i);
}
__device__ __forceinline__ void store_single(const Sink& s, int64_t i, float value) {
  if (s.dtype == DType::F32)
    static_cast<float*>(s.data)[i] = value;
  else
    store_one(s.data, s.dtype, i, value);
}

/// Calls body(group index) for this warp's groups, with all its lanes.
template <class Body>
__device__ __forceinline__ void for_warp_groups(int64_t groups, const Body& body) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  for (int64_t group = first; group < groups; group += warps) body(group);
}

/// Calls body(j, at) for this thread's elements of a group of at most 32·kHeld: at = j·32 + lane.
template <int kHeld, class Body>
__device__ __forceinline__ void for_held(int size, const Body& body) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int j = 0; j < kHeld; ++j)
    if (j * kWarp + lane < size) body(j, j * kWarp + lane);
}

__device__ __forceinline__ float finish_group(const GroupWork& w, int64_t group, float sum) {
  const float variance = w.interior.one(1, group, sum / w.count);
  return w.interior.one(2, group, norms::inverse_deviation(variance, w.eps));
}

/// y of one element from its x̂, written.
__device__ __forceinline__ void write_normalised(const GroupWork& w, const RandomSource& random,
                                                 const Group::Element& e, float x_hat) {
  const float y =
      w.affine ? norms::scaled(x_hat, w.weight.at(e.channel), w.bias.at(e.channel)) : x_hat;
  store_single(w.out, e.at, round_single(w.output, random, e.at, y));
}

/// Groups of at most 32·kHeld elements that lie side by side: each is read once and kept, element j·32 + t by thread t of a
/// warp, which is the order of warp_sum_chunk too.
template <int kHeld>
__global__ void __launch_bounds__(kThreads)
    group_norm_held_kernel(const __grid_constant__ GroupWork w) {
  const RandomSource random = w.output.random(), random_normal = w.interior.at[3].random();
  const int size = static_cast<int>(w.size);
  for_warp_groups(w.statistics, [&](int64_t index) {
    const Group group(w.layout, index);
    float x[kHeld];
    for_held<kHeld>(size, [&](int j, int at) { x[j] = load_float(w.x, group.begin + at); });
    float mean = 0;
    if (w.centred) {
      float sums[2] = {};  // of lanes t and t + 32
      for_held<kHeld>(size, [&](int j, int) { sums[j % 2] += x[j]; });
      mean = w.interior.one(0, index, warp_sum_lanes(sums[0], sums[1]) / w.count);
    }
    float sums[2] = {};
    for_held<kHeld>(size, [&](int j, int) { sums[j % 2] += norms::square_about(x[j], mean); });
    const float inverse = finish_group(w, index, warp_sum_lanes(sums[0], sums[1]));
    if (threadIdx.x % kWarp == 0) {
      if (w.centred) w.mean[index] = mean;
      w.inverse[index] = inverse;
    }
    for_held<kHeld>(size, [&](int j, int at) {
      const Group::Element e = group.element(at);
      const float x_hat = round_single(w.interior.at[3], random_normal, e.at,
                                       norms::normalised(x[j], mean, inverse));
      write_normalised(w, random, e, x_hat);
    });
  });
}

template <int kHeld>
__global__ void __launch_bounds__(kThreads)
    group_norm_backward_held_kernel(const __grid_constant__ GroupWork w) {
  const Rounder& normal = w.interior.at[3];
  const RandomSource random = w.output.random(), random_normal = normal.random();
  const int size = static_cast<int>(w.size);
  for_warp_groups(w.statistics, [&](int64_t index) {
    const Group group(w.layout, index);
    const float mean = w.centred ? w.mean[index] : 0.0f, inverse = w.inverse[index];
    float x[kHeld], h[kHeld];
    for_held<kHeld>(size, [&](int j, int at) {
      x[j] = load_float(w.x, group.begin + at);
      h[j] = load_float(w.grad, group.begin + at);
    });
    float sums[2] = {}, products[2] = {};
    for_held<kHeld>(size, [&](int j, int at) {
      x[j] = round_single(normal, random_normal, group.begin + at,
                          norms::normalised(x[j], mean, inverse));
      h[j] = h[j] * w.weight.at(group.channel + static_cast<uint32_t>(at));
      sums[j % 2] += h[j];
      products[j % 2] += h[j] * x[j];
    });
    const float sum = warp_sum_lanes(sums[0], sums[1]);
    const float mean_h = w.centred ? sum * w.share : 0.0f;
    const float mean_hx = warp_sum_lanes(products[0], products[1]) * w.share;
    for_held<kHeld>(size, [&](int j, int at) {
      const int64_t i = group.begin + at;
      const float dx = norms::input_gradient(h[j], x[j], mean_h, mean_hx, inverse);
      store_single(w.out, i, round_single(w.output, random, i, dx));
    });
  });
}

/// The numbers of a row's channels.
template <int kQuads>
__device__ __forceinline__ void load_channels(const Channels& c, int n, float (&x)[kQuads][kQuad]) {
  if (c.source.data != nullptr && c.source.aligned) return load_row(c.source, 0, n, x);
  for_row_quads<kQuads>(n, [&](int q, int at) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[q][k] = at < n ? c.at(static_cast<uint32_t>(at + k)) : 0.0f;
  });
}

/// Groups that are whole rows, in quads.
template <int kQuads>
__global__ void __launch_bounds__(kThreads)
    group_norm_quads_kernel(const __grid_constant__ GroupWork w) {
  const RandomSource random = w.output.random(), random_normal = w.interior.at[3].random();
  const int n = static_cast<int>(w.size);
  for_warp_groups(w.statistics, [&](int64_t index) {
    const int64_t begin = index * n;
    float x[kQuads][kQuad], other[kQuads][kQuad];
    load_row(w.x, begin, n, x);
    const float mean = w.centred ? w.interior.one(0, index, row_sum(n, x) / w.count) : 0.0f;
    for_row_quads<kQuads>(n, [&](int q, int at) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        other[q][k] = at < n ? norms::square_about(x[q][k], mean) : 0.0f;
    });
    const float inverse = finish_group(w, index, row_sum(n, other));
    if (threadIdx.x % kWarp == 0) {
      if (w.centred) w.mean[index] = mean;
      w.inverse[index] = inverse;
    }
#pragma unroll
    for (int q = 0; q < kQuads; ++q)
#pragma unroll
      for (int k = 0; k < kQuad; ++k) x[q][k] = norms::normalised(x[q][k], mean, inverse);
    if (w.interior.at[3].how != Rounder::How::Copy) note_row(w.interior.at[3], begin, n, n, x);
    round_row(w.interior.at[3], random_normal, begin, n, x);
    if (w.affine) {
      float bias[kQuads][kQuad];
      load_channels(w.weight, n, other);
      load_channels(w.bias, n, bias);
      for_row_quads<kQuads>(n, [&](int q, int) {
#pragma unroll
        for (int k = 0; k < kQuad; ++k) x[q][k] = norms::scaled(x[q][k], other[q][k], bias[q][k]);
      });
    }
    round_row(w.output, random, begin, n, x);
    store_row(w.out, begin, n, x);
  });
}

template <int kQuads>
__global__ void __launch_bounds__(kThreads)
    group_norm_backward_quads_kernel(const __grid_constant__ GroupWork w) {
  const RandomSource random = w.output.random(), random_normal = w.interior.at[3].random();
  const int n = static_cast<int>(w.size);
  for_warp_groups(w.statistics, [&](int64_t index) {
    const int64_t begin = index * n;
    const float mean = w.centred ? w.mean[index] : 0.0f, inverse = w.inverse[index];
    float x[kQuads][kQuad], h[kQuads][kQuad], other[kQuads][kQuad];
    load_row(w.x, begin, n, x);
    load_row(w.grad, begin, n, h);
    load_channels(w.weight, n, other);
    for_row_quads<kQuads>(n, [&](int q, int at) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        x[q][k] = norms::normalised(x[q][k], mean, inverse);
        h[q][k] = at < n ? h[q][k] * other[q][k] : 0.0f;
      }
    });
    round_row(w.interior.at[3], random_normal, begin, n, x);
    for_row_quads<kQuads>(n, [&](int q, int at) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) other[q][k] = at < n ? h[q][k] * x[q][k] : 0.0f;
    });
    const float sum = row_sum(n, h);
    const float mean_h = w.centred ? sum * w.share : 0.0f;
    const float mean_hx = row_sum(n, other) * w.share;
    for_row_quads<kQuads>(n, [&](int q, int) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        h[q][k] = norms::input_gradient(h[q][k], x[q][k], mean_h, mean_hx, inverse);
    });
    round_row(w.output, random, begin, n, h);
    store_row(w.out, begin, n, h);
  });
}

// Larger groups: a block each, its warps take the chunks in turn.

constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kMostChunks = 2048, kMostGroup = kMostChunks * kSumChunk;

/// The sums of n values in the order of core/sum.h, for all threads of a block. read(i, values) gives the kSums values of i.
template <int kSums, class Read>
__device__ __forceinline__ void block_sums(int64_t n, float (&sum)[kSums], const Read& read) {
  __shared__ float chunk_sums[kSums][kMostChunks];
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t chunks = n <= kSumChunk ? 1 : (n + kSumChunk - 1) / kSumChunk;
  for (int64_t chunk = warp; chunk < chunks; chunk += kWarps) {
    const int64_t begin = chunk * kSumChunk;
    const int64_t end = n - begin < kSumChunk ? n : begin + kSumChunk;
    float low[kSums] = {}, high[kSums] = {}, value[kSums];
    int64_t i = begin + lane;
#pragma unroll 4
    for (; i + kWarp < end; i += kSumLanes) {
      read(i, value);
#pragma unroll
      for (int k = 0; k < kSums; ++k) low[k] += value[k];
      read(i + kWarp, value);
#pragma unroll
      for (int k = 0; k < kSums; ++k) high[k] += value[k];
    }
    if (i < end) {
      read(i, value);
#pragma unroll
      for (int k = 0; k < kSums; ++k) low[k] += value[k];
    }
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      const float all = warp_sum_lanes(low[k], high[k]);
      if (lane == 0) chunk_sums[k][chunk] = all;
    }
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kSums; ++k)
    sum[k] = chunks == 1 ? chunk_sums[k][0]
                         : warp_sum_chunk(chunks, [&](int64_t c) { return chunk_sums[k][c]; });
  __syncthreads();  // the next sums may write
}

__global__ void __launch_bounds__(kThreads) group_norm_kernel(const __grid_constant__ GroupWork w) {
  const RandomSource random = w.output.random(), random_normal = w.interior.at[3].random();
  for (int64_t index = blockIdx.x; index < w.statistics; index += gridDim.x) {
    const Group group(w.layout, index);
    float mean = 0, sum[1];
    if (w.centred) {
      block_sums(w.size, sum,
                 [&](int64_t j, float(&v)[1]) { v[0] = load_float(w.x, group.element(j).at); });
      mean = w.interior.one(0, index, sum[0] / w.count);
    }
    block_sums(w.size, sum, [&](int64_t j, float(&v)[1]) {
      v[0] = norms::square_about(load_float(w.x, group.element(j).at), mean);
    });
    const float inverse = finish_group(w, index, sum[0]);
    if (threadIdx.x == 0) {
      if (w.centred) w.mean[index] = mean;
      w.inverse[index] = inverse;
    }
    for (int64_t j = threadIdx.x; j < w.size; j += kThreads) {
      const Group::Element e = group.element(j);
      const float x_hat = round_single(w.interior.at[3], random_normal, e.at,
                                       norms::normalised(load_float(w.x, e.at), mean, inverse));
      write_normalised(w, random, e, x_hat);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    group_norm_backward_kernel(const __grid_constant__ GroupWork w) {
  const Rounder& rounder = w.interior.at[3];
  const RandomSource random = w.output.random(), random_normal = rounder.random();
  for (int64_t index = blockIdx.x; index < w.statistics; index += gridDim.x) {
    const Group group(w.layout, index);
    const float mean = w.centred ? w.mean[index] : 0.0f, inverse = w.inverse[index];
    const auto normal = [&](int64_t at) {
      return round_single(rounder, random_normal, at,
                          norms::normalised(load_float(w.x, at), mean, inverse));
    };
    float sum[2];
    block_sums(w.size, sum, [&](int64_t j, float(&v)[2]) {
      const Group::Element e = group.element(j);
      v[0] = load_float(w.grad, e.at) * w.weight.at(e.channel);
      v[1] = v[0] * normal(e.at);
    });
    const float mean_h = w.centred ? sum[0] * w.share : 0.0f, mean_hx = sum[1] * w.share;
    for (int64_t j = threadIdx.x; j < w.size; j += kThreads) {
      const Group::Element e = group.element(j);
      const float h = load_float(w.grad, e.at) * w.weight.at(e.channel);
      const float dx = norms::input_gradient(h, normal(e.at), mean_h, mean_hx, inverse);
      store_single(w.out, e.at, round_single(w.output, random, e.at, dx));
    }
  }
}

template <class Args>
GroupWork group_work(const char* kernel, Stream stream, const Args& args) {
  const NormLayout& l = args.layout;
  ULP_CHECK(l.size() <= kMostGroup, "{}: statistics over at most {} elements, got {}", kernel,
            kMostGroup, l.size());
  auto w = norm_work<GroupWork>(kernel, stream, args);
  w.layout = layout_of(kernel, l);
  w.statistics = l.statistics();
  w.size = l.size();
  w.count = static_cast<float>(w.size);
  w.share = static_cast<float>(1.0 / static_cast<double>(std::max<int64_t>(1, w.size)));
  w.interior = interior_of(kernel, stream, args.interior);
  w.centred = args.mean.defined();
  return w;
}

using GroupKernel = void (*)(GroupWork);

/// The kernels of one pass: a warp for each group where it can hold it, in quads if groups are rows and lie well; else a block.
struct GroupKernels {
  GroupKernel quads4, quads8, held4, held32, any;
};

void launch_groups(const char* kernel, Stream stream, const GroupWork& w, const GroupKernels& all) {
  const bool warps = w.layout.span == 1 && w.size <= 32 * kWarp;
  if (!warps) return launch(kernel, stream, blocks_for(w.statistics, 1), kThreads, all.any, w);
  const bool quads = w.layout.groups == 1 && w.size % kQuad == 0 && w.x.aligned &&
                     (w.grad.data == nullptr || w.grad.aligned);
  const GroupKernel few = quads ? all.quads4 : all.held4, many = quads ? all.quads8 : all.held32;
  const int64_t most_few = quads ? 4 * kRowStep : 4 * kWarp;
  launch(kernel, stream, blocks_for(w.statistics, kWarps), kThreads,
         w.size <= most_few ? few : many, w);
}

}  // namespace

void group_norm(Stream stream, const GroupNormArgs& args) {
  constexpr const char* kName = "group_norm";
  check_group_norm(stream, args);
  GroupWork w = group_work(kName, stream, args);
  w.eps = static_cast<float>(args.eps);
  w.mean = written_floats(args.mean);
  w.inverse = written_floats(args.inverse_deviation);
  launch_groups(kName, stream, w,
                {group_norm_quads_kernel<4>, group_norm_quads_kernel<8>, group_norm_held_kernel<4>,
                 group_norm_held_kernel<32>, group_norm_kernel});
}

void group_norm_backward(Stream stream, const GroupNormBackwardArgs& args) {
  constexpr const char* kName = "group_norm_backward";
  check_group_norm_backward(stream, args);
  GroupWork w = group_work(kName, stream, args);
  w.mean = const_cast<float*>(floats_of(args.mean));
  w.inverse = const_cast<float*>(floats_of(args.inverse_deviation));
  launch_groups(kName, stream, w,
                {group_norm_backward_quads_kernel<4>, group_norm_backward_quads_kernel<8>,
                 group_norm_backward_held_kernel<4>, group_norm_backward_held_kernel<32>,
                 group_norm_backward_kernel});
}

}  // namespace ulp::cuda
