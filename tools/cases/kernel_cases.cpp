// One case a kernel: instances of every type, shape, format and rounding. A row of kernels.h without a case fails.

#include "tools/cases/core_cases.h"

namespace ulp::cases {

std::span<const KernelCase> core_kernel_cases() {
#define ULP_ELEMENTWISE_CASE(name, Functor, inputs) \
  {#name, [](Comparison& compare) { check_elementwise(compare, kernels::name, inputs); }},
  static constexpr KernelCase kAll[] = {{"quantise", check_quantise},
                                        {"pack_scales", check_pack},
                                        {"pack_codes", nullptr, "pack_scales"},
                                        {"unpack_codes", nullptr, "pack_scales"},
                                        {"rotate", check_rotate},
                                        {"squeeze_logs", check_squeezing},
                                        {"squeeze", nullptr, "squeeze_logs"},
                                        {"scaled_add", check_scaled_add},
                                        {"matmul", check_matmul},
                                        {"sum", check_sum},
                                        {"log_softmax", check_log_softmax},
                                        {"log_softmax_backward", check_log_softmax_backward},
                                        {"cross_entropy_backward", check_cross_entropy_backward},
                                        {"tally", check_tally},
                                        {"copy", check_copy},
                                        {"fill", check_fill},
                                        {"uniform", check_uniform},
                                        {"gather_rows", check_gather_rows},
                                        {"optimizer_step", check_optimizer_step},
                                        {"check_gradients", check_check_gradients},
                                        {"settle_scalings", check_settle_scalings},
                                        {"begin_average", check_begin_average},
                                        {"average", check_average},
                                        {"advance_step", check_advance_step},
                                        ULP_ELEMENTWISE_KERNELS(ULP_ELEMENTWISE_CASE)};
  return kAll;
}

}  // namespace ulp::cases
