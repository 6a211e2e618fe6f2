#include "core/convert.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/squeeze.h"

namespace ulp::cuda {
namespace {

/// Maximum and count of integers do not depend on their order.
__global__ void __launch_bounds__(kThreads)
    logs_kernel(const void* in, DType dtype, float* logs, SqueezeTotals* totals, int64_t n) {
  uint32_t amax = 0, count = 0;  // a thread sees fewer than 2^32 elements
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    const uint32_t magnitude = bits_of(canonical(load_as_float(in, dtype, i))) & ~kSignBit;
    count += magnitude != 0 ? 1 : 0;
    amax = max(amax, magnitude);
    logs[i] = magnitude != 0 && magnitude < kInfinityBits ? log2_of(float_of(magnitude)) : 0.0f;
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    amax = max(amax, __shfl_xor_sync(kFullWarp, amax, distance));
    count += __shfl_xor_sync(kFullWarp, count, distance);
  }
  if (threadIdx.x % kWarp != 0) return;
  atomicMax(&totals->amax_bits, amax);
  atomicAdd(reinterpret_cast<unsigned long long*>(&totals->count),
            static_cast<unsigned long long>(count));
}

__global__ void __launch_bounds__(kThreads)
    squeeze_kernel(const void* in, DType dtype, float* out, const float* logs,
                   const SqueezeTotals* totals, float top, bool inverse, int64_t n) {
  const Squeeze s = squeeze_of(*logs, *totals, top);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    const float x = load_as_float(in, dtype, i);
    out[i] = canonical(inverse ? unsqueezed(x, s) : squeezed(x, s));
  }
}

}  // namespace

void squeeze_logs(Stream stream, const SqueezeLogsArgs& args) {
  check_squeeze_logs(stream, args);
  const int64_t n = args.in.numel();
  auto* totals = static_cast<SqueezeTotals*>(written(args.totals));
  ULP_CUDA_CHECK(cudaSetDevice(stream.device.index));
  ULP_CUDA_CHECK(
      cudaMemsetAsync(totals, 0, sizeof(SqueezeTotals), static_cast<cudaStream_t>(stream.handle)));
  launch("squeeze_logs", stream, blocks_for(n, kThreads), kThreads, logs_kernel, args.in.raw(),
         args.in.dtype(), static_cast<float*>(written(args.logs)), totals, n);
}

void squeeze(Stream stream, const SqueezeArgs& args) {
  check_squeeze(stream, args);
  const int64_t n = args.in.numel();
  launch("squeeze", stream, blocks_for(n, kThreads), kThreads, squeeze_kernel, args.in.raw(),
         args.in.dtype(), static_cast<float*>(written(args.out)),
         static_cast<const float*>(args.logs.raw()),
         static_cast<const SqueezeTotals*>(args.totals.raw()), args.top, args.inverse, n);
}

}  // namespace ulp::cuda
