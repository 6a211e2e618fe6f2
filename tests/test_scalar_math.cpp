#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/bits.h"
#include "core/divisor.h"
#include "core/scalar_math.h"
#include "core/sum.h"
#include "reference.h"

namespace ulp {
namespace {

using reference::same;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kMax = std::numeric_limits<float>::max();

/// Distance to the exact result in units of the last place of fp32 there. An Inf counts as 2^128, so that overflow is
/// right or wrong by the same measure.
double error_in_ulp(float got, long double exact) {
  if (std::isnan(exact)) return std::isnan(got) ? 0 : HUGE_VAL;
  if (std::isnan(got)) return HUGE_VAL;
  if (std::isinf(exact) && static_cast<float>(exact) == got) return 0;
  const int exponent = exact == 0 ? -126 : std::clamp(std::ilogb(exact), -126, 127);
  const long double bounded = std::clamp(exact, -0x1p128L, 0x1p128L);
  const long double value =
      std::isinf(got) ? std::copysign(0x1p128L, static_cast<long double>(got)) : got;
  return static_cast<double>(std::fabs(value - bounded) / std::ldexp(1.0L, exponent - 23));
}

struct Worst {
  double ulp = 0;
  float at = 0;
};

/// Largest error over bit patterns first, first + stride … last.
template <class Function, class Exact>
Worst worst_error(Function function, Exact exact, uint64_t first, uint64_t last, uint64_t stride) {
  Worst worst;
  const auto steps = static_cast<int64_t>((last - first) / stride + 1);
#pragma omp parallel
  {
    Worst mine;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < steps; ++i) {
      const float x = float_of(static_cast<uint32_t>(first + static_cast<uint64_t>(i) * stride));
      const double error = error_in_ulp(function(x), exact(static_cast<long double>(x)));
      if (error > mine.ulp) mine = {error, x};
    }
#pragma omp critical(ulp_worst_error)
    if (mine.ulp > worst.ulp) worst = mine;
  }
  return worst;
}

/// `bound`: what core/scalar_math.h states. Sweeps all floats at a stride, those between ±from and ±to at a finer one,
/// and `hardest`: the input with the largest error of all 2^32.
template <class Function, class Exact>
void check_error(double bound, Function function, Exact exact, float from, float to,
                 float hardest) {
  Worst worst = worst_error(function, exact, 0, 0xFFFFFFFFu, reference::stride(4093));
  const auto look = [&](uint32_t first, uint32_t last) {
    const Worst found = worst_error(function, exact, first, last, reference::stride(127));
    if (found.ulp > worst.ulp) worst = found;
  };
  for (const uint32_t sign : {0u, kSignBit}) look(bits_of(from) | sign, bits_of(to) | sign);
  look(bits_of(hardest), bits_of(hardest));
  INFO(worst.ulp << " ulp at " << worst.at);
  CHECK(worst.ulp <= bound);
  CHECK(worst.ulp > 0.5);  // a sweep that meets no rounding error has measured nothing
}

/// The order of core/sum.h, read from its comment: whole vectors of partial sums, not loops over lanes.
float sum_by_definition(const std::vector<float>& values) {
  std::vector<float> lanes(64, 0.0f);
  for (size_t i = 0; i < values.size(); ++i) lanes[i % 64] = lanes[i % 64] + values[i];
  while (lanes.size() > 1) {
    std::vector<float> half(lanes.begin(), lanes.begin() + static_cast<int64_t>(lanes.size() / 2));
    for (size_t l = 0; l < half.size(); ++l) half[l] = half[l] + lanes[l + half.size()];
    lanes = half;
  }
  return lanes[0];
}

}  // namespace

