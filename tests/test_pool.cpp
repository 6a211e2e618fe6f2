#include <doctest/doctest.h>

#include <cmath>

#include "autograd/pool.h"
#include "core/sum.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

constexpr float kNan = __builtin_nanf("");

std::vector<float> pooled(const std::vector<float>& values, const Shape& shape,
                          const ops::PoolOptions& o, Tensor* gradient = nullptr) {
  Run run;
  Tape tape(run);
  const Var x = tape.leaf(Tensor::from(values, shape));
  const Var y = ops::max_pool2d(tape, x, o);
  if (gradient != nullptr) {
    std::vector<float> g(static_cast<size_t>(y.value.numel()));
    for (size_t i = 0; i < g.size(); ++i) g[i] = static_cast<float>(i + 1);
    tape.backward(y, Tensor::from(g, y.shape()));
    *gradient = tape.grad(x);
  }
  return y.value.to_floats();
}

}  // namespace

TEST_SUITE("pool") {
  TEST_CASE("of equal values the first gets the gradient, and the first NaN before all numbers") {
    Tensor g;
    CHECK(pooled({1, 2, 2, 2}, {1, 2, 2, 1}, {.kernel = {2, 2}}, &g) == std::vector<float>{2});
    CHECK(g.to_floats() == std::vector<float>{0, 1, 0, 0});
    CHECK(pooled({-0.0f, 0.0f, 0.0f, -0.0f}, {1, 2, 2, 1}, {.kernel = {2, 2}}, &g) ==
          std::vector<float>{0});
    CHECK(g.to_floats() == std::vector<float>{1, 0, 0, 0});
    const float inf = float_of(kInfinityBits);
    CHECK(std::isnan(pooled({inf, kNan, 3, kNan}, {1, 2, 2, 1}, {.kernel = {2, 2}}, &g)[0]));
    CHECK(g.to_floats() == std::vector<float>{0, 1, 0, 0});
    CHECK(pooled({-inf, -inf, -inf, -inf}, {1, 2, 2, 1}, {.kernel = {2, 2}}, &g)[0] == -inf);
    CHECK(g.to_floats() == std::vector<float>{1, 0, 0, 0});
  }

  TEST_CASE("windows that overlap add their gradients; padding never wins") {
    Tensor g;
    // Rows of a 3×3 image, all negative: padding is not zero.
    CHECK(pooled({-5, -4, -3, -2, -1, -6, -7, -8, -9}, {1, 3, 3, 1},
                 {.kernel = {2, 2}, .stride = {1, 1}, .padding = {1, 1}}, &g) ==
          std::vector<float>{-5, -4, -3, -3, -2, -1, -1, -3, -2, -1, -1, -6, -7, -7, -8, -9});
    CHECK(g.to_floats() ==
          std::vector<float>{1, 2, 3 + 4 + 8, 5 + 9, 6 + 7 + 10 + 11, 12, 13 + 14, 15, 16});
  }

  TEST_CASE("how many windows there are") {
    Run run;
    Tape tape(run);
    const auto out = [&](int64_t length, int64_t kernel, int64_t stride, int64_t padding,
                         bool ceil) {
      const Var x = tape.constant(Tensor::zeros({1, length, 1, 2}, DType::F32, kCpu));
      ops::PoolOptions o{.kernel = {kernel, 1}, .stride = {stride, 1}, .padding = {padding, 0}};
      o.ceil = ceil;
      return ops::max_pool2d(tape, x, o).shape()[1];
    };
    CHECK(out(6, 2, 2, 0, false) == 3);
    CHECK(out(7, 2, 2, 0, false) == 3);
    CHECK(out(7, 2, 2, 0, true) == 4);
    CHECK(out(8, 3, 2, 1, false) == 4);
    CHECK(out(8, 3, 2, 1, true) == 5);
    CHECK(out(5, 2, 3, 1, true) == 2);  // the third would begin beyond the input and its padding
    CHECK(out(5, 1, 1, 0, false) == 5);
  }

  TEST_CASE("averages: written out, with both divisors") {
    Run run;
    const Tensor x = random_tensor({2, 5, 4, 3}, -2, 2, 3);
    const std::vector<float> v = x.to_floats();
    for (const bool counted : {true, false}) {
      Tape tape(run);
      ops::PoolOptions o{.kernel = {3, 2}, .stride = {2, 2}, .padding = {1, 1}};
      o.count_padding = counted;
      o.ceil = true;
      const Var y = ops::avg_pool2d(tape, tape.constant(x), o);
      REQUIRE(y.shape() == Shape{2, 3, 3, 3});
      for (int64_t n = 0; n < 2; ++n)
        for (int64_t i = 0; i < 3; ++i)
          for (int64_t j = 0; j < 3; ++j)
            for (int64_t c = 0; c < 3; ++c) {
              float sum = 0;
              int inside = 0, window = 0;
              for (int64_t a = 2 * i - 1; a < 2 * i + 2; ++a)
                for (int64_t b = 2 * j - 1; b < 2 * j + 1; ++b) {
                  window += a < 5 + 1 && b < 4 + 1;
                  if (a < 0 || a >= 5 || b < 0 || b >= 4) continue;
                  ++inside;
                  sum += v[static_cast<size_t>(((n * 5 + a) * 4 + b) * 3 + c)];
                }
              CHECK(y.value.to_floats()[static_cast<size_t>(((n * 3 + i) * 3 + j) * 3 + c)] ==
                    sum / static_cast<float>(counted ? window : inside));
            }
    }
  }

  TEST_CASE("the mean over all places is a strict sum times 1 / n") {
    Run run;
    const Tensor x = random_tensor({1, 80, 70, 1}, -2, 2, 3);  // two chunks
    Tape tape(run);
    Tensor sum = Tensor::empty({}, DType::F32, kCpu);
    kernels::sum(run.stream(), {x, sum, 1, 5600, 1});
    CHECK(ops::global_avg_pool(tape, tape.constant(x)).value.to_floats()[0] ==
          sum.to_floats()[0] * static_cast<float>(1.0 / 5600));
  }

  TEST_CASE("a byte a result is kept for the backward pass of a small window") {
    Run run;
    for (const auto& [kernel, bytes] : {std::pair{2, 1}, std::pair{16, 1}, std::pair{17, 4}}) {
      Tape tape(run);
      const Var x = tape.leaf(Tensor::zeros({1, 34, 34, 3}, DType::F32, kCpu));
      const Var y = ops::max_pool2d(tape, x, {.kernel = {kernel, kernel}});
      CHECK(tape.saved_bytes() == y.value.numel() * bytes);
    }
    Tape tape(run);
    ops::avg_pool2d(tape, tape.leaf(Tensor::zeros({1, 4, 4, 3}, DType::F32, kCpu)), {});
    CHECK(tape.saved_bytes() == 0);
  }

  TEST_CASE("what does not fit is named") {
    Run run;
    Tape tape(run);
    const auto throws = [&](const Shape& shape, const ops::PoolOptions& o, const char* text) {
      CAPTURE(std::string(text));
      CHECK_THROWS_WITH_AS(
          ops::max_pool2d(tape, tape.constant(Tensor::zeros(shape, DType::F32, kCpu)), o),
          doctest::Contains(text), Error);
    };
    throws({2, 3}, {}, "max_pool2d: x must be images (N, H, W, C), got F32 (2, 3)");
    throws({1, 2, 5, 1}, {.kernel = {3, 3}},
           "max_pool2d: a window of 3 with padding 0 does not fit H 2 of x (1, 2, 5, 1)");
    throws({1, 5, 2, 1}, {.kernel = {3, 3}}, "does not fit W 2");
    throws({1, 5, 5, 1}, {.kernel = {2, 2}, .padding = {2, 0}}, "at most half the kernel");
    throws({1, 5, 5, 1}, {.kernel = {0, 2}}, "kernel 0");
    throws({1, 5, 5, 1}, {.kernel = {2, 2}, .stride = {-1, 1}}, "stride -1");
    CHECK_THROWS_WITH_AS(
        ops::global_avg_pool(tape, tape.constant(Tensor::zeros({2, 3}, DType::F32, kCpu))),
        doctest::Contains("global_avg_pool: x must be images (N, H, W, C) or sequences"), Error);
    CHECK_THROWS_WITH_AS(
        ops::avg_pool1d(tape, tape.constant(Tensor::zeros({2, 3}, DType::F32, kCpu)), {}),
        doctest::Contains("avg_pool1d: x must be sequences (N, L, C)"), Error);
  }
}
