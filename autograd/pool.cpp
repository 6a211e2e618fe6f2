#include "autograd/pool.h"

#include "autograd/quantised.h"
#include "kernels/pool.h"

namespace ulp::ops {
namespace {

/// Windows along one axis.
int64_t windows(const char* op, const char* axis, const Shape& x, int64_t length, int64_t kernel,
                int64_t stride, int64_t padding, bool ceil) {
  ULP_CHECK(kernel >= 1 && stride >= 1 && padding >= 0 && 2 * padding <= kernel &&
                kernel <= INT32_MAX / 4 && stride <= INT32_MAX / 4,
            "{}: kernel {}, stride {} and padding {} along {} must be at least 1, 1 and 0, the "
            "padding at most half the kernel",
            op, kernel, stride, padding, axis);
  const int64_t room = length + 2 * padding - kernel;
  ULP_CHECK(length >= 1 && room >= 0,
            "{}: a window of {} with padding {} does not fit {} {} of x {}", op, kernel, padding,
            axis, length, x);
  int64_t count = (ceil ? (room + stride - 1) / stride : room / stride) + 1;
  if (ceil && (count - 1) * stride >= length + padding) --count;
  return count;
}

struct Geometry {
  PoolWindow window;
  Shape out;
};

Geometry geometry_of(const char* op, const Var& x, const PoolOptions& o) {
  ULP_CHECK(x.value.defined() && x.shape().rank() == 4 && x.shape()[3] > 0,
            "{}: x must be images (N, H, W, C), got {}", op, x.value);
  Geometry g;
  g.window = {o.kernel.first,
              o.kernel.second,
              o.stride.first == 0 ? o.kernel.first : o.stride.first,
              o.stride.second == 0 ? o.kernel.second : o.stride.second,
              o.padding.first,
              o.padding.second};
  const PoolWindow& w = g.window;
  const Shape& s = x.shape();
  g.out = {s[0], windows(op, "H", s, s[1], w.kernel_h, w.stride_h, w.padding_h, o.ceil),
           windows(op, "W", s, s[2], w.kernel_w, w.stride_w, w.padding_w, o.ceil), s[3]};
  return g;
}

/// x as the role input makes it.
Tensor rounded_input(const RoleUse& use, const Var& x, const OpFormats& f) {
  return use.narrow(kernels::contiguous(use.tape.stream(), x.value), f.input, "input",
                    x.shape().rank() - 1);
}
Tensor rounded_gradient(const RoleUse& use, const Tensor& grad, const OpFormats& f) {
  return use.narrow(kernels::contiguous(use.tape.stream(), grad), f.grad_output_dx,
                    "grad_output_dx", grad.rank() - 1);
}

Tensor empty_beside(const Tensor& x, const Shape& shape) {
  return Tensor::empty(shape, x.dtype() == DType::F64 ? DType::F64 : DType::F32, x.device());
}

/// x (N, L, C) as images of one column, with options to match.
Var images_of(const char* op, Tape& tape, const Var& x) {
  ULP_CHECK(x.value.defined() && x.shape().rank() == 3, "{}: x must be sequences (N, L, C), got {}",
            op, x.value);
  return reshape(tape, x, {x.shape()[0], x.shape()[1], 1, x.shape()[2]});
}
PoolOptions along_rows(PoolOptions o) {
  o.kernel.second = o.stride.second = 1;
  o.padding.second = 0;
  return o;
}
Var sequences_of(Tape& tape, const Var& y) {
  return reshape(tape, y, {y.shape()[0], y.shape()[1], y.shape()[3]});
}

}  // namespace

Var max_pool2d(Tape& tape, const Var& x, const PoolOptions& o, const OpFormats& f,
               RandomSite site) {
  const auto [window, out] = geometry_of("max_pool2d", x, o);
  const RoleUse use{tape, site};
  const Tensor in = rounded_input(use, x, f);
  MaxPoolArgs args;
  args.in = in;
  args.out = empty_beside(in, out);
  if (tape.recording() && x.needs_grad())
    args.index =
        Tensor::empty(out, window.size() <= kMostByteIndices ? DType::U8 : DType::I32, in.device());
  args.window = window;
  args.output = use.fused(f.output);
  args.key = use.fused_key(f.output, "output");
  kernels::max_pool(tape.stream(), args);
  const Saved index = tape.save("max_pool2d", args.index);
  const Shape shape = x.shape();
  return tape.record(
      "max_pool2d", f, {x}, use.after(args.out, f.output, "output", 3),
      [=, window = window](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
        const Tensor g = rounded_gradient(use, grads[0], f);
        const Tensor dx = empty_beside(g, shape);
        kernels::max_pool_backward(use.tape.stream(),
                                   {g, index.get(), dx, window, use.fused(f.grad_input),
                                    use.fused_key(f.grad_input, "grad_input")});
        return {use.after(dx, f.grad_input, "grad_input", 3)};
      });
}

Var avg_pool2d(Tape& tape, const Var& x, const PoolOptions& o, const OpFormats& f,
               RandomSite site) {
  const auto [window, out] = geometry_of("avg_pool2d", x, o);
  const PoolDivisor divisor = o.count_padding ? PoolDivisor::Window : PoolDivisor::Inside;
  const RoleUse use{tape, site};
  const Tensor in = rounded_input(use, x, f), y = empty_beside(in, out);
  kernels::average_pool(tape.stream(), {in, y, window, divisor, use.fused(f.output),
                                        use.fused_key(f.output, "output")});
  const Shape shape = x.shape();
  return tape.record(
      "avg_pool2d", f, {x}, use.after(y, f.output, "output", 3),
      [=, window = window](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
        const Tensor g = rounded_gradient(use, grads[0], f);
        const Tensor dx = empty_beside(g, shape);
        kernels::average_pool_backward(use.tape.stream(),
                                       {g, dx, window, divisor, use.fused(f.grad_input),
                                        use.fused_key(f.grad_input, "grad_input")});
        return {use.after(dx, f.grad_input, "grad_input", 3)};
      });
}

Var global_avg_pool(Tape& tape, const Var& x, const OpFormats& f, RandomSite site) {
  ULP_CHECK(x.value.defined() && (x.shape().rank() == 3 || x.shape().rank() == 4) &&
                (x.shape()[0] == 0 || x.value.numel() > 0),
            "global_avg_pool: x must be images (N, H, W, C) or sequences (N, L, C) with at least "
            "one place and channel, got {}",
            x.value);
  const Shape shape = x.shape();
  const int last = shape.rank() - 1;
  const int64_t places = shape[1] * (last == 3 ? shape[2] : 1);
  const double factor = 1.0 / static_cast<double>(std::max<int64_t>(1, places));
  const RoleUse use{tape, site};
  const Tensor in = rounded_input(use, x, f), y = empty_beside(in, {shape[0], shape[last]});
  kernels::sum(tape.stream(), {in, y, shape[0], places, shape[last], factor});
  return tape.record("global_avg_pool", f, {x}, use.result(y, f.output, "output", 1),
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       const Tensor g = rounded_gradient(use, grads[0], f);
                       const Tensor dx = empty_beside(g, shape);
                       kernels::spread(
                           use.tape.stream(),
                           {g, dx.reshape({shape[0], places, shape[last]}), factor,
                            use.fused(f.grad_input), use.fused_key(f.grad_input, "grad_input")});
                       return {use.after(dx, f.grad_input, "grad_input", last)};
                     });
}

Var max_pool1d(Tape& tape, const Var& x, const PoolOptions& o, const OpFormats& f,
               RandomSite site) {
  return sequences_of(tape,
                      max_pool2d(tape, images_of("max_pool1d", tape, x), along_rows(o), f, site));
}

Var avg_pool1d(Tape& tape, const Var& x, const PoolOptions& o, const OpFormats& f,
               RandomSite site) {
  return sequences_of(tape,
                      avg_pool2d(tape, images_of("avg_pool1d", tape, x), along_rows(o), f, site));
}

}  // namespace ulp::ops
