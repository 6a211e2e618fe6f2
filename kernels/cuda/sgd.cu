#include <vector>

#include "core/step_state.h"
#include "kernels/cuda/quads.cuh"
#include "kernels/functors.h"
#include "kernels/kernels.h"

namespace ulp::cuda {
namespace {

/// One parameter's arrays, and the blocks that work on it: from first_block to the next parameter's.
struct Parameter {
  Source grad;
  Sink weight, master, momentum;  // master, momentum: data is null where there is none
  uint32_t grad_stream, weight_stream, master_stream, momentum_stream;  // with their ordinals
  int64_t n;
  int32_t first_block;
};

/// As many parameters as fit a launch's 4 KB of arguments beside the rest.
constexpr int kMost = 32;

struct Work {
  Parameter parameters[kMost];
  int32_t count, blocks;
  Rounder grad_format, weight_format, master_format, momentum_format;  // their streams apart
  float grad_scaling, momentum_coef, weight_decay;
  bool nesterov;
  const float* rates;
  int64_t rate_count;
  const int32_t* updates;
  const StepState* state;
};
static_assert(sizeof(Work) <= 4096);

__device__ __forceinline__ RandomSource random_of(const Rounder& rounder, uint32_t stream) {
  RandomSource random = rounder.random();
  random.stream = stream;
  return random;
}

__global__ void __launch_bounds__(kThreads) sgd_kernel(const __grid_constant__ Work w) {
  if (w.state->found_inf != 0) return;
  const int32_t block = static_cast<int32_t>(blockIdx.x);
  int which = 0;
  while (which + 1 < w.count && w.parameters[which + 1].first_block <= block) ++which;
  const Parameter& p = w.parameters[which];
  const int32_t end = which + 1 < w.count ? w.parameters[which + 1].first_block : w.blocks;
  const int64_t step = static_cast<int64_t>(end - p.first_block) * kThreads * kQuad;

  const bool has_master = p.master.data != nullptr, has_momentum = p.momentum.data != nullptr;
  const functors::SgdScalars s{functors::sgd_rate(w.rates, w.rate_count, *w.updates),
                               w.grad_scaling, w.momentum_coef, w.weight_decay, w.nesterov};
  const RandomSource grad_random = random_of(w.grad_format, p.grad_stream),
                     weight_random = random_of(w.weight_format, p.weight_stream),
                     master_random = random_of(w.master_format, p.master_stream),
                     momentum_random = random_of(w.momentum_format, p.momentum_stream);
  for (int64_t i = (static_cast<int64_t>(block - p.first_block) * kThreads + threadIdx.x) * kQuad;
       i < p.n; i += step) {
    const int count = quad_count(i, p.n);
    float g[kQuad], x[kQuad], m[kQuad] = {};
    load_quad(p.grad, i, count, g);
    load_quad(has_master ? p.master.source() : p.weight.source(), i, count, x);
    if (has_momentum) load_quad(p.momentum.source(), i, count, m);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) g[k] = g[k] * s.grad_scaling;
    round_quad(w.grad_format, grad_random, i, g);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const float d = functors::sgd_direction(s, x[k], g[k]);
      m[k] = has_momentum ? functors::sgd_momentum(s, m[k], d) : d;
      x[k] = functors::sgd_parameter(s, x[k], d, m[k]);
    }
    if (has_master) {
      round_quad(w.master_format, master_random, i, x);
      store_quad(p.master, i, count, x);
    }
    round_quad(w.weight_format, weight_random, i, x);
    store_quad(p.weight, i, count, x);
    if (has_momentum) {
      round_quad(w.momentum_format, momentum_random, i, m);
      store_quad(p.momentum, i, count, m);
    }
  }
}

/// A state tensor with what is stored in it; nothing where there is none.
Sink check_state(Stream stream, const Tensor& tensor, const Shape& shape, const Quantizer& format) {
  if (!tensor.defined()) return {};
  check_kernel_tensor("sgd", stream, tensor, shape);
  check_output("sgd", tensor, format);
  return sink_of(tensor);
}

Parameter make_parameter(Stream stream, const SgdArgs& args, const SgdParameter& from) {
  ULP_CHECK(from.weight.defined(), "sgd: the weight is missing");
  const Shape shape = from.weight.shape();
  check_kernel_tensor("sgd", stream, from.grad, shape);
  check_float("sgd", from.grad);
  Parameter p{};
  p.n = from.weight.numel();
  p.grad = source_of(from.grad);
  p.weight = check_state(stream, from.weight, shape, args.weight_format);
  p.master = check_state(stream, from.master, shape, args.master_format);
  p.momentum = check_state(stream, from.momentum, shape, args.momentum_format);
  p.grad_stream = from.grad_key.counted_stream();
  p.weight_stream = from.weight_key.counted_stream();
  p.master_stream = from.master_key.counted_stream();
  p.momentum_stream = from.momentum_key.counted_stream();
  return p;
}

}  // namespace

void sgd(Stream stream, const SgdArgs& args) {
  check_sgd(stream, args);
  if (args.parameters.empty()) return;
  const SgdParameter& first = args.parameters.front();
  Work w{};
  const auto rounder = [&](const Quantizer& format, const RandomKey& key) {
    return make_elementwise_rounder("sgd", stream.device, format, key);
  };
  w.grad_format = rounder(args.grad_format, first.grad_key);
  w.weight_format = rounder(args.weight_format, first.weight_key);
  w.master_format = rounder(args.master_format, first.master_key);
  w.momentum_format = rounder(args.momentum_format, first.momentum_key);
  w.grad_scaling = args.grad_scaling;
  w.momentum_coef = args.momentum_coef;
  w.weight_decay = args.weight_decay;
  w.nesterov = args.nesterov;
  w.rates = args.rates.data<float>();
  w.rate_count = args.rates.numel();
  w.updates = args.updates.data<int32_t>();
  w.state = args.state;
  const auto flush = [&] {
    launch("sgd", stream, w.blocks, kThreads, sgd_kernel, w);
    w.count = w.blocks = 0;
  };
  for (const SgdParameter& parameter : args.parameters) {
    Parameter p = make_parameter(stream, args, parameter);
    if (p.n == 0) continue;
    p.first_block = w.blocks;
    w.parameters[w.count++] = p;
    w.blocks += static_cast<int32_t>(quad_blocks(p.n));
    if (w.count == kMost) flush();
  }
  flush();
}

}  // namespace ulp::cuda
