// Products on CUDA in other math than strict: which unit, how far from strict, the same bits from run to run.

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/convert.h"
#include "core/random.h"
#include "kernels/attention.h"
#include "kernels/matmul_unit.h"
#include "kernels/quantised.h"

#if defined(ULP_HAS_CUDA)
#include "core/cuda_check.h"
#endif

namespace ulp {
namespace {

constexpr Device kGpu = cuda_device(0);
constexpr DType kFloats[] = {DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2};
constexpr DType kNarrow[] = {DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2};

enum class Domain {
  ZeroMean,  // uniform in [−4, 4)
  Positive,  // their magnitudes
  Halves,    // −2, −1.5 … 2: sums of their products are exact in any order
};

/// The numbers of `format` nearest to random ones, stored as `dtype`, on the CPU.
Tensor values(const Shape& shape, DType dtype, const char* format, Domain domain, uint64_t seed) {
  RandomKey key;
  key.seed = seed;
  const RandomSource words(key);
  std::vector<float> x(static_cast<size_t>(shape.numel()));
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t word = words.word(i);
    x[i] = (uniform01(word) - 0.5f) * 8;
    if (domain == Domain::Positive) x[i] = std::fabs(x[i]);
    if (domain == Domain::Halves) x[i] = static_cast<float>(static_cast<int>(word % 9) - 4) * 0.5f;
  }
  Tensor t = Tensor::from(x, shape), rounded = Tensor::empty(shape, DType::F32, kCpu);
  const Quantizer quantizer = Quantizer::parse(format);
  if (quantizer.is_identity())
    rounded = t;
  else
    kernels::quantise(Stream{}, {t, rounded, quantizer, 0, {}, {}});
  Tensor out = Tensor::empty(shape, dtype, kCpu);
  void* data = out.mutable_raw();
  for (int64_t i = 0; i < t.numel(); ++i) store_float(data, dtype, i, rounded.data<float>()[i]);
  return out;
}

struct Product {
  Tensor a, b;
  Math math = Math::Fast;
  bool fits_tf32 = false;
  Tensor bias{}, a_factor{}, b_factor{};
  double factor = 1;

  Tensor out() const {
    MatmulArgs args;
    args.a = a;
    args.b = b;
    args.out = Tensor::empty({a.size(0), b.size(1)}, DType::F32, kGpu);
    args.math = math;
    args.fits_tf32 = fits_tf32;
    args.bias = bias;
    args.a_factor = a_factor;
    args.b_factor = b_factor;
    args.factor = factor;
    kernels::matmul(stream_of(kGpu), args);
    return args.out;
  }
  std::vector<float> operator()() const { return out().to_floats(); }
};

/// ‖x − y‖ / ‖y‖.
double relative_error(const std::vector<float>& x, const std::vector<float>& y) {
  double error = 0, size = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
    size += std::pow(static_cast<double>(y[i]), 2);
  }
  REQUIRE(size > 0);
  return std::sqrt(error / size);
}

/// True if a product of that shape was computed on that unit.
bool was_used(const std::string& shape, const std::string& unit) {
  const std::vector<std::string> all = matrix_units_used();
  return std::any_of(all.begin(), all.end(), [&](const std::string& line) {
    return line.starts_with(shape + " ") && line.find(": " + unit + ", cuBLASLt") != line.npos;
  });
}

bool no_gpu() { return cuda_device_count() == 0; }

}  // namespace

