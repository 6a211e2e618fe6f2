#include "autograd/shape_ops.h"

#include "autograd/quantised.h"
#include "kernels/place.h"

namespace ulp::ops {
namespace {

constexpr size_t kMostInputs = 64;  // Needs has so many bits

void check_axis(const char* op, const Var& x, int axis) {
  ULP_CHECK(x.value.defined(), "{}: the input holds no tensor", op);
  ULP_CHECK(axis >= 0 && axis < x.shape().rank(),
            "{}: the axis must be in [0, {}) for an input of shape {}, got {}", op,
            x.shape().rank(), x.shape(), axis);
}

/// The same number for every axis.
Shape all_axes(int rank, int64_t value) {
  const std::vector<int64_t> all(static_cast<size_t>(rank), value);
  return Shape(std::span<const int64_t>(all));
}

/// `in` at begin + step · i of a tensor of another shape, `value` around it. Narrow floats become F32 where the value may not
/// be one of theirs.
Tensor placed(Stream stream, const Tensor& in, const Shape& shape, const Shape& begin,
              const Shape& step, double value) {
  const DType dtype = value == 0 || in.dtype() == DType::F64 ? in.dtype() : DType::F32;
  PlaceArgs args{in, Tensor::empty(shape, dtype, in.device()), begin, step};
  args.rest = PlaceArgs::Rest::Filled;
  args.value = value;
  kernels::place(stream, args);
  return args.out;
}

std::vector<int> inverse(const std::vector<int>& order) {
  std::vector<int> back(order.size());
  for (size_t k = 0; k < order.size(); ++k)
    back[static_cast<size_t>(order[k])] = static_cast<int>(k);
  return back;
}

Tensor permuted(Tensor t, std::vector<int> order) {
  // Exchanges until axis k is the one that is wanted there.
  std::vector<int> at(order.size());
  for (size_t k = 0; k < at.size(); ++k) at[k] = static_cast<int>(k);
  for (size_t k = 0; k < order.size(); ++k) {
    size_t from = k;
    while (at[from] != order[k]) ++from;
    if (from == k) continue;
    t = t.transpose(static_cast<int>(k), static_cast<int>(from));
    std::swap(at[k], at[from]);
  }
  return t;
}

Var permuted_var(const char* op, Tape& tape, const Var& x, const std::vector<int>& order) {
  const Stream stream = tape.stream();
  return tape.record(op, {}, {x}, permuted(x.value, order),
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       return {kernels::contiguous(stream, permuted(grads[0], inverse(order)))};
                     });
}

std::string text(const std::vector<int>& order) {
  std::string all = "(";
  for (size_t k = 0; k < order.size(); ++k) all += (k > 0 ? ", " : "") + std::to_string(order[k]);
  return all + ")";
}

}  // namespace

Var pad(Tape& tape, const Var& x, const std::vector<PadAxis>& axes, double value,
        const OpFormats& f, RandomSite site) {
  ULP_CHECK(x.value.defined(), "pad: the input holds no tensor");
  const Shape before = x.shape();
  const int rank = before.rank();
  ULP_CHECK(axes.size() == static_cast<size_t>(rank),
            "pad: wanted one entry for each axis of an input of shape {}, got {}", before,
            axes.size());
  Shape begin = before, after = before;
  for (int axis = 0; axis < rank; ++axis) {
    const PadAxis& by = axes[static_cast<size_t>(axis)];
    ULP_CHECK(
        by.before >= 0 && by.after >= 0,
        "pad: axis {} of an input of shape {} cannot grow by {} and {}; negative padding is a "
        "slice",
        axis, before, by.before, by.after);
    begin[axis] = by.before;
    ULP_CHECK(!__builtin_add_overflow(by.before, by.after, &after[axis]) &&
                  !__builtin_add_overflow(after[axis], before[axis], &after[axis]),
              "pad: axis {} of an input of shape {} cannot grow by {} and {}", axis, before,
              by.before, by.after);
  }
  const RoleUse use{tape, site};
  const int last = std::max(0, rank - 1);
  const Tensor y = placed(tape.stream(), x.value, after, begin, all_axes(rank, 1), value);
  return tape.record("pad", f, {x}, use.result(y, f.output, "output", last),
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       Tensor dx = grads[0];
                       for (int axis = 0; axis < rank; ++axis)
                         dx = dx.slice(axis, begin[axis], begin[axis] + before[axis]);
                       dx = kernels::contiguous(use.tape.stream(), dx);
                       return {use.result(dx, f.grad_input, "grad_input", last)};
                     });
}

