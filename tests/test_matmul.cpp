#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/convert.h"
#include "core/random.h"
#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"
#include "kernels/matmul_unit.h"
#include "reference.h"

namespace ulp {
namespace {

constexpr DType kFloats[] = {DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2};
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Settings {  // restored at the end of a test
  cpu::Isa isa = cpu::current_isa();
  int threads = omp_get_max_threads();
  ~Settings() {
    cpu::set_isa(isa);
    omp_set_num_threads(threads);
  }
};

std::vector<cpu::Isa> every_isa() {
  std::vector<cpu::Isa> all;
  for (const cpu::Isa isa : {cpu::Isa::Portable, cpu::Isa::Avx2, cpu::Isa::Avx512})
    if (cpu::has_isa(isa)) all.push_back(isa);
  return all;
}

int significant_bits(DType dtype) {
  switch (dtype) {
    case DType::BF16: return 8;
    case DType::F16: return 11;
    case DType::F8E4M3: return 4;
    case DType::F8E5M2: return 3;
    default: return 24;
  }
}

/// Values that `dtype` holds exactly, with all its significant bits in use and exponents that differ.
Tensor random_tensor(const Shape& shape, DType dtype, uint32_t seed) {
  std::mt19937 draw(seed);
  const int bits = significant_bits(dtype);
  Tensor t = Tensor::empty(shape, dtype, kCpu);
  void* data = t.mutable_raw();
  for (int64_t i = 0; i < t.numel(); ++i) {
    const auto significand = static_cast<int64_t>(draw() % (1u << bits));
    const int exponent = static_cast<int>(draw() % 4) - bits;
    const double value = std::ldexp(static_cast<double>(significand), exponent);
    store_float(data, dtype, i, static_cast<float>(draw() % 2 == 0 ? value : -value));
  }
  return t;
}

/// The same matrix laid out otherwise: 0 as it is, 1 transposed in memory, 2 a window of a larger one, 3 such a window
/// transposed. Beyond a window lie NaNs.
Tensor with_layout(const Tensor& matrix, int layout) {
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  if (layout == 0) return matrix;
  const int64_t gap = layout > 1 ? 5 : 0;
  Tensor whole = Tensor::empty(
      layout == 2 ? Shape{rows + gap, columns + gap} : Shape{columns + gap, rows + gap},
      matrix.dtype(), kCpu);
  void* beyond = whole.mutable_raw();
  for (int64_t i = 0; i < whole.numel(); ++i) store_float(beyond, matrix.dtype(), i, kNan);
  Tensor view = layout == 2 ? whole : whole.transpose(0, 1);
  if (gap > 0) view = view.slice(0, 2, rows + 2).slice(1, 3, columns + 3);
  const std::vector<float> values = matrix.to_floats();
  void* data = view.mutable_raw();
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      store_float(data, matrix.dtype(), i * view.strides()[0] + j * view.strides()[1],
                  values[static_cast<size_t>(i * columns + j)]);
  return view;
}

/// The defined result, one chain of fma a chunk of 4096, written from the definition.
std::vector<float> strict_product(const Tensor& a, const Tensor& b, const Tensor& bias = {}) {
  const auto m = static_cast<size_t>(a.size(0)), k = static_cast<size_t>(a.size(1)),
             n = static_cast<size_t>(b.size(1));
  const std::vector<float> x = a.to_floats(), y = b.to_floats();
  std::vector<float> out(m * n), chain(n);
  for (size_t i = 0; i < m; ++i) {
    float* total = out.data() + i * n;
    for (size_t p = 0; p < k; ++p) {
      if (p % 4096 == 0) std::fill(chain.begin(), chain.end(), 0.0f);
      for (size_t j = 0; j < n; ++j) chain[j] = std::fma(x[i * k + p], y[p * n + j], chain[j]);
      if (p % 4096 == 4095 || p + 1 == k)
        for (size_t j = 0; j < n; ++j) total[j] = p < 4096 ? chain[j] : total[j] + chain[j];
    }
  }
  if (bias.defined()) {
    const std::vector<float> add = bias.to_floats();
    for (size_t i = 0; i < out.size(); ++i) out[i] += add[i % n];
  }
  return out;
}

MatmulArgs arguments(Tensor a, Tensor b, Tensor bias, Tensor out, Quantizer output = {},
                     RandomKey key = {}) {
  MatmulArgs args;
  args.a = a;
  args.b = b;
  args.bias = bias;
  args.out = out;
  args.output = output;
  args.key = key;
  return args;
}

std::vector<float> product(Tensor a, Tensor b, Tensor bias = {}, Quantizer output = {},
                           RandomKey key = {}) {
  const Tensor out = Tensor::empty({a.size(0), b.size(1)}, DType::F32, kCpu);
  kernels::matmul(Stream{}, arguments(a, b, bias, out, output, key));
  return out.to_floats();
}

/// The index of the first element whose bits differ (NaNs are one), or −1.
int64_t first_difference(const std::vector<float>& x, const std::vector<float>& y) {
  REQUIRE(x.size() == y.size());
  for (size_t i = 0; i < x.size(); ++i)
    if (!reference::same(x[i], y[i])) return static_cast<int64_t>(i);
  return -1;
}

struct Dimensions {
  int64_t m, n, k;
};

TEST_SUITE("matmul") {
  TEST_CASE("every output is one chain of fma a chunk, on every instruction set") {
    const Settings restore;
    const std::vector<Dimensions> shapes = {
        {1, 1, 1},       {1, 3, 17},     {3, 1, 65},    {17, 65, 3},   {65, 17, 1},
        {13, 33, 255},   {14, 32, 256},  {15, 31, 257}, {29, 49, 300}, {129, 47, 70},
        {2, 2100, 3},    {2100, 2, 3},   {5, 9, 4095},  {5, 9, 4096},  {5, 9, 4097},
        {20, 40, 10000}, {1, 70, 10000}, {3, 2, 70000}};
    for (const Dimensions& d : shapes) {
      const Tensor a = random_tensor({d.m, d.k}, DType::F32, 1);
      const Tensor b = random_tensor({d.k, d.n}, DType::F32, 2);
      const std::vector<float> wanted = strict_product(a, b);
      for (const cpu::Isa isa : every_isa()) {
        CAPTURE(d.m);
        CAPTURE(d.n);
        CAPTURE(d.k);
        CAPTURE(cpu::to_string(isa));
        cpu::set_isa(isa);
        CHECK(first_difference(product(a, b), wanted) == -1);
      }
    }
  }

  TEST_CASE("threads, instruction sets and layouts do not show in a large odd product") {
    const Settings restore;
    const Tensor a = random_tensor({259, 1031}, DType::F32, 3);
    const Tensor b = random_tensor({1031, 515}, DType::F32, 4);
    const std::vector<float> wanted = strict_product(a, b);
    for (const cpu::Isa isa : every_isa())
      for (const int threads : {1, 2, 3}) {
        if (isa == cpu::Isa::Portable && threads != 3) continue;  // an fma may be a slow call there
        CAPTURE(cpu::to_string(isa));
        CAPTURE(threads);
        cpu::set_isa(isa);
        omp_set_num_threads(threads);
        CHECK(first_difference(product(a, b), wanted) == -1);
      }
    cpu::set_isa(restore.isa);
    for (int layout_a = 0; layout_a < 4; ++layout_a)
      for (int layout_b = 0; layout_b < 4; ++layout_b) {
        CAPTURE(layout_a);
        CAPTURE(layout_b);
        CHECK(first_difference(product(with_layout(a, layout_a), with_layout(b, layout_b)),
                               wanted) == -1);
      }
  }

  TEST_CASE("long thin products, cut along k, are the same for any number of threads") {
    const Settings restore;
    for (const Dimensions& d : {Dimensions{5, 7, 50000}, Dimensions{40, 70, 20000}}) {
      const Tensor a = random_tensor({d.k, d.m}, DType::F32, 5).transpose(0, 1);
      const Tensor b = random_tensor({d.k, d.n}, DType::F32, 6);
      const std::vector<float> wanted = strict_product(a, b);
      for (const int threads : {1, 2, 3, 8}) {
        CAPTURE(threads);
        omp_set_num_threads(threads);
        CHECK(first_difference(product(a, b), wanted) == -1);
      }
    }
  }

  TEST_CASE("operands of every float type, mixed, in every layout") {
    const Settings restore;
    for (const DType type_a : kFloats)
      for (const DType type_b : kFloats) {
        const Tensor a = random_tensor({37, 75}, type_a, 7), b = random_tensor({75, 43}, type_b, 8);
        const Tensor bias = random_tensor({43}, type_a, 9);
        const std::vector<float> wanted = strict_product(a, b, bias);
        for (const cpu::Isa isa : every_isa())
          for (int layout = 0; layout < 16; ++layout) {
            CAPTURE(to_string(type_a));
            CAPTURE(to_string(type_b));
            CAPTURE(layout);
            cpu::set_isa(isa);
            CHECK(first_difference(
                      product(with_layout(a, layout % 4), with_layout(b, layout / 4), bias),
                      wanted) == -1);
          }
      }
  }

  TEST_CASE(
      "every code of a small type is decoded as core/convert.h does, in both directions of "
      "packing") {
    const Settings restore;
    const Tensor one = Tensor::from(std::vector<float>{1.0f}, {1, 1});
    for (const DType dtype : {DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2}) {
      const int64_t codes = size_of(dtype) == 1 ? 256 : 65536;
      Tensor all = Tensor::empty({codes, 1}, dtype, kCpu);
      void* data = all.mutable_raw();
      for (int64_t i = 0; i < codes; ++i) {
        if (codes == 256)
          static_cast<uint8_t*>(data)[i] = static_cast<uint8_t>(i);
        else
          static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(i);
      }
      std::vector<float> wanted = all.to_floats();
      for (float& x : wanted) x = std::fma(x, 1.0f, 0.0f);  // −0 becomes +0 as it joins the sum
      for (const cpu::Isa isa : every_isa()) {
        CAPTURE(to_string(dtype));
        CAPTURE(cpu::to_string(isa));
        cpu::set_isa(isa);
        CHECK(first_difference(product(all, one), wanted) == -1);
        CHECK(first_difference(product(one, all.transpose(0, 1)), wanted) == -1);
      }
    }
  }

  TEST_CASE("the output quantizer rounds the finished sum, bias included") {
    const Settings restore;
    const int64_t m = 23, n = 71;
    const Tensor a = random_tensor({m, 40}, DType::F32, 10),
                 b = random_tensor({40, n}, DType::F32, 11);
    const Tensor bias = random_tensor({n}, DType::F32, 12);
    const std::vector<float> sums = strict_product(a, b, bias);
    RandomKey key;
    key.seed = 0x123456789ABCDEFull;
    key.stream = fnv1a32("test/output");
    key.ordinal = 3;
    const StepState state{.random_step = 17};
    key.state = &state;
    const RandomSource words(key);
    for (const char* name :
         {"e4m3", "e5m2:sr", "bf16", "fp16:sr", "fixed8.4", "fixed8.4:sr", "e4m3:rtz", "e3m2:ru",
          "e5m2:rd", "e2m3:odd", "e4m3:rna", "e4m3:rnu", "e5m2:sr8"}) {
      const reference::Reference rounded(name);
      std::vector<float> wanted(sums.size());
      for (size_t i = 0; i < sums.size(); ++i) wanted[i] = rounded(sums[i], words.word(i)).value;
      CHECK(first_difference(wanted, sums) != -1);
      for (const cpu::Isa isa : every_isa())
        for (const int threads : {1, 2, 3}) {
          CAPTURE(name);
          CAPTURE(cpu::to_string(isa));
          cpu::set_isa(isa);
          omp_set_num_threads(threads);
          CHECK(first_difference(product(a, b, bias, Quantizer::parse(name), key), wanted) == -1);
        }
    }
  }

  TEST_CASE("random words and bias follow row and column in blocks beyond the first") {
    const Tensor a = random_tensor({3, 8}, DType::F32, 13),
                 b = random_tensor({8, 4100}, DType::F32, 14);
    const Tensor bias = random_tensor({4100}, DType::F32, 20);
    RandomKey key;
    key.seed = 5;
    const std::vector<float> sums = strict_product(a, b, bias);
    const reference::Reference rounded("e4m3:sr");
    std::vector<float> wanted(sums.size());
    for (size_t i = 0; i < sums.size(); ++i)
      wanted[i] = rounded(sums[i], RandomSource(key).word(i)).value;
    CHECK(first_difference(product(a, b, bias, Quantizer::parse("e4m3:sr"), key), wanted) == -1);
  }

  TEST_CASE(
      "NaN, Inf, subnormals and signed zeros follow IEEE; a stored NaN is the canonical one") {
    const Settings restore;
    const float odd_nan = float_of(0xFFA12345u);
    const float tiny = float_of(1), small = 0x1p-75f;
    // Rows of a times columns of b, K = 2: each output is a₀b₀ then a₁b₁.
    const std::vector<float> left = {odd_nan, 1,     kInf,  0,     3e38f, 3e38f,
                                     tiny,    -tiny, small, small, -0.0f, -0.0f};
    const std::vector<float> right = {1, 0, -1, small, 2, kInf, 1, -1, -1, 3, -small, odd_nan};
    const Tensor a = Tensor::from(left, {6, 2}), b = Tensor::from(right, {2, 6});
    const std::vector<float> wanted = strict_product(a, b);
    size_t nans = 0, infinities = 0, subnormals = 0;
    for (const float x : wanted) {
      nans += std::isnan(x);
      infinities += std::isinf(x);
      subnormals += std::fpclassify(x) == FP_SUBNORMAL;
    }
    CHECK(nans > 5);
    CHECK(infinities > 2);
    CHECK(subnormals > 2);
    for (const cpu::Isa isa : every_isa())
      for (const char* output : {"fp32", "bf16"}) {
        CAPTURE(cpu::to_string(isa));
        cpu::set_isa(isa);
        const std::vector<float> got = product(a, b, {}, Quantizer::parse(output));
        for (size_t i = 0; i < got.size(); ++i) {
          CAPTURE(i);
          if (std::isnan(wanted[i])) CHECK(bits_of(got[i]) == kNanBits);
          if (std::string(output) == "fp32" && !std::isnan(wanted[i]))
            CHECK(bits_of(got[i]) == bits_of(wanted[i]));
        }
      }
  }

  TEST_CASE("one NaN in an operand reaches its row or column and nothing else") {
    const Tensor b = random_tensor({20, 35}, DType::F32, 16);
    Tensor a = random_tensor({31, 20}, DType::F32, 15);
    a.mutable_data<float>()[7 * 20 + 19] = kNan;
    const std::vector<float> got = product(a, b);
    for (size_t i = 0; i < got.size(); ++i) CHECK(std::isnan(got[i]) == (i / 35 == 7));
  }

  TEST_CASE("an empty sum is +0 plus the bias; an empty output is left alone") {
    const Tensor none_a = Tensor::zeros({3, 0}, DType::F32, kCpu),
                 none_b = Tensor::zeros({0, 2}, DType::F32, kCpu);
    const Tensor bias = Tensor::from(std::vector<float>{-0.0f, 1.26f}, {2});
    for (const float x : product(none_a, none_b)) CHECK(bits_of(x) == 0);
    CHECK(product(none_a, none_b, bias) == std::vector<float>{0, 1.26f, 0, 1.26f, 0, 1.26f});
    CHECK(product(none_a, none_b, bias, Quantizer::parse("e4m3")) ==
          std::vector<float>{0, 1.25f, 0, 1.25f, 0, 1.25f});
    CHECK(product(Tensor::zeros({0, 4}, DType::F32, kCpu), Tensor::zeros({4, 2}, DType::F32, kCpu))
              .empty());
    CHECK(product(Tensor::zeros({4, 4}, DType::F32, kCpu), Tensor::zeros({4, 0}, DType::F32, kCpu))
              .empty());
    const Tensor no_k = Tensor::zeros({2, 0}, DType::F64, kCpu);
    Tensor out = Tensor::empty({2, 2}, DType::F64, kCpu);
    kernels::matmul(Stream{}, arguments(no_k, no_k.transpose(0, 1), {}, out));
    CHECK(out.to_doubles() == std::vector<double>{0, 0, 0, 0});
  }

  TEST_CASE("nothing is written beside the output") {
    for (const Dimensions& d : {Dimensions{13, 10, 20}, Dimensions{30, 50, 9000}}) {
      Tensor whole = Tensor::zeros({d.m + 2, d.n}, DType::F32, kCpu);
      std::fill_n(whole.mutable_data<float>(), whole.numel(), 77.0f);
      const Tensor a = random_tensor({d.m, d.k}, DType::F32, 17);
      const Tensor b = random_tensor({d.k, d.n}, DType::F32, 18);
      const Tensor out = whole.slice(0, 1, d.m + 1);
      kernels::matmul(Stream{}, arguments(a, b, {}, out));
      CHECK(first_difference(out.to_floats(), strict_product(a, b)) == -1);
      const std::vector<float> all = whole.to_floats();
      for (size_t j = 0; j < static_cast<size_t>(d.n); ++j) {
        CHECK(all[j] == 77.0f);
        CHECK(all[all.size() - 1 - j] == 77.0f);
      }
    }
  }

  TEST_CASE("fp64 stays within its error bound of long double, in every layout") {
    for (const Dimensions& d : {Dimensions{7, 11, 33}, Dimensions{4, 5, 9000}}) {
      std::mt19937 draw(19);
      std::normal_distribution<double> normal;
      const auto values = [&](int64_t count) {
        std::vector<double> v(static_cast<size_t>(count));
        for (double& x : v) x = normal(draw);
        return v;
      };
      const std::vector<double> x = values(d.m * d.k), y = values(d.k * d.n), add = values(d.n);
      const Tensor a = Tensor::from(x, {d.m, d.k}), b = Tensor::from(y, {d.k, d.n}),
                   bias = Tensor::from(add, {d.n});
      std::vector<double> yt(y.size());
      for (int64_t p = 0; p < d.k; ++p)
        for (int64_t j = 0; j < d.n; ++j)
          yt[static_cast<size_t>(j * d.k + p)] = y[static_cast<size_t>(p * d.n + j)];
      const Tensor b_transposed = Tensor::from(yt, {d.n, d.k}).transpose(0, 1);
      Tensor out = Tensor::empty({d.m, d.n}, DType::F64, kCpu),
             again = Tensor::empty({d.m, d.n}, DType::F64, kCpu);
      kernels::matmul(Stream{}, arguments(a, b, bias, out));
      kernels::matmul(Stream{}, arguments(a, b_transposed, bias, again));
      const std::vector<double> got = out.to_doubles();
      CHECK(got == again.to_doubles());
      for (int64_t i = 0; i < d.m; ++i)
        for (int64_t j = 0; j < d.n; ++j) {
          long double sum = static_cast<long double>(add[static_cast<size_t>(j)]),
                      size = std::fabs(sum);
          for (int64_t p = 0; p < d.k; ++p) {
            const long double term = static_cast<long double>(x[static_cast<size_t>(i * d.k + p)]) *
                                     static_cast<long double>(y[static_cast<size_t>(p * d.n + j)]);
            sum += term;
            size += std::fabs(term);
          }
          // Each term goes through at most k + 2 roundings of 2⁻⁵³ (Higham, Accuracy and Stability, §3.1).
          const long double u = static_cast<long double>(d.k + 2) * 0x1p-53L;
          CHECK(std::fabs(static_cast<long double>(got[static_cast<size_t>(i * d.n + j)]) - sum) <=
                u / (1 - u) * size);
        }
    }
  }

  TEST_CASE("factors of whole operands multiply the sum before the bias") {
    const Tensor a = random_tensor({9, 5000}, DType::F32, 21),
                 b = random_tensor({5000, 37}, DType::BF16, 22),
                 bias = random_tensor({37}, DType::F32, 23);
    const float left = 0.3f, right = 1.7f;
    std::vector<float> sums = strict_product(a, b), wanted = sums, biased = sums, one = sums;
    for (size_t i = 0; i < sums.size(); ++i) {
      wanted[i] = std::fma(sums[i], left * right, 0.0f);
      biased[i] = wanted[i] + bias.data<float>()[i % 37];
      one[i] = std::fma(sums[i], right, 0.0f);
    }
    const Tensor out = Tensor::empty({9, 37}, DType::F32, kCpu);
    MatmulArgs args = arguments(a, b, {}, out);
    args.a_factor = Tensor::from(std::vector<float>{left}, {1});
    args.b_factor = Tensor::from(std::vector<float>{right}, {1});
    kernels::matmul(Stream{}, args);
    CHECK(first_difference(out.to_floats(), wanted) == -1);
    args.bias = bias;
    kernels::matmul(Stream{}, args);
    CHECK(first_difference(out.to_floats(), biased) == -1);
    args.bias = {};
    args.a_factor = {};
    kernels::matmul(Stream{}, args);
    CHECK(first_difference(out.to_floats(), one) == -1);
    args.a =
        Tensor::zeros({9, 2}, DType::F32, kCpu);  // −0 becomes +0, as where partial sums are added
    args.b = Tensor::zeros({2, 37}, DType::F32, kCpu);
    args.b_factor = Tensor::from(std::vector<float>{-1.0f}, {1});
    kernels::matmul(Stream{}, args);
    for (const float x : out.to_floats()) CHECK(bits_of(x) == 0);
    args.b_factor = Tensor::from(std::vector<float>{1, 1}, {2});
    CHECK_THROWS_WITH_AS(kernels::matmul(Stream{}, args),
                         doctest::Contains("wanted a tensor of shape (1)"), Error);
  }

  TEST_CASE("the unit of a product is the narrowest one whose products are exact") {
    const auto choice = [](DType a, DType b, Math math, bool tf32 = false, int64_t side = 32) {
      MatmulArgs args;
      args.a = Tensor::zeros({side, 32}, a, kCpu);
      args.b = Tensor::zeros({32, 32}, b, kCpu);
      args.math = math;
      args.fits_tf32 = tf32;
      return matrix_unit(args);
    };
    struct Wanted {
      DType a, b;
      MatrixUnit unit;
      DType reads;
    };
    const DType f32 = DType::F32, bf16 = DType::BF16, f16 = DType::F16, e4m3 = DType::F8E4M3,
                e5m2 = DType::F8E5M2;
    for (const Wanted& w :
         {Wanted{bf16, bf16, MatrixUnit::BF16, bf16}, Wanted{f16, f16, MatrixUnit::F16, f16},
          Wanted{e4m3, e5m2, MatrixUnit::BF16, bf16}, Wanted{e5m2, e5m2, MatrixUnit::BF16, bf16},
          Wanted{bf16, e4m3, MatrixUnit::BF16, bf16}, Wanted{f16, e5m2, MatrixUnit::F16, f16},
          Wanted{bf16, f16, MatrixUnit::Tf32, f32}, Wanted{f32, f32, MatrixUnit::Fp32, f32},
          Wanted{f32, bf16, MatrixUnit::Fp32, f32}, Wanted{f32, e5m2, MatrixUnit::Fp32, f32}})
      for (const bool turned : {false, true}) {
        CAPTURE(to_string(w.a));
        CAPTURE(to_string(w.b));
        const DType a = turned ? w.b : w.a, b = turned ? w.a : w.b;
        CHECK(choice(a, b, Math::Strict).unit == MatrixUnit::Strict);
        for (const Math math : {Math::Fast, Math::Tf32}) {
          const bool widened = math == Math::Tf32 && w.unit == MatrixUnit::Fp32;
          const UnitChoice got = choice(a, b, math);
          CHECK(got.unit == (widened ? MatrixUnit::Tf32 : w.unit));
          CHECK(got.a == w.reads);
          CHECK(got.b == w.reads);
        }
        if (w.unit == MatrixUnit::Fp32)
          CHECK(choice(a, b, Math::Fast, true).unit == MatrixUnit::Tf32);
      }
    for (const auto& [a, b] : {std::pair{e4m3, e4m3}, {e4m3, e5m2}, {e5m2, e4m3}}) {
      const UnitChoice got = choice(a, b, Math::Fp8);
      CHECK(got.unit == MatrixUnit::Fp8);
      CHECK(got.a == a);
      CHECK(got.b == b);
      CHECK(choice(a, b, Math::Fp8, false, 24).unit == MatrixUnit::BF16);  // sides the units lack
    }
    CHECK(choice(e4m3, bf16, Math::Fp8).unit == MatrixUnit::BF16);
    CHECK(choice(f32, f32, Math::Fp8).unit == MatrixUnit::Fp32);
    CHECK_THROWS_WITH_AS(choice(e5m2, e5m2, Math::Fp8), doctest::Contains("e5m2 x e5m2"), Error);
  }

  TEST_CASE("quantizers say what a matrix unit can read") {
    for (const char* name : {"tf32", "fp16", "e4m3", "fixed11.20", "bfp12", "posit8.1",
                             "e2m1-g16-scalee4m3", "e8m10", "e4m3+scale=current"})
      CHECK_MESSAGE(fits_tf32(name), name);
    for (const char* name : {"fp32", "e8m11", "fixed16.8", "bfp13", "posit16.1", "e4m9-g32"})
      CHECK_MESSAGE(!fits_tf32(name), name);
    CHECK(operand_type("e4m3", Math::Fast) == DType::BF16);
    CHECK(operand_type("e4m3", Math::Fp8) == DType::F8E4M3);
    CHECK(operand_type("e2m3+scale=current", Math::Fp8) == DType::F8E4M3);
    CHECK(operand_type("e5m2", Math::Fp8) == DType::F8E5M2);
    CHECK(operand_type("mxfp8", Math::Fp8) == DType::BF16);
    CHECK(operand_type("fp16", Math::Fp8) == DType::F16);
    for (const Math math : {Math::Strict, Math::Fast, Math::Tf32, Math::Fp8})
      CHECK(parse_math(to_string(math)) == math);
    CHECK_THROWS_WITH_AS(parse_math("quick"), doctest::Contains("strict, fast, tf32 or fp8"),
                         Error);
  }

  TEST_CASE("wrong arguments are named") {
    const auto f32 = [](const Shape& shape) { return Tensor::zeros(shape, DType::F32, kCpu); };
    const auto message = [](const MatmulArgs& args) {
      try {
        kernels::matmul(Stream{}, args);
      } catch (const Error& error) {
        return std::string(error.what());
      }
      return std::string("no error");
    };
    const Tensor a = f32({2, 3}), b = f32({3, 4}), out = f32({2, 4});
    CHECK(message(arguments(a, b, {}, out)) == "no error");
    CHECK(message(arguments(f32({6}), b, {}, out))
              .starts_with("matmul: a must be (M, K), got F32 (6)"));
    CHECK(message(arguments(a, {}, {}, out)) == "matmul: b must be (K, N), got no tensor");
    CHECK(message(arguments(a, f32({4, 4}), {}, out))
              .starts_with("matmul: a (M, K) and b (K, N) must share K"));
    CHECK(message(arguments(a, b, {}, f32({4, 2})))
              .starts_with("matmul: wanted a tensor of shape (2, 4)"));
    CHECK(message(arguments(a, b, {}, f32({4, 2}).transpose(0, 1)))
              .starts_with("matmul: wanted a contiguous"));
    CHECK(message(arguments(a, b, {}, Tensor::zeros({2, 4}, DType::BF16, kCpu)))
              .starts_with("matmul: out must be a float"));
    CHECK(message(arguments(a, b, f32({3}), out)).starts_with("matmul: bias must be (4)"));
    CHECK(message(arguments(a, Tensor::zeros({3, 4}, DType::I32, kCpu), {}, out)).find("b I32") !=
          std::string::npos);
    CHECK(message(arguments(a, Tensor::zeros({3, 4}, DType::F64, kCpu), {}, out))
              .find("or all F64") != std::string::npos);
    MatmulArgs args = arguments(a, b, {}, out);
    args.math = Math::Fast;
    CHECK(message(args).find("fast math needs CUDA") != std::string::npos);
    args.math = Math::Strict;
    args.output = Quantizer::parse("bfp8");
    CHECK(message(args).find("element by element") != std::string::npos);
    const auto f64 = [](const Shape& shape) { return Tensor::zeros(shape, DType::F64, kCpu); };
    CHECK(message(arguments(f64({2, 3}), f64({3, 4}), {}, f64({2, 4}), Quantizer::parse("e4m3")))
              .find("F64 results are not rounded") != std::string::npos);
  }
}

}  // namespace
}  // namespace ulp
