#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/spans.h"
#include "kernels/functors.h"
#include "kernels/kernels.h"

namespace ulp::cpu {
namespace {

/// A state tensor as blocks; absent ones do nothing.
struct State {
  void* data = nullptr;
  DType dtype = DType::F32;
  State(Stream stream, const Tensor& tensor, const Shape& shape, const Quantizer& format) {
    if (!tensor.defined()) return;
    check_kernel_tensor("sgd", stream, tensor, shape);
    check_output_type("sgd", tensor, format);
    Tensor handle = tensor;
    data = handle.mutable_raw();
    dtype = tensor.dtype();
  }
};

}  // namespace

void sgd(Stream stream, const SgdArgs& args) {
  const Shape& shape = args.weight.shape();
  ULP_CHECK(args.state != nullptr, "sgd: the step state is missing");
  check_kernel_tensor("sgd", stream, args.grad, shape);
  if (args.state->found_inf != 0) return;
  const State weight(stream, args.weight, shape, args.weight_format);
  const State master(stream, args.master, shape, args.master_format);
  const State momentum(stream, args.momentum, shape, args.momentum_format);
  const BlockQuantiser grad_q(args.grad_format, args.grad_key);
  const BlockQuantiser weight_q(args.weight_format, args.weight_key);
  const BlockQuantiser master_q(args.master_format, args.master_key);
  const BlockQuantiser momentum_q(args.momentum_format, args.momentum_key);
  const functors::SgdScalars s{args.state->lr, args.grad_ready ? 1.0f : args.state->grad_scaling,
                               args.momentum_coef, args.weight_decay, args.nesterov};
  const State& parameter = master.data != nullptr ? master : weight;
  const void* grad_data = args.grad.raw();
  const DType grad_type = args.grad.dtype();

  parallel_for_units(args.weight.numel(), kBlock, kGrain, [&](int64_t first, int64_t last) {
    BlockBuffer buffer, p_block, m_block, g_block;
    float *p = p_block.data(), *m = m_block.data(), *g = g_block.data();
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t n = std::min(kBlock, last - begin);
      const float* grad = read_block(grad_data, grad_type, begin, n, buffer.data());
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < n; ++i) g[i] = canonical(grad[i] * s.grad_scaling);
      });
      grad_q.apply(g, n, begin);
      const float* old_p = read_block(parameter.data, parameter.dtype, begin, n, p);
      if (momentum.data != nullptr) {
        const float* old_m = read_block(momentum.data, momentum.dtype, begin, n, m);
        with_isa([=]() ULP_INLINE {
          for (int64_t i = 0; i < n; ++i) {
            const float d = functors::sgd_direction(s, old_p[i], g[i]);
            m[i] = canonical(functors::sgd_momentum(s, old_m[i], d));
            p[i] = canonical(functors::sgd_parameter(s, old_p[i], d, m[i]));
          }
        });
        momentum_q.apply(m, n, begin);
        write_block(momentum.data, momentum.dtype, begin, n, m);
      } else {
        with_isa([=]() ULP_INLINE {
          for (int64_t i = 0; i < n; ++i) {
            const float d = functors::sgd_direction(s, old_p[i], g[i]);
            p[i] = canonical(functors::sgd_parameter(s, old_p[i], d, d));
          }
        });
      }
      if (master.data != nullptr) {
        master_q.apply(p, n, begin);
        write_block(master.data, master.dtype, begin, n, p);
      }
      weight_q.apply(p, n, begin);
      write_block(weight.data, weight.dtype, begin, n, p);
    }
  });
}

}  // namespace ulp::cpu
