#include "kernels/losses.h"

#include <cmath>

#include "autograd/elementwise.h"
#include "autograd/losses.h"
#include "autograd/softmax.h"

namespace ulp::ops {
namespace {

/// Rows with their labels, checked.
struct Labelled {
  Tensor in, labels;  // contiguous
  int64_t samples, classes;
};

enum class Samples : uint8_t { AtLeastOne, Any };

Labelled labelled(const char* op, Tape& tape, const Var& x, const Tensor& labels, Samples wanted) {
  check_matrix_rows(op, x);
  const int64_t n = x.shape()[0], classes = x.shape()[1];
  ULP_CHECK(n > 0 || wanted == Samples::Any, "{}: there are no samples, got logits of shape {}", op,
            x.shape());
  ULP_CHECK(labels.defined() && labels.dtype() == DType::I32 && labels.shape() == Shape{n},
            "{}: labels must be I32 ({}) for logits of shape {}, got {}", op, n, x.shape(), labels);
  if (labels.device() == kCpu) {
    const Tensor plain = labels.to_cpu_contiguous();
    for (int64_t i = 0; i < n; ++i)
      ULP_CHECK(plain.data<int32_t>()[i] >= 0 && plain.data<int32_t>()[i] < classes,
                "{}: label {} of sample {} is not in [0, {})", op, plain.data<int32_t>()[i], i,
                classes);
  }
  return {wide(tape.stream(), x.value), kernels::contiguous(tape.stream(), labels), n, classes};
}

/// factor · Σ values, one value.
Tensor total(Stream stream, const Tensor& values, double factor) {
  Tensor sum = Tensor::empty({}, values.dtype(), values.device());
  kernels::sum(stream, {values, sum, 1, values.numel(), 1, factor});
  return sum;
}

/// factor · Σ of the rows' losses with its gradient; `in` is what the loss takes: of CrossEntropy the log-probabilities.
Var label_loss(const char* op, const RoleUse& use, const Var& x, const Labelled& rows,
               const Tensor& in, LabelLoss loss, double smoothing, double factor,
               const OpFormats& f) {
  const Stream stream = use.tape.stream();
  const LabelWeights weights = LabelWeights::of(smoothing, rows.classes);
  const Tensor each = Tensor::empty({rows.samples}, in.dtype(), in.device());
  kernels::label_loss(stream, {in, rows.labels, each, loss, weights});
  const Saved saved = use.tape.save(op, in);
  const Tensor labels = rows.labels;
  return use.tape.record(op, f, {x}, total(stream, each, factor),
                         [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                           const Tensor y = saved.get();
                           const Tensor dx = make_like(y);
                           kernels::label_loss_backward(stream, {y, labels, wide(stream, grads[0]),
                                                                 dx, loss, weights, factor});
                           return {use.kept(dx, f.grad_input, "grad_input", 1)};
                         });
}

/// A loss of pairs of elements.
struct PairLoss {
  const char* op;
  const ElementwiseKernel& forward;
  double parameter;  // alpha of the kernels that have one
  double factor;     // of the sum
};

int64_t check_pair(const char* op, const Var& prediction, const Var& target) {
  ULP_CHECK(
      prediction.value.defined() && target.value.defined() && prediction.shape() == target.shape(),
      "{}: prediction and target must have one shape, got {} and {}", op, prediction.value,
      target.value);
  ULP_CHECK(prediction.value.numel() > 0, "{}: there are no elements, got {}", op,
            prediction.value);
  return prediction.value.numel();
}

/// `backward` makes the gradients: both arguments, the loss's gradient, the needs → one tensor an input.
using PairBackward = std::function<std::vector<Tensor>(const RoleUse& use, const Tensor& x,
                                                       const Tensor& t, const Tensor& g, Needs)>;

Var pair_loss(Tape& tape, const PairLoss& loss, const Var& prediction, const Var& target,
              const OpFormats& f, RandomSite site, const PairBackward& backward) {
  const RoleUse use{tape, site};
  const Tensor each = apply(use, loss.forward, {prediction.value, target.value}, {loss.parameter},
                            f.interior, "interior");
  const Saved x = tape.save(loss.op, prediction.value), t = tape.save(loss.op, target.value);
  return tape.record(loss.op, f, {prediction, target}, total(tape.stream(), each, loss.factor),
                     [=](std::span<const Tensor> grads, Needs needs) {
                       return backward(use, x.get(), t.get(), grads[0], needs);
                     });
}

/// The smooth L1 loss of a width, times `factor`: of the difference, so that the gradients differ in sign only.
Var difference_loss(const char* op, Tape& tape, const Var& prediction, const Var& target,
                    double width, double factor, const OpFormats& f, RandomSite site) {
  const double per_element = factor / static_cast<double>(check_pair(op, prediction, target));
  return pair_loss(tape, {op, kernels::smooth_l1, width, per_element}, prediction, target, f, site,
                   [=](const RoleUse& use, const Tensor& x, const Tensor& t, const Tensor& g,
                       Needs needs) -> std::vector<Tensor> {
                     const Scalars scalars{width, per_element};
                     const Quantizer none;
                     const Quantizer& rounding = needs[1] ? none : f.grad_input;
                     Tensor dx = apply(use, kernels::smooth_l1_backward, {x, t, g}, scalars,
                                       rounding, "grad_input");
                     if (!needs[1]) return {dx, {}};
                     const Tensor dt =
                         apply(use, kernels::scale, {dx}, {-1}, f.grad_input, kSecond);
                     const int last = std::max(0, dx.rank() - 1);
                     if (needs[0]) dx = use.kept(dx, f.grad_input, "grad_input", last);
                     return {dx, dt};
                   });
}

/// From so many classes on, cross-entropy keeps the logits, which mostly are there anyway, and two numbers a row; below, the
/// log-probabilities, which are made in one pass over each row. The bits are the same.
constexpr int64_t kManyClasses = 1025;

Var cross_entropy_of_many(Tape& tape, const Var& logits, const Labelled& rows, const OpFormats& f,
                          RandomSite site) {
  const Stream stream = tape.stream();
  const RoleUse use{tape, site};
  const Tensor each = Tensor::empty({rows.samples}, rows.in.dtype(), rows.in.device());
  const Tensor sums = Tensor::empty({rows.samples, 2}, rows.in.dtype(), rows.in.device());
  kernels::log_sum(stream, {rows.in, rows.labels, each, sums});
  const double per_sample = 1.0 / static_cast<double>(rows.samples);
  const Saved saved = tape.save("cross_entropy", rows.in),
              saved_sums = tape.save("cross_entropy", sums);
  const Tensor labels = rows.labels;
  return tape.record("cross_entropy", f, {logits}, total(stream, each, per_sample),
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       Tensor dx = make_like(saved.get());
                       kernels::log_sum_backward(stream, {saved.get(), labels, saved_sums.get(),
                                                          wide(stream, grads[0]), dx, per_sample});
                       return {use.kept(dx, f.grad_input, "grad_input", 1)};
                     });
}

}  // namespace

