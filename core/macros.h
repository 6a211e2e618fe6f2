#pragma once

// ULP_HD: a function that both compilers turn into the same arithmetic, on the host and on the device.
// Always inlined on the host, so that a caller compiled for a wider instruction set keeps it in its own loop.
#if defined(__CUDACC__)
#define ULP_HD __host__ __device__ __forceinline__
#else
#define ULP_HD inline __attribute__((always_inline))
#endif

// A lambda body that is compiled for the instruction set of whoever calls it (see kernels/cpu/isa.h).
#define ULP_INLINE __attribute__((always_inline))
