// A quad a thread, in little code, because a step of a small network waits for instructions too.

#include "kernels/cuda/optimizer.cuh"

namespace ulp::cuda::optimizer {
namespace {

__device__ __forceinline__ void read_quad(const StateRule& rule, const StateArray& s, int64_t i,
                                          int count, float (&x)[kQuad]) {
  if (s.dtype != DType::U8) return load_quad(s.source(), i, count, x);
  const int32_t bits = rule.code.bits;
  const uint8_t* at = static_cast<const uint8_t*>(s.data) + i / 2 * bits / 4;
  uint64_t piece = 0;
  if (!s.aligned || count < kQuad) {
    for (int byte = 0; byte < (count * bits + 7) / 8; ++byte)
      piece |= uint64_t{at[byte]} << (8 * byte);
  } else if (bits == 16) {
    piece = *reinterpret_cast<const uint64_t*>(at);
  } else {
    piece =
        bits == 8 ? *reinterpret_cast<const uint32_t*>(at) : *reinterpret_cast<const uint16_t*>(at);
  }
  const ShortFloat& quick = rule.quick;
  bool finite = true;
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    const uint32_t code = static_cast<uint32_t>(piece >> (k * bits)) & low_bits(bits);
    const uint32_t magnitude = code & (quick.sign - 1);
    finite = finite && magnitude < quick.limit;
    x[k] = float_of(bits_of(quick.scaled(magnitude) * quick.unit) | quick.float_sign(code));
  }
  if (!finite) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k)
      x[k] = number_of_any(rule.code, static_cast<uint32_t>(piece >> (k * bits)) & low_bits(bits));
  }
#pragma unroll
  for (int k = 0; k < kQuad; ++k)
    if (k >= count) x[k] = 0;
}

/// Rounds x, which becomes what is stored, and stores it.
__device__ __forceinline__ void write_quad(const StateRule& rule, const StateArray& s,
                                           RandomSource random, int64_t i, int count,
                                           float (&x)[kQuad]) {
  random.stream = s.stream;
  round_quad(rule.rounder, random, i, x);
  if (s.dtype != DType::U8) return store_quad(s.sink(), i, count, x);
  const int32_t bits = rule.code.bits;
  uint8_t* at = static_cast<uint8_t*>(s.data) + i / 2 * bits / 4;
  const ShortFloat& quick = rule.quick;
  uint32_t code[kQuad];
  bool finite = true;
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    const uint32_t magnitude = quick.magnitude(fabsf(x[k]) * quick.inverse_unit);
    finite = finite && magnitude < quick.limit;
    code[k] = magnitude | quick.sign_of(x[k]);
  }
  if (!finite) {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const uint32_t own = code_of_any(rule.code, x[k]);
      code[k] = own == kNoCode ? 0u : own;
    }
  }
  uint64_t piece = 0;
#pragma unroll
  for (int k = 0; k < kQuad; ++k)
    if (k < count) piece |= uint64_t{code[k]} << (k * bits);
  if (!s.aligned || count < kQuad) {
    for (int byte = 0; byte < (count * bits + 7) / 8; ++byte)
      at[byte] = static_cast<uint8_t>(piece >> (8 * byte));
  } else if (bits == 16) {
    *reinterpret_cast<uint64_t*>(at) = piece;
  } else if (bits == 8) {
    *reinterpret_cast<uint32_t*>(at) = static_cast<uint32_t>(piece);
  } else {
    *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(piece);
  }
}

__global__ void __launch_bounds__(kThreads) gradient_amax_kernel(const __grid_constant__ Work w) {
  __shared__ BlockStart start;
  begin_block(w, start);
  __syncthreads();
  if (start.grad == nullptr) return;
  const Source grad = gradient_of(start);
  const Parameter& p = start.parameter;
  const int64_t first = static_cast<int64_t>(blockIdx.x) - p.first_block,
                blocks = start.end - p.first_block;
  uint32_t most = 0;
  for (int64_t i = (first * kThreads + threadIdx.x) * kQuad; i < p.n;
       i += blocks * kThreads * kQuad) {
    float g[kQuad];
    load_quad(grad, i, quad_count(i, p.n), g);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) most = max(most, bits_of(g[k]) & ~kSignBit);
  }
  most = __reduce_max_sync(kFullWarp, most);
  if (threadIdx.x % kWarp == 0) atomicMax(w.amax + start.which, most);
}

__global__ void __launch_bounds__(kThreads) optimizer_quads_kernel(const __grid_constant__ Work w) {
  __shared__ BlockStart start;
  begin_block(w, start);
  __syncthreads();
  if (start.grad == nullptr) return;
  normalise(w, start);
  const UpdateScalars s = start.scalars;
  const Parameter& p = start.parameter;
  const Source grad = gradient_of(start);
  const RandomSource random = random_of(w, start, 0),
                     grad_random = random_of(w, start, p.grad_stream);
  const bool has_copy = p.states[kCopy].data != nullptr;
  const bool has_moment1 = p.states[kMoment1].data != nullptr;
  const bool has_moment2 = p.states[kMoment2].data != nullptr;
  const bool kahan = p.states[kCompensation].data != nullptr;
  const int64_t first = static_cast<int64_t>(blockIdx.x) - p.first_block,
                blocks = start.end - p.first_block;
  for (int64_t i = (first * kThreads + threadIdx.x) * kQuad; i < p.n;
       i += blocks * kThreads * kQuad) {
    const int count = quad_count(i, p.n);
    float g[kQuad], x[kQuad], m[kQuad] = {}, v[kQuad] = {}, owed[kQuad] = {}, old[kQuad];
    load_quad(grad, i, count, g);
    read_quad(w.rules[kKept], p.states[kKept], i, count, x);
    if (has_moment1) read_quad(w.rules[kMoment1], p.states[kMoment1], i, count, m);
    if (has_moment2) read_quad(w.rules[kMoment2], p.states[kMoment2], i, count, v);
    if (kahan) read_quad(w.rules[kCompensation], p.states[kCompensation], i, count, owed);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) g[k] = g[k] * s.grad_scaling;
    round_quad(w.grad_rule, grad_random, i, g);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) g[k] = g[k] * s.grad_scaling_after;
    for_rule(s.rule, [&]<UpdateRule kRule>() {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        old[k] = x[k];
        update_one<kRule>(s, kahan, g[k], x[k], m[k], v[k], owed[k]);
      }
    });
    if (has_moment1) write_quad(w.rules[kMoment1], p.states[kMoment1], random, i, count, m);
    if (has_moment2) write_quad(w.rules[kMoment2], p.states[kMoment2], random, i, count, v);
    write_quad(w.rules[kKept], p.states[kKept], random, i, count, x);
    if (kahan) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) owed[k] = functors::lost(old[k], owed[k], x[k]);
      write_quad(w.rules[kCompensation], p.states[kCompensation], random, i, count, owed);
    }
    if (has_copy) write_quad(w.rules[kCopy], p.states[kCopy], random, i, count, x);
  }
}

}  // namespace

Kernel amax_kernel() { return gradient_amax_kernel; }
Kernel quads_kernel() { return optimizer_quads_kernel; }

}  // namespace ulp::cuda::optimizer
