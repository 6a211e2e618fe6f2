#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/codes.h"
#include "core/squeeze.h"
#include "kernels/quantised.h"
#include "kernels/squeeze.h"
#include "tests/conformance.h"
#include "tests/kernel_rows.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

std::vector<float> made(const std::vector<float>& x, const Quantizer& quantizer) {
  QuantiseUse use;
  use.quantizer = quantizer;
  return quantised(Stream{}, Tensor::from(x, {static_cast<int64_t>(x.size())}), use).to_floats();
}

/// The definition in double: the paper's α, β and truncation, e5m2 by the library's own rounding.
std::vector<double> expected(const std::vector<float>& x, const Quantizer& element, double top) {
  double sum = 0, most = -std::numeric_limits<double>::infinity();
  int64_t count = 0;
  for (const float v : x)
    if (v != 0) {
      const double l = std::log2(std::fabs(static_cast<double>(v)));
      sum += l;
      most = std::max(most, l);
      ++count;
    }
  const double mean = count > 0 ? sum / static_cast<double>(count) : 0;
  const double alpha = most > mean ? top / (most - mean) : 1, beta = -alpha * mean;
  std::vector<float> squeezed;
  for (const float v : x)
    squeezed.push_back(
        v == 0 ? v
               : std::copysign(static_cast<float>(std::exp2(
                                   alpha * std::log2(std::fabs(static_cast<double>(v))) + beta)),
                               v));
  const std::vector<float> rounded = made(squeezed, element);
  std::vector<double> all;
  for (const float y : rounded)
    all.push_back(
        y == 0 ? 0
               : std::copysign(
                     std::exp2((std::log2(std::fabs(static_cast<double>(y))) - beta) / alpha),
                     static_cast<double>(y)));
  return all;
}

std::vector<float> through(const std::vector<float>& x, const char* format) {
  return made(x, Quantizer::parse(format));
}

}  // namespace

namespace ulp::tests {

void check_squeeze_rows() {
  // Enough elements for several threads; a narrow input and one with holes.
  Tensor x = random_tensor({70001}, -4, 4, 9);
  std::vector<float> values = x.to_floats();
  for (size_t i = 0; i < values.size(); i += 5) values[i] = 0;
  x = Tensor::from(values, {70001});
  Tensor narrow = Tensor::empty(x.shape(), DType::BF16, kCpu);
  kernels::quantise(Stream{}, {x, narrow, Quantizer::parse("bf16"), 0, {}, {}});
  for (const Tensor& in : {x, narrow}) {
    const std::vector<float> read = in.to_floats();
    Tensor before;
    for (const int threads : {1, 3}) {
      const int usual = omp_get_max_threads();
      omp_set_num_threads(threads);
      const Tensor logs = Tensor::empty(x.shape(), DType::F32, kCpu),
                   sum = Tensor::empty({1}, DType::F32, kCpu),
                   out = Tensor::empty(x.shape(), DType::F32, kCpu),
                   totals = empty_squeeze_totals(kCpu);
      kernels::squeeze_logs(Stream{}, {in, logs, totals});
      kernels::sum(Stream{}, {logs, sum, 1, logs.numel(), 1});
      kernels::squeeze(Stream{}, {in, out, sum, totals, 15.0f, false});
      omp_set_num_threads(usual);
      SqueezeTotals seen;
      std::memcpy(&seen, totals.raw(), sizeof seen);
      uint32_t amax = 0;
      uint64_t count = 0;
      for (const float v : read) {
        amax = std::max(amax, bits_of(v) & ~kSignBit);
        count += v != 0 ? 1 : 0;
      }
      CHECK(seen.amax_bits == amax);
      CHECK(seen.count == count);
      CHECK(logs.to_floats()[0] == 0);
      CHECK(logs.to_floats()[1] == log2_of(std::fabs(read[1])));
      if (before.defined()) CHECK(same_bits(before, out));
      before = out;
      // Without rounding between, a squeezed tensor turns back, but for the error of logarithms.
      kernels::squeeze(Stream{}, {out, out, sum, totals, 15.0f, true});
      const std::vector<float> back = out.to_floats();
      for (size_t i = 0; i < read.size(); i += 7)
        if (std::fabs(read[i]) > 0.01f || read[i] == 0)  // squeezed, others may be subnormal
          CHECK(std::fabs(back[i] - read[i]) <= 2e-5f * std::fabs(read[i]));
      kernels::squeeze(Stream{}, {in, out, sum, totals, 15.0f, false});
      before = out;
    }
  }
  const Tensor bytes = Tensor::empty({8}, DType::U8, kCpu),
               one = Tensor::empty({1}, DType::F32, kCpu);
  CHECK_THROWS_WITH_AS(kernels::squeeze_logs(Stream{}, {x, x, bytes}),
                       doctest::Contains("squeeze_logs"), Error);
  CHECK_THROWS_WITH_AS(
      kernels::squeeze(Stream{}, {x, one, one, empty_squeeze_totals(kCpu), 15, false}),
      doctest::Contains("squeeze"), Error);
}

}  // namespace ulp::tests

