#pragma once

// What cases of several families share.

#include <string>
#include <vector>

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
/// Accumulators of every kind, that draw and that do not.
inline constexpr const char* kSimulatedSums[] = {
    "e6m9", "e5m2:sr/e6m9", "chunk8/e6m9:sr/bf16", "kahan/e5m10", "posit16.1", "fp32/fixed16.6:sr"};

StepState some_step();
RandomKey key_on(const Pair& state, Side side, uint32_t stream = 0x1234567);

std::string text(DType dtype);
/// Random labels of rows.
Pair labels_for(const Comparison& compare, int64_t rows, int64_t columns, uint64_t seed);

/// Shapes (N, C) of rows, on both sides of each length from which on a kernel holds a row in another way or not at all.
inline const std::vector<Shape> kRows = {{0, 10},   {1, 1},    {3, 2},    {64, 10},  {7, 31},
                                         {7, 32},   {5, 33},   {9, 100},  {5, 128},  {3, 129},
                                         {6, 700},  {3, 1000}, {2, 1024}, {2, 1025}, {3, 4096},
                                         {2, 4097}, {2, 5000}, {2, 50001}};
/// What kind of case it is for kernels that hold rows: as many lanes of a warp, times a power of two, as a row needs.
std::string width_of(const Shape& rows);
/// Rows made of the values that decide a softmax's special cases.
Pair special_rows(const Comparison& compare, int64_t columns);

/// An element-wise kernel of so many inputs: types, shapes, formats, rows and single values, in place.
void check_elementwise(Comparison& compare, const Kernel<ElementwiseArgs>& kernel, size_t inputs);

}  // namespace ulp::cases
