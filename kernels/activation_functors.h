#pragma once

// Activations beside their backward, as kernels/functors.h has them. Backward takes x, g and gives g·f'(x). Where x is NaN the
// result is NaN forward; kinks pass g on there.

#include "core/scalar_math.h"

namespace ulp::functors {

/// min(max(x, low), high).
struct Hardtanh {
  template <class T>
  ULP_HD T operator()(T x, T low, T high) const {
    return x <= low ? low : x >= high ? high : x;
  }
};
/// The gradient passes strictly inside the bounds.
struct HardtanhBackward {
  template <class T>
  ULP_HD T operator()(T x, T g, T low, T high) const {
    return x <= low || x >= high ? T(0) : g;
  }
};
/// The same; either bound may be infinite.
struct ClipBackward {
  template <class T>
  ULP_HD T operator()(T x, T g, T low, T high) const {
    return x <= low || x >= high ? T(0) : g;
  }
};

/// x, or slope·x where x ≤ 0.
struct LeakyRelu {
  template <class T>
  ULP_HD T operator()(T x, T slope) const {
    return x <= T(0) ? x * slope : x;
  }
};
struct LeakyReluBackward {
  template <class T>
  ULP_HD T operator()(T x, T g, T slope) const {
    return x <= T(0) ? g * slope : g;
  }
};

/// x, or alpha·(e^x − 1) where x ≤ 0.  Source: Clevert et al., arXiv 1511.07289.
struct Elu {
  template <class T>
  ULP_HD T operator()(T x, T alpha) const {
    return x <= T(0) ? alpha * expm1_of(x) : x;
  }
};
struct EluBackward {
  template <class T>
  ULP_HD T operator()(T x, T g, T alpha) const {
    return x <= T(0) ? g * (alpha * exp_of(x)) : g;
  }
};

/// σ'(x) = e / (1 + e)², e = exp(−|x|): no difference of near numbers.
template <class T>
ULP_HD T sigmoid_slope(T x) {
  const T e = exp_of(-abs_of(x)), q = T(1) + e;
  return (e / q) / q;
}

struct Sigmoid {
  template <class T>
  ULP_HD T operator()(T x, T) const {
    return sigmoid_of(x);
  }
};
struct SigmoidBackward {
  template <class T>
  ULP_HD T operator()(T x, T g, T) const {
    return g * sigmoid_slope(x);
  }
};

struct Tanh {
  template <class T>
  ULP_HD T operator()(T x, T) const {
    return tanh_of(x);
  }
};
/// 1 − tanh² x = 4·σ'(2x).
struct TanhBackward {
  template <class T>
  ULP_HD T operator()(T x, T g, T) const {
    return g * (T(4) * sigmoid_slope(T(2) * x));
  }
};

/// x·σ(x); 0 where σ is.  Source: Elfwing et al., arXiv 1702.03118.
struct Silu {
  template <class T>
  ULP_HD T operator()(T x, T) const {
    const T s = sigmoid_of(x);
    return s == T(0) ? T(0) : x * s;
  }
};
/// g·(σ(x) + x·σ'(x)).
struct SiluBackward {
  template <class T>
  ULP_HD T operator()(T x, T g, T) const {
    const T s = sigmoid_of(x), slope = sigmoid_slope(x);
    return g * (slope == T(0) ? s : s + x * slope);  // x·0 would be NaN where x is infinite
  }
};

/// ln(1 + e^(beta·x)) / beta, or x where beta·x > threshold: max(z, 0) + ln(1 + e^−|z|), which never overflows.
struct Softplus {
  template <class T>
  ULP_HD T operator()(T x, T beta, T threshold) const {
    const T z = beta * x;
    return z > threshold ? x : ((z <= T(0) ? T(0) : z) + log1p_of(exp_of(-abs_of(z)))) / beta;
  }
};
struct SoftplusBackward {
  template <class T>
  ULP_HD T operator()(T x, T g, T beta, T threshold) const {
    const T z = beta * x;
    return z > threshold ? g : g * sigmoid_of(z);
  }
};

}  // namespace ulp::functors
