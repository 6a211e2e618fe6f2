#pragma once

#include <functional>
#include <map>
#include <unordered_map>
#include <vector>

#include "core/random.h"
#include "core/step_state.h"
#include "core/tensor.h"
#include "kernels/kernels.h"

namespace ulp {

class RoleStats;

/// What the ops of one run share: the device and its stream, the seed, how products are computed, and the state of the
/// current step in the device's memory.
class Run {
 public:
  /// Throws if the device does not exist.
  explicit Run(Device device = kCpu, uint64_t seed = 1, Math math = Math::Strict);
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  Stream stream() const { return stream_; }
  Device device() const { return stream_.device; }
  uint64_t seed() const { return seed_; }
  Math math() const { return math_; }

  /// Whether ops keep results in the narrowest type that holds their format, else in F32: no number depends on it. At first on
  /// a GPU, where memory bounds most kernels.
  bool keeps_narrow() const { return keeps_narrow_; }
  void keep_narrow(bool narrow) { keeps_narrow_ = narrow; }

  /// The state; waits for the device where that may know more than the host (after check_gradients). Random draws of step 0
  /// are those of initialisation; training begins at random_step 1.
  const StepState& state() const;
  void set_state(const StepState& state);
  /// The copy that kernels read, and that some of them move on.
  StepState* device_state() const;

  /// Looks at a step's gradients between the backward pass and the optimizer's step, see CheckGradientsArgs.
  void check_gradients(std::vector<Tensor> gradients, const GradPolicy& policy);
  /// Ends a step on both sides: ulp::advance. A skipped step leaves what delayed scaling remembers as it was before it.
  /// `updates` and `steps` (I32, one value; `steps` optional) count the steps of the caller, the latter without those that were
  /// skipped.
  void advance(const Tensor& updates, const Tensor& steps = {});

  using Change = std::function<void()>;
  /// Keeps the host in step with what queued work does to the device: makes the change now, or, while a step is being
  /// recorded, before each launch of it. A change that throws prevents the launch.
  void mirror(Change change);
  void mirror_state(std::function<void(StepState&)> change) {
    mirror([this, change = std::move(change)] { change(state_); });
  }

  /// The next draw of a random stream; `draws` ordinals are taken. Ordinals count the uses within a step, whatever tape
  /// they come from, so that no word repeats; they begin anew when random_step changes.
  RandomKey key(uint32_t stream, uint32_t draws = 1);
  /// True if nothing was drawn since the step began.
  bool fresh() const { return ordinals_.empty(); }

  /// What +scale=delayedN remembers for a random stream's quantizer; made anew if there is none of that length.
  Tensor scaling(uint32_t stream, const Quantizer& quantizer);
  /// All of it, for checkpoints: by random stream.
  const std::map<uint32_t, Tensor>& scalings() const { return scalings_; }
  void set_scaling(uint32_t stream, const Tensor& state);
  /// A skipped step goes back to what they are now. For whoever changes them between steps.
  void keep_scalings();

  /// Where the roles of ops count what rounding does to them (autograd/role_stats.h); null, as at first: nowhere.
  RoleStats* role_stats() const { return role_stats_; }
  void set_role_stats(RoleStats* stats) { role_stats_ = stats; }

  /// Counts how often memory that a recorded step may read was replaced; such a step must be recorded again.
  uint64_t replaced() const { return replaced_; }
  void note_replaced() { ++replaced_; }

 private:
  friend class StepGraph;

  Stream stream_;
  uint64_t seed_;
  Math math_;
  bool keeps_narrow_;
  mutable StepState state_;  // but for what only the device knows, while behind_
  mutable bool behind_ = false;
  Tensor on_device_;  // U8, sizeof(StepState)
  std::vector<Change>* recording_ = nullptr;
  uint64_t replaced_ = 0;
  RoleStats* role_stats_ = nullptr;
  std::unordered_map<uint32_t, uint32_t> ordinals_;
  std::map<uint32_t, Tensor> scalings_;
  std::map<uint32_t, Tensor> kept_scalings_;  // as of the end of the last step that was not skipped
};

}  // namespace ulp
