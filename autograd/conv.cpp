#include "autograd/conv.h"

#include <algorithm>
#include <string>

#include "autograd/misfit.h"
#include "autograd/product.h"
#include "kernels/conv.h"
#include "kernels/matmul_unit.h"

namespace ulp::ops {
namespace {

/// One convolution: its name, its geometry and how it rounds.
class Convolution {
 public:
  Convolution(Tape& tape, const char* op, const Windows& windows, int64_t outputs,
              const OpFormats& formats, RandomSite site, const ProductFactors& factors)
      : use_{tape, site},
        op_(op),
        windows_(windows),
        outputs_(outputs / windows.groups),
        formats_(formats),
        factors_(factors) {
    if (windows_.is_image()) return;
    check_blocks(formats.input, "input");
    check_blocks(formats.weight, "weight");
    check_blocks(formats.grad_output_dx, "grad_output_dx");
    check_blocks(formats.weight_dx, "weight_dx");
    check_blocks(formats.grad_output_dw, "grad_output_dw");
    check_blocks(formats.input_dw, "input_dw");
  }

  /// x: an image or images of one axis, w: (Out, …, In/groups), y_shape: of the result.
  Var run(const Var& x, const Var& w, const Var& b, const Shape& y_shape) const {
    Tape& tape = use_.tape;
    const OpFormats& f = formats_;
    const Tensor image = kernels::contiguous(tape.stream(), x.value);
    const Tensor weight = kernels::contiguous(tape.stream(), w.value);
    const Tensor mask =
        clamp_mask(op_, image, f.input, f.clamp_mask && tape.recording() && x.needs_grad());
    const Operand xq = operand(image, image_matrix(image), f.input, "input", 1, Side::Left, mask);
    const Operand wq = operand(weight, weight_matrix(), f.weight, "weight", 1, Side::Right);
    const Tensor y = forward(xq, wq, b.value, y_shape);

    SavedOperand x_dw, w_dx;
    if (tape.recording() && w.needs_grad())
      x_dw = {tape, op_,
              shares(f.input, f.input_dw)
                  ? xq
                  : operand(image, image_matrix(image), f.input_dw, "input_dw", 0, Side::Right)};
    if (tape.recording() && x.needs_grad())
      w_dx = {tape, op_,
              shares(f.weight, f.weight_dx)
                  ? wq
                  : operand(weight, weight_matrix(), f.weight_dx, "weight_dx", 0, Side::Right)};

    const Saved clamped = tape.save(op_, mask);
    const Convolution self = *this;
    const Shape x_shape = x.shape(), w_shape = w.shape();
    return tape.record(
        op_, f, {x, w, b}, y,
        [self, x_dw, w_dx, clamped, x_shape, w_shape](std::span<const Tensor> grads,
                                                      Needs needs) -> std::vector<Tensor> {
          const Stream stream = self.use_.tape.stream();
          const OpFormats& formats = self.formats_;
          const Tensor g = kernels::contiguous(stream, grads[0]);
          const Shape g_matrix = self.image_matrix(g);
          Tensor dx, dw, db;
          Operand g_dx;
          if (needs[0]) {
            g_dx =
                self.operand(g, g_matrix, formats.grad_output_dx, "grad_output_dx", 1, Side::Left);
            dx = unclamped(stream, clamped.get(), self.input_gradient(g_dx, w_dx.get(), x_shape));
          }
          if (needs[1]) {
            const bool alike = shares(formats.grad_output_dx, formats.grad_output_dw);
            // With equal quantizers the draw is that of grad_output_dx, whether or not dx is needed.
            const Operand g_dw =
                needs[0] && alike
                    ? g_dx
                    : self.operand(g, g_matrix, formats.grad_output_dw,
                                   alike ? "grad_output_dx" : "grad_output_dw", 0, Side::Left);
            dw = self.weight_gradient(g_dw, x_dw.get(), w_shape);
          }
          if (needs[2]) {
            db = Tensor::empty({g_matrix[1]}, self.use_.result_type(g, {}), g.device());
            kernels::sum(stream, {g, db, 1, g_matrix[0], g_matrix[1], self.factors_.db});
          }
          return {dx, dw, db};
        });
  }

 private:
  void check_blocks(const Quantizer& q, const char* role) const {
    const std::string problem = windows_misfit(q);
    ULP_CHECK(problem.empty(), "{}: {} cannot be {}: {}", op_, role, q, problem);
  }

