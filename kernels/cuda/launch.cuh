#pragma once

// Every CUDA launch of the project goes through launch(); nothing else here decides anything.

#include <algorithm>
#include <cstdint>

#include "core/cuda_check.h"
#include "core/device.h"
#include "core/error.h"
#include "core/tensor.h"

namespace ulp::cuda {

inline constexpr int kThreads = 256;
inline constexpr int kWarp = 32;
inline constexpr unsigned kFullWarp = 0xFFFFFFFFu;

/// Most blocks of a grid-stride loop: enough to fill any GPU a few times. Tests set it lower (set_most_blocks in kernels.h), so
/// that small tensors go round more than once.
inline int64_t most_blocks = 8192;

/// Blocks for `n` items, `per_block` at a time, in a grid-stride loop.
inline int64_t blocks_for(int64_t n, int64_t per_block) {
  return std::min((n + per_block - 1) / per_block, most_blocks);
}

/// A launch's name for errors, and its bytes of dynamic shared memory.
struct Launch {
  const char* kernel;
  size_t shared_bytes = 0;
  Launch(const char* name, size_t bytes = 0) : kernel(name), shared_bytes(bytes) {}
};

/// Queues function(args...) on the stream; no blocks, no launch. Throws with the kernel's name if it cannot start.
template <class... Params, class... Args>
void launch(const Launch& as, Stream stream, int64_t blocks, dim3 threads,
            void (*function)(Params...), const Args&... args) {
  if (blocks <= 0) return;
  const char* const kernel = as.kernel;
  ULP_CHECK(blocks <= INT32_MAX,
            "{}: {} blocks are more than a CUDA grid holds; use smaller tensors", kernel, blocks);
  ULP_CUDA_CHECK(cudaSetDevice(stream.device.index));
  constexpr size_t kUsualBytes = 32 << 10;  // beside static ones
  if (as.shared_bytes > kUsualBytes)
    ULP_CUDA_CHECK(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(as.shared_bytes)));
  function<<<dim3(static_cast<unsigned>(blocks)), threads, as.shared_bytes,
             static_cast<cudaStream_t>(stream.handle)>>>(args...);
  const cudaError_t status = cudaGetLastError();
  ULP_CHECK(status == cudaSuccess, "{}: its CUDA launch failed with {} ({})", kernel,
            cudaGetErrorName(status), cudaGetErrorString(status));
}

/// The bytes of a tensor that a kernel writes.
inline void* written(Tensor tensor) { return tensor.mutable_raw(); }

inline void check_no_f64(const char* kernel, const Tensor& tensor) {
  ULP_CHECK(tensor.dtype() != DType::F64, "{}: F64 is for the CPU's gradient checks", kernel);
}

/// Throws unless the tensor's type is F32, BF16, F16, F8E4M3 or F8E5M2.
inline void check_float(const char* kernel, const Tensor& tensor) {
  check_no_f64(kernel, tensor);
  ULP_CHECK(is_float_up_to_32(tensor.dtype()), "{}: wanted floats of up to 32 bits, got {}", kernel,
            tensor.dtype());
}

inline void check_type(const char* kernel, const Tensor& tensor, DType wanted) {
  if (wanted != DType::F64) check_no_f64(kernel, tensor);
  ULP_CHECK(tensor.dtype() == wanted, "{}: wanted a tensor of {}, got {}", kernel, wanted,
            tensor.dtype());
}

}  // namespace ulp::cuda
