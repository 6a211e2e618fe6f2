#include "tools/bench_matmul_cuda.h"

#include <dlfcn.h>
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "core/bits.h"
#include "core/error.h"
#include "core/sum.h"
#include "kernels/matmul_unit.h"
#include "kernels/quantised.h"
#include "tools/bench_cuda.h"
#include "tools/bench_machine.h"

#if defined(ULP_HAS_CUDA)
#include <cublas_v2.h>
#endif

namespace ulp::tools {
namespace {

/// How the operands lie in memory, a (M, K) and b (K, N): NT is a layer's forward pass, NN its dx, TN its dw.
enum class Layout { NN, NT, TN };
constexpr const char* kLayoutNames[] = {"NN", "NT", "TN"};

struct Case {
  MatmulShape shape;
  Layout layout;
  Math math;
  bool quantises = false;  // both operands are fp32 and quantised to e4m3 in the time that counts
};

struct Row {
  Case c;
  std::string unit, algorithm, baseline;
  double seconds, baseline_seconds;
  double ratio() const { return baseline_seconds / seconds; }
  double tflops() const { return c.shape.gflop() / seconds / 1e3; }
};

/// cuBLAS, opened at run time: only this comparison needs it.
class CuBlas {
 public:
  explicit CuBlas(Stream stream);
  CuBlas(const CuBlas&) = delete;
  CuBlas& operator=(const CuBlas&) = delete;

  /// args.out = args.a · args.b on the unit of a type: F32 without tf32, or as `tf32` says, or BF16 tensor cores.
  void operator()(const MatmulArgs& args, bool tf32);

 private:
#if defined(ULP_HAS_CUDA)
  cublasHandle_t handle_ = nullptr;
  using Gemm = cublasStatus_t (*)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int,
                                  int, const void*, const void*, cudaDataType, int, const void*,
                                  cudaDataType, int, const void*, void*, cudaDataType, int,
                                  cublasComputeType_t, cublasGemmAlgo_t);
  Gemm gemm_ = nullptr;
#endif
};

#if defined(ULP_HAS_CUDA)

CuBlas::CuBlas(Stream stream) {
  const std::string name = "libcublas.so." + std::to_string(CUBLAS_VER_MAJOR);
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays open
  ULP_CHECK(library != nullptr, "bench matmul: no {} to compare with; it comes with the toolkit",
            name);
  const auto create =
      reinterpret_cast<decltype(&cublasCreate_v2)>(dlsym(library, "cublasCreate_v2"));
  const auto set_stream =
      reinterpret_cast<decltype(&cublasSetStream_v2)>(dlsym(library, "cublasSetStream_v2"));
  gemm_ = reinterpret_cast<Gemm>(dlsym(library, "cublasGemmEx"));
  ULP_CHECK(
      create != nullptr && set_stream != nullptr && gemm_ != nullptr &&
          create(&handle_) == CUBLAS_STATUS_SUCCESS &&
          set_stream(handle_, static_cast<cudaStream_t>(stream.handle)) == CUBLAS_STATUS_SUCCESS,
      "bench matmul: {} does not start", name);
}

void CuBlas::operator()(const MatmulArgs& args, bool tf32) {
  const auto type = [](const Tensor& t) {
    return t.dtype() == DType::BF16 ? CUDA_R_16BF : CUDA_R_32F;
  };
  const auto by_rows = [](const Tensor& t) { return t.strides()[1] == 1; };
  const auto leading = [&](const Tensor& t) {
    return static_cast<int>(t.strides()[by_rows(t) ? 0 : 1]);
  };
  Tensor out = args.out;
  const float one = 1, zero = 0;
  const int m = static_cast<int>(out.size(0)), n = static_cast<int>(out.size(1));
  const cublasStatus_t status =
      gemm_(handle_, by_rows(args.b) ? CUBLAS_OP_N : CUBLAS_OP_T,
            by_rows(args.a) ? CUBLAS_OP_N : CUBLAS_OP_T, n, m, static_cast<int>(args.a.size(1)),
            &one, args.b.raw(), type(args.b), leading(args.b), args.a.raw(), type(args.a),
            leading(args.a), &zero, out.mutable_raw(), CUDA_R_32F, n,
            tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  ULP_CHECK(status == CUBLAS_STATUS_SUCCESS, "bench matmul: cublasGemmEx failed with status {}",
            static_cast<int>(status));
}

#else

CuBlas::CuBlas(Stream) { throw_error("bench matmul: {}", cuda_missing_reason()); }
void CuBlas::operator()(const MatmulArgs&, bool) {}

#endif

Tensor random_matrix(Stream stream, int64_t rows, int64_t columns, uint64_t seed) {
  const Tensor t = Tensor::empty({rows, columns}, DType::F32, stream.device);
  RandomKey key;
  key.seed = seed;
  kernels::uniform(stream, {t, -4, 4, key});
  return t;
}

/// A matrix (rows, columns) of that layout; `stored` is its memory in row-major order.
struct Matrix {
  Tensor stored;
  bool transposed;
  Tensor view() const { return transposed ? stored.transpose(0, 1) : stored; }
};

Matrix random_operand(Stream stream, int64_t rows, int64_t columns, bool transposed,
                      uint64_t seed) {
  return {transposed ? random_matrix(stream, columns, rows, seed)
                     : random_matrix(stream, rows, columns, seed),
          transposed};
}

Matrix quantised_matrix(Stream stream, const Matrix& matrix, const char* format, Math math) {
  QuantiseUse use;
  use.quantizer = Quantizer::parse(format);
  use.math = math;
  return {quantised_operand(stream, matrix.stored, use, Side::Left).values, matrix.transposed};
}

MatmulArgs product(const Tensor& a, const Tensor& b, Math math) {
  MatmulArgs args;
  args.a = a;
  args.b = b;
  args.out = Tensor::empty({a.size(0), b.size(1)}, DType::F32, a.device());
  args.math = math;
  return args;
}

/// Compares 64 outputs with the order that core/sum.h defines.
void check_strict(Stream stream, const MatmulArgs& args) {
  const Tensor a = kernels::contiguous(stream, args.a).to(kCpu),
               b = kernels::contiguous(stream, args.b).to(kCpu), out = args.out.to(kCpu);
  const int64_t k = a.size(1), n = b.size(1);
  std::mt19937 draw(7);
  for (int sample = 0; sample < 64; ++sample) {
    const int64_t i = draw() % out.size(0), j = draw() % n;
    float total = 0;
    for (int64_t chunk = 0; chunk < k; chunk += kMatmulChunk) {
      float sum = 0;
      for (int64_t p = chunk; p < std::min(k, chunk + kMatmulChunk); ++p)
        sum = std::fma(a.data<float>()[i * k + p], b.data<float>()[p * n + j], sum);
      total = chunk == 0 ? sum : total + sum;
    }
    const float got = out.data<float>()[i * n + j];
    ULP_CHECK(bits_of(got) == bits_of(total),
              "bench matmul: element ({}, {}) is {:.9g}, in strict order it is {:.9g}", i, j, got,
              total);
  }
}

/// Compares the first rows with strict math.
void check_fast(Stream stream, const MatmulArgs& args) {
  const int64_t rows = std::min<int64_t>(256, args.a.size(0));
  MatmulArgs strict = product(args.a.slice(0, 0, rows), args.b, Math::Strict);
  kernels::matmul(stream, strict);
  const std::vector<float> wanted = strict.out.to_floats(),
                           got = args.out.slice(0, 0, rows).to_floats();
  double error = 0, size = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - static_cast<double>(wanted[i]), 2);
    size += std::pow(static_cast<double>(wanted[i]), 2);
  }
  const double bound = args.math == Math::Fast ? 1e-6 : 1e-3;
  ULP_CHECK(error <= bound * bound * size,
            "bench matmul: {} math differs from strict by {:.3g}, relative to the result",
            to_string(args.math), std::sqrt(error / size));
}

