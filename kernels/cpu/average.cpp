#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/spans.h"
#include "kernels/functors.h"
#include "kernels/kernels.h"

namespace ulp::cpu {

void begin_average(Stream, const BeginAverageArgs& args) {
  ULP_CHECK(args.average != nullptr && args.state != nullptr && args.rule.every > 0,
            "begin_average: its states are missing, or every is 0");
  ulp::begin_average(*args.average, *args.state, args.rule);
}

void average(Stream stream, const AverageArgs& args) {
  check_average(stream, args);
  for (const AveragedWeight& w : args.weights) check_output_type("average", w.average, args.format);
  if (args.state->gate.found_inf != 0) return;
  const float factor = args.state->factor;
  for (const AveragedWeight& w : args.weights) {
    Tensor out = w.average;
    void* data = out.mutable_raw();
    const DType dtype = out.dtype(), weight_dtype = w.weight.dtype();
    const void* weight_data = w.weight.raw();
    const BlockQuantiser quantiser(args.format, w.key);
    parallel_for_units(out.numel(), kBlock, kGrain, [&](int64_t first, int64_t last) {
      BlockBuffer buffer, average_block, result;
      float* to = result.data();
      for (int64_t begin = first; begin < last; begin += kBlock) {
        const int64_t n = std::min(kBlock, last - begin);
        const float* weight = read_block(weight_data, weight_dtype, begin, n, buffer.data());
        const float* old = read_block(data, dtype, begin, n, average_block.data());
        with_isa([=]() ULP_INLINE {
          for (int64_t i = 0; i < n; ++i)
            to[i] = canonical(functors::average_of(old[i], weight[i], factor));
        });
        quantiser.apply(to, n, begin);
        write_block(data, dtype, begin, n, to);
      }
    });
  }
}

}  // namespace ulp::cpu