  static Shape image_matrix(const Tensor& image) {
    const int64_t channels = image.size(image.rank() - 1);
    int64_t rows = 1;
    for (int axis = 0; axis + 1 < image.rank(); ++axis) rows *= image.size(axis);
    return {rows, channels};
  }
  Shape weight_matrix() const { return {windows_.groups * outputs_, windows_.columns()}; }

  /// The tensor as the role makes it, as a matrix: groups along its axis, -axisK along the tensor's own.
  Operand operand(const Tensor& tensor, const Shape& matrix, const Quantizer& q, const char* role,
                  int axis, Side side, const Tensor& mask = {}) const {
    if (q.block.kind != Block::Kind::Axis)
      return use_.operand(tensor.reshape(matrix), q, role, axis, side,
                          mask.defined() ? mask.reshape(matrix) : mask);
    Operand made;
    made.values = use_.narrow(tensor, q, role, tensor.rank() - 1, mask).reshape(matrix);
    made.fits_tf32 = fits_tf32(q);
    return made;
  }

  /// A result whose rounding no kernel could do.
  Tensor finished(const Tensor& out, const Shape& matrix, const Shape& shape, const Quantizer& q,
                  const char* role) const {
    if (use_.fuses(q)) return out.reshape(shape);
    if (q.block.kind == Block::Kind::Axis)
      return use_.result(out.reshape(shape), q, role, shape.rank() - 1);
    return use_.result(out.reshape(matrix), q, role, 1).reshape(shape);
  }

  Tensor make(const Operand& like, const Shape& shape) const {
    const bool doubles = like.values.dtype() == DType::F64;
    return Tensor::empty(shape, doubles ? DType::F64 : DType::F32, like.values.device());
  }

  template <class Args>
  void set_outcome(Args& args, const Operand& a, const Operand& b, const Outcome& outcome) const {
    args.output = use_.fused(outcome.rounding);
    args.key = use_.fused_key(outcome.rounding, outcome.role);
    args.sums = use_.sums(outcome.accumulator, outcome.sums_role);
    args.math = use_.tape.run().math();
    args.fits_tf32 = fit_tf32(a, b);
    args.factor = outcome.factor;
  }

  /// Images as the kernels see them.
  Tensor as_input(const Tensor& t) const {
    return t.reshape({windows_.images, windows_.h.in, windows_.w.in, windows_.pixel()});
  }
  Tensor as_output(const Tensor& t) const {
    return t.reshape({windows_.images, windows_.h.out, windows_.w.out, windows_.groups * outputs_});
  }
  /// (groups, O, taps, C).
  Tensor by_taps(const Tensor& weight) const {
    return weight.reshape({windows_.groups, outputs_, windows_.taps(), windows_.channels});
  }

  Tensor forward(const Operand& x, const Operand& w, const Tensor& bias,
                 const Shape& y_shape) const {
    const Outcome outcome{formats_, kForwardProduct, factors_.forward};
    const Shape matrix{windows_.rows(), windows_.groups * outputs_};
    if (windows_.is_image())
      return finished(unfinished_product(use_, op_, x, w, bias, outcome), matrix, y_shape,
                      outcome.rounding, outcome.role);
    const Tensor y = make(x, matrix);
    ConvArgs args;
    args.image = as_input(x.values);
    args.weight = by_taps(w.values).transpose(1, 2).transpose(2, 3);
    args.bias = bias.defined() ? kernels::contiguous(use_.tape.stream(), bias) : bias;
    args.out = as_output(y);
    args.windows = windows_;
    set_outcome(args, x, w, outcome);
    args.image_factor = x.factors.values;
    args.weight_factor = w.factors.values;
    kernels::conv(use_.tape.stream(), args);
    return finished(y, matrix, y_shape, outcome.rounding, outcome.role);
  }

  Tensor input_gradient(const Operand& g, const Operand& w, const Shape& x_shape) const {
    const Stream stream = use_.tape.stream();
    const Outcome outcome{formats_, kDxProduct, factors_.dx};
    const Shape matrix{windows_.images * windows_.h.in * windows_.w.in, windows_.pixel()};
    if (windows_.is_image())
      return finished(unfinished_product(use_, op_, g, turned(stream, w), {}, outcome), matrix,
                      x_shape, outcome.rounding, outcome.role);
    const Tensor dx = make(g, matrix);
    ConvArgs args;
    args.image = as_output(g.values);
    args.weight = by_taps(w.values).transpose(1, 2);
    args.out = as_input(dx);
    args.windows = windows_.adjoint(outputs_);
    set_outcome(args, g, w, outcome);
    args.image_factor = g.factors.values;
    args.weight_factor = w.factors.values;
    kernels::conv(stream, args);
    return finished(dx, matrix, x_shape, outcome.rounding, outcome.role);
  }

