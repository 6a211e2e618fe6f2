#include "kernels/activation_functors.h"
#include "kernels/activations.h"
#include "kernels/cuda/elementwise.cuh"

namespace ulp::cuda {

ULP_ACTIVATION_KERNELS(ULP_DEFINE_ELEMENTWISE)

}  // namespace ulp::cuda
