#include "autograd/run.h"

#include "kernels/matmul_unit.h"
#include "kernels/quantised.h"

namespace ulp {

Run::Run(Device device, uint64_t seed, Math math)
    : stream_(stream_of(device)), seed_(seed), math_(math) {
  ULP_CHECK(!(math != Math::Strict && device.type == DeviceType::Cpu),
            "run: {} math needs a CUDA device; the cpu has strict math", to_string(math));
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

Tensor Run::scaling(uint32_t stream, const Quantizer& quantizer) {
  Tensor& state = scalings_[stream];
  if (!state.defined() || state.numel() != 1 + quantizer.scale.history)
    state = fresh_scaling(quantizer, device());
  return state;
}

const StepState* Run::device_state() const {
  return static_cast<const StepState*>(on_device_.raw());
}

}  // namespace ulp
