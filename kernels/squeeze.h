#pragma once

// The steps of +scale=squeeze (core/squeeze.h); kernels/quantised.cpp puts them together. kernel.h says what a row means.

#include "core/squeeze.h"
#include "kernels/kernels.h"

namespace ulp {

/// logs[i] = log2|in[i]|, 0 where in[i] is 0, NaN or Inf; totals: SqueezeTotals as U8 bytes.  in: any float; logs: F32.
struct SqueezeLogsArgs {
  Tensor in, logs, totals;
};

/// out[i] = squeezed(in[i]) or, inverse, unsqueezed(in[i]).  in: any float; out: F32, may be in; logs: the sum of the logs, F32 (1).
struct SqueezeArgs {
  Tensor in, out, logs, totals;
  float top = 0;
  bool inverse = false;
};

#define ULP_SQUEEZE_KERNELS(X)     \
  X(squeeze_logs, SqueezeLogsArgs) \
  X(squeeze, SqueezeArgs)

ULP_SQUEEZE_KERNELS(ULP_DECLARE_KERNEL)

/// Throw unless the arguments are as the row says.
void check_squeeze_logs(Stream stream, const SqueezeLogsArgs& args);
void check_squeeze(Stream stream, const SqueezeArgs& args);

/// Undefined totals of a tensor, for squeeze_logs to fill.
Tensor empty_squeeze_totals(Device device);

}  // namespace ulp
