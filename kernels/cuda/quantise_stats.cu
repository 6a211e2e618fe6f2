#include "kernels/cuda/quantise_stats.cuh"
#include "kernels/cuda/sum.cuh"

namespace ulp::cuda {
namespace {

/// Of a tensor that another kernel has quantised. `mask` holds what was clamped.
__global__ void __launch_bounds__(kThreads)
    stats_kernel(const __grid_constant__ Source in, const __grid_constant__ Source out,
                 const uint8_t* mask, int64_t n, StatsSink sink) {
  StatsCounts counts;
  for_segments(n, [&](int64_t begin) {
    Segment x, y;
    uint32_t clamped[kRows] = {};
    load_segment(in, begin, n, x);
    load_segment(out, begin, n, y);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t i = quad_at(begin, j);
#pragma unroll
      for (int k = 0; k < kQuad; ++k)
        if (i + k < n) clamped[j] |= static_cast<uint32_t>(mask[i + k]) << k;
    }
    add_stats(sink, begin, n, x, y, clamped, counts);
  });
  counts.finish(sink.total);
}

/// chunk_sums[k · chunks + c] = chunk c of the k-th of three vectors of doubles, a warp each.
__global__ void __launch_bounds__(kThreads)
    stats_chunks_kernel(const double* sums, int64_t runs, int64_t chunks, double* chunk_sums) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
       at < 3 * chunks; at += warps) {
    const int64_t begin = at % chunks * kSumChunk, count = min(kSumChunk, runs - begin);
    const double* from = sums + at / chunks * runs + begin;
    const double sum = warp_sum_chunk<double>(count, [&](int64_t i) { return from[i]; });
    if (threadIdx.x % kWarp == 0) chunk_sums[at] = sum;
  }
}

__global__ void stats_total_kernel(QuantiseStats* stats, const double* chunk_sums, int64_t chunks,
                                   int64_t n) {
  double* totals[3] = {&stats->error, &stats->square_error, &stats->square};
  for (int k = 0; k < 3; ++k) {
    const double sum =
        warp_sum<double>(chunks, [&](int64_t i) { return chunk_sums[k * chunks + i]; });
    if (threadIdx.x == 0) *totals[k] = sum;
  }
  if (threadIdx.x == 0) stats->count += n;  // the gaps are taken from it already
}

}  // namespace

StatsSink stats_sink(Stream stream, const QuantiseArgs& args, Tensor& sums) {
  if (!args.stats.defined()) return {};
  auto* total = static_cast<QuantiseStats*>(written(args.stats));
  ULP_CUDA_CHECK(cudaSetDevice(stream.device.index));
  ULP_CUDA_CHECK(
      cudaMemsetAsync(total, 0, sizeof(QuantiseStats), static_cast<cudaStream_t>(stream.handle)));
  const int64_t runs = (args.in.numel() + kStatsRun - 1) / kStatsRun;
  const int64_t chunks = (runs + kSumChunk - 1) / kSumChunk;
  sums = Tensor::empty({3 * (runs + chunks) * static_cast<int64_t>(sizeof(double))}, DType::U8,
                       stream.device);
  return {total, static_cast<double*>(sums.mutable_raw()), runs, args.gaps};
}

void finish_stats(Stream stream, const StatsSink& sink, int64_t n) {
  if (sink.total == nullptr || n == 0) return;
  const int64_t chunks = (sink.runs + kSumChunk - 1) / kSumChunk;
  double* const chunk_sums = sink.sums + 3 * sink.runs;
  launch("quantise", stream, blocks_for(3 * chunks, kThreads / kWarp), kThreads,
         stats_chunks_kernel, static_cast<const double*>(sink.sums), sink.runs, chunks, chunk_sums);
  launch("quantise", stream, 1, kWarp, stats_total_kernel, sink.total,
         static_cast<const double*>(chunk_sums), chunks, n);
}

void count_quantised(Stream stream, const StatsSink& sink, const Source& in, const Source& out,
                     const uint8_t* mask, int64_t n) {
  launch("quantise", stream, segment_blocks(n), kThreads, stats_kernel, in, out, mask, n, sink);
}

}  // namespace ulp::cuda
