#include "kernels/quantised.h"

#include <algorithm>

#include "core/block_map.h"
#include "kernels/matmul_unit.h"
#include "kernels/squeeze.h"

namespace ulp {
namespace {

Tensor rotated(Stream stream, const Tensor& in, const QuantiseUse& use, int exponent,
               bool inverse) {
  Tensor out = Tensor::empty(in.shape(), DType::F32, in.device());
  kernels::rotate(stream, {in, out, use.axis, use.quantizer.transform.hadamard, exponent,
                           use.key.seed, inverse});
  return out;
}

QuantiseArgs arguments(const Tensor& in, const Tensor& out, const QuantiseUse& use) {
  QuantiseArgs args;
  args.in = in;
  args.out = out;
  args.quantizer = use.quantizer;
  args.quantizer.transform.hadamard = 0;
  args.group_axis = use.axis;
  args.key = use.key;
  args.scaling = use.scaling;
  args.frozen = use.frozen;
  args.mask = use.mask;
  args.stats = use.stats;
  args.gaps = use.gaps;
  return args;
}

/// What +scale=squeeze makes of a contiguous tensor: squeezed, rounded, turned back.
Tensor squeezed(Stream stream, const Tensor& in, const QuantiseUse& use) {
  Tensor out = Tensor::empty(in.shape(), DType::F32, in.device());
  if (in.numel() == 0) return out;
  const Tensor between = Tensor::empty(in.shape(), DType::F32, in.device());
  SqueezeArgs args;
  args.in = in;
  args.out = between;
  args.logs = Tensor::empty({1}, DType::F32, in.device());
  args.totals = empty_squeeze_totals(in.device());
  args.top = static_cast<float>(limits_of(use.quantizer.format).emax);
  kernels::squeeze_logs(stream, {in, out, args.totals});
  kernels::sum(stream, {out, args.logs, 1, out.numel(), 1});
  kernels::squeeze(stream, args);
  QuantiseArgs round = arguments(between, out, use);
  round.quantizer.block = {};
  round.quantizer.scale = {};
  kernels::quantise(stream, round);
  args.in = out;
  args.out = out;
  args.inverse = true;
  kernels::squeeze(stream, args);
  return out;
}

/// Factors of a matrix (rows, columns), still to be filled.
Factors empty_factors(const Quantizer& q, const Tensor& matrix, int axis) {
  const Shape& shape = matrix.shape();
  Factors factors;
  const int64_t count = factor_count(q, shape, axis);
  const bool each = q.scale.kind == Scale::Kind::F32;
  const BlockExtent extent =
      each ? block_extent(q, shape, axis)
           : BlockExtent{std::max<int64_t>(1, shape[0]), std::max<int64_t>(1, shape[1])};
  factors.values = Tensor::empty({count}, DType::F32, matrix.device());
  factors.rows = extent.rows;
  factors.columns = extent.columns;
  return factors;
}

/// Where a product is cut so that each part has one factor in each operand.
std::vector<int64_t> cuts(int64_t depth, const Factors& a, const Factors& b) {
  std::vector<int64_t> at{0, depth};
  for (const Factors* f : {&a, &b})
    if (f->values.defined())
      for (int64_t k = f->columns; k < depth; k += f->columns) at.push_back(k);
  std::sort(at.begin(), at.end());
  at.erase(std::unique(at.begin(), at.end()), at.end());
  return at;
}

}  // namespace

Tensor fresh_scaling(const Quantizer& quantizer, Device device) {
  std::vector<float> state(size_t{1} + quantizer.scale.history, 0.0f);
  state[0] = 1.0f;
  return Tensor::from(state, {static_cast<int64_t>(state.size())}, device);
}

Tensor quantised(Stream stream, const Tensor& in, const QuantiseUse& use, DType dtype) {
  const Tensor source = kernels::contiguous(stream, in);
  if (use.quantizer.scale.kind == Scale::Kind::Squeeze) {
    ULP_CHECK(dtype == DType::F32, "quantise: {} values need F32, got {}", use.quantizer, dtype);
    return squeezed(stream, source, use);
  }
  Tensor out = Tensor::empty(in.shape(), dtype, in.device());
  const int n = use.quantizer.transform.hadamard;
  if (n == 0) {
    kernels::quantise(stream, arguments(source, out, use));
    return out;
  }
  ULP_CHECK(dtype == DType::F32, "quantise: {} values are turned back and need F32, got {}",
            use.quantizer, dtype);
  const Tensor turned = rotated(stream, source, use, rotation_exponent(n, Side::Left), false);
  kernels::quantise(stream, arguments(turned, out, use));
  return rotated(stream, out, use, rotation_exponent(n, Side::Right), true);
}

Operand quantised_operand(Stream stream, const Tensor& in, const QuantiseUse& use, Side side) {
  const Quantizer& q = use.quantizer;
  if (q.is_identity()) return {in, {}, 0};
  ULP_CHECK(in.rank() == 2, "quantise: an operand is a matrix, got {}", in);
  Operand operand;
  operand.hadamard = q.transform.hadamard;
  operand.fits_tf32 = fits_tf32(q);
  Tensor source = kernels::contiguous(stream, in);
  if (q.scale.kind == Scale::Kind::Squeeze) {
    operand.values = squeezed(stream, source, use);
    return operand;
  }
  if (operand.hadamard != 0)
    source = rotated(stream, source, use, rotation_exponent(operand.hadamard, side), false);
  operand.values = Tensor::empty(in.shape(), operand_type(q, use.math), in.device());
  QuantiseArgs args = arguments(source, operand.values, use);
  if (q.has_factor()) {
    operand.factors = empty_factors(q, source, use.axis);
    args.factors = operand.factors.values;
  }
  kernels::quantise(stream, args);
  return operand;
}

void scaled_matmul(Stream stream, const MatmulArgs& args, const Factors& a_factors,
                   const Factors& b_factors) {
  const int64_t depth = args.a.size(1);
  const auto differ = [](const Factors& f) { return f.values.defined() && f.values.numel() != 1; };
  const bool empty = depth == 0 || args.out.numel() == 0;
  if (empty || (!differ(a_factors) && !differ(b_factors))) {
    MatmulArgs whole = args;
    if (!empty) {
      whole.a_factor = a_factors.values;
      whole.b_factor = b_factors.values;
    }
    kernels::matmul(stream, whole);
    return;
  }
  ULP_CHECK(args.out.dtype() == DType::F32,
            "matmul: partial sums of scaled operands are kept in F32, got {}", args.out.dtype());
  Tensor sums = Tensor::empty(args.out.shape(), DType::F32, args.out.device());
  const std::vector<int64_t> at = cuts(depth, a_factors, b_factors);
  for (size_t i = 0; i + 1 < at.size(); ++i) {
    MatmulArgs part;
    part.a = args.a.slice(1, at[i], at[i + 1]);
    part.b = args.b.slice(0, at[i], at[i + 1]);
    part.out = sums;
    part.sums = args.sums;
    part.sums.first_k += at[i];
    part.math = args.math;
    part.fits_tf32 = args.fits_tf32;
    kernels::matmul(stream, part);
    ScaledAddArgs add;
    add.sums = sums;
    add.out = args.out;
    add.a_factors = a_factors;
    add.b_factors = b_factors;
    add.k = at[i];
    add.depth = depth;
    add.first = i == 0;
    add.last = i + 2 == at.size();
    add.bias = args.bias;
    add.output = args.output;
    add.key = args.key;
    add.factor = args.factor;
    kernels::scaled_add(stream, add);
  }
}

Factors transposed(Stream stream, const Factors& factors, const Shape& matrix) {
  if (!factors.values.defined()) return {};
  const int64_t rows = (matrix[0] + factors.rows - 1) / factors.rows,
                columns = (matrix[1] + factors.columns - 1) / factors.columns;
  Factors result{factors.values, factors.columns, factors.rows};
  if (rows > 1 && columns > 1)
    result.values =
        kernels::contiguous(stream, factors.values.reshape({rows, columns}).transpose(0, 1))
            .reshape({rows * columns});
  return result;
}

}  // namespace ulp
