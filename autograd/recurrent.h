#pragma once

// Recurrent layers over whole sequences, backward through time.

#include <string_view>

#include "autograd/product_factors.h"
#include "autograd/tape.h"

namespace ulp::ops {

/// The formats of a recurrent op: an OpFormats for each of its products and each of its states.
///  input_product   x · W_ihᵀ, one product of all time steps: the roles of linear, on (T·N, In), time outermost.
///  hidden_product  h · W_hhᵀ, one product a step: input, weight, output forward, grad_output_dx, weight_dx, grad_input through
///                  time, each of them on (N, …) of a step with draws of its own. dW_hh is one product of all steps: grad_output_dw,
///                  input_dw (always draws of their own, groups along T·N) and grad_weight.
///  gates           interior rounds the intermediates inside a step (kernels/recurrent.h names them), element-wise; grad_input
///                  the gradient of the gates' sums, of a GRU once for each product.
///  hidden_state    output rounds h as it is kept, given out and read by the next step; grad_input the gradient of h: what comes
///                  from its output and from the step after, added.
///  cell_state      the same for c of an LSTM; grad_input rounds what is passed to the step before.
/// Initial states are taken as they are. Steps draw by call ordinals: no word repeats.
struct RecurrentFormats {
  OpFormats input_product, hidden_product, gates, hidden_state, cell_state;

  bool operator==(const RecurrentFormats&) const = default;
  /// The same for every part; each has its own use of it.
  static RecurrentFormats all(const OpFormats& formats) {
    return {formats, formats, formats, formats, formats};
  }
};

/// What multiplies the results of the two products (autograd/product_factors.h).
struct RecurrentFactors {
  ProductFactors input, hidden;
};

/// The random streams of the parts: those below a path are path.input_product and so on.
struct RecurrentSites {
  RandomSite input_product, hidden_product, gates, hidden_state, cell_state;

  RecurrentSites() : RecurrentSites("") {}
  explicit RecurrentSites(std::string_view path);
};

/// In PyTorch's layout and order of gates (LSTM: i, f, g, o; GRU: r, z, n), G = 4 or 3: input (G·H, In), hidden (G·H, H); the
/// biases (G·H), both or none.
struct RecurrentWeights {
  Var input, hidden, input_bias{}, hidden_bias{};
};

/// (N, H), or empty Vars: zeros. c is that of an LSTM only.
struct RecurrentState {
  Var h{}, c{};
};

struct RecurrentResult {
  Var y;                 // (N, T, H): h of every step
  RecurrentState state;  // after the last one
};

/// Over the steps t of x (N, T, In), T ≥ 1, from `state`:
///   i, f, g, o of x_t W_ihᵀ + b_ih + h W_hhᵀ + b_hh;  c ← σ(f)·c + σ(i)·tanh(g);  h ← σ(o)·tanh(c)
/// x may be of any float, other tensors too; states and results are F32. F64 everywhere for gradient checks.
/// Backward: through time, for x, the weights, the biases and the initial state; gradients of y and of the last state enter.
/// Slopes are taken at the rounded gates. The biases' gradients are sums over T·N in the order of core/sum.h.
/// A sequence cut into pieces, each from the state of the one before, gives the bits of the whole in strict math, unless formats
/// of input_product share a scale between steps or round stochastically.
/// Throws ulp::Error if shapes or devices do not fit.
/// Source: Hochreiter, Schmidhuber, Neural Computation 9(8), 1997, with forget gates; torch.nn.LSTM's equations.
RecurrentResult lstm(Tape& tape, const Var& x, const RecurrentWeights& weights,
                     const RecurrentState& state = {}, const RecurrentFormats& formats = {},
                     const RecurrentSites& sites = {}, const RecurrentFactors& factors = {});

/// The same with
///   r, z of x_t W_ihᵀ + b_ih + h W_hhᵀ + b_hh;  n = tanh(x_t W_inᵀ + b_in + σ(r)·(h W_hnᵀ + b_hn));  h ← n + σ(z)·(h − n)
/// Source: Cho et al., arXiv 1406.1078, in the form of torch.nn.GRU.
RecurrentResult gru(Tape& tape, const Var& x, const RecurrentWeights& weights,
                    const RecurrentState& state = {}, const RecurrentFormats& formats = {},
                    const RecurrentSites& sites = {}, const RecurrentFactors& factors = {});

}  // namespace ulp::ops
