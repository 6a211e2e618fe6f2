#pragma once

// What cases of several families share.

#include <cstring>
#include <string>
#include <vector>

#include "tools/cases/comparison.h"

namespace ulp::cases {

template <class View>
inline Pair view(const Pair& pair, View f) {
  return {f(pair.reference), f(pair.other)};
}

/// Elements from 1 on: contiguous, but aligned to one element only.
inline Pair unaligned(const Pair& pair) {
  return view(pair, [](const Tensor& t) { return t.slice(0, 1, t.size(0)); });
}

/// A step state in each device's memory.
inline Pair step_state(const Comparison& compare, const StepState& state) {
  StepState own = state;
  own.random_step += static_cast<uint32_t>(compare.options().seed);
  std::vector<uint8_t> bytes(sizeof own);
  std::memcpy(bytes.data(), &own, sizeof own);
  return compare.both(Tensor::from(bytes, {static_cast<int64_t>(sizeof state)}));
}
inline const StepState* state_on(const Pair& state, Side side) {
  return static_cast<const StepState*>(state.on(side).raw());
}

inline StepState some_step() {
  StepState state;
  state.random_step = 77;
  state.loss_scale = 0.37f;
  return state;
}

inline RandomKey key_on(const Pair& state, Side side, uint32_t stream = 0x1234567) {
  RandomKey key;
  key.seed = 0x9876543210ABCDEF;
  key.stream = stream;
  key.ordinal = 3;
  key.state = state_on(state, side);
  return key;
}

inline std::string text(DType dtype) { return std::string(to_string(dtype)); }

inline constexpr DType kFloats[] = {DType::F32, DType::BF16, DType::F16, DType::F8E4M3,
                                    DType::F8E5M2};

inline Pair labels_for(const Comparison& compare, int64_t rows, int64_t columns, uint64_t seed) {
  Words words(seed);
  std::vector<int32_t> labels(static_cast<size_t>(rows));
  for (int32_t& label : labels)
    label = static_cast<int32_t>(words.below(static_cast<uint32_t>(std::max<int64_t>(1, columns))));
  return compare.both(Tensor::from(labels, {rows}));
}

inline const std::vector<Shape> kRows = {{0, 10},   {1, 1},    {3, 2},    {64, 10},
                                         {7, 31},   {7, 32},   {5, 33},   {6, 700},
                                         {3, 4096}, {2, 4097}, {2, 50001}};

/// Rows made of the values that decide a softmax's special cases.
inline Pair special_rows(const Comparison& compare, int64_t columns) {
  const float inf = float_of(kInfinityBits), nan = float_of(kNanBits);
  const float patterns[][3] = {
      {-0.0f, -0.0f, -0.0f},  {-0.0f, 0.0f, -0.0f}, {0.0f, -0.0f, 0.0f},    {-inf, -inf, -inf},
      {inf, 1.0f, inf},       {-inf, 2.0f, -inf},   {1.0f, nan, inf},       {3e38f, -3e38f, 3e38f},
      {-200.0f, 0.0f, -0.0f}, {nan, nan, nan},      {1e-40f, -1e-40f, 0.0f}};
  std::vector<float> all;
  for (const auto& pattern : patterns)
    for (int64_t j = 0; j < columns; ++j) all.push_back(pattern[j % 3]);
  return compare.both(Tensor::from(all, {static_cast<int64_t>(std::size(patterns)), columns}));
}

/// An element-wise kernel of so many inputs: types, shapes, formats, rows and single values, in place.
void check_elementwise(Comparison& compare, const Kernel<ElementwiseArgs>& kernel, size_t inputs);

}  // namespace ulp::cases
