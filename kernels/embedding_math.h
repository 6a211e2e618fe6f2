#pragma once

// The scalars of kernels/embedding.h, for both devices.

#include "kernels/activation_functors.h"

namespace ulp::functors {

/// The first of two elements turned by the angle of (c, s); the second is first_turned(y, x, c, −s).
template <class T>
ULP_HD T first_turned(T x, T y, T c, T s) {
  return x * c - y * s;
}

/// silu(a)·b.  Source: Shazeer, arXiv 2002.05202.
template <class T>
ULP_HD T swiglu_of(T a, T b) {
  return Silu{}(a, T(0)) * b;
}
/// Toward a and toward b.
template <class T>
ULP_HD T swiglu_gate_gradient(T a, T b, T g) {
  return SiluBackward{}(a, g * b, T(0));
}
template <class T>
ULP_HD T swiglu_value_gradient(T a, T g) {
  return g * Silu{}(a, T(0));
}

}  // namespace ulp::functors