  Tensor weight_gradient(const Operand& g, const Operand& x, const Shape& w_shape) const {
    const Stream stream = use_.tape.stream();
    const Outcome outcome{formats_, kDwProduct, factors_.dw};
    if (windows_.is_image())
      return finished(
          unfinished_product(use_, op_, turned(stream, g), turned(stream, x), {}, outcome),
          weight_matrix(), w_shape, outcome.rounding, outcome.role);
    const Tensor dw = make(g, weight_matrix());
    ConvWeightArgs args;
    args.grad = as_output(g.values);
    args.image = as_input(x.values);
    args.out = dw;
    args.windows = windows_;
    set_outcome(args, g, x, outcome);
    args.grad_factor = g.factors.values;
    args.image_factor = x.factors.values;
    kernels::conv_weight(stream, args);
    return finished(dw, weight_matrix(), w_shape, outcome.rounding, outcome.role);
  }

  RoleUse use_;
  const char* op_;
  Windows windows_;
  int64_t outputs_;  // of a group
  OpFormats formats_;
  ProductFactors factors_;
};

std::string text(Pair p) { return std::to_string(p.h) + " × " + std::to_string(p.w); }

/// Throws unless the operands fit each other: x (N, …, In), w (Out, …, In/groups), b (Out).
void check_operands(const char* op, const char* x_form, const char* w_form, const Var& x,
                    const Var& w, const Var& b, int rank, int64_t groups) {
  ULP_CHECK(groups >= 1, "{}: groups must be at least 1, got {}", op, groups);
  ULP_CHECK(w.value.defined() && w.shape().rank() == rank && w.value.numel() > 0,
            "{}: w must be {}, each at least 1, got {}", op, w_form, w.value);
  const int64_t out = w.shape()[0], in = w.shape()[rank - 1] * groups;
  ULP_CHECK(x.value.defined() && x.shape().rank() == rank && x.shape()[rank - 1] == in,
            "{}: x must be {} with {} channels for a weight of shape {} (its last axis times "
            "groups = {}), got {}",
            op, x_form, in, w.shape(), groups, x.value);
  ULP_CHECK(out % groups == 0, "{}: Out must be a multiple of groups, got w {} and groups = {}", op,
            w.shape(), groups);
  ULP_CHECK(!b.value.defined() || b.shape() == Shape{out}, "{}: b must be ({}), got {}", op, out,
            b.value);
}

/// Throws unless the numbers are at least `least`.
void check_least(const char* op, const char* what, Pair p, int64_t least) {
  constexpr int64_t kMost = int64_t{1} << 30;
  ULP_CHECK(p.h >= least && p.w >= least && p.h < kMost && p.w < kMost,
            "{}: {} must be at least {}, and below 2^30, got {}", op, what, least, text(p));
}

Pair image_size(const Var& x) {
  const Shape& s = x.shape();
  return s.rank() == 4 ? Pair(s[1], s[2]) : Pair(1, s[1]);
}
Pair kernel_size(const Var& w) { return image_size(w); }

Windows windows_of(const Var& x, const Var& w, int64_t groups) {
  Windows windows;
  windows.images = x.shape()[0];
  windows.groups = groups;
  windows.channels = w.shape()[w.shape().rank() - 1];
  return windows;
}

Var convolve(Tape& tape, const char* op, const Var& x, const Var& w, const Var& b,
             const ConvOptions& o, const OpFormats& formats, RandomSite site,
             const ProductFactors& factors) {
  check_least(op, "stride", o.stride, 1);
  check_least(op, "padding", o.padding, 0);
  check_least(op, "dilation", o.dilation, 1);
  const Pair in = image_size(x), taps = kernel_size(w);
  const auto size = [](int64_t from, int64_t kernel, int64_t stride, int64_t padding,
                       int64_t dilation) {
    const int64_t left = from + 2 * padding - dilation * (kernel - 1) - 1;
    return left < 0 ? 0 : left / stride + 1;
  };
  const Pair out(size(in.h, taps.h, o.stride.h, o.padding.h, o.dilation.h),
                 size(in.w, taps.w, o.stride.w, o.padding.w, o.dilation.w));
  ULP_CHECK(out.h >= 1 && out.w >= 1,
            "{}: a kernel of {} with dilation {} does not fit into an image of {} padded by {}; "
            "got x {} and w {}: pad more or take a smaller kernel",
            op, text(taps), text(o.dilation), text(in), text(o.padding), x.shape(), w.shape());
  Windows windows = windows_of(x, w, o.groups);
  windows.h = {in.h, out.h, taps.h, o.stride.h, 1, -o.padding.h, o.dilation.h};
  windows.w = {in.w, out.w, taps.w, o.stride.w, 1, -o.padding.w, o.dilation.w};
  const int64_t outputs = w.shape()[0];
  const Shape y_shape = x.shape().rank() == 4 ? Shape{x.shape()[0], out.h, out.w, outputs}
                                              : Shape{x.shape()[0], out.w, outputs};
  return Convolution(tape, op, windows, outputs, formats, site, factors).run(x, w, b, y_shape);
}

}  // namespace

Var conv2d(Tape& tape, const Var& x, const Var& w, const Var& b, const ConvOptions& options,
           const OpFormats& formats, RandomSite site, const ProductFactors& factors) {
  check_operands("conv2d", "(N, H, W, In)", "(Out, KH, KW, In/groups)", x, w, b, 4, options.groups);
  return convolve(tape, "conv2d", x, w, b, options, formats, site, factors);
}

Var conv1d(Tape& tape, const Var& x, const Var& w, const Var& b, const Conv1dOptions& o,
           const OpFormats& formats, RandomSite site, const ProductFactors& factors) {
  check_operands("conv1d", "(N, L, In)", "(Out, K, In/groups)", x, w, b, 3, o.groups);
  return convolve(tape, "conv1d", x, w, b,
                  {{1, o.stride}, {0, o.padding}, {1, o.dilation}, o.groups}, formats, site,
                  factors);
}

Var conv_transpose2d(Tape& tape, const Var& x, const Var& w, const Var& b,
                     const ConvTransposeOptions& o, const OpFormats& formats, RandomSite site,
                     const ProductFactors& factors) {
  const char* op = "conv_transpose2d";
  check_operands(op, "(N, H, W, In)", "(Out, KH, KW, In/groups)", x, w, b, 4, o.groups);
  check_least(op, "stride", o.stride, 1);
  check_least(op, "padding", o.padding, 0);
  check_least(op, "dilation", o.dilation, 1);
  check_least(op, "output_padding", o.output_padding, 0);
  ULP_CHECK(o.output_padding.h < std::max(o.stride.h, o.dilation.h) &&
                o.output_padding.w < std::max(o.stride.w, o.dilation.w),
            "{}: output_padding {} must be less than stride {} or dilation {}", op,
            text(o.output_padding), text(o.stride), text(o.dilation));
  const Pair in = image_size(x), taps = kernel_size(w);
  const auto size = [](int64_t from, int64_t kernel, int64_t stride, int64_t padding,
                       int64_t dilation, int64_t more) {
    return (from - 1) * stride - 2 * padding + dilation * (kernel - 1) + more + 1;
  };
  const Pair out(size(in.h, taps.h, o.stride.h, o.padding.h, o.dilation.h, o.output_padding.h),
                 size(in.w, taps.w, o.stride.w, o.padding.w, o.dilation.w, o.output_padding.w));
  ULP_CHECK(in.h >= 1 && in.w >= 1 && out.h >= 1 && out.w >= 1,
            "{}: padding {} leaves nothing of a result of {} (x {}, w {}); pad less", op,
            text(o.padding), text(out), x.shape(), w.shape());
  Windows windows = windows_of(x, w, o.groups);
  windows.h = {in.h, out.h, taps.h, 1, o.stride.h, o.padding.h, -o.dilation.h};
  windows.w = {in.w, out.w, taps.w, 1, o.stride.w, o.padding.w, -o.dilation.w};
  return Convolution(tape, op, windows, w.shape()[0], formats, site, factors)
      .run(x, w, b, {x.shape()[0], out.h, out.w, w.shape()[0]});
}

}  // namespace ulp::ops
