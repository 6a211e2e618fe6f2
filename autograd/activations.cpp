#include "autograd/activations.h"

#include <cmath>

#include "autograd/elementwise.h"
#include "autograd/softmax.h"
#include "kernels/activations.h"

namespace ulp::ops {
namespace {

void check_bounds(const char* op, double low, double high) {
  ULP_CHECK(low <= high, "{}: the bounds must be low <= high, got {} and {}", op, low, high);
}

}  // namespace

Var relu6(Tape& tape, const Var& x, const OpFormats& f, RandomSite site) {
  return activation(tape, "relu6", kernels::hardtanh, kernels::hardtanh_backward, {0, 6}, x, f,
                    site);
}

Var leaky_relu(Tape& tape, const Var& x, double slope, const OpFormats& f, RandomSite site) {
  ULP_CHECK(std::isfinite(slope), "leaky_relu: the slope must be finite, got {}", slope);
  return activation(tape, "leaky_relu", kernels::leaky_relu, kernels::leaky_relu_backward, {slope},
                    x, f, site);
}

Var elu(Tape& tape, const Var& x, double alpha, const OpFormats& f, RandomSite site) {
  ULP_CHECK(std::isfinite(alpha), "elu: alpha must be finite, got {}", alpha);
  return activation(tape, "elu", kernels::elu, kernels::elu_backward, {alpha}, x, f, site);
}

Var hardtanh(Tape& tape, const Var& x, double low, double high, const OpFormats& f,
             RandomSite site) {
  check_bounds("hardtanh", low, high);
  return activation(tape, "hardtanh", kernels::hardtanh, kernels::hardtanh_backward, {low, high}, x,
                    f, site);
}

Var clip(Tape& tape, const Var& x, double low, double high, const OpFormats& f, RandomSite site) {
  check_bounds("clip", low, high);
  return activation(tape, "clip", kernels::hardtanh, kernels::clip_backward, {low, high}, x, f,
                    site);
}

Var sigmoid(Tape& tape, const Var& x, const OpFormats& f, RandomSite site) {
  return activation(tape, "sigmoid", kernels::sigmoid, kernels::sigmoid_backward, {}, x, f, site);
}

Var tanh(Tape& tape, const Var& x, const OpFormats& f, RandomSite site) {
  return activation(tape, "tanh", kernels::tanh, kernels::tanh_backward, {}, x, f, site);
}

Var silu(Tape& tape, const Var& x, const OpFormats& f, RandomSite site) {
  return activation(tape, "silu", kernels::silu, kernels::silu_backward, {}, x, f, site);
}

Var softplus(Tape& tape, const Var& x, double beta, double threshold, const OpFormats& f,
             RandomSite site) {
  ULP_CHECK(std::isfinite(beta) && static_cast<float>(beta) != 0.0f && !std::isnan(threshold),
            "softplus: beta must be finite and not 0, and the threshold a number; got {} and {}",
            beta, threshold);
  return activation(tape, "softplus", kernels::softplus, kernels::softplus_backward,
                    {beta, threshold}, x, f, site);
}

Var softmax(Tape& tape, const Var& x, const OpFormats& f, RandomSite site) {
  check_softmax_rows("softmax", x);
  const RoleUse use{tape, site};
  const Stream stream = tape.stream();
  const int last = x.shape().rank() - 1;
  const Tensor in = wide(stream, x.value);
  const Tensor y = make_like(in);
  const Shape rows = matrix_of(in).shape();
  const SoftmaxArgs args{matrix_of(in), matrix_of(y), f.interior, interior_key(use, f.interior, 3),
                         interior_trace(use, f.interior, {rows, rows, {rows[0]}})};
  kernels::softmax(stream, args);
  count_interior(use, f.interior, args.key, args.trace);
  const Saved saved =
      tape.save("softmax", y);  // unrounded: rounding the result is straight-through
  return tape.record(
      "softmax", f, {x}, use.kept(y, f.output, "output", last),
      [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
        const Tensor g = wide(stream, grads[0]);
        const Tensor dx = make_like(g);
        kernels::softmax_backward(stream, {matrix_of(g), matrix_of(saved.get()), matrix_of(dx)});
        return {use.kept(dx, f.grad_input, "grad_input", last)};
      });
}

}  // namespace ulp::ops