Var cross_entropy(Tape& tape, const Var& logits, const Tensor& labels, const OpFormats& f,
                  RandomSite site) {
  const Labelled rows = labelled("cross_entropy", tape, logits, labels, Samples::AtLeastOne);
  const Stream stream = tape.stream();
  if (rows.classes >= kManyClasses && f.interior.is_identity())
    return cross_entropy_of_many(tape, logits, rows, f, site);
  const RoleUse use{tape, site};
  const Tensor each = Tensor::empty({rows.samples}, rows.in.dtype(), rows.in.device());
  const Tensor y = log_softmax_of(use, rows.in, f.interior, rows.labels, each);
  const double per_sample = 1.0 / static_cast<double>(rows.samples);
  const Saved saved = tape.save("cross_entropy", y);
  const Tensor own_labels = rows.labels;
  return tape.record("cross_entropy", f, {logits}, total(stream, each, per_sample),
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       Tensor dx = make_like(saved.get());
                       kernels::cross_entropy_backward(
                           stream,
                           {saved.get(), own_labels, wide(stream, grads[0]), dx, per_sample});
                       return {use.kept(dx, f.grad_input, "grad_input", 1)};
                     });
}

Var cross_entropy(Tape& tape, const Var& logits, const Tensor& labels, double label_smoothing,
                  const OpFormats& f, RandomSite site) {
  ULP_CHECK(label_smoothing >= 0 && label_smoothing <= 1,
            "cross_entropy: label_smoothing must be in [0, 1], got {}", label_smoothing);
  if (label_smoothing == 0) return cross_entropy(tape, logits, labels, f, site);
  const Labelled rows = labelled("cross_entropy", tape, logits, labels, Samples::AtLeastOne);
  const RoleUse use{tape, site};
  return label_loss("cross_entropy", use, logits, rows, log_softmax_of(use, rows.in, f.interior),
                    LabelLoss::CrossEntropy, label_smoothing,
                    1.0 / static_cast<double>(rows.samples), f);
}

