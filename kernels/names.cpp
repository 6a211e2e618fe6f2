#include "kernels/names.h"

#include "kernels/activations.h"
#include "kernels/kernels.h"
#include "kernels/losses.h"
#include "kernels/place.h"

namespace ulp::kernels {

std::span<const char* const> all_names() {
  static constexpr const char* kAll[] = {
      ULP_KERNELS(ULP_KERNEL_NAME) ULP_ELEMENTWISE_KERNELS(ULP_KERNEL_NAME)
          ULP_ACTIVATION_KERNELS(ULP_KERNEL_NAME) ULP_SOFTMAX_KERNELS(ULP_KERNEL_NAME)
              ULP_LABEL_LOSS_KERNELS(ULP_KERNEL_NAME) ULP_ELEMENTWISE_LOSS_KERNELS(ULP_KERNEL_NAME)
                  ULP_PLACE_KERNELS(ULP_KERNEL_NAME)};
  return kAll;
}

}  // namespace ulp::kernels
