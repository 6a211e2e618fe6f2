#include "kernels/attention.h"

namespace ulp {
namespace {

void check_matrices(const char* kernel, Stream stream, const Tensor& t) {
  check_kernel_tensor(kernel, stream, t, t.shape());
  ULP_CHECK(t.rank() == 3, "{}: wanted matrices (B, rows, columns), got {}", kernel, t);
}

void check_rounding(const char* kernel, const Quantizer& quantizer, bool wide) {
  ULP_CHECK(quantizer.is_elementwise(),
            "{}: {}: block formats cannot be applied inside this kernel", kernel, quantizer);
  ULP_CHECK(!wide || quantizer.is_identity(), "{}: F64 values are not quantised", kernel);
}

void check_rows(const char* kernel, Stream stream, const MaskedRows& r) {
  check_matrices(kernel, stream, r.scores);
  const bool wide = r.scores.dtype() == DType::F64;
  ULP_CHECK(wide || is_float_up_to_32(r.scores.dtype()), "{}: scores must be floats, got {}",
            kernel, r.scores);
  for (const Quantizer* q : {&r.score, &r.interior}) check_rounding(kernel, *q, wide);
  ULP_CHECK(r.heads >= 1 && r.first >= 0, "{}: heads must be at least 1, got {}", kernel, r.heads);
  if (!r.lengths.defined()) return;
  check_kernel_tensor(kernel, stream, r.lengths, r.lengths.shape());
  const int64_t wanted = (r.first + r.scores.size(0) + r.heads - 1) / r.heads;
  ULP_CHECK(r.lengths.dtype() == DType::I32 && r.lengths.rank() == 1 && r.lengths.size(0) >= wanted,
            "{}: lengths must be I32, one for each of {} sequences, got {}", kernel, wanted,
            r.lengths);
}

/// What rows become, rounded by `output`.
void check_result(const char* kernel, Stream stream, const MaskedRows& r, const Tensor& out,
                  const Quantizer& output) {
  check_kernel_tensor(kernel, stream, out, r.scores.shape());
  const bool wide = r.scores.dtype() == DType::F64;
  ULP_CHECK(wide ? out.dtype() == DType::F64
                 : is_float_up_to_32(out.dtype()) && fits(output, out.dtype()),
            "{}: {} values do not fit the output's {}", kernel, output, out.dtype());
  check_rounding(kernel, output, wide);
}

}  // namespace

BatchedExtents check_batched_matmul(Stream stream, const BatchedMatmulArgs& args) {
  constexpr const char* kName = "batched_matmul";
  check_matrices(kName, stream, args.a);
  check_matrices(kName, stream, args.b);
  const BatchedExtents e{args.a.size(0), args.a.size(args.turn_a ? 2 : 1),
                         args.a.size(args.turn_a ? 1 : 2), args.b.size(args.turn_b ? 1 : 2)};
  ULP_CHECK(args.b.size(0) == e.count && args.b.size(args.turn_b ? 2 : 1) == e.k,
            "{}: a {}{} and b {}{} must have as many matrices and share K", kName, args.a.shape(),
            args.turn_a ? " turned" : "", args.b.shape(), args.turn_b ? " turned" : "");
  check_kernel_tensor(kName, stream, args.out, {e.count, e.m, e.n});
  const bool wide = args.a.dtype() == DType::F64;
  for (const Tensor* t : {&args.a, &args.b})
    ULP_CHECK(wide ? t->dtype() == DType::F64 : is_float_up_to_32(t->dtype()),
              "{}: operands must be floats of up to 32 bits, or both F64; got {} and {}", kName,
              args.a.dtype(), args.b.dtype());
  ULP_CHECK(wide ? args.out.dtype() == DType::F64
                 : is_float_up_to_32(args.out.dtype()) && fits(args.output, args.out.dtype()),
            "{}: {} values do not fit the output's {}", kName, args.output, args.out.dtype());
  check_rounding(kName, args.output, wide);
  check_sums(kName, args.sums, args.a.dtype());
  ULP_CHECK(args.sums.matrix + e.count <= args.sums.matrices || !args.sums.how.is_simulated(),
            "{}: sums are of {} matrices from number {} on, got {}", kName, args.sums.matrices,
            args.sums.matrix, e.count);
  ULP_CHECK(!args.output.is_stochastic(), "{}: {} draws; round the result instead", kName,
            args.output);
  return e;
}

void check_mask_scores(Stream stream, const MaskScoresArgs& args) {
  check_rows("mask_scores", stream, args.rows);
}

void check_masked_softmax(Stream stream, const MaskedSoftmaxArgs& args) {
  check_rows("masked_softmax", stream, args.rows);
  check_result("masked_softmax", stream, args.rows, args.out, args.output);
  const Shape& s = args.rows.scores.shape();
  const Shape met[] = {s, s, {s[0], s[1]}};
  check_interior_trace("masked_softmax", stream, args.trace, met);
}

void check_masked_softmax_backward(Stream stream, const MaskedSoftmaxBackwardArgs& args) {
  constexpr const char* kName = "masked_softmax_backward";
  check_rows(kName, stream, args.rows);
  check_result(kName, stream, args.rows, args.out, args.output);
  check_kernel_tensor(kName, stream, args.grad, args.rows.scores.shape());
  const bool wide = args.rows.scores.dtype() == DType::F64;
  ULP_CHECK(wide ? args.grad.dtype() == DType::F64 : is_float_up_to_32(args.grad.dtype()),
            "{}: grad must be {} beside scores of {}, got {}", kName, wide ? "F64" : "a float",
            args.rows.scores.dtype(), args.grad);
  check_rounding(kName, args.gradient, wide);
  if (args.p.defined()) check_result(kName, stream, args.rows, args.p, args.p_output);
}

}  // namespace ulp
