#include "kernels/cpu/elementwise.h"

#include "kernels/functors.h"

namespace ulp::cpu {

ULP_ELEMENTWISE_KERNELS(ULP_DEFINE_ELEMENTWISE)

}  // namespace ulp::cpu
