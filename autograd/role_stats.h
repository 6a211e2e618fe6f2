#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "autograd/run.h"
#include "core/quantise_stats.h"

namespace ulp {

/// What quantizers did to the roles of a run's ops, by random stream, while it stood in Run::set_role_stats. Counted by the
/// kernels that round, in their own pass and in the device's memory: nothing waits before totals(). Values do not change, down to
/// the draws; results that a product or an element-wise kernel would round itself are rounded by a pass of their own, and a
/// tensor whose factors are kept apart is rounded once more, so that a step takes longer. Not within a recorded step (StepGraph):
/// call the step itself. Roles without a format are counted as fp32, by a pass of their own; a role that shares another one's
/// draw is counted there.
///
/// `interior` is counted where it has a format: each rounding of a named intermediate (those of kernels/norm.h, activations.h,
/// kernels.h, attention.h and recurrent.h, on both devices) once, in the forward pass; that of element-wise losses as any role.
/// How often a kernel makes a number again, and that backward passes do, has no part; of attention there is only what rows see.
/// Kernels leave what they round (kernels/interior.h), and a pass with the same draws counts it: 4 bytes an intermediate until then.
class RoleStats {
 public:
  explicit RoleStats(Device device) : device_(device) {}
  RoleStats(const RoleStats&) = delete;
  RoleStats& operator=(const RoleStats&) = delete;

  /// Memory for one use of a role: U8, sizeof(QuantiseStats) bytes.
  Tensor slot(uint32_t stream, const Quantizer& quantizer);

  struct Total {
    Quantizer quantizer;
    QuantiseStats stats;  // of all uses: counts and sums are added, amax is the largest
  };
  /// By random stream. Waits for the device.
  std::map<uint32_t, Total> totals() const;
  void clear() { uses_.clear(); }

 private:
  struct Use {
    uint32_t stream;
    Quantizer quantizer;
    Tensor stats;
  };
  Device device_;
  std::vector<Use> uses_;
};

/// Counts in `stats` for a while.
class CountRoles {
 public:
  CountRoles(Run& run, RoleStats& stats) : run_(run), before_(run.role_stats()) {
    run.set_role_stats(&stats);
  }
  ~CountRoles() { run_.set_role_stats(before_); }
  CountRoles(const CountRoles&) = delete;
  CountRoles& operator=(const CountRoles&) = delete;

 private:
  Run& run_;
  RoleStats* before_;
};

}  // namespace ulp
