#include "kernels/squeeze.h"

#include <algorithm>
#include <mutex>

#include "core/convert.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/parallel.h"

namespace ulp::cpu {

void squeeze_logs(Stream stream, const SqueezeLogsArgs& args) {
  check_squeeze_logs(stream, args);
  const void* in = args.in.raw();
  const DType dtype = args.in.dtype();
  Tensor logs_tensor = args.logs, totals_tensor = args.totals;
  float* logs = static_cast<float*>(logs_tensor.mutable_raw());
  auto& totals = *static_cast<SqueezeTotals*>(totals_tensor.mutable_raw());
  totals = {};
  std::mutex mutex;
  parallel_for(args.in.numel(), kGrain, [&](int64_t begin, int64_t end) {
    SqueezeTotals own{};
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t magnitude = bits_of(canonical(load_as_float(in, dtype, i))) & ~kSignBit;
      const bool counts = magnitude != 0 && magnitude < kInfinityBits;
      own.count += magnitude != 0 ? 1 : 0;
      own.amax_bits = std::max(own.amax_bits, magnitude);
      logs[i] = counts ? log2_of(float_of(magnitude)) : 0.0f;
    }
    const std::lock_guard lock(mutex);
    totals.count += own.count;
    totals.amax_bits = std::max(totals.amax_bits, own.amax_bits);
  });
}

void squeeze(Stream stream, const SqueezeArgs& args) {
  check_squeeze(stream, args);
  const void* in = args.in.raw();
  const DType dtype = args.in.dtype();
  Tensor out_tensor = args.out;
  const Squeeze s = squeeze_of(*static_cast<const float*>(args.logs.raw()),
                               *static_cast<const SqueezeTotals*>(args.totals.raw()), args.top);
  float* out = static_cast<float*>(out_tensor.mutable_raw());
  parallel_for(args.in.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float x = load_as_float(in, dtype, i);
      out[i] = canonical(args.inverse ? unsqueezed(x, s) : squeezed(x, s));
    }
  });
}

}  // namespace ulp::cpu
