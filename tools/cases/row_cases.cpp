// Sums, rows of logits and the loss.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "core/sum.h"
#include "tools/cases/core_cases.h"

namespace ulp::cases {

void check_sum(Comparison& compare) {
  const auto once = [&](int64_t outer, int64_t axis, int64_t inner, DType dtype, Domain domain,
                        bool shifted) {
    const std::string kind = std::string(inner == 1 ? "rows" : "columns") + text(dtype) +
                             (axis > kSumChunk ? " in chunks" : "");
    if (!compare.takes(outer * axis * inner, outer * axis * inner == 0 ? "" : kind)) return;
    Pair in = compare.input({outer * axis * inner + 1}, dtype, domain, 31);
    in = shifted ? unaligned(in)
                 : view(in, [](const Tensor& t) { return t.slice(0, 0, t.size(0) - 1); });
    const Pair out = compare.output({outer, inner});
    compare.run(kernels::sum, [&](Side d) {
      SumArgs args;
      args.in = in.on(d);
      args.out = out.on(d);
      args.outer = outer;
      args.axis = axis;
      args.inner = inner;
      args.factor = inner == 1 ? 1 : 1.0 / 3;
      return args;
    });
    compare.same(out, "(", outer, ", ", axis, ", ", inner, ") ", text(dtype), " domain ",
                 static_cast<int>(domain));
  };
  const std::vector<std::array<int64_t, 3>> shapes = {
      {1, 0, 1},      {3, 0, 5},     {0, 5, 3},    {2, 5, 0},     {1, 1, 1},      {4, 1, 6},
      {1, 31, 1},     {1, 32, 1},    {3, 33, 1},   {1, 63, 1},    {5, 64, 1},     {5, 65, 1},
      {3, 4095, 1},   {3, 4096, 1},  {3, 4097, 1}, {2, 10000, 1}, {1, 300001, 1}, {1, 1, 7},
      {2, 63, 33},    {1, 64, 32},   {2, 65, 31},  {1, 128, 515}, {2, 4096, 5},   {3, 4097, 5},
      {2, 10000, 37}, {1000, 10, 1}, {10, 1000, 3}};
  for (const auto& [outer, axis, inner] : shapes)
    for (const DType dtype : kFloats)
      for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard})
        once(outer, axis, inner, dtype, domain, outer % 2 == 0);
  once(1, kSumChunk * kSumChunk + 5000, 1, DType::F32, Domain::Modest, false);  // three levels
}

void check_log_softmax(Comparison& compare) {
  const Pair state = step_state(compare, some_step());
  const auto once = [&](const Pair& in, const char* interior) {
    const int64_t rows = in.reference.size(0);
    const std::string rounds = std::string_view(interior) == "fp32" ? "" : " rounds";
    if (!compare.takes(in.reference.numel(),
                       rows == 0 ? "" : width_of(in.reference.shape()) + rounds))
      return;
    const Pair out = compare.output(in.reference.shape()), losses = compare.output({rows});
    const Pair labels = labels_for(compare, rows, in.reference.size(1), 43);
    compare.run(kernels::log_softmax, [&](Side d) {
      return LogSoftmaxArgs{in.on(d),         out.on(d),    Quantizer::parse(interior),
                            key_on(state, d), labels.on(d), losses.on(d)};
    });
    compare.same(out, to_string(in.reference.shape()), " interior ", std::string(interior));
    compare.same(losses, "losses of ", to_string(in.reference.shape()), " interior ",
                 std::string(interior));
    compare.run(kernels::log_softmax, [&](Side d) {
      return LogSoftmaxArgs{in.on(d), out.on(d), Quantizer::parse(interior), key_on(state, d)};
    });
    compare.same(out, to_string(in.reference.shape()), " interior ", std::string(interior));
  };
  // A logarithm that rounds to zero shows which of two zeros was the largest.
  once(compare.both(Tensor::from(std::vector<float>{-0.0f, 0.0f, 0.0f, -0.0f}, {2, 2})),
       "e2m1-bias0:rtz");
  for (const char* interior :
       {"fp32", "e5m2", "bf16:sr", "fixed8.4:sr", "fixed8.-2", "e4m3:rtz", "e6m9:sr4c"}) {
    for (const Shape& shape : kRows)
      for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Few})
        once(compare.input(shape, DType::F32, domain, 41), interior);
    for (const int64_t columns : {1, 2, 3, 40}) once(special_rows(compare, columns), interior);
    once(compare.input({300, 3}, DType::F32, Domain::Hard, 42), interior);
  }
}

void check_log_softmax_backward(Comparison& compare) {
  for (const Shape& shape : kRows)
    for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard}) {
      const Pair grad = compare.input(shape, DType::F32, domain, 51);
      if (!compare.takes(shape.numel(), shape[0] == 0 ? "" : width_of(shape))) continue;
      const Pair y = compare.input(shape, DType::F32, domain, 52);
      const Pair out = compare.output(shape);
      compare.run(kernels::log_softmax_backward, [&](Side d) {
        return LogSoftmaxBackwardArgs{grad.on(d), y.on(d), out.on(d)};
      });
      compare.same(out, to_string(shape), " domain ", static_cast<int>(domain));
    }
}

void check_cross_entropy_backward(Comparison& compare) {
  for (const Shape& shape : kRows)
    for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard})
      for (const double alpha : {1.0, 1.0 / 3.0}) {
        if (!compare.takes(shape.numel())) continue;
        const Pair log_probs = compare.input(shape, DType::F32, domain, 71),
                   grad = compare.input({1}, DType::F32, Domain::Modest, 72);
        const Pair labels = labels_for(compare, shape[0], shape[1], 73),
                   out = compare.output(shape);
        compare.run(kernels::cross_entropy_backward, [&](Side d) {
          return CrossEntropyBackwardArgs{log_probs.on(d), labels.on(d), grad.on(d), out.on(d),
                                          alpha};
        });
        compare.same(out, to_string(shape), " alpha ", alpha);
      }
}

void check_tally(Comparison& compare) {
  const auto once = [&](const Pair& logits, float loss) {
    const int64_t rows = logits.reference.size(0);
    for (const uint64_t seed : {81, 82, 83}) {
      if (!compare.takes(logits.reference.numel())) continue;
      const Pair labels = labels_for(
          compare, rows, std::min<int64_t>(logits.reference.size(1), seed == 81 ? 1 : 3), seed);
      ScoreTotals before;
      before.correct = 5;
      before.loss = 0.1;
      std::vector<uint8_t> bytes(sizeof before);
      std::memcpy(bytes.data(), &before, sizeof before);
      const Pair totals = compare.both(Tensor::from(bytes, {sizeof before}));
      const Pair mean = compare.both(Tensor::from(std::vector<float>{loss}, {}));
      for (int batch = 0; batch < 2; ++batch)
        compare.run(kernels::tally, [&](Side d) {
          return TallyArgs{mean.on(d), logits.on(d), labels.on(d), totals.on(d)};
        });
      compare.same(totals, to_string(logits.reference.shape()), " ", loss);
    }
  };
  for (const Shape& shape : kRows)
    for (const Domain domain : {Domain::Few, Domain::Modest})
      once(compare.input(shape, DType::F32, domain, 84), 0.7f);
  for (const int64_t columns : {1, 2, 3, 40}) once(special_rows(compare, columns), -INFINITY);
  once(compare.input({500, 3}, DType::F32, Domain::Hard, 85), 1e-3f);
}

}  // namespace ulp::cases