TEST_SUITE("cuda_matmul") {
  // The bounds are those of numerics.md §7 with a margin: bf16 units keep products exactly and truncate sums of 16 of them
  // to 24 bits, fp8 units keep 14 bits.
  TEST_CASE("exact products at K = 16384: fast math is near strict, fp8 units are not") {
    if (no_gpu()) return;
    const int64_t m = 256, n = 320, k = 16384;
    for (const auto& [domain, bound] :
         {std::pair{Domain::ZeroMean, 1e-6}, std::pair{Domain::Positive, 3e-5}}) {
      const Tensor a8 = values({m, k}, DType::F8E4M3, "e4m3", domain, 1).to(kGpu);
      const Tensor b8 = values({n, k}, DType::F8E4M3, "e4m3", domain, 2).to(kGpu).transpose(0, 1);
      const std::vector<float> strict = Product{a8, b8, Math::Strict}();
      const auto error = [&](Math math) {
        const std::vector<float> got = Product{a8, b8, math}();
        CHECK(got == Product{a8, b8, math}());
        return relative_error(got, strict);
      };
      CAPTURE(bound);
      CHECK(error(Math::Fast) <= bound);
      CHECK(was_used("256 x 320 x 16384", "bf16 tensor cores"));
      const double fp8 = error(Math::Fp8);
      CHECK(was_used("256 x 320 x 16384", "fp8 tensor cores"));
      CHECK(fp8 > bound);
      CHECK(fp8 < 1e-2);
      for (const DType dtype : {DType::F16, DType::F32}) {
        const Tensor a = values({m, k}, dtype, "e4m3", domain, 1).to(kGpu);
        const Tensor b = values({n, k}, dtype, "e4m3", domain, 2).to(kGpu).transpose(0, 1);
        CHECK(relative_error(Product{a, b, Math::Fast, true}(), strict) <= bound);
      }
    }
  }

  TEST_CASE(
      "tf32 units are exact for numbers of tf32, down to its subnormals, and lose bits of others") {
    if (no_gpu()) return;
    const int64_t m = 128, n = 96, k = 256;
    // One product an output: fast must be that product.
    std::vector<float> left(static_cast<size_t>(m * k), 0.0f), right(static_cast<size_t>(k * n));
    for (int64_t i = 0; i < m; ++i) {
      const float significand = 1 + static_cast<float>(i * 8 % 1024 + i % 8) / 1024;
      const int exponent = static_cast<int>(i) - 136;  // 2^−136 is the least subnormal
      left[static_cast<size_t>(i * k + i)] =
          std::ldexp(exponent < -126 ? std::ldexp(1.0f, 0) : significand, exponent);
    }
    for (int64_t i = 0; i < k * n; ++i)
      right[static_cast<size_t>(i)] = 1024 + static_cast<float>(i * 37 % 1024);
    const Tensor a = Tensor::from(left, {m, k}).to(kGpu), b = Tensor::from(right, {k, n}).to(kGpu);
    CHECK(Product{a, b, Math::Fast, true}() == Product{a, b, Math::Strict}());
    CHECK(was_used("128 x 96 x 256", "tf32 tensor cores"));

    const Tensor x = values({m, 2048}, DType::F32, "fp32", Domain::ZeroMean, 3).to(kGpu);
    const Tensor y = values({2048, n}, DType::F32, "fp32", Domain::ZeroMean, 4).to(kGpu);
    const std::vector<float> strict = Product{x, y, Math::Strict}();
    CHECK(relative_error(Product{x, y}(), strict) <= 1e-6);
    CHECK(was_used("128 x 96 x 2048", "fp32"));
    const double lossy = relative_error(Product{x, y, Math::Tf32}(), strict);
    CHECK(lossy > 1e-5);
    CHECK(lossy < 1e-3);
  }

  TEST_CASE("operands of every pair of types, in every layout and at odd sizes") {
    if (no_gpu()) return;
    const std::vector<std::array<int64_t, 3>> shapes = {
        {1, 1, 1}, {3, 5, 7}, {64, 48, 32}, {128, 10, 64}, {33, 130, 61}, {509, 511, 257}};
    for (const auto& [m, n, k] : shapes)
      for (const DType a_type : kFloats)
        for (const DType b_type : kFloats)
          for (int layout = 0; layout < 16; ++layout) {
            if (m > 100 && a_type != b_type && layout % 5 != 0) continue;
            // As it is, transposed, inside a larger matrix, inside a larger one that is transposed.
            const auto make = [](int64_t rows, int64_t columns, DType dtype, int how,
                                 uint64_t seed) {
              const int64_t margin = how >= 2 ? 3 : 0;
              Shape shape = {rows + margin, columns + 2 * margin};
              if (how % 2 == 1) shape = {columns + 2 * margin, rows + margin};
              Tensor t = values(shape, dtype, "fp32", Domain::Halves, seed).to(kGpu);
              if (how % 2 == 1) t = t.transpose(0, 1);
              return t.slice(0, margin, margin + rows).slice(1, margin, margin + columns);
            };
            const Tensor a = make(m, k, a_type, layout % 4, 5),
                         b = make(k, n, b_type, layout / 4, 6);
            const std::vector<float> strict = Product{a, b, Math::Strict}();
            CAPTURE(to_string(a.shape()));
            CAPTURE(n);
            CAPTURE(to_string(a_type));
            CAPTURE(to_string(b_type));
            CAPTURE(layout);
            CHECK(Product{a, b, Math::Fast}() == strict);
            const bool e5m2_twice = a_type == DType::F8E5M2 && b_type == DType::F8E5M2;
            if (!e5m2_twice) CHECK(Product{a, b, Math::Fp8}() == strict);
          }
  }

  TEST_CASE("fp8 units have no product of two e5m2 operands") {
    if (no_gpu()) return;
    const Tensor a = values({32, 32}, DType::F8E5M2, "e5m2", Domain::ZeroMean, 7).to(kGpu);
    CHECK_THROWS_WITH_AS((Product{a, a, Math::Fp8}()), doctest::Contains("e5m2 x e5m2"), Error);
  }

  TEST_CASE("an operand for fp8 units holds the values of one for bf16 units") {
    if (no_gpu()) return;
    const Tensor x = values({48, 64}, DType::F32, "fp32", Domain::ZeroMean, 8).to(kGpu);
    for (const char* name : {"e4m3", "e5m2:sr", "e4m3+scale=current", "e2m3"}) {
      QuantiseUse use;
      use.quantizer = Quantizer::parse(name);
      use.axis = 1;
      const Operand wide = quantised_operand(stream_of(kGpu), x, use, Side::Left);
      use.math = Math::Fp8;
      const Operand narrow = quantised_operand(stream_of(kGpu), x, use, Side::Left);
      CAPTURE(name);
      CHECK(wide.values.dtype() == DType::BF16);
      CHECK(size_of(narrow.values.dtype()) == 1);
      CHECK(wide.values.to_floats() == narrow.values.to_floats());
    }
  }

  TEST_CASE("NaN and Inf come out where strict math has them") {
    if (no_gpu()) return;
    const float inf = std::numeric_limits<float>::infinity();
    for (const DType dtype : kNarrow)
      for (const Math math : {Math::Fast, Math::Fp8}) {
        const Shape a_shape{48, 64}, b_shape{64, 32};
        Tensor a = values(a_shape, dtype, "fp32", Domain::Halves, 9);
        Tensor b = values(b_shape, DType::F8E4M3, "fp32", Domain::Halves, 10);
        void* data = a.mutable_raw();
        store_float(data, dtype, 3 * 64 + 7, std::nanf(""));
        if (dtype != DType::F8E4M3) {
          store_float(data, dtype, 5 * 64 + 9, inf);
          store_float(data, dtype, 6 * 64 + 9, -inf);
        }
        a = a.to(kGpu);
        b = b.to(kGpu);
        const std::vector<float> strict = Product{a, b, Math::Strict}(),
                                 got = Product{a, b, math}();
        int special = 0;
        for (size_t i = 0; i < got.size(); ++i) {
          CHECK(std::isnan(got[i]) == std::isnan(strict[i]));
          if (!std::isnan(strict[i])) CHECK(got[i] == strict[i]);
          special += !std::isfinite(strict[i]);
        }
        CHECK(special >= 32);
      }
  }

  TEST_CASE("no depth: zeros plus the bias, in every math") {
    if (no_gpu()) return;
    const Tensor a = Tensor::zeros({4, 0}, DType::BF16, kGpu),
                 b = Tensor::zeros({0, 3}, DType::BF16, kGpu);
    const Tensor bias = Tensor::from(std::vector<float>{1, -2, 3}, {3}).to(kGpu);
    for (const Math math : {Math::Strict, Math::Fast, Math::Tf32, Math::Fp8}) {
      CHECK(Product{a, b, math}() == std::vector<float>(12, 0.0f));
      CHECK(Product{a, b, math, false, bias}() ==
            std::vector<float>{1, -2, 3, 1, -2, 3, 1, -2, 3, 1, -2, 3});
    }
  }

  TEST_CASE("factors, bias and rounding follow the sums in every math") {
    if (no_gpu()) return;
    const Tensor half = Tensor::from(std::vector<float>{0.5f}, {1}).to(kGpu),
                 eight = Tensor::from(std::vector<float>{8.0f}, {1}).to(kGpu);
    for (const DType dtype : kFloats)
      for (const DType bias_type : {DType::F32, DType::BF16})
        for (int given = 0; given < 16; ++given) {
          Product p;
          p.a = values({48, 64}, dtype, "fp32", Domain::Halves, 11).to(kGpu);
          p.b = values({32, 64}, dtype, "fp32", Domain::Halves, 12).to(kGpu).transpose(0, 1);
          if ((given & 1) != 0) p.a_factor = half;
          if ((given & 2) != 0) p.b_factor = eight;
          if ((given & 4) != 0)
            p.bias = values({32}, bias_type, "fp32", Domain::Halves, 13).to(kGpu);
          if ((given & 8) != 0) p.factor = 0.25;
          const auto with = [&](Math math, const char* output) {
            MatmulArgs args;
            args.a = p.a;
            args.b = p.b;
            args.math = math;
            args.bias = p.bias;
            args.a_factor = p.a_factor;
            args.b_factor = p.b_factor;
            args.factor = p.factor;
            args.output = Quantizer::parse(output);
            args.key.seed = 4;
            args.out = Tensor::empty({48, 32}, storage_type(args.output), kGpu);
            kernels::matmul(stream_of(kGpu), args);
            return args.out.to_floats();
          };
          CAPTURE(to_string(dtype));
          CAPTURE(given);
          for (const char* output : {"fp32", "e4m3:sr", "bf16", "tf32"}) {
            const std::vector<float> strict = with(Math::Strict, output);
            CHECK(with(Math::Fast, output) == strict);
            if (dtype != DType::F8E5M2) CHECK(with(Math::Fp8, output) == strict);
          }
        }
  }

  TEST_CASE(
      "a batch of products has the bits of strict math where no sum is rounded, into bf16 too") {
    if (no_gpu()) return;
    const int64_t count = 6, m = 48, k = 64, n = 40;
    for (const DType dtype : {DType::F32, DType::BF16, DType::F16, DType::F8E4M3})
      for (const bool turn_a : {false, true})
        for (const bool turn_b : {false, true})
          for (const char* output : {"fp32", "bf16", "e4m3", "bf16:rtz"}) {
            BatchedMatmulArgs args;
            args.a = values(turn_a ? Shape{count, k, m} : Shape{count, m, k}, dtype, "fp32",
                            Domain::Halves, 17)
                         .to(kGpu);
            args.b = values(turn_b ? Shape{count, n, k} : Shape{count, k, n}, dtype, "fp32",
                            Domain::Halves, 18)
                         .to(kGpu);
            args.turn_a = turn_a;
            args.turn_b = turn_b;
            args.output = Quantizer::parse(output);
            const auto with = [&](Math math) {
              args.math = math;
              args.out = Tensor::empty({count, m, n}, storage_type(args.output), kGpu);
              kernels::batched_matmul(stream_of(kGpu), args);
              return args.out.to_floats();
            };
            CAPTURE(to_string(dtype));
            CAPTURE(output);
            CHECK(with(Math::Fast) == with(Math::Strict));
          }
  }

#if defined(ULP_HAS_CUDA)
  TEST_CASE("a captured product gives the same bits when the graph runs") {
    if (no_gpu()) return;
    const Stream stream = stream_of(kGpu);
    const auto handle = static_cast<cudaStream_t>(stream.handle);
    MatmulArgs args;
    args.a = values({96, 128}, DType::BF16, "e4m3", Domain::ZeroMean, 14).to(kGpu);
    args.b = values({128, 80}, DType::BF16, "e4m3", Domain::ZeroMean, 15).to(kGpu);
    args.bias = values({80}, DType::F32, "fp32", Domain::ZeroMean, 16).to(kGpu);
    args.out = Tensor::empty({96, 80}, DType::F32, kGpu);
    args.math = Math::Fast;
    kernels::matmul(stream, args);
    const std::vector<float> wanted = args.out.to_floats();
    kernels::fill(stream, {args.out, 7});
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t runs = nullptr;
    ULP_CUDA_CHECK(cudaStreamBeginCapture(handle, cudaStreamCaptureModeThreadLocal));
    kernels::matmul(stream, args);
    ULP_CUDA_CHECK(cudaStreamEndCapture(handle, &graph));
    CHECK(args.out.to_floats() == std::vector<float>(96 * 80, 7.0f));  // captured, not run
    ULP_CUDA_CHECK(cudaGraphInstantiate(&runs, graph, 0));
    ULP_CUDA_CHECK(cudaGraphLaunch(runs, handle));
    CHECK(args.out.to_floats() == wanted);
    ULP_CUDA_CHECK(cudaGraphExecDestroy(runs));
    ULP_CUDA_CHECK(cudaGraphDestroy(graph));
  }
#endif
}

}  // namespace ulp
