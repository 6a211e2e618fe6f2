#pragma once

#include <string>

#include "autograd/role_stats.h"
#include "nn/module.h"

namespace ulp::tools {

/// Lines of metrics.jsonl, one for each role of each layer that was counted, in the order of the model, the loss last:
/// {"epoch":1,"step":100,"split":"stats","layer":"fc1","role":"input","format":"e4m3","count":…,"overflow":…,"underflow":…,
/// "nan":…,"infinite":…,"amax":…,"sqnr_db":…}. sqnr_db is null where rounding changed nothing. Waits for the device.
std::string role_lines(nn::Module& model, const RoleStats& stats, int64_t epoch, int64_t step);

}  // namespace ulp::tools
