#pragma once

// One row per differentiable op. test_ops.cpp derives from it: gradient checks, thread, instruction-set and stride equality,
// shapes, NaN and Inf, quantised laws; test_cuda_training.cpp the equality of CPU and GPU.

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "autograd/ops.h"

namespace ulp::tests {

struct OpRow {
  const char* name;
  std::vector<const char*> kernels;  // rows of kernels.h that the op runs, forward and backward
  std::vector<std::vector<Shape>> shapes;  // each entry: the shapes of the inputs; small ones first
  std::function<Var(Tape&, std::span<const Var>, const OpFormats&)> build;
  std::vector<const char*> roles;  // roles of OpFormats that it uses
  double low = -2, high = 2;       // where gradient checks draw their inputs
  double kink = -1e30;             // inputs closer than 1e-3 to it are moved away
  bool common_law =
      true;  // output and grad_input round the plain result; else the op has a law of its own
  bool moves_only = false;  // without formats it passes values on as they are, payloads of NaNs too
};

/// All rows, family by family.
const std::vector<OpRow>& op_table();
/// Those of autograd/ops.h.
std::vector<OpRow> core_op_rows();
/// Those of autograd/conv.h.
std::vector<OpRow> conv_op_rows();
/// Those of autograd/norm.h, pool.h and dropout.h.
std::vector<OpRow> norm_op_rows();
/// Those of autograd/attention.h.
std::vector<OpRow> attention_op_rows();
/// Those of autograd/recurrent.h.
std::vector<OpRow> recurrent_op_rows();
/// Those of autograd/activations.h, losses.h and shape_ops.h.
std::vector<OpRow> act_op_rows();
/// Those of autograd/embedding.h and rotary.h.
std::vector<OpRow> text_op_rows();
inline constexpr const char* kSite = "model.layer";
/// For rows of products with factors: y, dx and dw have the same one, so that the gradients are those of y.
inline constexpr ProductFactors kOneFactor{-0.3, -0.3, -0.3, 1};

/// Uniform values in [low, high], a function of the seed alone, as fp32 numbers.
std::vector<double> random_values(int64_t n, double low, double high, uint64_t seed);
Tensor random_tensor(const Shape& shape, double low, double high, uint64_t seed,
                     DType dtype = DType::F32, Device device = kCpu);
/// F32 with every kind of hard value sprinkled over random ones: ±0, ±Inf, NaNs, subnormals, huge.
Tensor hard_tensor(const Shape& shape, uint64_t seed);

/// One for each shape, of seeds of their own.
std::vector<Tensor> hard_inputs(const std::vector<Shape>& shapes);

/// The bits of an F32 tensor, NaNs as they are.
std::vector<uint32_t> bits_of_tensor(const Tensor& tensor);
bool same_bits(const Tensor& a, const Tensor& b);

/// One forward and backward pass of a row: the output and the gradient of every input, for the cotangent `seed`.
struct Pass {
  Tensor y;
  std::vector<Tensor> grads;
};
Pass run_row(const OpRow& row, Run& run, std::span<const Tensor> inputs, const OpFormats& formats,
             uint64_t cotangent_seed = 99);
bool same_bits(const Pass& a, const Pass& b);
/// True if a pass on the CPU has the same bits on 1, 2 and 3 threads and on every instruction set.
bool same_on_every_cpu(const OpRow& row, Run& run, std::span<const Tensor> inputs,
                       const OpFormats& formats);
/// Formats for the roles and for the sums of every product.
struct SummedFormats {
  const char *roles, *sums;
};
inline constexpr SummedFormats kSummedFormats[] = {{"fp32", "e4m3/fixed16.8:sr"},
                                                   {"e5m2:sr", "chunk5/e6m9:sr/bf16"},
                                                   {"e4m3", "kahan/e6m9:sr"},
                                                   {"bfp8:sr", "e6m9:sr"},
                                                   {"bf16", "posit16.1"}};
/// True if the op sums products, by an accumulator.
bool has_products(const OpRow& row);
OpFormats formats_of(const OpRow& row, const SummedFormats& formats);

/// Makes every random stream begin anew at the same step, so that a pass can be repeated.
void restart_step(Run& run);

}  // namespace ulp::tests
