#pragma once

#include <cuda_runtime_api.h>

#include "core/error.h"

namespace ulp {

[[noreturn]] inline void throw_cuda_error(cudaError_t status, const char* expression,
                                          const char* file, int line) {
  throw_error("CUDA: {} failed with {} ({}) at {}:{}", expression, cudaGetErrorName(status),
              cudaGetErrorString(status), file, line);
}

}  // namespace ulp

#define ULP_CUDA_CHECK(expression)                                          \
  do {                                                                      \
    const cudaError_t ulp_status = (expression);                            \
    if (ulp_status != cudaSuccess)                                          \
      ::ulp::throw_cuda_error(ulp_status, #expression, __FILE__, __LINE__); \
  } while (false)
