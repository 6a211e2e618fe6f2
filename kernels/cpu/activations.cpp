#include "kernels/activations.h"

#include "kernels/activation_functors.h"
#include "kernels/cpu/elementwise.h"

namespace ulp::cpu {

ULP_ACTIVATION_KERNELS(ULP_DEFINE_ELEMENTWISE)

}  // namespace ulp::cpu
