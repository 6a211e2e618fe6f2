#include "autograd/product.h"

#include <string>

#include "autograd/misfit.h"

namespace ulp::ops {

Operand turned(Stream stream, const Operand& o) {
  return {o.values.transpose(0, 1), transposed(stream, o.factors, o.values.shape()), o.hadamard,
          o.fits_tf32};
}

Tensor unfinished_product(const RoleUse& use, const char* op, const Operand& a, const Operand& b,
                          const Tensor& bias, const Outcome& outcome) {
  const std::string problem = rotations_misfit(a.hadamard, b.hadamard);
  ULP_CHECK(problem.empty(), "{}: the operands of {} {}", op, outcome.role, problem);
  // Partial sums of operands with many factors are kept in F32.
  const auto many = [](const Operand& o) {
    return o.has_factors() && o.factors.values.numel() != 1;
  };
  const bool kept = outcome.type == Outcome::Type::Kept && !many(a) && !many(b);
  const DType dtype = use.result_type(a.values, kept ? use.fused(outcome.rounding) : Quantizer{});
  Tensor out = Tensor::empty({a.values.size(0), b.values.size(0)}, dtype, a.values.device());
  MatmulArgs args;
  args.a = a.values;
  args.b = b.values.transpose(0, 1);
  args.bias = bias;
  args.out = out;
  args.output = use.fused(outcome.rounding);
  args.key = use.fused_key(outcome.rounding, outcome.role);
  args.sums = use.sums(outcome.accumulator, outcome.sums_role);
  args.math = use.tape.run().math();
  args.fits_tf32 = fit_tf32(a, b);
  args.factor = outcome.factor;
  scaled_matmul(use.tape.stream(), args, a.factors, b.factors);
  return out;
}

Tensor product(const RoleUse& use, const char* op, const Operand& a, const Operand& b,
               const Tensor& bias, const Outcome& outcome) {
  const Tensor out = unfinished_product(use, op, a, b, bias, outcome);
  if (use.fuses(outcome.rounding)) return out;
  return outcome.type == Outcome::Type::Kept ? use.kept(out, outcome.rounding, outcome.role, 1)
                                             : use.result(out, outcome.rounding, outcome.role, 1);
}

}  // namespace ulp::ops
