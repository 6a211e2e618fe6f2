#pragma once

// Kernels of the core: numbers, products, element-wise functions, the loss, optimizers. kernel.h says what a row means.

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/average_state.h"
#include "core/error.h"
#include "core/grad_policy.h"
#include "core/grid.h"
#include "core/op_formats.h"
#include "core/quantise_stats.h"
#include "core/quantizer.h"
#include "core/random.h"
#include "core/score_totals.h"
#include "core/tensor.h"
#include "kernels/interior.h"
#include "kernels/update_rule.h"

namespace ulp {

/// How products are computed. Strict: the same bits on every device. The others need CUDA and give the same bits on the same
/// GPU with the same library; kernels/matmul_unit.h decides which unit they use, and says which NaNs they leave.
///  Fast  tensor cores where products of the operands are exact there, else fp32
///  Tf32  tf32 tensor cores also for fp32 operands, which lose 13 bits
///  Fp8   fp8 tensor cores for 8-bit operands: exact products, sums that keep 14 bits
enum class Math : uint8_t { Strict, Fast, Tf32, Fp8 };

/// out[i] = in[i] as `quantizer` makes it, rotations apart (kernels/quantised.h does those). in: any float, any shape. out:
/// the same shape, a type that `fits` the quantizer. Groups and rows run along `group_axis`. Element i draws word i of `key`.
/// Optional outputs:
///  factors  F32, one number for each block in row-major order (core/block_map.h), or one for all where the factor is that of
///           the tensor. With it `out` holds values whose factor is apart; without, out = fl(value · factor), in F32.
///  mask     U8, the same shape: 1 where a finite value's rounded result lay beyond the format's bounds.
///  stats    U8, sizeof(QuantiseStats) bytes (core/quantise_stats.h); not together with factors.
///  gaps     elements of an F32 `in` whose bits are kGapBits are none: they are not counted. Of element-wise quantizers.
/// scaling (F32, 1 + N): what +scale=delayedN remembers: its scale, then the newest magnitudes; a fresh one is {1, 0 …}.
/// It is brought up to date unless `frozen`.
struct QuantiseArgs {
  Tensor in, out;
  Quantizer quantizer;
  int group_axis = 0;
  RandomKey key;
  Tensor mask{};
  Tensor factors{}, stats{}, scaling{};
  bool frozen = false, gaps = false;
};

/// What core/packed.h writes beside the codes of values that were made of x: `scales`, one a block, U8 or F32 as packed_scale
/// says, and factor (F32, one number). Only for quantizers with scales that follow from x. x: any float; stored: what the
/// values are kept in.
struct PackScalesArgs {
  Tensor x, scales, factor;
  Quantizer how;
  int group_axis = 0;
  DType stored = DType::F32;
};

/// codes (U8, bytes) = those of `values` (any float) under `scales` (undefined where there are none), in the bits of
/// core/packed.h. no_code (U8, 8 bytes, an int64_t): the first element that has no code, or how many elements there are.
struct PackCodesArgs {
  Tensor values, scales, codes, no_code;
  Quantizer how;
  int group_axis = 0;
};

/// values (F32) = the numbers of `codes` times scales times factor.
struct UnpackCodesArgs {
  Tensor codes, scales, values;
  Quantizer how;
  int group_axis = 0;
  float factor = 1;
  Tensor device_factor{};  // F32, one number, instead of `factor`
};

/// out = in rotated along `axis` in groups of `size` (core/hadamard.h), times 2^exponent. in: any float, out: F32.
/// inverse: the signs are applied after H instead of before.
struct RotateArgs {
  Tensor in, out;
  int axis = 0, size = 16, exponent = -2;
  uint64_t seed = 0;
  bool inverse = false;
};

/// How a kernel keeps the sums of its products (core/accumulator.h). Draw r of the term k of the sum (i, j) of a matrix (M, N)
/// takes word ((k · matrices + matrix) · M + i) · 4⌈N / 4⌉ + j of draw number r from `key` on; k counts from first_k.
struct Sums {
  Accumulator how{};
  RandomKey key{};
  int64_t first_k = 0;
  int64_t matrix = 0,
          matrices = 1;  // which of how many that the kernel's callers make: groups, heads

