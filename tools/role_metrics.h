#pragma once

#include <string>

#include "autograd/role_stats.h"
#include "autograd/run.h"
#include "nn/module.h"

namespace ulp::tools {

/// Lines of metrics.jsonl, one for each role of each layer that was counted, in the order of the model, the loss after them:
/// {"epoch":1,"step":100,"split":"stats","layer":"fc1","role":"input","format":"e4m3","count":…,"overflow":…,"underflow":…,
/// "nan":…,"infinite":…,"amax":…,"sqnr_db":…}. sqnr_db is null where rounding changed nothing, as in fp32. A second use of a
/// tensor that shares the first one's rounding has its numbers and "shares":"input". grad_input2 is the gradient of an op's
/// second operand. Last, for each parameter ("layer":"fc1.weight"), what the optimizer rounds: "grads", "weights", "accumulator",
/// "moment1", "moment2", "compensation". "interior": all named intermediates of the layer together, where it has a format. Waits for
/// the device.
std::string role_lines(nn::Module& model, const RoleStats& stats, int64_t epoch, int64_t step);

}  // namespace ulp::tools
