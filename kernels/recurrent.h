#pragma once

// One time step of an LSTM or a GRU, beside its matrix products. kernel.h says what a row means, recurrent_math.h what is computed.

#include "core/quantizer.h"
#include "kernels/interior.h"

namespace ulp {

/// A format inside a kernel, element-wise, and its draws.
struct RecurrentRounding {
  Quantizer format;
  RandomKey key;
};

/// Which half of a step is made: a cell that the kernel cannot round itself is rounded between the two.
enum class LstmPart : uint8_t { Whole, Cell, Hidden };

/// One step of N sequences, H cells each; gates lie in the order of PyTorch: i, f, g, o, each H wide. F32 (F64 on the CPU).
///   z = input + hidden;  i, f, o = σ(z), g = tanh(z);  c = f·c_before + i·g (one fma);  h = o·tanh(c)
/// input, hidden: (N, 4H). saved (N, 5H): i, f, g, o, tanh(c) as rounded. c_before, c, h: (N, H).
/// interior rounds z (draw 0), the four gates (1) and tanh(c) (2): words by the index in (N, 4H), (N, 4H) and (N, H) in turn.
/// cell rounds c, state rounds h.  Cell writes c and all of `saved` but the last H; Hidden takes c as it is and makes the rest.
struct LstmStepArgs {
  Tensor input, hidden, c_before, saved, c, h;
  LstmPart part = LstmPart::Whole;
  RecurrentRounding interior{}, cell{}, state{};
  InteriorTrace trace{};
};

/// Its gradient. grad_y, grad_h (N, H; of h, from this step's output and from the step after), grad_c (of c): undefined is zero.
///   dh = grad_y + grad_h, rounded by `state`;  dc = grad_c + dh·o·(1 − tanh²c)
///   gates ← dc·g·i(1 − i), dc·c_before·f(1 − f), dc·i·(1 − g²), dh·tanh(c)·o(1 − o), rounded by `gates_format`
///   grad_c_before ← dc·f, rounded by `cell`
struct LstmStepBackwardArgs {
  Tensor grad_y, grad_h, grad_c, saved, c_before, gates, grad_c_before;
  RecurrentRounding state{}, gates_format{}, cell{};
};

/// One step of a GRU; gates lie in the order of PyTorch: r, z, n.
///   r, z = σ(input + hidden);  n = tanh(input + r·hidden) (one fma);  h = n + z·(h_before − n) (one fma)
/// input, hidden: (N, 3H). saved (N, 4H): r, z, n and the hidden part of n, as rounded. h_before, h: (N, H).
/// interior rounds the three sums (draw 0) and the gates (1): words by the index in (N, 3H). state rounds h.
struct GruStepArgs {
  Tensor input, hidden, h_before, saved, h;
  RecurrentRounding interior{}, state{};
  InteriorTrace trace{};
};

/// Its gradient. grad_y, grad_h, grad_direct (N, H): of h, from this step's output, from the product of the step after and past
/// it; undefined is zero.
///   dh = grad_y + grad_h + grad_direct, rounded by `state`
///   n' = dh·(1 − z)·(1 − n²);  r' = n'·hidden_n·r(1 − r);  z' = dh·(h_before − n)·z(1 − z)
///   input_gates ← r', z', n';  hidden_gates ← r', z', n'·r;  each rounded by its format;  direct ← dh·z
struct GruStepBackwardArgs {
  Tensor grad_y, grad_h, grad_direct, saved, h_before, input_gates, hidden_gates, direct;
  RecurrentRounding state{}, input_format{}, hidden_format{};
};

// clang-format off
#define ULP_RECURRENT_KERNELS(X)                        \
  X(lstm_step, LstmStepArgs)                            \
  X(lstm_step_backward, LstmStepBackwardArgs)           \
  X(gru_step, GruStepArgs)                              \
  X(gru_step_backward, GruStepBackwardArgs)
// clang-format on

ULP_RECURRENT_KERNELS(ULP_DECLARE_KERNEL)

/// Throw unless the arguments of a row are as it says.
void check_lstm_step(Stream stream, const LstmStepArgs& args);
void check_lstm_step_backward(Stream stream, const LstmStepBackwardArgs& args);
void check_gru_step(Stream stream, const GruStepArgs& args);
void check_gru_step_backward(Stream stream, const GruStepBackwardArgs& args);

}  // namespace ulp
