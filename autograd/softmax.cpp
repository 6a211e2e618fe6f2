#include "autograd/softmax.h"

#include "autograd/ops.h"

namespace ulp::ops {

void check_softmax_rows(const char* op, const Var& x) {
  ULP_CHECK(x.value.defined() && x.shape().rank() >= 2 && x.shape()[x.shape().rank() - 1] > 0,
            "{}: wanted (N, C) or more axes before C, with C >= 1, got {}", op, x.value);
}

void check_matrix_rows(const char* op, const Var& x) {
  ULP_CHECK(x.value.defined() && x.shape().rank() == 2 && x.shape()[1] > 0,
            "{}: wanted (N, C) with C >= 1, got {}", op, x.value);
}

Tensor matrix_of(const Tensor& x) {
  const int64_t columns = x.size(x.rank() - 1);
  return x.reshape({x.numel() / columns, columns});
}

Tensor log_softmax_of(const RoleUse& use, const Tensor& in, const Quantizer& interior,
                      const Tensor& labels, const Tensor& losses) {
  Tensor y = make_like(in);
  LogSoftmaxArgs args;
  args.in = matrix_of(in);
  args.out = matrix_of(y);
  args.interior = interior;
  args.key = interior_key(use, interior, 4);
  args.labels = labels;
  args.losses = losses;
  const Shape rows = args.in.shape(), each{rows[0]};
  args.trace = interior_trace(use, interior, {rows, rows, each, each});
  kernels::log_softmax(use.tape.stream(), args);
  count_interior(use, interior, args.key, args.trace);
  return y;
}

Var log_softmax(Tape& tape, const Var& x, const OpFormats& f, RandomSite site) {
  check_softmax_rows("log_softmax", x);
  const RoleUse use{tape, site};
  const Stream stream = tape.stream();
  const int last = x.shape().rank() - 1;
  const Tensor in = wide(stream, x.value);
  const Tensor y = log_softmax_of(use, in, f.interior);
  const Saved saved =
      tape.save("log_softmax", y);  // unrounded: rounding the result is straight-through
  return tape.record("log_softmax", f, {x}, use.kept(y, f.output, "output", last),
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       const Tensor g = wide(stream, grads[0]);
                       const Tensor dx = make_like(g);
                       kernels::log_softmax_backward(
                           stream, {matrix_of(g), matrix_of(saved.get()), matrix_of(dx)});
                       return {use.kept(dx, f.grad_input, "grad_input", last)};
                     });
}

}  // namespace ulp::ops