TEST_SUITE("scalar_math") {
  const auto exp_f = [](float x) { return exp_of(x); };
  const auto log_f = [](float x) { return log_of(x); };
  const auto tanh_f = [](float x) { return tanh_of(x); };
  const auto erf_f = [](float x) { return erf_of(x); };
  const auto expm1_f = [](float x) { return expm1_of(x); };
  const auto log1p_f = [](float x) { return log1p_of(x); };
  const auto sigmoid_f = [](float x) { return sigmoid_of(x); };

  TEST_CASE("exp is at most 1.06 ulp off") {
    check_error(
        1.06, exp_f, [](long double x) { return std::exp(x); }, 0x1p-10f, 0x1p7f, -0x1.768142p+2f);
  }

  TEST_CASE("log is at most 1 ulp off") {
    check_error(
        1, log_f, [](long double x) { return std::log(x); }, 0.25f, 4.0f, 0x1.693bfap-1f);
  }

  TEST_CASE("tanh is at most 2 ulp off") {
    check_error(
        2, tanh_f, [](long double x) { return std::tanh(x); }, 0x1p-10f, 16.0f, 0x1.43183ap-1f);
  }

  TEST_CASE("erf is at most 2.43 ulp off") {
    check_error(
        2.43, erf_f, [](long double x) { return std::erf(x); }, 0x1p-10f, 8.0f, 0x1.e61c2ap-2f);
  }

  TEST_CASE("expm1 is at most 1.61 ulp off") {
    check_error(
        1.61, expm1_f, [](long double x) { return std::expm1(x); }, 0x1p-10f, 0x1p7f,
        0x1.8e0de2p-2f);
  }

  TEST_CASE("log1p is at most 1.25 ulp off") {
    check_error(
        1.25, log1p_f, [](long double x) { return std::log1p(x); }, 0x1p-10f, 4.0f,
        -0x1.342d4ep-2f);
  }

  TEST_CASE("the sigmoid is at most 2.41 ulp off") {
    check_error(
        2.41, sigmoid_f,
        [](long double x) {
          return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
        },
        0x1p-10f, 0x1p7f, -0x1.0a111ap+2f);
  }

  TEST_CASE("edges of expm1, log1p and the sigmoid") {
    for (const uint32_t bits : {0x7F800001u, 0x7FC00000u, 0xFFC12345u, 0xFFFFFFFFu})
      for (const float y :
           {expm1_of(float_of(bits)), log1p_of(float_of(bits)), sigmoid_of(float_of(bits))})
        CHECK(bits_of(y) == kNanBits);
    for (const float tiny : {0.0f, 0x1p-149f, 0x1p-126f, 0x1p-60f})
      for (const float sign : {1.0f, -1.0f}) {
        CHECK(same(expm1_of(sign * tiny), sign * tiny));
        CHECK(same(log1p_of(sign * tiny), sign * tiny));
        CHECK(same(sigmoid_of(sign * tiny), 0.5f));
      }
    CHECK(same(expm1_of(kInf), kInf));
    CHECK(expm1_of(88.72f) < kInf);
    CHECK(same(expm1_of(88.73f), kInf));
    CHECK(same(log1p_of(kInf), kInf));
    CHECK(same(log1p_of(-1.0f), -kInf));
    for (const float below : {-1.0000001f, -2.0f, -kMax, -kInf})
      CHECK(bits_of(log1p_of(below)) == kNanBits);
    CHECK(same(sigmoid_of(kInf), 1.0f));
    CHECK(same(sigmoid_of(-kInf), 0.0f));
    CHECK(sigmoid_of(-103.97f) == 0x1p-149f);
    int wrong = 0;
    for (uint32_t bits = 0; bits <= kInfinityBits; bits += 1009) {
      const float x = float_of(bits);
      wrong += expm1_of(-x) >= -1 && sigmoid_of(x) >= 0.5f && sigmoid_of(x) <= 1 ? 0 : 1;
      if (x >= 17.33f) wrong += same(expm1_of(-x), -1.0f) && same(sigmoid_of(x), 1.0f) ? 0 : 1;
      if (x >= 103.98f) wrong += same(sigmoid_of(-x), 0.0f) ? 0 : 1;
    }
    CHECK(wrong == 0);
  }

  TEST_CASE("edges: signed zeros, infinities, NaN, subnormals") {
    for (const uint32_t bits : {0x7F800001u, 0x7FC00000u, 0xFFC12345u, 0xFFFFFFFFu})
      for (const float y : {exp_of(float_of(bits)), log_of(float_of(bits)), tanh_of(float_of(bits)),
                            erf_of(float_of(bits))})
        CHECK(bits_of(y) == kNanBits);
    CHECK(same(exp_of(0.0f), 1.0f));
    CHECK(same(exp_of(-0.0f), 1.0f));
    CHECK(same(exp_of(kInf), kInf));
    CHECK(same(exp_of(-kInf), 0.0f));
    CHECK(same(log_of(1.0f), 0.0f));
    CHECK(same(log_of(0.0f), -kInf));
    CHECK(same(log_of(-0.0f), -kInf));
    CHECK(same(log_of(kInf), kInf));
    for (const float below : {-0x1p-149f, -1.0f, -kMax, -kInf})
      CHECK(bits_of(log_of(below)) == kNanBits);
    for (const float sign : {1.0f, -1.0f}) {
      CHECK(same(tanh_of(sign * 0.0f), sign * 0.0f));
      CHECK(same(erf_of(sign * 0.0f), sign * 0.0f));
      CHECK(same(tanh_of(sign * kInf), sign));
      CHECK(same(erf_of(sign * kInf), sign));
      CHECK(same(tanh_of(sign * 0x1p-149f), sign * 0x1p-149f));
      CHECK(same(tanh_of(sign * 0x1p-130f), sign * 0x1p-130f));
    }
  }

  TEST_CASE("odd functions are odd") {
    int wrong = 0;
    for (uint32_t bits = 0; bits < kInfinityBits; bits += 10007) {
      const float x = float_of(bits);
      wrong += same(tanh_of(-x), -tanh_of(x)) ? 0 : 1;
      wrong += same(erf_of(-x), -erf_of(x)) ? 0 : 1;
    }
    CHECK(wrong == 0);
  }

  TEST_CASE("exp overflows and underflows once, where the header says") {
    // ln FLT_MAX = 88.7228…, and e^x rounds to 0 below ln 2^-150 = −103.972….
    CHECK(exp_of(88.72f) < kInf);
    CHECK(exp_of(88.73f) == kInf);
    CHECK(exp_of(-103.97f) == 0x1p-149f);
    CHECK(exp_of(-103.98f) == 0.0f);
    int wrong = 0;
    for (uint32_t bits = bits_of(88.73f); bits <= kInfinityBits; bits += 1009)
      wrong += exp_of(float_of(bits)) == kInf ? 0 : 1;
    for (uint32_t bits = bits_of(103.98f); bits <= kInfinityBits; bits += 1009)
      wrong += same(exp_of(-float_of(bits)), 0.0f) ? 0 : 1;
    for (uint32_t bits = bits_of(88.0f); bits < bits_of(89.0f); ++bits)
      wrong += exp_of(float_of(bits)) <= exp_of(float_of(bits + 1)) ? 0 : 1;
    CHECK(wrong == 0);
  }

  TEST_CASE("tanh and erf never leave [-1, 1] and stay at 1 once they are there") {
    // Beyond these, 1 − f(x) < 2^-25: the nearest float is 1.
    const float tanh_one = 9.1f, erf_one = 4.0f;
    int wrong = 0;
    for (uint32_t bits = 0; bits <= kInfinityBits; bits += 1009) {
      const float x = float_of(bits);
      wrong += tanh_of(x) <= 1 && erf_of(x) <= 1 && tanh_of(x) >= 0 && erf_of(x) >= 0 ? 0 : 1;
      if (x >= tanh_one) wrong += tanh_of(x) == 1.0f ? 0 : 1;
      if (x >= erf_one) wrong += erf_of(x) == 1.0f ? 0 : 1;
    }
    CHECK(wrong == 0);
  }

  TEST_CASE("helpers: fma rounds once, choose and abs work on bits") {
    const float a = 1 + 0x1p-12f;
    CHECK(fma_of(a, a, -(1 + 0x1p-11f)) == 0x1p-24f);
    CHECK(a * a - (1 + 0x1p-11f) == 0.0f);  // no contraction in this build
    CHECK(bits_of(choose(true, -0.0f, 1.0f)) == kSignBit);
    CHECK(bits_of(choose(false, 1.0f, float_of(0x7F812345u))) == 0x7F812345u);
    CHECK(bits_of(abs_of(-0.0f)) == 0);
    CHECK(abs_of(-kInf) == kInf);
  }

  TEST_CASE("quotients by one divisor are those of a division") {
    int64_t wrong = 0;
#pragma omp parallel for reduction(+ : wrong)
    for (int64_t i = 0; i < 512; ++i) {
      // Significands with few bits, near 2, and any; all exponents in turn.
      const auto hash = static_cast<uint32_t>(i) * 2654435761u;
      const uint32_t significand = (i % 3 == 0   ? hash >> 24
                                    : i % 3 == 1 ? ~(hash >> 24)
                                                 : hash >> 9) &
                                   0x7FFFFFu;
      const float by = float_of(static_cast<uint32_t>(127 + i % 24) << 23 | significand);
      const Divisor divisor(by);
      const auto check = [&](float x) { wrong += same(divisor.quotient_of(x), x / by) ? 0 : 1; };
      for (const float x : {0.0f, kLeastDividend, 1.0f}) check(x);
      for (uint32_t k = 0; k < 10000; ++k) {
        const uint32_t word = (static_cast<uint32_t>(i) * 10000u + k) * 2246822519u;
        const uint32_t exponent = (27 + k % 100) << 23;
        check(float_of(exponent | word >> 9));
        // As near to the middle of two floats as a quotient comes, on either side.
        const double middle = 1 + (static_cast<double>(word >> 9) + 0.5) * 0x1p-23;
        const uint32_t near = bits_of(static_cast<float>(middle * by)) & 0x7FFFFFu;
        for (const uint32_t step : {0u, 1u})
          check(float_of(exponent | ((near + step) & 0x7FFFFFu)));
      }
    }
    CHECK(wrong == 0);
  }

  TEST_CASE("wide quotients are those of /, down to the least subnormal and its halves") {
    int64_t wrong = 0, middles = 0;
    for (uint32_t i = 0; i < 300; ++i) {
      const float by = i < 64 ? static_cast<float>(i + 1)
                              : float_of((127 + i % 24) << 23 | (i * 2654435761u >> 9));
      const WideDivisor divisor(by);
      const auto check = [&](float x) { wrong += same(divisor.quotient_of(x), x / by) ? 0 : 1; };
      for (const float x : {0.0f, 1.0f, 0x1p-126f, 0x1p-149f}) check(x);
      for (uint32_t k = 1; k < 3000; ++k) check(float_of(k));  // subnormal, small
      for (uint32_t k = 0; k < 6000; ++k) {
        const uint32_t word = (i * 6000u + k) * 2246822519u;
        check(float_of((word >> 31) != 0 ? word >> 8 & 0x01FFFFFFu : (k % 127) << 23 | word >> 9));
        // What gives a middle of two subnormal numbers, and its neighbours.
        const double middle = (static_cast<double>(word >> 12) + 0.5) * 0x1p-149 * by;
        const auto x = static_cast<float>(middle);
        middles += x == middle ? 1 : 0;
        check(x);
        check(float_of(bits_of(x) + 1));
        check(float_of(bits_of(x) - 1));
      }
    }
    CHECK(wrong == 0);
    CHECK(middles > 1000);
    CHECK(std::isnan(WideDivisor(std::nanf("")).quotient_of(0.5f)));
  }

  TEST_CASE("a chunk is summed in the order that core/sum.h states") {
    for (const int64_t n : {0, 1, 2, 63, 64, 65, 127, 128, 1000, 4095, 4096}) {
      std::vector<float> values(static_cast<size_t>(n));
      for (size_t i = 0; i < values.size(); ++i) {
        const uint32_t w = static_cast<uint32_t>(i) * 2654435761u + 12345u;
        values[i] = float_of((w & 0x807FFFFFu) | (117 + (w >> 23) % 20) << 23);
      }
      const float got =
          sum_chunk<float>(n, [&](int64_t i) { return values[static_cast<size_t>(i)]; });
      INFO("n " << n);
      CHECK(same(got, sum_by_definition(values)));
      double exact = 0, magnitude = 0;
      for (const float value : values) {
        exact += value;
        magnitude += std::fabs(value);
      }
      // Each value passes at most n/64 + 6 additions, each off by at most 2^-24 of its result.
      const double additions = std::ceil(static_cast<double>(n) / 64) + 6;
      CHECK(std::fabs(got - exact) <= additions * 0x1.001p-24 * magnitude);
    }
    CHECK(bits_of(sum_chunk<float>(3, [](int64_t) { return -0.0f; })) == 0);  // lanes start at +0
    CHECK(sum_chunk<double>(4096, [](int64_t i) { return static_cast<double>(i); }) ==
          4096.0 * 4095 / 2);
  }
}

}  // namespace ulp
