#include "autograd/ops.h"
#include "autograd/quantised.h"

namespace ulp::ops {
namespace {

void check_rows(const char* op, const Var& x) {
  ULP_CHECK(x.value.defined() && x.shape().rank() == 2 && x.shape()[1] > 0,
            "{}: wanted (N, C) with C >= 1, got {}", op, x.value);
}

/// With labels also the loss of each row.
Tensor forward(const RoleUse& use, const Tensor& in, const Quantizer& interior,
               const Tensor& labels = {}, const Tensor& losses = {}) {
  Tensor y = make_like(in);
  // The kernel takes four draws of the stream: difference, exp, sum, logarithm.
  const RandomKey key =
      interior.is_identity() ? RandomKey{} : use.tape.run().key(use.site.stream("interior"), 4);
  kernels::log_softmax(use.tape.stream(), {in, y, interior, key, labels, losses});
  return y;
}

}  // namespace

Var log_softmax(Tape& tape, const Var& x, const OpFormats& f, RandomSite site) {
  check_rows("log_softmax", x);
  const RoleUse use{tape, site};
  const Tensor in = kernels::contiguous(tape.stream(), x.value);
  const Tensor y = forward(use, in, f.interior);
  const Saved saved =
      tape.save("log_softmax", y);  // unrounded: rounding the result is straight-through
  return tape.record("log_softmax", f, {x}, use.result(y, f.output, "output", 1),
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       Tensor dx = make_like(y);
                       kernels::log_softmax_backward(
                           use.tape.stream(),
                           {kernels::contiguous(use.tape.stream(), grads[0]), saved.get(), dx});
                       return {use.result(dx, f.grad_input, "grad_input", 1)};
                     });
}

Var cross_entropy(Tape& tape, const Var& logits, const Tensor& labels, const OpFormats& f,
                  RandomSite site) {
  check_rows("cross_entropy", logits);
  const int64_t n = logits.shape()[0], classes = logits.shape()[1];
  ULP_CHECK(n > 0, "cross_entropy: there are no samples, got logits of shape {}", logits.shape());
  ULP_CHECK(labels.defined() && labels.dtype() == DType::I32 && labels.shape() == Shape{n},
            "cross_entropy: labels must be I32 ({}), got {}", n, labels);
  if (labels.device() == kCpu) {
    const Tensor plain = labels.to_cpu_contiguous();
    for (int64_t i = 0; i < n; ++i)
      ULP_CHECK(plain.data<int32_t>()[i] >= 0 && plain.data<int32_t>()[i] < classes,
                "cross_entropy: label {} of sample {} is not in [0, {})", plain.data<int32_t>()[i],
                i, classes);
  }
  const Stream stream = tape.stream();
  const RoleUse use{tape, site};
  const Tensor own_labels = kernels::contiguous(stream, labels);
  const Tensor in = kernels::contiguous(stream, logits.value);
  Tensor each = Tensor::empty({n}, in.dtype(), in.device());
  const Tensor y = forward(use, in, f.interior, own_labels, each);
  const double per_sample = 1.0 / static_cast<double>(n);
  Tensor loss = Tensor::empty({}, y.dtype(), y.device());
  kernels::sum(stream, {each, loss, 1, n, 1, per_sample});
  const Saved saved = tape.save("cross_entropy", y);
  return tape.record("cross_entropy", f, {logits}, loss,
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       Tensor dx = make_like(y);
                       kernels::cross_entropy_backward(
                           stream, {saved.get(), own_labels, grads[0], dx, per_sample});
                       return {use.result(dx, f.grad_input, "grad_input", 1)};
                     });
}

}  // namespace ulp::ops
