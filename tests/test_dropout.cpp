#include <doctest/doctest.h>

#include <cmath>

#include "autograd/dropout.h"
#include "nn/dropout.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

const RandomSite kDropSite(kSite);

std::vector<float> dropped(Run& run, const Tensor& x, double p) {
  Tape tape(run);
  return ops::dropout(tape, tape.constant(x), p, true, {}, kDropSite).value.to_floats();
}

Tensor ones(int64_t n) {
  return Tensor::from(std::vector<float>(static_cast<size_t>(n), 1.0f), {n});
}

}  // namespace

TEST_SUITE("dropout") {
  TEST_CASE("element i is kept where word i of its key reaches p, and scaled") {
    Run run;
    const Tensor x = random_tensor({3, 700}, -2, 2, 5);
    const std::vector<float> in = x.to_floats();
    for (const double p : {0.0, 0.25, 0.5, 0.9}) {
      CAPTURE(p);
      restart_step(run);
      const std::vector<float> y = dropped(run, x, p);
      const RandomSource random({run.seed(), kDropSite.stream("mask"), 0, run.device_state()});
      const auto scale = static_cast<float>(1 / (1 - p));
      for (size_t i = 0; i < y.size(); ++i)
        CHECK(y[i] == (static_cast<double>(random.word(i)) >= p * 0x1p32 ? in[i] * scale : 0.0f));
    }
  }

  TEST_CASE("as many are kept as p says, and neighbours do not know of each other") {
    Run run;
    constexpr int64_t kCount = 1 << 18;
    for (const double p : {0.1, 0.5, 0.8}) {
      CAPTURE(p);
      const std::vector<float> y = dropped(run, ones(kCount), p);
      double kept = 0, both = 0;
      for (size_t i = 0; i < y.size(); ++i) {
        kept += y[i] != 0;
        if (i > 0) both += y[i] != 0 && y[i - 1] != 0;
      }
      const double q = 1 - p, n = kCount;
      // Five standard deviations of a binomial count; that of pairs is below √(3·n·q²·(1 − q²)).
      CHECK(std::abs(kept - n * q) <= 5 * std::sqrt(n * q * p));
      CHECK(std::abs(both - n * q * q) <= 5 * std::sqrt(3 * n * q * q * (1 - q * q)));
    }
  }

  TEST_CASE("the backward pass has the same mask; each use and each step has its own") {
    Run run;
    const Tensor x = ones(4096);
    Tape tape(run);
    const Var in = tape.leaf(x);
    const Var y = ops::dropout(tape, in, 0.5, true, {}, kDropSite);
    const Var again = ops::dropout(tape, y, 0.5, true, {}, kDropSite);
    CHECK(tape.saved_bytes() == 0);
    tape.backward(again, x);
    CHECK(tape.grad(in).to_floats() == again.value.to_floats());  // 4 where both kept it
    CHECK(again.value.to_floats() != y.value.to_floats());
    const std::vector<float> first = y.value.to_floats();
    StepState next = run.state();
    ++next.random_step;
    run.set_state(next);
    CHECK(dropped(run, x, 0.5) != first);
    --next.random_step;
    run.set_state(next);
    CHECK(dropped(run, x, 0.5) == first);  // the same step once more
  }

  TEST_CASE("dropped NaN stays NaN, dropped Inf is 0; kept Inf stays") {
    Run run;
    const float inf = float_of(kInfinityBits);
    std::vector<float> values(600);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = i % 3 == 0 ? float_of(0xFFC00001u) : i % 3 == 1 ? inf : -inf;
    const std::vector<float> y = dropped(run, Tensor::from(values, {600}), 0.5);
    int64_t zeros = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      if (i % 3 == 0) {
        CHECK(bits_of(y[i]) == kNanBits);
      } else {
        CHECK((y[i] == values[i] || bits_of(y[i]) == 0));
        zeros += y[i] == 0;
      }
    }
    CHECK(zeros > 100);
  }

  TEST_CASE("the layer drops in training only, and two layers have masks of their own") {
    Run run;
    nn::Dropout a(0.5), b(0.5);
    a.initialise(run, "a");
    b.initialise(run, "b");
    const Tensor x = random_tensor({64, 8}, 0.5, 1, 1);
    Tape tape(run);
    const Tensor ya = a(tape, tape.constant(x)).value, yb = b(tape, tape.constant(x)).value;
    CHECK(!same_bits(ya, yb));
    const nn::EvaluationMode mode(a);
    CHECK(same_bits(a(tape, tape.constant(x)).value, x));
  }

  TEST_CASE("probabilities out of range are named") {
    Run run;
    Tape tape(run);
    for (const double p : {-0.1, 1.0, 2.0, std::nan("")}) {
      CHECK_THROWS_WITH_AS(ops::dropout(tape, tape.constant(ones(3)), p, true),
                           doctest::Contains("from 0 to below 1"), Error);
      CHECK_THROWS_WITH_AS(nn::Dropout{p}, doctest::Contains("from 0 to below 1"), Error);
    }
    CHECK_THROWS_WITH_AS(ops::dropout(tape, {}, 0.5, true), doctest::Contains("no tensor"), Error);
  }
}