  /// The same for matrix number `i` of `count` that this one is cut into.
  Sums of(int64_t i, int64_t count) const {
    Sums one = *this;
    one.matrix = matrix * count + i;
    one.matrices = matrices * count;
    return one;
  }
};

/// out (M, N; any float that holds it) = a (M, K) · b (K, N) + bias (N, optional), then `output` (element-wise only) rounds each
/// element.
/// a and b: any float, any strides. Sums of fp32 in the order of core/sum.h, other math: cuBLASLt; simulated ones as `sums` says,
/// in any math.
/// a_factor, b_factor (F32, one number, optional) and factor: before the bias, a sum s becomes
/// fma(s, fl(fl(a_factor · b_factor) · factor), +0), factor as fp32; nothing is done where neither is given and factor is 1.
/// F64: s · factor.
struct MatmulArgs {
  Tensor a, b, bias, out;
  Quantizer output;
  RandomKey key;
  Sums sums;
  Math math = Math::Strict;
  bool fits_tf32 = false;  // every F32 operand holds numbers of tf32 only
  Tensor a_factor{}, b_factor{};
  double factor = 1;
};

/// The factors of a matrix: one for each `rows` × `columns` of its elements (core/block_map.h), in row-major order. Undefined
/// values: 1 everywhere.
struct Factors {
  Tensor values;
  int64_t rows = 1, columns = 1;
};

/// One step of a product whose operands have factors. sums (M, N) are those of a · b over the k from `k` on that share one
/// factor in each operand: acc = fma(sums, fl(fl(fa · fb) · factor), acc), with acc = 0 in the first step, else out. After the last one
/// bias (N) is added and `output` (element-wise only) rounds. a_factors: of a (M, K), b_factors: of b's transpose (N, K).
struct ScaledAddArgs {
  Tensor sums, out;
  Factors a_factors, b_factors;
  int64_t k = 0, depth = 0;  // depth: K
  bool first = true, last = true;
  Tensor bias;
  Quantizer output;
  RandomKey key;
  double factor = 1;
};

/// out[i] = f(in[0][i], in[1][i], in[2][i]; alpha, beta), then `output` (element-wise only) rounds it. in: any float, as many
/// as f takes. A one-element input serves every i, one of shape (C) every row of an out (…, C) of another shape.
struct ElementwiseArgs {
  std::array<Tensor, 3> in;
  Tensor out;
  double alpha = 0;
  Quantizer output;
  RandomKey key;
  double beta = 0;  // of functions with two scalars
};

/// out[o, i] = factor · Σ_a in[o, a, i], the sum in the order of core/sum.h. in: any float, seen as (outer, axis, inner);
/// out: (outer, inner).
struct SumArgs {
  Tensor in, out;
  int64_t outer = 1, axis = 0, inner = 1;
  double factor = 1;
};

/// Rows of logits (N, C) → out = logits − max − ln Σ exp(logits − max). NaN in a row makes the row NaN.
/// interior (element-wise) rounds the difference, its exp, their sum and the logarithm; draws number 0 … 3 in turn of `key`; trace:
/// (N, C), (N, C), (N) and (N).
/// With labels (N, I32 in [0, C), checked by the caller) also losses[n] = −out[n, labels[n]].
struct LogSoftmaxArgs {
  Tensor in, out;
  Quantizer interior;
  RandomKey key;
  Tensor labels{}, losses{};
  InteriorTrace trace{};
};

/// out = g − exp(y) · Σ_row g, for y = log-softmax output (N, C).
struct LogSoftmaxBackwardArgs {
  Tensor grad, y, out;
};

/// out (N, C) = (exp(log_probs) − onehot(labels)) · grad[0] · alpha: cross-entropy's gradient from its saved log_probs.
struct CrossEntropyBackwardArgs {
  Tensor log_probs, labels, grad, out;
  double alpha = 1;
};

/// Adds a batch to `totals` (U8, sizeof(ScoreTotals) bytes, core/score_totals.h). loss: its mean loss, one value; logits
/// (N, C), labels (N) I32. Row n is correct if its first largest logit is number labels[n]; not if it holds a NaN.
struct TallyArgs {
  Tensor loss, logits, labels, totals;
};

/// out = in with its elements gathered in row-major order: any strides → contiguous. Any dtype, the same for both; or any
/// float → F32. Nothing is written if `state` is given and its found_inf is set.
struct CopyArgs {
  Tensor in, out;
  const StepState* state = nullptr;  // on the stream's device
};

/// out[...] = value, or fl(value · loss_scale), or fl(value · grad_factor) of a state. out: F32 or F64; of a state both numbers
/// are rounded to fp32 first.
struct FillArgs {
  Tensor out;
  double value = 0;
  const StepState* loss_scale_of = nullptr;   // on the stream's device
  const StepState* grad_factor_of = nullptr;  // the same
};

/// out[i] = low + (high − low)·u_i, u_i uniform in [0, 1) from word i of `key`; one fma.
struct UniformArgs {
  Tensor out;
  float low = 0, high = 1;
  RandomKey key;
};

/// out[n, :] = in[r, :] · scale and out_labels[n] = labels[r], r = indices[begin + n], or begin + n where there are no
/// indices.  in (R, D) U8 or F32, indices (≥ begin + N) I32 in [0, R), out (N, D) F32; labels (R) and out_labels (N) I32,
/// both or none. With `state` the rows begin at its batch_offset, which is moved on by N.
struct GatherRowsArgs {
  Tensor in, indices, out;
  float scale = 1;
  Tensor labels{}, out_labels{};
  int64_t begin = 0;
  StepState* state = nullptr;  // on the stream's device
};

/// What an optimizer keeps of one tensor beside its weight, as it lies in memory (kernels/state.h makes it). `data` has any
/// float type that fits the format, or it is U8: codes as core/packed.h lays them out, with the scales and the factor that go
/// with them. No data: there is no such state.
struct StoredState {
  Tensor data, scales{}, factor{};
  bool defined() const { return data.defined(); }
};

/// One parameter of an optimizer and what is kept for it. weight: any float that fits its format; grad: any float, or
/// undefined: then nothing of the parameter changes.
struct OptimizerParameter {
  Tensor weight, grad;
  StoredState master, moment1, moment2, compensation;
  RandomKey weight_key, grad_key, master_key, moment1_key, moment2_key, compensation_key;
};

/// What a device keeps of a call's parameters, so that the next call with the same ones copies nothing.
struct ParameterTable {
  Tensor on_device;
  std::vector<unsigned char> on_host;
};

/// One update for any number of parameters, at most 192 a CUDA launch, in the order of OptimLP's step:
///   s = fl(grad_scaling · state.grad_factor), divided as grad_normalisation says for each parameter, at most FLT_MAX
///   g ← Qg(grad · s), or Qg(grad) · s as grad_order says;  p ← master, or weight where there is none
///   d ← g + weight_decay·p (unless decoupled)
///   Sgd       u ← d
///   Momentum  m ← β1·m + d;  u ← nesterov ? d + β1·m : m
///   Adam      m ← β1·m + (1 − β1)·d;  v ← β2·v + (1 − β2)·d²;  u ← m / (√v / √(1 − β2^t) + eps), lr ← lr / (1 − β1^t)
///   Lion      u ← sign(β1·m + (1 − β1)·d);  m ← β2·m + (1 − β2)·d
///   p ← p − lr·weight_decay·p (decoupled);  p ← p − lr·u
///   master ← Qacc(p), p ← master;  weight ← Qw(p);  stored moments ← Qm(m), Qv(v)
/// With a compensation c (Kahan) the last two lines are, Q being that of the copy that is kept (master, else weight):
///   y ← (−lr·u − lr·weight_decay·p) + c;  s ← Q(p + y);  c ← Qc(y − (s − p));  p ← s
/// The unrounded new moments decide; every multiply-add is one fma (functors.h says which). Quantizers of weight and gradient
/// are element-wise; those of states are what in_kernel (kernels/state.h) takes. Moments and compensations start as zeros.
/// lr is lr_factor · rates[updates], or the last of them: rates (F32, S ≥ 1; where settings.beta1 < 0, 2·S: each one's β1 comes
/// behind all rates), updates (I32, one value, ≥ 0). t is steps + 1 (I32, one value). Nothing is written if state.found_inf.
/// A NaN without a code in its format: code 0, and the weight is NaN. Keys differ in stream and ordinal only.
struct OptimizerArgs {
  std::vector<OptimizerParameter> parameters;
  Quantizer weight_format, grad_format, master_format, moment1_format, moment2_format,
      compensation_format;
  UpdateSettings settings;
  Tensor rates, updates, steps;
  const StepState* state = nullptr;         // on the stream's device
  std::shared_ptr<ParameterTable> table{};  // none: made for this call
};

/// Looks at all gradients of a step: settle_gradients(*state, Σ g², policy). gradients: any float. The sum is in fp64, where
/// squares of fp32 are exact: in the order of core/sum.h over each tensor, then in that order over the tensors' sums.
struct CheckGradientsArgs {
  std::vector<Tensor> gradients;
  GradPolicy policy;
  StepState* state = nullptr;  // on the stream's device
};

/// What +scale=delayedN remembers (QuantiseArgs), and the same as of the end of the last step that was not skipped. F32.
struct KeptScaling {
  Tensor now, kept;
};

/// Ends a step for delayed scaling: kept ← now, or now ← kept if the step is skipped (state.found_inf).
struct SettleScalingsArgs {
  std::vector<KeptScaling> scalings;
  const StepState* state = nullptr;  // on the stream's device
};

/// Looks whether a step's weights are to be averaged: begin_average(*average, *state, rule).
struct BeginAverageArgs {
  AverageState* average = nullptr;  // on the stream's device, as is state
  const StepState* state = nullptr;
  AverageRule rule;
};

/// A weight and its average, any floats of one shape; average: a type that fits the format.
struct AveragedWeight {
  Tensor weight, average;
  RandomKey key;
};

/// average ← Q(average_of(average, weight, state.factor)) for any number of weights, nothing where state.gate.found_inf.
/// Quantizer: element-wise; block formats are applied around this kernel. The weights' keys differ in stream and ordinal only.
struct AverageArgs {
  std::vector<AveragedWeight> weights;
  Quantizer format;
  const AverageState* state = nullptr;  // on the stream's device
};

/// Ends a step: advance(*state), updates (I32, one value) + 1; steps (the same, optional) + 1 unless found_inf was set.
struct AdvanceStepArgs {
  StepState* state = nullptr;  // on the stream's device
  Tensor updates;
  Tensor steps{};
};

// clang-format off
/// X(name, arguments): kernels with a side of their own in kernels/cpu/*.cpp and kernels/cuda/*.cu.
#define ULP_KERNELS(X)                                  \
  X(quantise, QuantiseArgs)                             \
  X(pack_scales, PackScalesArgs)                        \
  X(pack_codes, PackCodesArgs)                          \
  X(unpack_codes, UnpackCodesArgs)                      \
  X(rotate, RotateArgs)                                 \
  X(matmul, MatmulArgs)                                 \
  X(scaled_add, ScaledAddArgs)                          \
  X(sum, SumArgs)                                       \
  X(log_softmax, LogSoftmaxArgs)                        \
  X(log_softmax_backward, LogSoftmaxBackwardArgs)       \
  X(cross_entropy_backward, CrossEntropyBackwardArgs)   \
  X(tally, TallyArgs)                                   \
  X(copy, CopyArgs)                                     \
  X(fill, FillArgs)                                     \
  X(uniform, UniformArgs)                               \
  X(gather_rows, GatherRowsArgs)                        \
  X(optimizer_step, OptimizerArgs)                      \
  X(check_gradients, CheckGradientsArgs)                \
  X(settle_scalings, SettleScalingsArgs)                \
  X(begin_average, BeginAverageArgs)                    \
  X(average, AverageArgs)                               \
  X(advance_step, AdvanceStepArgs)

/// X(name, functor, inputs): element-wise kernels, both sides made from one functor of kernels/functors.h.
#define ULP_ELEMENTWISE_KERNELS(X)                      \
  X(add, Add, 2)                                        \
  X(subtract, Subtract, 2)                              \
  X(multiply, Multiply, 2)                              \
  X(scale, Scale, 1)                                    \
  X(square, Square, 1)                                  \
  X(relu, Relu, 1)                                      \
  X(relu_backward, ReluBackward, 2)                     \
  X(gelu, Gelu, 1)                                      \
  X(gelu_backward, GeluBackward, 2)                     \
  X(gelu_tanh, GeluTanh, 1)                             \
  X(gelu_tanh_backward, GeluTanhBackward, 2)            \
  X(bias_relu, BiasRelu, 2)                               \
  X(bias_relu_backward, BiasReluBackward, 3)              \
  X(bias_gelu, BiasGelu, 2)                               \
  X(bias_gelu_backward, BiasGeluBackward, 3)              \
  X(bias_gelu_tanh, BiasGeluTanh, 2)                      \
  X(bias_gelu_tanh_backward, BiasGeluTanhBackward, 3)     \
  X(mask_gradient, MaskGradient, 2)
// clang-format on

#define ULP_DECLARE_ELEMENTWISE(name, Functor, inputs) ULP_DECLARE_KERNEL(name, ElementwiseArgs)

ULP_KERNELS(ULP_DECLARE_KERNEL)
ULP_ELEMENTWISE_KERNELS(ULP_DECLARE_ELEMENTWISE)

namespace kernels {

/// Which elements of an input meet element i of an element-wise kernel's output: its only one, its own i, or that of i's
/// column.
enum class Reach : uint8_t { One, All, Row };
/// Throws unless `in` is contiguous, on the stream's device and of a shape that ElementwiseArgs allows.
Reach reach_of(const char* kernel, Stream stream, const Tensor& in, const Tensor& out);

/// The tensor itself if it is contiguous, else a contiguous copy.
inline Tensor contiguous(Stream stream, const Tensor& tensor) {
  if (tensor.is_contiguous()) return tensor;
  Tensor out = Tensor::empty(tensor.shape(), tensor.dtype(), tensor.device());
  copy(stream, {tensor, out});
  return out;
}

}  // namespace kernels

/// How many factors a quantizer has for a tensor: one for each F32-scaled block, else one, or 0 if it has none.
int64_t factor_count(const Quantizer& quantizer, const Shape& shape, int group_axis);

/// Throw unless the arguments of a row are as it says.
void check_quantise(Stream stream, const QuantiseArgs& args);
void check_rotate(Stream stream, const RotateArgs& args);
void check_scaled_add(Stream stream, const ScaledAddArgs& args);
void check_matmul_factors(Stream stream, const MatmulArgs& args);
/// Throws unless products of operands of this type can be summed so.
void check_sums(const char* kernel, const Sums& sums, DType operands);
void check_gather_rows(Stream stream, const GatherRowsArgs& args);
void check_optimizer_step(Stream stream, const OptimizerArgs& args);
void check_check_gradients(Stream stream, const CheckGradientsArgs& args);
void check_settle_scalings(Stream stream, const SettleScalingsArgs& args);
void check_average(Stream stream, const AverageArgs& args);

}  // namespace ulp
