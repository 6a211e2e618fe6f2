#pragma once

// The cases of kernels/kernels.h: one function for each kernel or few.

#include "tools/cases/case_tools.h"

namespace ulp::cases {

void check_quantise(Comparison& compare);
void check_squeezing(Comparison& compare);
void check_pack(Comparison& compare);
void check_rotate(Comparison& compare);
void check_scaled_add(Comparison& compare);
void check_matmul(Comparison& compare);
void check_sum(Comparison& compare);
void check_log_softmax(Comparison& compare);
void check_log_softmax_backward(Comparison& compare);
void check_cross_entropy_backward(Comparison& compare);
void check_tally(Comparison& compare);
void check_copy(Comparison& compare);
void check_fill(Comparison& compare);
void check_uniform(Comparison& compare);
void check_gather_rows(Comparison& compare);
void check_advance_step(Comparison& compare);
void check_optimizer_step(Comparison& compare);
void check_check_gradients(Comparison& compare);
void check_settle_scalings(Comparison& compare);
void check_begin_average(Comparison& compare);
void check_average(Comparison& compare);

}  // namespace ulp::cases
