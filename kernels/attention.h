#pragma once

// Attention: products of many matrices and the softmax of masked scores. kernel.h says what a row means.

#include "kernels/kernels.h"

namespace ulp {

/// out (B, M, N; any float that holds it) = a (B, M, K) · b (B, K, N), each of the B products as kernels::matmul computes it with
/// `factor` (without other factors and bias). With turn_a a is (B, K, M), with turn_b b is (B, N, K). a and b: any float. `output`
/// (element-wise, without draws) rounds. Math::Fp8 is Math::Fast here.
struct BatchedMatmulArgs {
  Tensor a, b, out;
  bool turn_a = false, turn_b = false;
  Math math = Math::Strict;
  bool fits_tf32 = false;  // every F32 operand holds numbers of tf32 only
  double factor = 1;
  Quantizer output{};
  Sums sums{};  // of matrix number sums.matrix and on, of sums.matrices
};

/// The math that they are computed in when this one is asked for.
inline Math batched_math(Math math) { return math == Math::Fp8 ? Math::Fast : math; }

/// What a row of scores (B, T, S), any float, becomes. Row t sees the first keys of its sequence only: all S of them, or the first
/// lengths[b / heads]; `causal`: at most the first S − T + t + 1. Over these, with one element each:
///   z = Qscore(score) · scale;  d = Qi(z − max z);  e = Qi(exp d);  sum = Qi(Σ e), in the order of core/sum.h;  p = e / sum
/// p is 0 for all other keys, and in a row that sees none. A NaN, or a largest z that is infinite, makes what the row sees NaN.
/// Quantizers are element-wise; interior draws numbers 0 … 2 in turn of its key: words by the index in (B, T, S) twice and in (B, T).
struct MaskedRows {
  Tensor scores;
  Tensor
      lengths{};  // I32, one for each sequence: matrix b is of number (first + b) / heads; undefined: S each
  int64_t first = 0;  // the number of the first matrix among all
  int64_t heads = 1;
  bool causal = false;
  double scale = 1;
  Quantizer score{};
  RandomKey score_key{};
  Quantizer interior{};
  RandomKey interior_key{};
};

/// out (B, T, S) = Qout(factor · p); any float that holds it. trace: of the interior, with gaps for what a row does not see.
struct MaskedSoftmaxArgs {
  MaskedRows rows;
  Tensor out;
  Quantizer output{};
  RandomKey key{};
  double factor = 1;
  InteriorTrace trace{};
};

/// out (B, T, S) = Qout(factor · (scale · p · (g − Σ g·p))) with g = Qgrad(grad), grad (B, T, S) any float; p is made again. 0 where p is
/// masked. p (B, T, S; optional) = Qp(factor · p), what masked_softmax makes.
struct MaskedSoftmaxBackwardArgs {
  MaskedRows rows;
  Tensor grad, out;
  Quantizer gradient{};
  RandomKey gradient_key{};
  Quantizer output{};
  RandomKey key{};
  Tensor p{};
  Quantizer p_output{};
  RandomKey p_key{};
  double factor = 1;
};

/// The scores that rows do not see become +0, in place: then they have no part in the groups of a format. Formats, keys and
/// scale of the rows have no part.
struct MaskScoresArgs {
  MaskedRows rows;
};

// clang-format off
#define ULP_ATTENTION_KERNELS(X)                        \
  X(batched_matmul, BatchedMatmulArgs)                  \
  X(mask_scores, MaskScoresArgs)                        \
  X(masked_softmax, MaskedSoftmaxArgs)                  \
  X(masked_softmax_backward, MaskedSoftmaxBackwardArgs)
// clang-format on

ULP_ATTENTION_KERNELS(ULP_DECLARE_KERNEL)

/// M, K and N of a batched product. Throws unless its arguments are as the row says.
struct BatchedExtents {
  int64_t count, m, k, n;
};
BatchedExtents check_batched_matmul(Stream stream, const BatchedMatmulArgs& args);
/// Throw unless the arguments are as the rows say.
void check_mask_scores(Stream stream, const MaskScoresArgs& args);
void check_masked_softmax(Stream stream, const MaskedSoftmaxArgs& args);
void check_masked_softmax_backward(Stream stream, const MaskedSoftmaxBackwardArgs& args);

/// How many keys row t of matrix b sees.
struct Visible {
  int64_t rows, keys;  // T and S
  int64_t first, heads;
  bool causal;
  const int32_t* lengths;  // null: all

  Visible() = default;
  explicit Visible(const MaskedRows& r)
      : rows(r.scores.size(1)),
        keys(r.scores.size(2)),
        first(r.first),
        heads(r.heads),
        causal(r.causal),
        lengths(r.lengths.defined() ? r.lengths.data<int32_t>() : nullptr) {}
  /// row: b·T + t.
  ULP_HD int64_t operator()(int64_t row) const {
    int64_t n = keys;
    if (lengths != nullptr) {
      const int64_t length = lengths[(first + row / rows) / heads];
      n = length < n ? length : n;
    }
    if (causal) {
      const int64_t reach = keys - rows + row % rows + 1;
      n = reach < n ? reach : n;
    }
    return n < 0 ? 0 : n;
  }
};

}  // namespace ulp
