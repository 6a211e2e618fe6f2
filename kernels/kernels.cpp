#include "kernels/kernels.h"

#include "core/block_map.h"
#include "core/packed.h"
#include "kernels/state.h"

namespace ulp {

kernels::Reach kernels::reach_of(const char* kernel, Stream stream, const Tensor& in,
                                 const Tensor& out) {
  const Shape& shape = out.shape();
  Reach reach = Reach::All;
  if (in.numel() == 1)
    reach = Reach::One;
  else if (in.shape() != shape && in.rank() == 1 && shape.rank() > 1 &&
           in.numel() == shape[shape.rank() - 1])
    reach = Reach::Row;
  check_kernel_tensor(kernel, stream, in, reach == Reach::All ? shape : in.shape());
  return reach;
}

int64_t factor_count(const Quantizer& q, const Shape& shape, int group_axis) {
  if (!q.has_factor()) return 0;
  return q.scale.kind == Scale::Kind::F32 ? make_block_map(q, shape, group_axis).blocks : 1;
}

void check_quantise(Stream stream, const QuantiseArgs& args) {
  const Quantizer& q = args.quantizer;
  check_kernel_tensor("quantise", stream, args.in, args.in.shape());
  const Shape& shape = args.in.shape();
  check_kernel_tensor("quantise", stream, args.out, shape);
  ULP_CHECK(is_float_up_to_32(args.in.dtype()),
            "quantise: the input must be a float of up to 32 bits, got {}", args.in.dtype());
  const bool apart = args.factors.defined();
  const auto check_dtype = [](const char* what, const Tensor& tensor, DType wanted) {
    ULP_CHECK(!tensor.defined() || tensor.dtype() == wanted, "quantise: {} must be {}, got {}",
              what, wanted, tensor);
  };
  check_dtype("factors", args.factors, DType::F32);
  check_dtype("scaling", args.scaling, DType::F32);
  check_dtype("the mask", args.mask, DType::U8);
  check_dtype("stats", args.stats, DType::U8);
  ULP_CHECK(is_float_up_to_32(args.out.dtype()) && fits(q, args.out.dtype()),
            "quantise: {} values do not fit the output's {}", q, args.out.dtype());
  ULP_CHECK(apart || !q.has_factor() || args.out.dtype() == DType::F32,
            "quantise: {} values times their factor need an F32 output, got {}; or give `factors`",
            q, args.out.dtype());
  ULP_CHECK(q.transform.hadamard == 0,
            "quantise: {}: rotations come before this kernel (kernels/quantised.h)", q);
  ULP_CHECK(q.scale.kind != Scale::Kind::Squeeze,
            "quantise: {}: tensors are squeezed around this kernel (kernels/quantised.h)", q);
  if (apart) {
    ULP_CHECK(q.has_factor(), "quantise: {} has no factors", q);
    check_kernel_tensor("quantise", stream, args.factors,
                        {factor_count(q, shape, args.group_axis)});
  }
  if (args.mask.defined()) check_kernel_tensor("quantise", stream, args.mask, shape);
  if (args.stats.defined()) {
    check_kernel_tensor("quantise", stream, args.stats,
                        {static_cast<int64_t>(sizeof(QuantiseStats))});
    ULP_CHECK(!apart, "quantise: {}: statistics are of whole values; leave `factors` out", q);
  }
  ULP_CHECK(!args.gaps || (q.is_elementwise() && args.in.dtype() == DType::F32),
            "quantise: {} of {}: there are gaps among F32 elements of element-wise formats only", q,
            args.in);
  if (q.scale.kind == Scale::Kind::Delayed) {
    ULP_CHECK(args.scaling.defined(),
              "quantise: {} needs what it remembers from call to call; for a single call there is "
              "+scale=current",
              q);
    check_kernel_tensor("quantise", stream, args.scaling, {1 + q.scale.history});
  }
}

void check_rotate(Stream stream, const RotateArgs& args) {
  const Shape& shape = args.in.shape();
  check_kernel_tensor("rotate", stream, args.in, shape);
  check_kernel_tensor("rotate", stream, args.out, shape);
  ULP_CHECK(is_float_up_to_32(args.in.dtype()) && args.out.dtype() == DType::F32,
            "rotate: wanted a float of up to 32 bits and an F32 output, got {} and {}",
            args.in.dtype(), args.out.dtype());
  ULP_CHECK(args.axis >= 0 && args.axis < shape.rank(),
            "rotate: a rotation needs axis {}, but the tensor has shape {}", args.axis, shape);
  ULP_CHECK(args.size == 16 || args.size == 32, "rotate: groups have 16 or 32 elements, got {}",
            args.size);
}

namespace {

void check_factors(Stream stream, const Factors& f, int64_t rows, int64_t depth) {
  if (!f.values.defined()) return;
  check_kernel_tensor("scaled_add", stream, f.values,
                      {((rows + f.rows - 1) / f.rows) * ((depth + f.columns - 1) / f.columns)});
}

}  // namespace

void check_scaled_add(Stream stream, const ScaledAddArgs& args) {
  ULP_CHECK(args.out.defined() && args.out.rank() == 2, "scaled_add: out must be (M, N), got {}",
            args.out);
  const Shape& shape = args.out.shape();
  for (const Tensor& t : {args.out, args.sums}) {
    check_kernel_tensor("scaled_add", stream, t, shape);
    ULP_CHECK(t.dtype() == DType::F32, "scaled_add: wanted F32, got {}", t);
  }
  ULP_CHECK(args.k >= 0 && args.k < args.depth, "scaled_add: k = {} is not below {}", args.k,
            args.depth);
  check_factors(stream, args.a_factors, shape[0], args.depth);
  check_factors(stream, args.b_factors, shape[1], args.depth);
  if (args.bias.defined()) check_kernel_tensor("scaled_add", stream, args.bias, {shape[1]});
}

void check_sums(const char* kernel, const Sums& sums, DType operands) {
  if (!sums.how.is_simulated()) return;
  ULP_CHECK(operands != DType::F64,
            "{}: F64 tensors are for gradient checks, their sums take no format; got {}", kernel,
            to_string(sums.how));
  const std::string problem = misfit(sums.how);
  ULP_CHECK(problem.empty(), "{}: sums cannot be kept so: {}", kernel, problem);
  ULP_CHECK(sums.first_k >= 0 && sums.matrix >= 0 && sums.matrix < sums.matrices,
            "{}: sums must be those of matrix 0 to {} of {}, got {}", kernel, sums.matrices - 1,
            sums.matrices, sums.matrix);
}

void check_matmul_factors(Stream stream, const MatmulArgs& args) {
  for (const Tensor& factor : {args.a_factor, args.b_factor}) {
    if (!factor.defined()) continue;
    check_kernel_tensor("matmul", stream, factor, {1});
    ULP_CHECK(factor.dtype() == DType::F32 && args.a.dtype() != DType::F64,
              "matmul: factors are F32 and not for F64 operands, got {}", factor);
  }
}

void check_gather_rows(Stream stream, const GatherRowsArgs& args) {
  ULP_CHECK(args.in.defined() && args.in.rank() == 2, "gather_rows: wanted rows (R, D)");
  ULP_CHECK(args.out.defined() && args.out.rank() == 2, "gather_rows: out must be (N, {}), got {}",
            args.in.size(1), args.out);
  const int64_t rows = args.out.size(0);
  check_kernel_tensor("gather_rows", stream, args.in, args.in.shape());
  check_kernel_tensor("gather_rows", stream, args.out, {rows, args.in.size(1)});
  ULP_CHECK(args.in.dtype() == DType::U8 || args.in.dtype() == DType::F32,
            "gather_rows: rows must be U8 or F32, got {}", args.in.dtype());
  ULP_CHECK(args.out.dtype() == DType::F32, "gather_rows: out must be F32, got {}",
            args.out.dtype());
  if (args.indices.defined()) {
    check_kernel_tensor("gather_rows", stream, args.indices, Shape{args.indices.numel()});
    ULP_CHECK(args.indices.dtype() == DType::I32, "gather_rows: indices must be I32, got {}",
              args.indices.dtype());
  }
  const int64_t given = args.indices.defined() ? args.indices.numel() : args.in.size(0);
  ULP_CHECK(args.begin >= 0 && args.begin + rows <= given,
            "gather_rows: rows {} to {} of {} are wanted", args.begin, args.begin + rows, given);
  ULP_CHECK(args.labels.defined() == args.out_labels.defined(),
            "gather_rows: labels and out_labels go together");
  if (!args.labels.defined()) return;
  check_kernel_tensor("gather_rows", stream, args.labels, {args.in.size(0)});
  check_kernel_tensor("gather_rows", stream, args.out_labels, {rows});
  ULP_CHECK(args.labels.dtype() == DType::I32 && args.out_labels.dtype() == DType::I32,
            "gather_rows: labels must be I32, got {} and {}", args.labels.dtype(),
            args.out_labels.dtype());
}

namespace {

void check_one(Stream stream, const char* what, const Tensor& tensor) {
  check_kernel_tensor("optimizer_step", stream, tensor, Shape{1});
  ULP_CHECK(tensor.dtype() == DType::I32, "optimizer_step: {} must be one I32 value, got {}", what,
            tensor);
}

void check_stored(Stream stream, const char* what, const StoredState& state, const Shape& shape,
                  const Quantizer& q) {
  if (!state.defined()) return;
  ULP_CHECK(in_kernel(q), "optimizer_step: {}: {} has blocks that this kernel does not make", what,
            q);
  if (state.data.dtype() != DType::U8) {
    check_kernel_tensor("optimizer_step", stream, state.data, shape);
    ULP_CHECK(
        is_float_up_to_32(state.data.dtype()) && q.is_elementwise() && fits(q, state.data.dtype()),
        "optimizer_step: {}: {} values do not fit {}", what, q, state.data.dtype());
    return;
  }
  const int64_t n = shape.numel();
  check_kernel_tensor("optimizer_step", stream, state.data,
                      Shape{packed_bytes(n, code_bits(q.format))});
  if (q.is_elementwise()) return;
  check_kernel_tensor("optimizer_step", stream, state.scales,
                      Shape{(n + q.block.columns - 1) / q.block.columns});
  ULP_CHECK(state.scales.dtype() == DType::F32, "optimizer_step: {}: scales must be F32, got {}",
            what, state.scales);
}

}  // namespace

void check_optimizer_step(Stream stream, const OptimizerArgs& args) {
  ULP_CHECK(args.state != nullptr, "optimizer_step: the step state is missing");
  check_kernel_tensor("optimizer_step", stream, args.rates, Shape{args.rates.numel()});
  ULP_CHECK(args.rates.numel() >= 1 && args.rates.dtype() == DType::F32,
            "optimizer_step: rates must be F32 and at least one, got {}", args.rates);
  ULP_CHECK(
      args.settings.beta1 >= 0 || args.rates.numel() % 2 == 0,
      "optimizer_step: with beta1 below 0 there is one for each rate behind the rates, got {}",
      args.rates);
  check_one(stream, "updates", args.updates);
  check_one(stream, "steps", args.steps);
  ULP_CHECK(args.weight_format.is_elementwise() && args.grad_format.is_elementwise(),
            "optimizer_step: block formats of weights and gradients ({}, {}) cannot be applied "
            "inside this kernel",
            args.weight_format, args.grad_format);
  const bool first_moment = args.settings.rule != UpdateRule::Sgd,
             second = args.settings.rule == UpdateRule::Adam;
  for (const OptimizerParameter& p : args.parameters) {
    ULP_CHECK(p.weight.defined(), "optimizer_step: the weight is missing");
    const Shape& shape = p.weight.shape();
    check_kernel_tensor("optimizer_step", stream, p.weight, shape);
    ULP_CHECK(is_float_up_to_32(p.weight.dtype()) && fits(args.weight_format, p.weight.dtype()),
              "optimizer_step: {} values do not fit the weight's {}", args.weight_format,
              p.weight.dtype());
    if (p.grad.defined()) check_kernel_tensor("optimizer_step", stream, p.grad, shape);
    ULP_CHECK(!p.grad.defined() || is_float_up_to_32(p.grad.dtype()),
              "optimizer_step: gradients are floats of up to 32 bits, got {}", p.grad);
    check_stored(stream, "master", p.master, shape, args.master_format);
    check_stored(stream, "moment1", p.moment1, shape, args.moment1_format);
    check_stored(stream, "moment2", p.moment2, shape, args.moment2_format);
    check_stored(stream, "compensation", p.compensation, shape, args.compensation_format);
    ULP_CHECK(p.moment1.defined() == first_moment && p.moment2.defined() == second,
              "optimizer_step: the rule keeps {} moments of each parameter, got {}",
              (first_moment ? 1 : 0) + (second ? 1 : 0),
              (p.moment1.defined() ? 1 : 0) + (p.moment2.defined() ? 1 : 0));
    const RandomKey& first = args.parameters.front().weight_key;
    for (const RandomKey* key : {&p.weight_key, &p.grad_key, &p.master_key, &p.moment1_key,
                                 &p.moment2_key, &p.compensation_key})
      ULP_CHECK(key->seed == first.seed && key->state == first.state,
                "optimizer_step: random keys of one step must have one seed and one state");
  }
}

void check_check_gradients(Stream stream, const CheckGradientsArgs& args) {
  ULP_CHECK(args.state != nullptr, "check_gradients: the step state is missing");
  for (const Tensor& gradient : args.gradients) {
    check_kernel_tensor("check_gradients", stream, gradient, gradient.shape());
    ULP_CHECK(is_float_up_to_32(gradient.dtype()),
              "check_gradients: wanted floats of up to 32 bits, got {}", gradient.dtype());
  }
}

void check_settle_scalings(Stream stream, const SettleScalingsArgs& args) {
  ULP_CHECK(args.state != nullptr, "settle_scalings: the step state is missing");
  for (const KeptScaling& s : args.scalings)
    for (const Tensor& one : {s.now, s.kept}) {
      check_kernel_tensor("settle_scalings", stream, one, s.now.shape());
      ULP_CHECK(one.dtype() == DType::F32, "settle_scalings: wanted F32, got {}", one.dtype());
    }
}

void check_average(Stream stream, const AverageArgs& args) {
  ULP_CHECK(args.state != nullptr, "average: its state is missing");
  for (const AveragedWeight& w : args.weights) {
    ULP_CHECK(w.weight.defined(), "average: a weight is missing");
    for (const Tensor& one : {w.weight, w.average}) {
      check_kernel_tensor("average", stream, one, w.weight.shape());
      ULP_CHECK(is_float_up_to_32(one.dtype()), "average: wanted floats of up to 32 bits, got {}",
                one.dtype());
    }
    const RandomKey& first = args.weights.front().key;
    ULP_CHECK(w.key.seed == first.seed && w.key.state == first.state,
              "average: random keys of one step must have one seed and one state");
  }
}

}  // namespace ulp
