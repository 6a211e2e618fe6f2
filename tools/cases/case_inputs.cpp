// Inputs that several families of cases share.

#include <algorithm>
#include <cstring>
#include <vector>

#include "tools/cases/case_tools.h"

namespace ulp::cases {

Pair unaligned(const Pair& pair) {
  return view(pair, [](const Tensor& t) { return t.slice(0, 1, t.size(0)); });
}

Pair repeated(const Comparison& compare, const Shape& shape, DType dtype, Domain domain,
              uint64_t seed) {
  const Tensor some = values({65521}, dtype, domain, compare.options().seed * 1000 + seed);
  Tensor all = Tensor::empty(shape, dtype, kCpu);
  auto* to = static_cast<char*>(all.mutable_raw());
  for (int64_t done = 0; done < all.bytes(); done += some.bytes())
    std::memcpy(to + done, some.raw(),
                static_cast<size_t>(std::min(some.bytes(), all.bytes() - done)));
  return compare.both(all);
}

Pair step_state(const Comparison& compare, const StepState& state) {
  StepState own = state;
  own.random_step += static_cast<uint32_t>(compare.options().seed);
  std::vector<uint8_t> bytes(sizeof own);
  std::memcpy(bytes.data(), &own, sizeof own);
  return compare.both(Tensor::from(bytes, {static_cast<int64_t>(sizeof state)}));
}

const StepState* state_on(const Pair& state, Side side) {
  return static_cast<const StepState*>(state.on(side).raw());
}

StepState some_step() {
  StepState state;
  state.random_step = 77;
  state.loss_scale = 0.37f;
  return state;
}

RandomKey key_on(const Pair& state, Side side, uint32_t stream) {
  RandomKey key;
  key.seed = 0x9876543210ABCDEF;
  key.stream = stream;
  key.ordinal = 3;
  key.state = state_on(state, side);
  return key;
}

std::string text(DType dtype) { return std::string(to_string(dtype)); }

Pair labels_for(const Comparison& compare, int64_t rows, int64_t columns, uint64_t seed) {
  Words words(seed);
  std::vector<int32_t> labels(static_cast<size_t>(rows));
  for (int32_t& label : labels)
    label = static_cast<int32_t>(words.below(static_cast<uint32_t>(std::max<int64_t>(1, columns))));
  return compare.both(Tensor::from(labels, {rows}));
}

std::string width_of(const Shape& rows) {
  int64_t width = 32;
  while (width < rows[1]) width *= 2;
  return std::to_string(width);
}

Pair special_rows(const Comparison& compare, int64_t columns) {
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

}  // namespace ulp::cases