TEST_SUITE("squeeze") {
  TEST_CASE("log2 and exp2 are those of the C library within their bounds") {
    double worst_log = 0, worst_exp = 0;
    for (uint32_t u = 1; u < kInfinityBits; u += 7919) {
      const float x = float_of(u);
      const double exact = std::log2(static_cast<double>(x));
      worst_log = std::max(worst_log, std::fabs(static_cast<double>(log2_of(x)) - exact));
      CHECK_FALSE(std::isnan(log2_of(x)));
    }
    // Half an ulp of numbers from 128 to 149, 2^-17, and the logarithm's own error.
    CHECK(worst_log <= 0x1p-17 + 0x1p-22);
    for (float t = -126; t < 128; t += 0.0371f) {
      const double exact = std::exp2(static_cast<double>(t));
      worst_exp = std::max(worst_exp, std::fabs(static_cast<double>(exp2_of(t)) / exact - 1));
    }
    CHECK(worst_exp <= 4 * 0x1p-24);
    CHECK(exp2_of(10.0f) == 1024.0f);
    CHECK(exp2_of(-149.0f) == 0x1p-149f);
    CHECK(exp2_of(-200.0f) == 0.0f);
    CHECK(std::isfinite(exp2_of(500.0f)));
    CHECK(std::isnan(exp2_of(float_of(kNanBits))));
    CHECK(log2_of(8.0f) == 3.0f);
    CHECK(log2_of(0x1p-149f) == -149.0f);
  }

  TEST_CASE("values are the paper's: logarithms of mean 0 and largest 15, in e5m2, and back") {
    for (const char* element : {"e5m2", "e4m3", "e3m2"})
      for (const float scale : {1.0f, 1e-9f, 3e7f}) {
        CAPTURE(std::string(element));
        CAPTURE(scale);
        std::vector<float> x = random_tensor({4001}, -1, 1, 3).to_floats();
        for (size_t i = 0; i < x.size(); ++i) x[i] = i % 7 == 0 ? 0.0f : scale * x[i] * x[i] * x[i];
        const double top = std::string(element) == "e5m2"   ? 15
                           : std::string(element) == "e4m3" ? 8
                                                            : 4;
        const std::vector<double> want = expected(x, element, top);
        const std::vector<float> got =
            through(x, (std::string(element) + "+scale=squeeze").c_str());
        // A value beside a midpoint may go either way where the logarithms differ by their rounding: a few in thousands.
        int apart = 0;
        for (size_t i = 0; i < x.size(); ++i) {
          const double difference = std::fabs(static_cast<double>(got[i]) - want[i]);
          if (difference > 4e-5 * std::fabs(want[i])) ++apart;
          CHECK(std::signbit(got[i]) == std::signbit(x[i]));
        }
        CHECK(apart <= 4);
      }
  }

  TEST_CASE("all of fp32, in every rounding, against the definition in double") {
    conformance::Tally tally;
    uint64_t turn = 0;
    for (const char* element : {"e5m2", "e4m3", "e3m2", "e2m3", "e5m2-ftz", "e4m3-nan"})
      for (const char* rounding : conformance::kRoundings)
        for (const int64_t n : {300, 9000}) {
          conformance::TensorCase tensor;
          tensor.shape = {n};
          ++turn;
          tensor.x = conformance::mixed_values(n, turn, turn % 8 == 0);
          tensor.key = {turn, 3, 1, nullptr};
          conformance::compare_squeezed(element, rounding, tensor, tally);
        }
    CHECK(tally.compared == 6 * 11 * 9300);
    CHECK_MESSAGE(tally.bad.count() == 0, tally.bad.first());
  }

  TEST_CASE("the largest magnitude stays; the range follows the tensor") {
    const std::vector<float> tiny = through({1e-30f, -3e-28f, 2e-26f, 0}, "e5m2+scale=squeeze");
    CHECK(tiny[0] > 0);
    CHECK(tiny[1] < 0);
    CHECK(tiny[2] == doctest::Approx(2e-26).epsilon(1e-4));
    CHECK(tiny[3] == 0);
    CHECK(through({1e-30f, -3e-28f, 2e-26f, 0}, "e5m2")[2] == 0);
  }

  TEST_CASE("equal magnitudes, zeros, nothing, Inf and NaN") {
    CHECK(through({0, -0.0f, 0}, "e5m2+scale=squeeze") == std::vector<float>{0, -0.0f, 0});
    for (const float v : through({0.3f, -0.3f, 0.3f}, "e5m2+scale=squeeze"))
      CHECK(std::fabs(v) == doctest::Approx(0.3).epsilon(1e-5));
    CHECK(through({}, "e5m2+scale=squeeze").empty());
    for (const float bad : {float_of(kInfinityBits), float_of(kNanBits)})
      for (const float v : through({1, bad, 0}, "e5m2+scale=squeeze")) CHECK(std::isnan(v));
    CHECK(std::isfinite(through({0x1.fffffep127f, 1}, "e5m2+scale=squeeze")[0]));
  }

  TEST_CASE("stochastic rounding is that of the element, and repeats") {
    const std::vector<float> x = random_tensor({1000}, -1, 1, 5).to_floats();
    const std::vector<float> a = through(x, "e5m2+scale=squeeze:sr"),
                             b = through(x, "e5m2+scale=squeeze:sr"),
                             nearest = through(x, "e5m2+scale=squeeze");
    CHECK(a == b);
    CHECK(a != nearest);
    for (size_t i = 0; i < x.size(); ++i)  // a step of e5m2's normal numbers at most
      if (std::fabs(x[i]) > 0.15f) CHECK(std::fabs(a[i] / x[i] - 1) < 0.25f);
  }

  TEST_CASE("its name is read and written; what cannot be says why") {
    for (const char* name : {"e5m2+scale=squeeze", "e4m3+scale=squeeze:sr"})
      CHECK(to_string(Quantizer::parse(name)) == name);
    const Quantizer q = Quantizer::parse("e5m2+scale=squeeze");
    CHECK(storage_type(q) == DType::F32);
    CHECK(gemm_type(q) == DType::F32);
    CHECK(!q.has_factor());
    CHECK(!q.is_elementwise());
    for (const auto& [name, words] : {std::pair("fixed8.4+scale=squeeze", "is for floats"),
                                      {"posit8.1+scale=squeeze", "is for floats"},
                                      {"e5m2+scale=squeeze+rht16", "goes with no transform"},
                                      {"e5m2-g32+scale=squeeze", "without blocks"}})
      CHECK_THROWS_WITH_AS(Quantizer::parse(name), doctest::Contains(words), Error);
    const Tensor x = Tensor::zeros({4}, DType::F32, kCpu), y = Tensor::empty({4}, DType::F32, kCpu);
    CHECK_THROWS_WITH_AS(kernels::quantise(Stream{}, {x, y, q, 0, {}, {}}),
                         doctest::Contains("squeezed around this kernel"), Error);
  }
}