Var concat(Tape& tape, std::span<const Var> inputs, int axis) {
  ULP_CHECK(!inputs.empty() && inputs.size() <= kMostInputs,
            "concat: wanted 1 to {} inputs, got {}", kMostInputs, inputs.size());
  check_axis("concat", inputs[0], axis);
  Shape shape = inputs[0].shape();
  DType dtype = inputs[0].value.dtype();
  std::vector<int64_t> ends;
  shape[axis] = 0;
  for (const Var& x : inputs) {
    check_axis("concat", x, axis);
    Shape others = x.shape();
    others[axis] = shape[axis];
    ULP_CHECK(
        others == shape,
        "concat: along axis {} all other extents must be those of the first input, {}; got {}",
        axis, inputs[0].shape(), x.shape());
    ULP_CHECK((x.value.dtype() == DType::F64) == (inputs[0].value.dtype() == DType::F64),
              "concat: F64 goes with F64 only, got {} and {}", inputs[0].value, x.value);
    if (x.value.dtype() != dtype) dtype = DType::F32;
    ULP_CHECK(!__builtin_add_overflow(shape[axis], x.shape()[axis], &shape[axis]),
              "concat: the inputs are longer than a tensor can be along axis {}", axis);
    ends.push_back(shape[axis]);
  }
  const Stream stream = tape.stream();
  Tensor y = Tensor::empty(shape, dtype, inputs[0].value.device());
  for (size_t k = 0; k < inputs.size(); ++k) {
    if (inputs[k].value.numel() == 0) continue;
    Shape begin = all_axes(shape.rank(), 0);
    begin[axis] = k == 0 ? 0 : ends[k - 1];
    kernels::place(stream, {inputs[k].value, y, begin, all_axes(shape.rank(), 1)});
  }
  return tape
      .record("concat", {}, inputs, std::vector<Tensor>{y},
              [=](std::span<const Tensor> grads, Needs needs) {
                std::vector<Tensor> all(ends.size());
                for (size_t k = 0; k < ends.size(); ++k)
                  if (needs[static_cast<int>(k)])
                    all[k] = kernels::contiguous(
                        stream, grads[0].slice(axis, k == 0 ? 0 : ends[k - 1], ends[k]));
                return all;
              })
      .front();
}

Var slice(Tape& tape, const Var& x, int axis, int64_t begin, int64_t end, int64_t step) {
  check_axis("slice", x, axis);
  ULP_CHECK(0 <= begin && begin <= end && end <= x.shape()[axis] && step >= 1,
            "slice: wanted 0 <= begin <= end <= {} and a step of at least 1 along axis {} of an "
            "input of shape {}, got [{}, {}) at a step of {}",
            x.shape()[axis], axis, x.shape(), begin, end, step);
  const Stream stream = tape.stream();
  const Shape before = x.shape();
  Shape from = all_axes(before.rank(), 0), by = all_axes(before.rank(), 1);
  from[axis] = begin;
  by[axis] = step;
  return tape.record("slice", {}, {x}, x.value.slice(axis, begin, end, step),
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       return {placed(stream, grads[0], before, from, by, 0)};
                     });
}

Var transpose(Tape& tape, const Var& x, int axis_a, int axis_b) {
  check_axis("transpose", x, axis_a);
  check_axis("transpose", x, axis_b);
  std::vector<int> order;
  for (int axis = 0; axis < x.shape().rank(); ++axis)
    order.push_back(axis == axis_a ? axis_b : axis == axis_b ? axis_a : axis);
  return permuted_var("transpose", tape, x, order);
}

Var permute(Tape& tape, const Var& x, const std::vector<int>& order) {
  ULP_CHECK(x.value.defined(), "permute: the input holds no tensor");
  const int rank = x.shape().rank();
  std::vector<bool> seen(static_cast<size_t>(rank));
  bool fits = order.size() == static_cast<size_t>(rank);
  for (const int axis : order) {
    fits = fits && axis >= 0 && axis < rank && !seen[static_cast<size_t>(axis)];
    if (fits) seen[static_cast<size_t>(axis)] = true;
  }
  ULP_CHECK(fits, "permute: the order must hold each axis of an input of shape {} once, got {}",
            x.shape(), text(order));
  return permuted_var("permute", tape, x, order);
}

Var flatten(Tape& tape, const Var& x, int first) {
  ULP_CHECK(x.value.defined(), "flatten: the input holds no tensor");
  const int rank = x.shape().rank();
  ULP_CHECK(first >= 0 && first <= rank && first < kMaxRank,
            "flatten: the first axis must be in [0, {}] for an input of shape {}, got {}", rank,
            x.shape(), first);
  std::vector<int64_t> extents;
  for (int axis = 0; axis < first; ++axis) extents.push_back(x.shape()[axis]);
  int64_t rest = 1;
  for (int axis = first; axis < rank; ++axis) rest *= x.shape()[axis];
  extents.push_back(rest);
  return reshape(tape, x, Shape(std::span<const int64_t>(extents)));
}

}  // namespace ulp::ops
