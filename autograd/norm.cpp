#include "autograd/norm.h"

#include "autograd/interior.h"
#include "autograd/misfit.h"
#include "kernels/norm.h"

namespace ulp::ops {
namespace {

/// x (…, C) and the parameters of one norm, checked.
struct Operands {
  const char* op;
  const Var &x, &weight, &bias;

  int64_t channels() const { return x.shape()[x.shape().rank() - 1]; }

  void check() const {
    ULP_CHECK(x.value.defined() && x.shape().rank() >= 2 && channels() > 0,
              "{}: x must be (…, C) of at least two axes with C >= 1, got {}", op, x.value);
    check_parameter("weight", weight);
    check_parameter("bias", bias);
  }

 private:
  void check_parameter(const char* name, const Var& p) const {
    ULP_CHECK(!p.value.defined() || p.shape() == Shape{channels()},
              "{}: {} must be ({}), one value a channel of x {}, got {}", op, name, channels(),
              x.shape(), p.value);
  }
};

void check_eps(const char* op, double eps) {
  ULP_CHECK(eps >= 0 && eps < 1e30, "{}: eps must be a number from 0, got {}", op, eps);
}

void check_interior(const char* op, const Quantizer& interior) {
  const std::string problem = interior_misfit(interior);
  ULP_CHECK(problem.empty(), "{}: {}", op, problem);
}

/// x in two axes, rounded by the role input.
struct Rounded {
  RoleUse use;
  Tensor x;
  NormInterior interior;

  Rounded(Tape& tape, const Var& in, const OpFormats& f, RandomSite site) : use{tape, site} {
    const Shape& shape = in.shape();
    const int64_t channels = shape[shape.rank() - 1];
    x = kernels::contiguous(tape.stream(), in.value);
    x = use.narrow(x, f.input, "input", shape.rank() - 1).reshape({x.numel() / channels, channels});
    // The kernels take four draws of the stream: mean, variance, inverse deviation, normalised value.
    interior = {f.interior, interior_key(use, f.interior, 4)};
  }