class Measurement {
 public:
  Measurement(const CudaTimer& timer, int repeats)
      : timer_(timer),
        stream_(timer.stream()),
        cublas_(stream_),
        repeats_(repeats),
        copy_(copy_bandwidth(timer, int64_t{1} << 29, repeats)) {}

  double copy() const { return copy_; }

  Row operator()(const Case& c) {
    const MatmulShape& s = c.shape;
    const Matrix a = random_operand(stream_, s.m, s.k, c.layout == Layout::TN, 1),
                 b = random_operand(stream_, s.k, s.n, c.layout == Layout::NT, 2);
    const bool narrow = c.math == Math::Fast || c.math == Math::Fp8;
    const auto e4m3 = [&](const Matrix& matrix, Math math) {
      return narrow ? quantised_matrix(stream_, matrix, "e4m3", math) : matrix;
    };
    MatmulArgs args = product(e4m3(a, c.math).view(), e4m3(b, c.math).view(), c.math);
    const size_t units_before = matrix_units_used().size();
    kernels::matmul(stream_, args);
    c.math == Math::Strict ? check_strict(stream_, args) : check_fast(stream_, args);

    Row row{};
    row.c = c;
    row.unit = to_string(matrix_unit(args).unit);
    const std::vector<std::string> units = matrix_units_used();
    if (units.size() > units_before) row.algorithm = units.back();
    const MatmulArgs theirs =
        product(e4m3(a, Math::Fast).view(), e4m3(b, Math::Fast).view(), Math::Strict);
    const bool tf32 = c.math == Math::Tf32;
    row.baseline = narrow ? "cuBLAS bf16" : tf32 ? "cuBLAS tf32" : "cuBLAS fp32";
    CudaTimer::Call ours = [&] { kernels::matmul(stream_, args); };
    if (c.quantises)
      ours = [&] {
        args.a = e4m3(a, c.math).view();
        args.b = e4m3(b, c.math).view();
        kernels::matmul(stream_, args);
      };
    const std::vector<double> seconds =
        timer_.medians({ours, [&] { cublas_(theirs, tf32); }}, repeats_);
    row.seconds = seconds[0];
    row.baseline_seconds = seconds[1];
    if (c.quantises) {  // fp32 read, the operand's type written
      const auto bytes = static_cast<double>((s.m * s.k + s.k * s.n) *
                                             static_cast<int64_t>(4 + size_of(args.a.dtype())));
      row.baseline += " + bytes / copy";
      row.baseline_seconds += bytes / copy_;
    }
    return row;
  }

