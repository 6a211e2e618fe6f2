#include "kernels/names.h"

#include "kernels/activations.h"
#include "kernels/attention.h"
#include "kernels/augment.h"
#include "kernels/conv.h"
#include "kernels/dropout.h"
#include "kernels/embedding.h"
#include "kernels/kernels.h"
#include "kernels/losses.h"
#include "kernels/norm.h"
#include "kernels/place.h"
#include "kernels/pool.h"
#include "kernels/recurrent.h"
#include "kernels/squeeze.h"

namespace ulp::kernels {

std::span<const char* const> all_names() {
  // clang-format off
  static constexpr const char* kAll[] = {
      ULP_KERNELS(ULP_KERNEL_NAME)
      ULP_ELEMENTWISE_KERNELS(ULP_KERNEL_NAME)
      ULP_ACTIVATION_KERNELS(ULP_KERNEL_NAME)
      ULP_SOFTMAX_KERNELS(ULP_KERNEL_NAME)
      ULP_LABEL_LOSS_KERNELS(ULP_KERNEL_NAME)
      ULP_ELEMENTWISE_LOSS_KERNELS(ULP_KERNEL_NAME)
      ULP_PLACE_KERNELS(ULP_KERNEL_NAME)
      ULP_CONV_KERNELS(ULP_KERNEL_NAME)
      ULP_NORM_KERNELS(ULP_KERNEL_NAME)
      ULP_POOL_KERNELS(ULP_KERNEL_NAME)
      ULP_DROPOUT_KERNELS(ULP_KERNEL_NAME)
      ULP_AUGMENT_KERNELS(ULP_KERNEL_NAME)
      ULP_ATTENTION_KERNELS(ULP_KERNEL_NAME)
      ULP_EMBEDDING_KERNELS(ULP_KERNEL_NAME)
      ULP_RECURRENT_KERNELS(ULP_KERNEL_NAME)
      ULP_SQUEEZE_KERNELS(ULP_KERNEL_NAME)};
  // clang-format on
  return kAll;
}

}  // namespace ulp::kernels
