#include "autograd/run.h"

#include "kernels/matmul_unit.h"
#include "kernels/quantised.h"

namespace ulp {

Run::Run(Device device, uint64_t seed, Math math)
    : stream_(stream_of(device)),
      seed_(seed),
      math_(math),
      keeps_narrow_(device.type == DeviceType::Cuda) {
  ULP_CHECK(!(math != Math::Strict && device.type == DeviceType::Cpu),
            "run: {} math needs a CUDA device; the cpu has strict math", to_string(math));
  on_device_ = Tensor::empty({static_cast<int64_t>(sizeof(StepState))}, DType::U8, device);
  StepState first;
  first.random_step = 1;
  set_state(first);
}

const StepState& Run::state() const {
  if (behind_) copy_bytes(&state_, kCpu, on_device_.raw(), device(), sizeof(StepState));
  behind_ = false;
  return state_;
}

void Run::set_state(const StepState& state) {
  if (state.random_step != state_.random_step) ordinals_.clear();
  state_ = state;
  behind_ = false;
  copy_bytes(on_device_.mutable_raw(), device(), &state_, kCpu, sizeof(StepState));
}

RandomKey Run::key(uint32_t stream, uint32_t draws) {
  uint32_t& next = ordinals_[stream];
  const RandomKey key{seed_, stream, next, device_state()};
  next += draws;
  return key;
}

Tensor Run::scaling(uint32_t stream, const Quantizer& quantizer) {
  Tensor& state = scalings_[stream];
  if (!state.defined() || state.numel() != 1 + quantizer.scale.history) {
    set_scaling(stream, fresh_scaling(quantizer, device()));
  }
  return state;
}

void Run::set_scaling(uint32_t stream, const Tensor& state) {
  scalings_[stream] = state;
  Tensor& kept = kept_scalings_[stream];
  kept = Tensor::empty(state.shape(), state.dtype(), device());
  copy_bytes(kept.mutable_raw(), device(), state.raw(), device(),
             static_cast<size_t>(state.bytes()));
  note_replaced();
}

void Run::keep_scalings() {
  for (const auto& [stream, state] : scalings_)
    copy_bytes(kept_scalings_.at(stream).mutable_raw(), device(), state.raw(), device(),
               static_cast<size_t>(state.bytes()));
}

StepState* Run::device_state() const {
  Tensor handle = on_device_;
  return static_cast<StepState*>(handle.mutable_raw());
}

void Run::mirror(Change change) {
  if (recording_ != nullptr)
    recording_->push_back(std::move(change));
  else
    change();
}

void Run::check_gradients(std::vector<Tensor> gradients, const GradPolicy& policy) {
  kernels::check_gradients(stream_, {std::move(gradients), policy, device_state()});
  mirror([this] { behind_ = true; });
}

void Run::advance(const Tensor& updates, const Tensor& steps) {
  if (!scalings_.empty()) {
    SettleScalingsArgs settle{{}, device_state()};
    for (const auto& [stream, state] : scalings_)
      settle.scalings.push_back({state, kept_scalings_.at(stream)});
    kernels::settle_scalings(stream_, settle);
  }
  kernels::advance_step(stream_, {device_state(), updates, steps});
  ordinals_.clear();  // at once: what is recorded after this belongs to the next step
  mirror([this] {
    ulp::advance(state_);
    ordinals_.clear();
  });
}

}  // namespace ulp