Var nll(Tape& tape, const Var& log_probs, const Tensor& labels, const OpFormats& f,
        RandomSite site) {
  const Labelled rows = labelled("nll", tape, log_probs, labels, Samples::AtLeastOne);
  return label_loss("nll", {tape, site}, log_probs, rows, rows.in, LabelLoss::Nll, 0,
                    1.0 / static_cast<double>(rows.samples), f);
}

Var sum_of_squares(Tape& tape, const Var& y, const Tensor& labels, const OpFormats& f,
                   RandomSite site) {
  const Labelled rows = labelled("sum_of_squares", tape, y, labels, Samples::Any);
  return label_loss("sum_of_squares", {tape, site}, y, rows, rows.in, LabelLoss::Squares, 0, 1, f);
}

Var l1(Tape& tape, const Var& prediction, const Var& target, const OpFormats& f, RandomSite site) {
  return difference_loss("l1", tape, prediction, target, 0, 1, f, site);
}

Var smooth_l1(Tape& tape, const Var& prediction, const Var& target, double beta, const OpFormats& f,
              RandomSite site) {
  ULP_CHECK(beta >= 0 && std::isfinite(beta), "smooth_l1: beta must be finite and >= 0, got {}",
            beta);
  return difference_loss("smooth_l1", tape, prediction, target, beta, 1, f, site);
}

Var huber(Tape& tape, const Var& prediction, const Var& target, double delta, const OpFormats& f,
          RandomSite site) {
  ULP_CHECK(delta > 0 && std::isfinite(delta), "huber: delta must be finite and > 0, got {}",
            delta);
  return difference_loss("huber", tape, prediction, target, delta, delta, f, site);
}

Var bce_with_logits(Tape& tape, const Var& logits, const Var& target, const OpFormats& f,
                    RandomSite site) {
  const double per_element =
      1.0 / static_cast<double>(check_pair("bce_with_logits", logits, target));
  return pair_loss(
      tape, {"bce_with_logits", kernels::bce_logits, 0, per_element}, logits, target, f, site,
      [=](const RoleUse& use, const Tensor& x, const Tensor& t, const Tensor& g,
          Needs needs) -> std::vector<Tensor> {
        Tensor dx, dt;
        if (needs[0])
          dx = apply(use, kernels::bce_logits_backward, {x, t, g}, {per_element}, f.grad_input,
                     "grad_input");
        if (needs[1])
          dt = apply(use, kernels::negated_product, {x, g}, {per_element}, f.grad_input, kSecond);
        return {dx, dt};
      });
}

Var kl_divergence(Tape& tape, const Var& log_probs, const Var& target, const OpFormats& f,
                  RandomSite site) {
  check_pair("kl_divergence", log_probs, target);
  ULP_CHECK(log_probs.shape().rank() >= 1,
            "kl_divergence: the mean is over the first axis, got a single value {}",
            log_probs.value);
  const double per_sample = 1.0 / static_cast<double>(log_probs.shape()[0]);
  return pair_loss(tape, {"kl_divergence", kernels::kl_divergence, 0, per_sample}, log_probs,
                   target, f, site,
                   [=](const RoleUse& use, const Tensor& x, const Tensor& t, const Tensor& g,
                       Needs needs) -> std::vector<Tensor> {
                     Tensor dx, dt;
                     if (needs[0])
                       dx = apply(use, kernels::negated_product, {t, g}, {per_sample}, f.grad_input,
                                  "grad_input");
                     if (needs[1])
                       dt = apply(use, kernels::kl_divergence_target_backward, {x, t, g},
                                  {per_sample}, f.grad_input, kSecond);
                     return {dx, dt};
                   });
}

}  // namespace ulp::ops
