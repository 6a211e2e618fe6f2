#pragma once

// What the cases of kernels/kernels.h share: their inputs, and one function for each kernel or few.

#include "tools/cases/comparison.h"

namespace ulp::cases {

inline constexpr DType kFloats[] = {DType::F32, DType::BF16, DType::F16, DType::F8E4M3,
                                    DType::F8E5M2};

template <class View>
Pair view(const Pair& pair, View f) {
  return {f(pair.reference), f(pair.other)};
}
/// Elements from 1 on: contiguous, but aligned to one element only.
Pair unaligned(const Pair& pair);

/// A large tensor, quickly made: some random values again and again.
Pair repeated(const Comparison& compare, const Shape& shape, DType dtype, Domain domain,
              uint64_t seed);

/// A step state in each device's memory.
Pair step_state(const Comparison& compare, const StepState& state);
const StepState* state_on(const Pair& state, Side side);
StepState some_step();
RandomKey key_on(const Pair& state, Side side, uint32_t stream = 0x1234567);

std::string text(DType dtype);
/// Random labels of rows.
Pair labels_for(const Comparison& compare, int64_t rows, int64_t columns, uint64_t seed);

void check_quantise(Comparison& compare);
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
void check_elementwise(Comparison& compare, const Kernel<ElementwiseArgs>& kernel, size_t inputs);

}  // namespace ulp::cases
