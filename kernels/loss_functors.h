#pragma once

// Losses of one element beside their gradients, as kernels/functors.h has functions. x: prediction, t: target, g: the gradient
// of the whole loss, one value, which `factor` (1 / n of a mean) goes into first.

#include "core/bits.h"
#include "core/scalar_math.h"
#include "kernels/losses.h"

namespace ulp::functors {

/// d²/(2·width) where |d| < width, else |d| − width/2; d = x − t. Width 0: |d|.  Source: Girshick, arXiv 1504.08083, eq. 3.
struct SmoothL1 {
  template <class T>
  ULP_HD T operator()(T x, T t, T width) const {
    const T d = abs_of(x - t);
    return d < width ? (T(0.5) * d) * (d / width) : d - T(0.5) * width;
  }
};
/// Toward x; 0 where x = t.
struct SmoothL1Backward {
  template <class T>
  ULP_HD T operator()(T x, T t, T g, T width, T factor) const {
    const T d = x - t, f = g * factor;
    return abs_of(d) < width ? (d / width) * f : d > T(0) ? f : d < T(0) ? -f : d;
  }
};

/// −t·ln σ(x) − (1 − t)·ln(1 − σ(x)) = |x|·w + ln(1 + e^−|x|), w = 1 − t for x > 0, else t. Where w = 0 the product is 0,
/// also of an infinite x.
struct BceLogits {
  template <class T>
  ULP_HD T operator()(T x, T t, T) const {
    const T a = abs_of(x), w = x > T(0) ? T(1) - t : t;
    return (w == T(0) ? T(0) : a * w) + log1p_of(exp_of(-a));
  }
};
/// Toward x: σ(x) − t, without the difference of near numbers where t is 0 or 1.
struct BceLogitsBackward {
  template <class T>
  ULP_HD T operator()(T x, T t, T g, T factor) const {
    const T e = exp_of(-abs_of(x)), s = e / (T(1) + e);
    return (x > T(0) ? (T(1) - t) - s : s - t) * (g * factor);
  }
};

/// t·(ln t − x) for x = ln of a probability; 0 where t is 0, whatever number x is.
struct KlDivergence {
  template <class T>
  ULP_HD T operator()(T x, T t, T) const {
    return t == T(0) ? (x == x ? T(0) : x) : t * (log_of(t) - x);
  }
};
/// Toward t: ln t + 1 − x; of t = 0, where there is no slope, −x.
struct KlDivergenceTargetBackward {
  template <class T>
  ULP_HD T operator()(T x, T t, T g, T factor) const {
    return ((t == T(0) ? T(0) : log_of(t) + T(1)) - x) * (g * factor);
  }
};

/// a, g: −a·(g·factor).
struct NegatedProduct {
  template <class T>
  ULP_HD T operator()(T a, T g, T factor) const {
    return -(a * (g * factor));
  }
};

/// One element's part of the loss of a row; y: the element, q: the label's distribution there.
template <class T>
ULP_HD T label_term(LabelLoss loss, T y, T q) {
  const T d = y - q;
  return loss == LabelLoss::Squares ? d * d : q == T(0) ? T(0) : q * y;
}
/// The loss of a row from the sum of its terms.
template <class T>
ULP_HD T label_loss_of(LabelLoss loss, T sum) {
  return loss == LabelLoss::Squares ? T(0.5) * sum : -sum;
}
/// The gradient of a row's loss toward one of its elements, times factor.
template <class T>
ULP_HD T label_gradient(LabelLoss loss, T y, T q, T factor) {
  const T p = loss == LabelLoss::Squares ? y : loss == LabelLoss::CrossEntropy ? exp_of(y) : T(0);
  return (p - q) * factor;
}

/// An element's log-probability from its row's largest one and ln Σ exp(x − most).
template <class T>
ULP_HD T log_probability(T x, T most, T log) {
  return canonical(canonical(x - most) - log);
}

}  // namespace ulp::functors
