#include "core/fast_codes.h"
#include "kernels/cpu/amax.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/spans.h"
#include "kernels/cpu/state_blocks.h"
#include "kernels/functors.h"
#include "kernels/kernels.h"

namespace ulp::cpu {
namespace {

using functors::UpdateScalars;

template <class Call>
void for_rule(UpdateRule rule, Call call) {
  switch (rule) {
    case UpdateRule::Sgd: return call.template operator()<UpdateRule::Sgd>();
    case UpdateRule::Momentum: return call.template operator()<UpdateRule::Momentum>();
    case UpdateRule::Adam: return call.template operator()<UpdateRule::Adam>();
    case UpdateRule::Lion: return call.template operator()<UpdateRule::Lion>();
  }
}

/// A parameter's block. Old values may lie in the tensors themselves; new ones are in buffers.
struct Block {
  const float* grad;
  float grad_factor;
  const float *old_p, *old_m, *old_v, *compensation;
  float *p, *m, *v, *owed;
};

/// Plain: p = the moved parameter. Kahan: owed = what is to be added to it, p = their sum.
template <UpdateRule kRule, bool kKahan>
void update_block(const UpdateScalars& scalars, const Block& block, int64_t n) {
  with_isa([=]() ULP_INLINE {
    const UpdateScalars s = scalars;
    const Block b = block;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      float m = kRule == UpdateRule::Sgd ? 0.0f : b.old_m[i];
      float v = kRule == UpdateRule::Adam ? b.old_v[i] : 0.0f;
      const float p = b.old_p[i];
      const float d = functors::decayed_gradient(s, p, b.grad[i] * b.grad_factor);
      const float u = functors::direction_of<kRule>(s, d, m, v);
      if (kRule != UpdateRule::Sgd) b.m[i] = fast::canonical(m);
      if (kRule == UpdateRule::Adam) b.v[i] = fast::canonical(v);
      if (kKahan) {
        const float y = functors::owed(s, p, u, b.compensation[i]);
        b.owed[i] = y;
        b.p[i] = fast::canonical(p + y);
      } else {
        b.p[i] = fast::canonical(functors::moved(s, p, u));
      }
    }
  });
}

void update(const OptimizerArgs& args, const UpdateScalars& of_step, const OptimizerParameter& p) {
  if (!p.grad.defined()) return;
  const StateBlocks weight({p.weight}, args.weight_format, p.weight_key);
  const StateBlocks master(p.master, args.master_format, p.master_key);
  const StateBlocks moment1(p.moment1, args.moment1_format, p.moment1_key);
  const StateBlocks moment2(p.moment2, args.moment2_format, p.moment2_key);
  const StateBlocks compensation(p.compensation, args.compensation_format, p.compensation_key);
  const BlockQuantiser grad_q(args.grad_format, p.grad_key);
  const StateBlocks& kept = master.exists() ? master : weight;
  const void* grad_data = p.grad.raw();
  const DType grad_type = p.grad.dtype();
  const bool kahan = compensation.exists();
  const bool normalises = args.settings.grad_normalisation != GradNormalisation::None;
  const UpdateScalars s = normalises
                              ? functors::normalised(of_step, args.settings,
                                                     amax_of(grad_data, grad_type, p.grad.numel()))
                              : of_step;

  parallel_for_units(p.weight.numel(), kBlock, kGrain, [&](int64_t first, int64_t last) {
    BlockBuffer g_block, p_block, m_block, v_block, c_block, y_block, old_block;
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t n = std::min(kBlock, last - begin);
      const float* grad = read_block(grad_data, grad_type, begin, n, g_block.data());
      float grad_factor = s.grad_scaling * s.grad_scaling_after;  // one of them is 1
      if (grad_q.active()) {
        float* g = g_block.data();
        with_isa([=]() ULP_INLINE {
          for (int64_t i = 0; i < n; ++i) g[i] = canonical(grad[i] * s.grad_scaling);
        });
        grad_q.apply(g, n, begin);
        grad = g;
        grad_factor = s.grad_scaling_after;
      }
      Block b{grad,    grad_factor,    nullptr,        nullptr,        nullptr,
              nullptr, p_block.data(), m_block.data(), v_block.data(), y_block.data()};
      b.old_p = kept.read(begin, n, old_block.data());
      if (moment1.exists()) b.old_m = moment1.read(begin, n, b.m);
      if (moment2.exists()) b.old_v = moment2.read(begin, n, b.v);
      b.m = moment1.place(begin, b.m);
      b.v = moment2.place(begin, b.v);
      const bool dropped = !kahan && !master.exists();  // nothing reads the new parameter later on
      if (dropped) b.p = kept.place(begin, b.p);
      if (kahan) b.compensation = compensation.read(begin, n, c_block.data());
      for_rule(s.rule, [&]<UpdateRule kRule>() {
        kahan ? update_block<kRule, true>(s, b, n) : update_block<kRule, false>(s, b, n);
      });
      if (moment1.exists()) moment1.write(b.m, begin, n, StateBlocks::After::Dropped);
      if (moment2.exists()) moment2.write(b.v, begin, n, StateBlocks::After::Dropped);
      if (kahan) {
        // The old values are needed once more, and may lie where the new ones go.
        if (b.old_p != old_block.data()) std::copy(b.old_p, b.old_p + n, old_block.data());
        kept.write(b.p, begin, n);
        float* c = c_block.data();
        const float *old = old_block.data(), *owed = b.owed, *stored = b.p;
        with_isa([=]() ULP_INLINE {
          for (int64_t i = 0; i < n; ++i)
            c[i] = fast::canonical(functors::lost(old[i], owed[i], stored[i]));
        });
        compensation.write(c, begin, n, StateBlocks::After::Dropped);
      } else {
        kept.write(b.p, begin, n, dropped ? StateBlocks::After::Dropped : StateBlocks::After::Kept);
      }
      if (master.exists()) weight.write(b.p, begin, n, StateBlocks::After::Dropped);
    }
  });
}

}  // namespace

void optimizer_step(Stream stream, const OptimizerArgs& args) {
  check_optimizer_step(stream, args);
  if (args.state->found_inf != 0) return;
  const UpdateScalars scalars = functors::scalars_of(
      args.settings, args.rates.data<float>(), args.rates.numel(), args.updates.data<int32_t>()[0],
      args.steps.data<int32_t>()[0], *args.state);
  for (const OptimizerParameter& p : args.parameters) update(args, scalars, p);
}

}  // namespace ulp::cpu
