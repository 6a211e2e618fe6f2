#pragma once

// The scalar mathematics of every element-wise kernel, forward beside backward. T is float (the bit contract) or double
// (gradient checks). `alpha` is the kernel's scalar argument.

#include "core/bits.h"
#include "core/grid.h"
#include "core/scalar_math.h"
#include "core/step_state.h"
#include "kernels/update_rule.h"

namespace ulp::functors {

struct Add {
  template <class T>
  ULP_HD T operator()(T a, T b, T) const {
    return a + b;
  }
};
struct Subtract {
  template <class T>
  ULP_HD T operator()(T a, T b, T) const {
    return a - b;
  }
};
struct Multiply {
  template <class T>
  ULP_HD T operator()(T a, T b, T) const {
    return a * b;
  }
};
struct Scale {
  template <class T>
  ULP_HD T operator()(T a, T alpha) const {
    return a * alpha;
  }
};
struct Square {
  template <class T>
  ULP_HD T operator()(T a, T) const {
    return a * a;
  }
};

/// max(x, 0); NaN stays NaN, −0 becomes +0.
struct Relu {
  template <class T>
  ULP_HD T operator()(T x, T) const {
    return x <= T(0) ? T(0) : x;
  }
};
/// x, g: the gradient passes where x > 0 (and where x is NaN).
struct ReluBackward {
  template <class T>
  ULP_HD T operator()(T x, T g, T) const {
    return x <= T(0) ? T(0) : g;
  }
};

/// x·Φ(x) = x/2·(1 + erf(x/√2)).  Source: Hendrycks, Gimpel, arXiv 1606.08415.
struct Gelu {
  template <class T>
  ULP_HD T operator()(T x, T) const {
    const T twice_cdf = T(1) + erf_of(x * T(0.70710678118654752440));
    return twice_cdf == T(0) ? T(0) : (T(0.5) * x) * twice_cdf;  // also where x is −Inf
  }
};
/// x, g: g·(Φ(x) + x·φ(x)).
struct GeluBackward {
  template <class T>
  ULP_HD T operator()(T x, T g, T) const {
    const T cdf = T(0.5) * (T(1) + erf_of(x * T(0.70710678118654752440)));
    const T pdf = T(0.39894228040143267794) * exp_of(T(-0.5) * (x * x));
    // x·φ(x) is 0 for |x| so large that φ is, also where x·0 would be NaN.
    const T slope = pdf == T(0) ? cdf : cdf + x * pdf;
    return g * slope;
  }
};

/// The tanh form: x/2·(1 + tanh(√(2/π)·(x + 0.044715x³))).  Source: arXiv 1606.08415.
struct GeluTanh {
  template <class T>
  ULP_HD T operator()(T x, T) const {
    const T inner = T(0.79788456080286535588) * (x + (T(0.044715) * (x * x)) * x);
    const T twice_cdf = T(1) + tanh_of(inner);
    return twice_cdf == T(0) ? T(0) : (T(0.5) * x) * twice_cdf;
  }
};
struct GeluTanhBackward {
  template <class T>
  ULP_HD T operator()(T x, T g, T) const {
    const T x2 = x * x;
    const T t = tanh_of(T(0.79788456080286535588) * (x + (T(0.044715) * x2) * x));
    const T sech2 = T(1) - t * t;
    const T inner_slope = T(0.79788456080286535588) * (T(1) + T(0.134145) * x2);
    const T bump = sech2 == T(0) ? T(0) : (T(0.5) * x) * (sech2 * inner_slope);
    return g * (T(0.5) * (T(1) + t) + bump);
  }
};

/// f(x + b), and its gradient toward x + b: f'(x + b)·g.
template <class Activation>
struct AfterBias {
  template <class T>
  ULP_HD T operator()(T x, T b, T alpha) const {
    return Activation{}(x + b, alpha);
  }
};
template <class Backward>
struct AfterBiasBackward {
  template <class T>
  ULP_HD T operator()(T x, T b, T g, T alpha) const {
    return Backward{}(x + b, g, alpha);
  }
};

using BiasRelu = AfterBias<Relu>;
using BiasReluBackward = AfterBiasBackward<ReluBackward>;
using BiasGelu = AfterBias<Gelu>;
using BiasGeluBackward = AfterBiasBackward<GeluBackward>;
using BiasGeluTanh = AfterBias<GeluTanh>;
using BiasGeluTanhBackward = AfterBiasBackward<GeluTanhBackward>;

/// mask (1 where clamped), g: 0 where clamped.
struct MaskGradient {
  template <class T>
  ULP_HD T operator()(T mask, T g, T) const {
    return mask != T(0) ? T(0) : g;
  }
};

// One update of an optimizer, shared by both devices. See OptimizerArgs in kernels.h for the order around it and the sources.

/// UpdateSettings, resolved for one step.
struct UpdateScalars {
  UpdateRule rule;
  bool nesterov;
  float grad_scaling,
      grad_scaling_after;            // before and after gradients are rounded: one of them is 1
  float beta1, rest1, beta2, rest2;  // rest = 1 − beta
  float eps, root;                   // root: Adam's 1 / √(1 − β2^t), else 1
  float step;                        // lr; Adam's lr / (1 − β1^t)
  float decay;                       // of the weight into the gradient
  float shrink;                      // lr · weight decay, decoupled
};

/// base^n from products of squares, the least bit of n first.
ULP_HD double power_of(double base, uint32_t n) {
  double result = 1;
  for (; n != 0; n >>= 1) {
    if ((n & 1u) != 0) result *= base;
    base *= base;
  }
  return result;
}

/// steps: updates that this optimizer has made before this one. rates: `rate_count` numbers, as OptimizerArgs has them.
ULP_HD UpdateScalars scalars_of(const UpdateSettings& u, const float* rates, int64_t rate_count,
                                int32_t updates, int32_t steps, const StepState& state) {
  const bool own_beta1 = u.beta1 < 0;
  const int64_t count = own_beta1 ? rate_count / 2 : rate_count;
  const int64_t at = updates < count ? updates : count - 1;
  const float lr = rates[at] * u.lr_factor;
  const double beta1 = own_beta1 ? static_cast<double>(rates[count + at]) : u.beta1;
  UpdateScalars s;
  s.rule = u.rule;
  s.nesterov = u.nesterov;
  const float scaling = u.scaled ? 1.0f : u.grad_scaling * state.grad_factor;
  s.grad_scaling = u.grad_order == GradOrder::ScaleFirst ? scaling : 1.0f;
  s.grad_scaling_after = u.grad_order == GradOrder::ScaleFirst ? 1.0f : scaling;
  s.beta1 = static_cast<float>(beta1);
  s.beta2 = static_cast<float>(u.beta2);
  s.rest1 = static_cast<float>(1 - beta1);
  s.rest2 = static_cast<float>(1 - u.beta2);
  s.eps = u.eps;
  s.root = 1;
  s.step = lr;
  if (u.rule == UpdateRule::Adam) {
    const auto t = static_cast<uint32_t>(steps) + 1u;
    s.step = static_cast<float>(static_cast<double>(lr) / (1 - power_of(beta1, t)));
    s.root = static_cast<float>(1 / sqrt_of(1 - power_of(u.beta2, t)));
  }
  s.decay = u.decoupled ? 0.0f : u.weight_decay;
  s.shrink = u.decoupled ? lr * u.weight_decay : 0.0f;
  return s;
}

/// The same for one parameter, amax_bits: the largest magnitude of its gradient. A gradient with Inf or NaN becomes NaN.
ULP_HD UpdateScalars normalised(const UpdateScalars& all, const UpdateSettings& u,
                                uint32_t amax_bits) {
  UpdateScalars s = all;
  const float scaling = all.grad_scaling * all.grad_scaling_after;  // one of them is 1
  const uint32_t a = bits_of(float_of(amax_bits) * scaling);
  if (u.grad_normalisation == GradNormalisation::None || a == 0) return s;
  float& at = u.grad_order == GradOrder::ScaleFirst ? s.grad_scaling : s.grad_scaling_after;
  if (a >= kInfinityBits) {
    at = float_of(kNanBits);
    return s;
  }
  const int32_t shift = static_cast<int32_t>((a + shift_up(a < 0x00800000u)) >> 23) - 127;
  const float divided = scaled(scaling, -shift);
  at = divided < kMaxFloat ? divided : kMaxFloat;
  return s;
}

/// The gradient with coupled decay: d = g + λ·p.
ULP_HD float decayed_gradient(const UpdateScalars& s, float p, float g) {
  return s.decay == 0.0f ? g : fma_of(s.decay, p, g);
}
/// β·m + (1 − β)·x
ULP_HD float moving_average(float beta, float rest, float m, float x) {
  return fma_of(beta, m, rest * x);
}

/// What the parameter moves against, and the new moments; d: decayed_gradient. m and v are the old ones and become the new
/// ones; those that a rule lacks stay.
template <UpdateRule kRule>
ULP_HD float direction_of(const UpdateScalars& s, float d, float& m, float& v) {
  if constexpr (kRule == UpdateRule::Adam) {
    m = moving_average(s.beta1, s.rest1, m, d);
    v = fma_of(s.beta2, v, (s.rest2 * d) * d);
    return m / fma_of(sqrt_of(v), s.root, s.eps);
  } else if constexpr (kRule == UpdateRule::Lion) {
    const float c = moving_average(s.beta1, s.rest1, m, d);
    m = moving_average(s.beta2, s.rest2, m, d);
    return c > 0.0f ? 1.0f : c < 0.0f ? -1.0f : c;  // 0 and NaN stay
  } else if constexpr (kRule == UpdateRule::Momentum) {
    m = fma_of(s.beta1, m, d);
    return choose(s.nesterov, fma_of(s.beta1, m, d), m);  // no branch: loops vectorise
  } else {
    return d;
  }
}

/// p − step·direction, after decoupled decay.
ULP_HD float moved(const UpdateScalars& s, float p, float direction) {
  const float shrunk = s.shrink == 0.0f ? p : fma_of(-s.shrink, p, p);
  return fma_of(-s.step, direction, shrunk);
}

/// Kahan: what is to be added to p, with what rounding lost before.
ULP_HD float owed(const UpdateScalars& s, float p, float direction, float compensation) {
  const float u = -(s.step * direction);
  return (s.shrink == 0.0f ? u : fma_of(-s.shrink, p, u)) + compensation;
}
/// Kahan: what is lost when p + owed was stored as `stored`.
ULP_HD float lost(float p, float owed, float stored) { return owed - (stored - p); }

/// average + factor·(weight − average)
ULP_HD float average_of(float average, float weight, float factor) {
  return fma_of(weight - average, factor, average);
}

}  // namespace ulp::functors