  DType wide() const { return x.dtype() == DType::F64 ? DType::F64 : DType::F32; }
  Tensor empty(const Shape& shape) const { return Tensor::empty(shape, wide(), x.device()); }
};

/// What a backward pass keeps.
struct Kept {
  Saved x, mean, inverse_deviation, weight;
};

/// The gradient as the role makes it, in the two axes of x.
Tensor gradient(const RoleUse& use, const Tensor& grad, const OpFormats& f, const Shape& rows) {
  const Tensor g = kernels::contiguous(use.tape.stream(), grad);
  return use.narrow(g, f.grad_output_dx, "grad_output_dx", g.rank() - 1).reshape(rows);
}

Tensor parameter(const Tape& tape, const Var& p) {
  return p.value.defined() ? kernels::contiguous(tape.stream(), p.value) : Tensor{};
}

/// The norms whose statistics are those of groups of one sample; `centred`: with a mean.
Var grouped(Tape& tape, const Operands& in, const NormLayout& layout, bool centred, double eps,
            const OpFormats& f, RandomSite site) {
  const Rounded r(tape, in.x, f, site);
  const RoleUse use = r.use;
  const Shape shape = in.x.shape(), rows = r.x.shape();
  const int last = shape.rank() - 1;
  const char* const op = in.op;

  GroupNormArgs args;
  args.x = r.x;
  args.weight = parameter(tape, in.weight);
  args.bias = parameter(tape, in.bias);
  args.output = use.fused(f.output);
  args.out = Tensor::empty(rows, use.result_type(r.x, args.output), r.x.device());
  if (centred) args.mean = r.empty({layout.statistics()});
  args.inverse_deviation = r.empty({layout.statistics()});
  args.layout = layout;
  args.eps = eps;
  args.interior = r.interior;
  const Shape each{layout.statistics()};
  args.interior.trace =
      interior_trace(use, f.interior, {centred ? each : Shape{0}, each, each, rows});
  args.key = use.fused_key(f.output, "output");
  kernels::group_norm(tape.stream(), args);
  count_interior(use, f.interior, r.interior.key, args.interior.trace);
  const Tensor y = use.after(args.out.reshape(shape), f.output, "output", last);

  const Kept kept{tape.save(op, r.x), tape.save(op, args.mean),
                  tape.save(op, args.inverse_deviation), tape.save(op, args.weight)};
  const NormInterior interior = r.interior;
  return tape.record(
      op, f, {in.x, in.weight, in.bias}, y,
      [=](std::span<const Tensor> grads, Needs needs) -> std::vector<Tensor> {
        const Stream stream = use.tape.stream();
        const Tensor g = gradient(use, grads[0], f, rows), x = kept.x.get();
        const DType wide = x.dtype() == DType::F64 ? DType::F64 : DType::F32;
        Tensor dx, dw, db;
        if (needs[1] || needs[2]) {
          dw = Tensor::empty({layout.channels}, wide, x.device());
          db = Tensor::empty({layout.channels}, wide, x.device());
          kernels::norm_sums(stream, {x, g, kept.mean.get(), kept.inverse_deviation.get(), db, dw,
                                      layout, interior});
        }
        if (needs[0]) {
          dx = Tensor::empty(rows, use.result_type(x, use.fused(f.grad_input)), x.device());
          kernels::group_norm_backward(
              stream,
              {x, g, kept.mean.get(), kept.inverse_deviation.get(), kept.weight.get(), dx, layout,
               interior, use.fused(f.grad_input), use.fused_key(f.grad_input, "grad_input")});
          dx = use.after(dx.reshape(shape), f.grad_input, "grad_input", last);
        }
        return {dx, dw, db};
      });
}

void check_running(const RunningStatistics& running, int64_t channels, const Shape& x,
                   bool training) {
  ULP_CHECK(running.mean.defined() == running.variance.defined(),
            "batch_norm: a running mean goes with a running variance");
  ULP_CHECK(training || running.mean.defined(),
            "batch_norm: there are no running statistics to evaluate with");
  if (!running.mean.defined()) return;
  for (const Tensor& t : {running.mean, running.variance})
    ULP_CHECK(t.shape() == Shape{channels} && t.dtype() == DType::F32,
              "batch_norm: running statistics must be F32 ({}), one value a channel of x {}, got "
              "{}",
              channels, x, t);
}

}  // namespace

Var batch_norm(Tape& tape, const Var& x, const Var& weight, const Var& bias,
               const RunningStatistics& running, const BatchNormOptions& o, const OpFormats& f,
               RandomSite site) {
  const Operands in{"batch_norm", x, weight, bias};
  in.check();
  check_eps(in.op, o.eps);
  check_interior(in.op, f.interior);
  ULP_CHECK(o.momentum >= 0 && o.momentum <= 1, "batch_norm: momentum must be from 0 to 1, got {}",
            o.momentum);
  const int64_t channels = in.channels(), count = x.value.numel() / channels;
  check_running(running, channels, x.shape(), o.training);
  ULP_CHECK(!o.training || count >= 2,
            "batch_norm: training wants more than one value a channel, got x of shape {}",
            x.shape());

  const Rounded r(tape, x, f, site);
  const RoleUse use = r.use;
  const Shape shape = x.shape(), rows = r.x.shape();
  const int last = shape.rank() - 1;
  const Stream stream = tape.stream();
  BatchStatisticsArgs statistics;
  statistics.x = r.x;
  statistics.mean = r.empty({channels});
  statistics.inverse_deviation = r.empty({channels});
  statistics.running_mean = running.mean;
  statistics.running_variance = running.variance;
  statistics.eps = o.eps;
  statistics.momentum = o.momentum;
  statistics.evaluate = !o.training;
  statistics.interior = r.interior;
  const Shape each{channels};
  statistics.interior.trace = interior_trace(use, f.interior, {each, each, each, rows});
  kernels::batch_statistics(stream, statistics);

  NormApplyArgs args;
  args.x = r.x;
  args.mean = statistics.mean;
  args.inverse_deviation = statistics.inverse_deviation;
  args.weight = parameter(tape, weight);
  args.bias = parameter(tape, bias);
  args.output = use.fused(f.output);
  args.out = Tensor::empty(rows, use.result_type(r.x, args.output), r.x.device());
  args.layout = batch_layout(r.x);
  args.interior = statistics.interior;
  args.key = use.fused_key(f.output, "output");
  kernels::norm_apply(stream, args);
  count_interior(use, f.interior, r.interior.key, args.interior.trace);
  const Tensor y = use.after(args.out.reshape(shape), f.output, "output", last);

  const Kept kept{tape.save(in.op, r.x), tape.save(in.op, args.mean),
                  tape.save(in.op, args.inverse_deviation), tape.save(in.op, args.weight)};
  const NormInterior interior = r.interior;
  const bool training = o.training;
  return tape.record(
      in.op, f, {x, weight, bias}, y,
      [=](std::span<const Tensor> grads, Needs needs) -> std::vector<Tensor> {
        const Tensor g = gradient(use, grads[0], f, rows), own = kept.x.get();
        const DType wide = own.dtype() == DType::F64 ? DType::F64 : DType::F32;
        const auto empty = [&](const Shape& s) { return Tensor::empty(s, wide, own.device()); };
        Tensor dx, dw, db;
        if (needs[1] || needs[2] || training) {
          dw = empty({channels});
          db = empty({channels});
          kernels::norm_sums(stream, {own, g, kept.mean.get(), kept.inverse_deviation.get(), db, dw,
                                      batch_layout(own), interior});
        }
        if (needs[0]) {
          dx = Tensor::empty(rows, use.result_type(own, use.fused(f.grad_input)), own.device());
          kernels::batch_norm_backward(
              stream, {own, g, kept.mean.get(), kept.inverse_deviation.get(), kept.weight.get(),
                       training ? db : Tensor{}, training ? dw : Tensor{}, dx, interior,
                       use.fused(f.grad_input), use.fused_key(f.grad_input, "grad_input")});
          dx = use.after(dx.reshape(shape), f.grad_input, "grad_input", last);
        }
        return {dx, dw, db};
      });
}

Var layer_norm(Tape& tape, const Var& x, const Var& weight, const Var& bias, double eps,
               const OpFormats& f, RandomSite site) {
  const Operands in{"layer_norm", x, weight, bias};
  in.check();
  check_eps(in.op, eps);
  check_interior(in.op, f.interior);
  const int64_t channels = in.channels();
  return grouped(tape, in, {x.value.numel() / channels, channels, 1, 1}, true, eps, f, site);
}

Var rms_norm(Tape& tape, const Var& x, const Var& weight, double eps, const OpFormats& f,
             RandomSite site) {
  const Var none;
  const Operands in{"rms_norm", x, weight, none};
  in.check();
  check_eps(in.op, eps);
  check_interior(in.op, f.interior);
  const int64_t channels = in.channels();
  return grouped(tape, in, {x.value.numel() / channels, channels, 1, 1}, false, eps, f, site);
}

Var group_norm(Tape& tape, const Var& x, int64_t groups, const Var& weight, const Var& bias,
               double eps, const OpFormats& f, RandomSite site) {
  const Operands in{"group_norm", x, weight, bias};
  in.check();
  check_eps(in.op, eps);
  check_interior(in.op, f.interior);
  const int64_t channels = in.channels(), samples = x.shape()[0];
  ULP_CHECK(groups >= 1 && channels % groups == 0,
            "group_norm: {} groups do not divide the {} channels of x {}", groups, channels,
            x.shape());
  const int64_t rows = x.value.numel() / channels;
  ULP_CHECK(samples == 0 || rows > 0, "group_norm: samples without places, got x of shape {}",
            x.shape());
  const int64_t span = samples == 0 ? 1 : rows / samples;
  return grouped(tape, in, {rows, channels, span, groups}, true, eps, f, site);
}

}  // namespace ulp::ops
