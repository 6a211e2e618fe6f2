#include "autograd/run.h"

namespace ulp {

Run::Run(Device device, uint64_t seed, Math math)
    : stream_(stream_of(device)), seed_(seed), math_(math) {
  ULP_CHECK(!(math == Math::Fast && device.type == DeviceType::Cpu),
            "run: fast math needs a CUDA device; the cpu has strict math");
  on_device_ = Tensor::empty({static_cast<int64_t>(sizeof(StepState))}, DType::U8, device);
  StepState first;
  first.random_step = 1;
  set_state(first);
}

void Run::set_state(const StepState& state) {
  if (state.random_step != state_.random_step) ordinals_.clear();
  state_ = state;
  copy_bytes(on_device_.mutable_raw(), device(), &state_, kCpu, sizeof(StepState));
}

RandomKey Run::key(uint32_t stream, uint32_t draws) {
  uint32_t& next = ordinals_[stream];
  const RandomKey key{seed_, stream, next, device_state()};
  next += draws;
  return key;
}

const StepState* Run::device_state() const {
  return static_cast<const StepState*>(on_device_.raw());
}

}  // namespace ulp
