#pragma once

// The scalar mathematics of every element-wise kernel, forward beside backward. T is float (the bit contract) or double
// (gradient checks). `alpha` is the kernel's scalar argument.

#include "core/bits.h"
#include "core/scalar_math.h"

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

// One SGD step's arithmetic, shared by both devices. See SgdArgs in kernels.h for the order around it.

struct SgdScalars {
  float lr, grad_scaling, momentum_coef, weight_decay;
  bool nesterov;
};
/// The rate of the next update; the last one stays.
ULP_HD float sgd_rate(const float* rates, int64_t count, int32_t updates) {
  return rates[updates < count ? updates : count - 1];
}
/// d = g + weight_decay·p
ULP_HD float sgd_direction(const SgdScalars& s, float p, float g) {
  return s.weight_decay == 0.0f ? g : fma_of(s.weight_decay, p, g);
}
/// m' = momentum·m + d
ULP_HD float sgd_momentum(const SgdScalars& s, float m, float d) {
  return fma_of(s.momentum_coef, m, d);
}
/// p' = p − lr·(nesterov ? d + momentum·m' : m')
ULP_HD float sgd_parameter(const SgdScalars& s, float p, float d, float m) {
  const float step = s.nesterov ? fma_of(s.momentum_coef, m, d) : m;
  return fma_of(-s.lr, step, p);
}

}  // namespace ulp::functors
