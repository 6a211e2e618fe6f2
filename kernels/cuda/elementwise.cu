#include "kernels/cuda/elementwise.cuh"
#include "kernels/functors.h"

namespace ulp::cuda {

ULP_ELEMENTWISE_KERNELS(ULP_DEFINE_ELEMENTWISE)

}  // namespace ulp::cuda
