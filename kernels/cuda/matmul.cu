// out = quantise(fma(a · b, factors) + bias): the sums come from matmul_strict.cu or matmul_fast.cu, the rest is one pass.

#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/quads.cuh"

namespace ulp::cuda {
namespace {

/// out = quantise(fma(sums, factor) + bias).
struct Finish {
  Source sums;
  const float *a_factor, *b_factor;  // null: 1
  float factor;
  Source bias;  // data is null: none
  Sink out;
  Rounder rounder;
  int64_t n, count;  // count = M·N
};

__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ Finish w) {
  const RandomSource random = w.rounder.random();
  const bool scales = w.a_factor != nullptr || w.b_factor != nullptr || w.factor != 1;
  const float factor = (w.a_factor != nullptr ? *w.a_factor : 1.0f) *
                       (w.b_factor != nullptr ? *w.b_factor : 1.0f) * w.factor;
  for_quads(w.count, [&](int64_t i, int count) {
    float total[kQuad];
    load_quad(w.sums, i, count, total);
    if (scales) {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) total[k] = fmaf(total[k], factor, 0.0f);
    }
    if (w.bias.data != nullptr) {
      // Divisions of 32 bits are several times faster.
      int64_t column =
          (i | w.n) <= UINT32_MAX ? static_cast<uint32_t>(i) % static_cast<uint32_t>(w.n) : i % w.n;
      float bias[kQuad];
      if (w.n % kQuad == 0) {
        load_quad(w.bias, column, kQuad, bias);
      } else {
#pragma unroll
        for (int k = 0; k < kQuad; ++k) {
          bias[k] = load_one(w.bias.data, w.bias.dtype, column);
          if (++column == w.n) column = 0;
        }
      }
#pragma unroll
      for (int k = 0; k < kQuad; ++k) total[k] += bias[k];
    }
    round_quad(w.rounder, random, i, total);
    store_quad(w.out, i, count, total);
  });
}

const float* data_or_null(const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; }

void check_operand(Stream stream, const char* name, const Tensor& t) {
  ULP_CHECK(t.defined() && t.rank() == 2, "matmul: {} must be a matrix, got {}", name, t);
  ULP_CHECK(t.device() == stream.device, "matmul: {} must be on {}, got one on {}", name,
            stream.device, t.device());
  check_float("matmul", t);
}

void check(Stream stream, const MatmulArgs& args) {
  check_operand(stream, "a", args.a);
  check_operand(stream, "b", args.b);
  const int64_t m = args.a.size(0), k = args.a.size(1), n = args.b.size(1);
  ULP_CHECK(args.b.size(0) == k, "matmul: a {} and b {} do not fit: {} columns, {} rows",
            args.a.shape(), args.b.shape(), k, args.b.size(0));
  check_kernel_tensor("matmul", stream, args.out, {m, n});
  check_output("matmul", args.out, args.output);
  check_matmul_factors(stream, args);
  if (args.bias.defined()) {
    ULP_CHECK(args.bias.shape() == Shape{n}, "matmul: bias must be ({}), got {}", n, args.bias);
    ULP_CHECK(args.bias.device() == stream.device, "matmul: bias must be on {}, got one on {}",
              stream.device, args.bias.device());
    check_float("matmul", args.bias);
  }
  check_sums("matmul", args.sums, args.a.dtype());
}

}  // namespace

void finish_product(const char* kernel, Stream stream, const Outcome& o, const float* sums) {
  const bool scaled = o.a_factor.defined() || o.b_factor.defined() || o.factor != 1;
  Finish finish{};
  finish.rounder = make_elementwise_rounder(kernel, stream.device, o.output, o.key);
  finish.out = sink_of(o.out);
  if (sums == finish.out.data && !o.bias.defined() && !scaled && o.output.is_identity()) return;
  finish.sums = {sums, DType::F32, is_aligned(sums, DType::F32)};
  finish.a_factor = data_or_null(o.a_factor);
  finish.b_factor = data_or_null(o.b_factor);
  finish.factor = static_cast<float>(o.factor);
  finish.n = o.columns;
  finish.count = o.out.numel();
  if (o.bias.defined()) finish.bias = source_of(o.bias);
  launch(kernel, stream, quad_blocks(finish.count), kThreads, finish_kernel, finish);
}

void matmul(Stream stream, const MatmulArgs& call) {
  check(stream, call);
  MatmulArgs args = call;
  if (args.bias.defined()) args.bias = kernels::contiguous(stream, args.bias);
  const int64_t m = args.a.size(0), k = args.a.size(1), n = args.b.size(1);
  const Outcome outcome{args.bias, args.a_factor, args.b_factor, args.out, args.output, args.key,
                        n,         args.factor};
  if (m == 0 || n == 0) return;

  const UnitChoice choice = matrix_unit(args);
  const bool fast = is_fast(choice.unit) && k > 0;
  if (fast && fast_finishes(outcome, choice.unit) &&
      matmul_fast(stream, args, choice, true, {written(args.out), args.out.dtype()}))
    return;
  const bool into_out = args.out.dtype() == DType::F32;
  Tensor scratch;
  if (!into_out) scratch = Tensor::empty({m, n}, DType::F32, stream.device);
  auto* const sums = static_cast<float*>(written(into_out ? args.out : scratch));
  const bool done = fast && matmul_fast(stream, args, choice, false, {sums});
  if (args.sums.how.is_simulated())
    matmul_simulated(stream, args, sums);
  else if (!done)
    matmul_strict(stream, args, sums);
  finish_product("matmul", stream, outcome, sums);
}

}  // namespace ulp::cuda
