#include "core/step_state.h"
#include "kernels/cuda/rounder.cuh"
#include "kernels/functors.h"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

struct Work {
  Source grad;
  Sink weight, master, momentum;  // master, momentum: data is null where there is none
  Rounder grad_format, weight_format, master_format, momentum_format;
  float momentum_coef, weight_decay;
  bool nesterov, grad_ready;
  const StepState* state;
  int64_t n;
};

__global__ void __launch_bounds__(kThreads) sgd_kernel(Work w) {
  if (w.state->found_inf != 0) return;
  const bool has_master = w.master.data != nullptr, has_momentum = w.momentum.data != nullptr;
  const functors::SgdScalars s{w.state->lr, w.grad_ready ? 1.0f : w.state->grad_scaling,
                               w.momentum_coef, w.weight_decay, w.nesterov};
  const RandomSource grad_random = w.grad_format.random(), weight_random = w.weight_format.random(),
                     master_random = w.master_format.random(),
                     momentum_random = w.momentum_format.random();
  for_packs(w.n, [&](int64_t i, int count) {
    float g[kPack], p[kPack], m[kPack] = {};
    load_pack(w.grad, i, count, g);
    load_pack(has_master ? w.master.source() : w.weight.source(), i, count, p);
    if (has_momentum) load_pack(w.momentum.source(), i, count, m);
#pragma unroll
    for (int k = 0; k < kPack; ++k) g[k] = g[k] * s.grad_scaling;
    round_pack(w.grad_format, grad_random, i, g);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const float d = functors::sgd_direction(s, p[k], g[k]);
      m[k] = has_momentum ? functors::sgd_momentum(s, m[k], d) : d;
      p[k] = functors::sgd_parameter(s, p[k], d, m[k]);
    }
    if (has_master) {
      round_pack(w.master_format, master_random, i, p);
      store_pack(w.master, i, count, p);
    }
    round_pack(w.weight_format, weight_random, i, p);
    store_pack(w.weight, i, count, p);
    if (has_momentum) {
      round_pack(w.momentum_format, momentum_random, i, m);
      store_pack(w.momentum, i, count, m);
    }
  });
}

/// A state tensor with what is stored in it; nothing where there is none.
Sink check_state(Stream stream, const Tensor& tensor, const Shape& shape, const Quantizer& format) {
  if (!tensor.defined()) return {};
  check_kernel_tensor("sgd", stream, tensor, shape);
  check_output("sgd", tensor, format);
  return sink_of(tensor);
}

}  // namespace

void sgd(Stream stream, const SgdArgs& args) {
  ULP_CHECK(args.state != nullptr, "sgd: the step state is missing");
  ULP_CHECK(args.weight.defined(), "sgd: the weight is missing");
  const Shape shape = args.weight.shape();
  check_kernel_tensor("sgd", stream, args.grad, shape);
  check_float("sgd", args.grad);
  Work w{};
  w.n = args.weight.numel();
  w.grad = source_of(args.grad);
  w.weight = check_state(stream, args.weight, shape, args.weight_format);
  w.master = check_state(stream, args.master, shape, args.master_format);
  w.momentum = check_state(stream, args.momentum, shape, args.momentum_format);
  w.grad_format = make_elementwise_rounder("sgd", stream.device, args.grad_format, args.grad_key);
  w.weight_format =
      make_elementwise_rounder("sgd", stream.device, args.weight_format, args.weight_key);
  w.master_format =
      make_elementwise_rounder("sgd", stream.device, args.master_format, args.master_key);
  w.momentum_format =
      make_elementwise_rounder("sgd", stream.device, args.momentum_format, args.momentum_key);
  w.momentum_coef = args.momentum_coef;
  w.weight_decay = args.weight_decay;
  w.nesterov = args.nesterov;
  w.grad_ready = args.grad_ready;
  w.state = args.state;
  launch("sgd", stream, pack_blocks(w.n), kThreads, sgd_kernel, w);
}

}  // namespace ulp::cuda
