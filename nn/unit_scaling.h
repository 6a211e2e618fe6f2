#pragma once

// Unit scaling: weights of deviation 1, and constant factors in every layer, forward and backward, so that at the first step all
// activations and their gradients have a size near 1 and fit narrow formats without a loss scale.
//
// Each layer has its rule beside it (Module::unit_scale); here is what they share. Sizes are root mean squares, not deviations: what
// follows a ReLU is of size 1 with its mean. Of products with n terms forward, m backward and r rows:
//   y = α · (x wᵀ) + b,  dx = β · (g w),  dw = r^−½ · (gᵀ x),  db = r^−½ · Σ g,   α = n^−½, β = m^−½
// Where a tensor has more than one way to the loss, between the two ends of a Residual, gradients of the ways are added, and
// each must be multiplied as its results are: there α and β of every op are their geometric mean. Elsewhere the edge between
// two layers is a cut edge, and a factor of the gradient alone multiplies all gradients before it alike.
// Source: Blake, Orr, Luschi, "Unit scaling: out-of-the-box low-precision training", arXiv 2303.11257; factors of products,
// embeddings, norms and the loss as in the authors' code (graphcore-research/unit-scaling-demo, scmm/uscale), those of dropout
// and attention as in their library (graphcore-research/unit-scaling, functional.py).

#include <functional>
#include <string>

#include "autograd/product_factors.h"
#include "nn/module.h"

namespace ulp::nn {

/// Whether the edge that enters a layer is a cut edge of the model.
enum class Edge : uint8_t { Cut, Inner };

/// Where a layer stands.
struct UnitPlace {
  Edge edge = Edge::Cut;
  /// Of a Residual: y = √tau · body(x) + √(1 − tau) · x. The l-th one has 1/(l + 1), so that all bodies and what the first one
  /// reads have equal parts in the last sum.
  double tau = 0.5;
};

/// y = forward · f(x), dx = backward · f'(x) · g.
struct Gains {
  double forward = 1, backward = 1;
};
/// At an inner edge both are their geometric mean.
Gains settled(const Gains& gains, Edge edge);
Var scaled(Tape& tape, const Var& y, const Gains& gains);

/// Uniform of deviation 1.
Initialiser unit_weights();
/// Of a product whose outputs are sums of `terms`, the gradients of its inputs of `back_terms`, those of its weights of `rows`.
ProductFactors unit_factors(double terms, double back_terms, int64_t rows, Edge edge);
/// rows^−½, what multiplies the gradient of a parameter that each of `rows` rows meets.
double unit_rows(int64_t rows);
/// 1/√E[y²] and 1/√E[dx²] of an op of rows of one or two numbers (N, inputs) → (N, 1), for independent standard normal inputs and
/// gradients of size 1: by quadrature, in fp64. The op must not round.
Gains unit_gains(int inputs, const std::function<Var(Tape&, const Var&)>& op);
/// √E[M²], M the largest of n standard normal numbers.
double largest_size(int64_t n);
/// N·C/√(C − 1): the gradient of cross-entropy, a mean over N samples of C equally likely classes, times it has size 1.
double unit_loss_factor(int64_t samples, int64_t classes);

/// "y × 0.125, dx × 0.25", of products also "dw × rows^−½": for people.
std::string unit_text(const Gains& gains);
std::string unit_text(const ProductFactors& factors);

/// Unit scaling of a model and its first weights, before it is initialised. Throws ulp::Error with the path of a layer that has no
/// rule: recurrent and transposed layers, softmax as a layer, a head tied to the embedding.
void unit_scale(Module& model);

}  // namespace ulp::nn
