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

void update(Stream stream, const SgdArgs& args, const functors::SgdScalars& s,
            const SgdParameter& parameter) {
  ULP_CHECK(parameter.weight.defined(), "sgd: the weight is missing");
  const Shape& shape = parameter.weight.shape();
  check_kernel_tensor("sgd", stream, parameter.grad, shape);
  const State weight(stream, parameter.weight, shape, args.weight_format);
  const State master(stream, parameter.master, shape, args.master_format);
  const State momentum(stream, parameter.momentum, shape, args.momentum_format);
  const BlockQuantiser grad_q(args.grad_format, parameter.grad_key);
  const BlockQuantiser weight_q(args.weight_format, parameter.weight_key);
  const BlockQuantiser master_q(args.master_format, parameter.master_key);
  const BlockQuantiser momentum_q(args.momentum_format, parameter.momentum_key);
  const State& source = master.data != nullptr ? master : weight;
  const void* grad_data = parameter.grad.raw();
  const DType grad_type = parameter.grad.dtype();

  parallel_for_units(shape.numel(), kBlock, kGrain, [&](int64_t first, int64_t last) {
    BlockBuffer buffer, p_block, m_block, g_block;
    float *p = p_block.data(), *m = m_block.data(), *g = g_block.data();
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t n = std::min(kBlock, last - begin);
      const float* grad = read_block(grad_data, grad_type, begin, n, buffer.data());
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < n; ++i) g[i] = canonical(grad[i] * s.grad_scaling);
      });
      grad_q.apply(g, n, begin);
      const float* old_p = read_block(source.data, source.dtype, begin, n, p);
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

}  // namespace

void sgd(Stream stream, const SgdArgs& args) {
  check_sgd(stream, args);
  if (args.state->found_inf != 0) return;
  const float lr = functors::sgd_rate(args.rates.data<float>(), args.rates.numel(),
                                      args.updates.data<int32_t>()[0]);
  const functors::SgdScalars scalars{lr, args.grad_scaling, args.momentum_coef, args.weight_decay,
                                     args.nesterov};
  for (const SgdParameter& parameter : args.parameters) update(stream, args, scalars, parameter);
}

}  // namespace ulp::cpu
