#include <algorithm>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/spans.h"
#include "kernels/kernels.h"

namespace ulp::cpu {
namespace {

/// One number for each row of the operand, at the current k.
struct FactorColumn {
  const float* values;
  int64_t rows, stride;
  float at(int64_t row) const { return values == nullptr ? 1.0f : values[row / rows * stride]; }
};

FactorColumn column_of(const Factors& f, int64_t k, int64_t depth) {
  if (!f.values.defined()) return {nullptr, 1, 0};
  return {f.values.data<float>() + k / f.columns, f.rows, (depth + f.columns - 1) / f.columns};
}

}  // namespace

void scaled_add(Stream stream, const ScaledAddArgs& args) {
  check_scaled_add(stream, args);
  const int64_t rows = args.out.size(0), columns = args.out.size(1);
  if (rows * columns == 0) return;
  Tensor out = args.out;
  const float* sums = args.sums.data<float>();
  float* acc = out.mutable_data<float>();
  const FactorColumn fa = column_of(args.a_factors, args.k, args.depth),
                     fb = column_of(args.b_factors, args.k, args.depth);
  std::vector<float> across(static_cast<size_t>(columns));
  for (int64_t n = 0; n < columns; ++n) across[static_cast<size_t>(n)] = fb.at(n);
  const float* b = across.data();
  std::vector<float> biases;
  if (args.last && args.bias.defined()) biases = args.bias.to_floats();
  const float* bias = biases.empty() ? nullptr : biases.data();
  const BlockQuantiser quantiser(args.last ? args.output : Quantizer{}, args.key);
  const bool first = args.first;
  const float factor = static_cast<float>(args.factor);
  parallel_for(rows, std::max<int64_t>(1, kGrain / columns), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      const float f = fa.at(r);
      const float* from = sums + r * columns;
      float* to = acc + r * columns;
      with_isa([=]() ULP_INLINE {
#pragma GCC ivdep
        for (int64_t n = 0; n < columns; ++n)
          to[n] = canonical(__builtin_fmaf(from[n], f * b[n] * factor, first ? 0.0f : to[n]));
        if (bias != nullptr)
          for (int64_t n = 0; n < columns; ++n) to[n] = canonical(to[n] + bias[n]);
      });
      for (int64_t n = 0; n < columns && quantiser.active(); n += kBlock)
        quantiser.apply(to + n, std::min(kBlock, columns - n), r * columns + n);
    }
  });
}

}  // namespace ulp::cpu