 private:
  const CudaTimer& timer_;
  Stream stream_;
  CuBlas cublas_;
  int repeats_;
  double copy_;
};

std::vector<Case> cases(const CudaMatmulOptions& options) {
  std::vector<Math> maths;
  for (const std::string& text : options.math) maths.push_back(parse_math(text));
  if (maths.empty()) maths = {Math::Strict, Math::Fast};
  std::vector<Case> all;
  for (const Math math : maths) {
    const bool narrow = math == Math::Fast || math == Math::Fp8;
    std::vector<MatmulShape> shapes = options.shapes;
    if (shapes.empty()) shapes = {{4096, 4096, 4096}};
    if (options.shapes.empty() && math != Math::Strict) shapes.push_back({8192, 8192, 8192});
    for (const MatmulShape& shape : shapes)
      for (const Layout layout : {Layout::NT, Layout::NN, Layout::TN})
        all.push_back({shape, layout, math});
    if (options.shapes.empty() && math == Math::Strict)
      all.push_back({{27, 16, 131072}, Layout::TN, math});
    for (const MatmulShape& shape : shapes)
      if (narrow) all.push_back({shape, Layout::NT, math, true});
  }
  return all;
}

}  // namespace

void bench_matmul_cuda(const CudaMatmulOptions& options) {
  const CudaTimer timer(options.device);
  Measurement measure(timer, options.repeats);
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  std::vector<std::string> algorithms;
  if (!options.json) {
    print_origin(timer.description());
    fmt::print(
        "medians of {} runs in turn with a cold L2; samples of strict results checked bit by bit, "
        "of others against strict; copy {:.0f} GB/s\n",
        options.repeats, measure.copy() / 1e9);
  }
  const char* heading = options.markdown
                            ? "\n| m x n x k | layout | math | unit | ms | TFLOP/s | beside | ms | "
                              "ratio |\n|---|---|---|---|--:|--:|---|--:|--:|\n"
                            : "";
  const char* line = options.markdown
                         ? "| {} | {} | {} | {} | {:.4f} | {:.1f} | {} | {:.4f} | {:.2f} |\n"
                         : "{:<20}{:<4}{:<18}{:<22}{:>9.4f} ms{:>8.1f} TFLOP/s  {:<27}{:>9.4f} "
                           "ms{:>7.2f}\n";
  if (!options.json) fmt::print("{}", heading);
  for (const Case& c : cases(options)) {
    const Row row = measure(c);
    const std::string shape = fmt::format("{} x {} x {}", c.shape.m, c.shape.n, c.shape.k);
    const std::string math = std::string(to_string(c.math)) + (c.quantises ? " with quantise" : "");
    if (!row.algorithm.empty()) algorithms.push_back(row.algorithm);
    if (options.json) {
      json.push_back({{"m", c.shape.m},
                      {"n", c.shape.n},
                      {"k", c.shape.k},
                      {"layout", kLayoutNames[static_cast<size_t>(c.layout)]},
                      {"math", to_string(c.math)},
                      {"with_quantise", c.quantises},
                      {"unit", row.unit},
                      {"algorithm", row.algorithm},
                      {"ms", row.seconds * 1e3},
                      {"tflops", row.tflops()},
                      {"baseline", row.baseline},
                      {"baseline_ms", row.baseline_seconds * 1e3},
                      {"ratio", row.ratio()}});
      continue;
    }
    fmt::print(fmt::runtime(line), shape, kLayoutNames[static_cast<size_t>(c.layout)], math,
               row.unit, row.seconds * 1e3, row.tflops(), row.baseline, row.baseline_seconds * 1e3,
               row.ratio());
    std::fflush(stdout);
  }
  if (options.json) {
    fmt::print("{}\n", json.dump(2));
    return;
  }
  for (const std::string& algorithm : algorithms) fmt::print("{}\n", algorithm);
}

}  // namespace ulp::tools
