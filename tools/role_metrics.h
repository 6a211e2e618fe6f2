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
/// second operand. Last, for each parameter ("layer":"fc1.weight"), "grads" and "weights" without format, overflow, underflow
/// and sqnr_db: see count_parameters. Not counted: interior, which kernels round inside, and the optimizer's other states.
/// Waits for the device.
std::string role_lines(nn::Module& model, const RoleStats& stats, int64_t epoch, int64_t step);

/// Which tensor of each parameter.
enum class OfParameter : uint8_t { Grads, Weights };
/// Counts them in the run's stats as they are: gradients as the backward pass left them, before --grad-scaling and --grads,
/// weights as they are stored. Nothing where no roles are counted.
void count_parameters(Run& run, const std::vector<Parameter*>& parameters, OfParameter which);

}  // namespace ulp::tools
