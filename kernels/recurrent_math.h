#pragma once

// The arithmetic of recurrent steps, for one cell. Roundings stand between these functions, in the kernels.

#include "core/scalar_math.h"

namespace ulp::recurrent {

/// Gate 2 of an LSTM (g) and of a GRU (n) is a tanh, the others are logistic.
inline constexpr int kTanhGate = 2;

template <class T>
ULP_HD T gate(int which, T z) {
  return which == kTanhGate ? tanh_of(z) : sigmoid_of(z);
}

/// σ' and tanh' by their values.
template <class T>
ULP_HD T sigmoid_slope(T y) {
  return y * (T(1) - y);
}
template <class T>
ULP_HD T tanh_slope(T y) {
  return fma_of(-y, y, T(1));
}

template <class T>
ULP_HD T new_cell(T i, T f, T g, T c) {
  return fma_of(f, c, i * g);
}

template <class T>
struct LstmGradient {
  T i, f, g, o, c_before;
};
/// dh: of h, rounded; grad_c: what comes from the step after; tc: tanh(c).
template <class T>
ULP_HD LstmGradient<T> lstm_gradient(T dh, T grad_c, T i, T f, T g, T o, T tc, T c_before) {
  const T dc = fma_of(dh * o, tanh_slope(tc), grad_c);
  return {dc * g * sigmoid_slope(i), dc * c_before * sigmoid_slope(f), dc * i * tanh_slope(g),
          dh * tc * sigmoid_slope(o), dc * f};
}

template <class T>
ULP_HD T new_state(T z, T n, T h) {
  return fma_of(z, h - n, n);
}

template <class T>
struct GruGradient {
  T r, z, n, hidden_n, direct;
};
template <class T>
ULP_HD GruGradient<T> gru_gradient(T dh, T r, T z, T n, T hidden_n, T h_before) {
  const T dn = dh * (T(1) - z) * tanh_slope(n);
  return {dn * hidden_n * sigmoid_slope(r), dh * (h_before - n) * sigmoid_slope(z), dn, dn * r,
          dh * z};
}

}  // namespace ulp::recurrent
