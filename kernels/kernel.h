#pragma once

// What a kernel is. Every kernel has one row in the list of its family (kernels.h and its like; names.cpp knows the families):
// its name and its arguments. The row declares ulp::cpu::name and ulp::cuda::name and defines ulp::kernels::name, which calls
// the side that the stream names. Tensors are contiguous unless a row says otherwise, and on the stream's device. `dtype` of
// outputs is F32 unless a row says otherwise. Where a row says "any float", inputs may be F32, BF16, F16, F8E4M3 or F8E5M2.
// CPU kernels also take F64 for all operands (gradient checks; no quantizers then).

#include "core/error.h"
#include "core/tensor.h"

namespace ulp {

/// A kernel: called with a stream and its arguments, it runs on the stream's device.
template <class Args>
struct Kernel {
  using Function = void (*)(Stream, const Args&);
  const char* name;
  Function cpu;
  Function cuda;

  void operator()(Stream stream, const Args& args) const {
    const Function f = stream.device.type == DeviceType::Cpu ? cpu : cuda;
    if (f == nullptr)
      throw_error("{}: no {} kernel in this build", name,
                  stream.device.type == DeviceType::Cpu ? "CPU" : "CUDA");
    f(stream, args);
  }
};

#if defined(ULP_HAS_CUDA)
#define ULP_CUDA_SIDE(name) cuda::name
#else
#define ULP_CUDA_SIDE(name) nullptr
#endif

#define ULP_DECLARE_KERNEL(name, Args)                                       \
  namespace cpu {                                                            \
  void name(Stream, const Args&);                                            \
  }                                                                          \
  namespace cuda {                                                           \
  void name(Stream, const Args&);                                            \
  }                                                                          \
  namespace kernels {                                                        \
  inline constexpr Kernel<Args> name{#name, cpu::name, ULP_CUDA_SIDE(name)}; \
  }

#define ULP_KERNEL_NAME(name, ...) #name,

namespace cuda {
/// For tests: the most blocks of kernels that go round in loops; 0: the usual number. No result depends on it.
#if defined(ULP_HAS_CUDA)
void set_most_blocks(int64_t blocks);
/// For tests: the most elements that optimizer_step takes in quads if it can, else in tiles; below 0: the usual number.
void set_most_for_quads(int64_t elements);
#else
inline void set_most_blocks(int64_t) {}
inline void set_most_for_quads(int64_t) {}
#endif
}  // namespace cuda

/// Throws unless the tensor is contiguous and on the stream's device. For the first lines of a kernel.
void check_kernel_tensor(const char* kernel, Stream stream, const Tensor& tensor,
                         const Shape& shape);

}  // namespace ulp
