#include <doctest/doctest.h>

#include <cmath>

#include "autograd/conv.h"
#include "nn/layers.h"
#include "nn/models.h"
#include "nn/policy.h"
#include "nn/wage.h"
#include "nn/weight_scheme.h"
#include "optim/optimizer.h"
#include "tests/op_table.h"

// What WAGE (arXiv 1802.04680) needs beside formats: first weights, masks of clamped values, and its step.

using namespace ulp;
using namespace ulp::tests;

namespace {

/// y, and the gradients of the inputs that are watched, of one op for a fixed cotangent.
template <class Op>
std::vector<Tensor> pass(std::vector<Parameter>& inputs, const Op& op) {
  Run run(kCpu, 7);
  Tape tape(run);
  std::vector<Var> vars;
  for (Parameter& p : inputs) {
    p.grad = {};
    vars.push_back(tape.watch(p));
  }
  const Var y = op(tape, vars);
  std::vector<Tensor> all{y.value};
  tape.backward(y, random_tensor(y.shape(), -1, 1, 5));
  for (const Parameter& p : inputs) all.push_back(p.grad);
  return all;
}

void check_same(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  REQUIRE(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    CAPTURE(i);
    CHECK(same_bits(a[i], b[i]));
  }
}

int64_t zeros_of(const Tensor& t) {
  const std::vector<float> values = t.to_floats();
  return std::count(values.begin(), values.end(), 0.0f);
}

/// One parameter of the paper's update, in plain double, with σ = 1/128: the distance that it moves, in units of σ, is
/// ⌊|g_s|⌋ or one more, the latter with the probability that is left. The word decides at the value itself.
struct PlainStep {
  double value, most;
};
PlainStep plain_step(double w, double g, double amax, double lr, uint32_t word) {
  const double shift = amax == 0 ? 1 : std::exp2(std::round(std::log2(amax)));
  const double moved = static_cast<double>(static_cast<float>(w - lr * (g / shift)));
  const double units = std::abs(moved) * 128, whole = std::floor(units);
  const bool up = static_cast<double>(word) < (units - whole) * 4294967296.0;
  const double rounded = std::min(whole + (up ? 1 : 0), 127.0) / 128;
  return {std::copysign(rounded, moved), std::floor(std::abs(lr * 128 * g / shift)) + 1};
}

}  // namespace

TEST_SUITE("wage") {
  TEST_CASE("bounds of first weights and what products are divided by, by hand") {
    const struct {
      int64_t n;
      double bound, scale;
    } rows[] = {
        {1, std::sqrt(3.0), 1},  // wider than two bits need
        {5, std::sqrt(0.6), 1},  // 0.7746
        {6, 0.75, 1},            // √(3/6) = 0.7071
        // The scales that the authors' log tells of vgg7.
        {27, 0.75, 2},     // 0.75 / 0.3333 = 2.25, log2 1.17
        {1152, 0.75, 16},  // 14.70, 3.88
        {2304, 0.75, 16},  // 20.78, 4.38
        {4608, 0.75, 32},  // 29.39, 4.88
        {8192, 0.75, 32},  // 39.19, 5.29
        {1024, 0.75, 16},  // 13.86, 3.79
    };
    for (const auto& row : rows) {
      CAPTURE(row.n);
      CHECK(nn::wage_bound(row.n) == doctest::Approx(row.bound).epsilon(1e-12));
      CHECK(nn::wage_scale(row.n) == row.scale);
    }
    CHECK_THROWS_AS(nn::wage_bound(0), Error);
    CHECK_THROWS_WITH_AS(nn::parse_weight_scheme("wgae"),
                         doctest::Contains("standard, unit and wage"), Error);
  }

  TEST_CASE("the scheme's weights are uniform within the bound, and its products divided") {
    Run run(kCpu, 3);
    nn::Sequential net;
    net.add<nn::Conv2d>("conv", 16, 32, 3, ops::ConvOptions{.padding = 1});
    net.add<nn::Flatten>("flatten");
    net.add<nn::Linear>("fc", 32 * 16, 10);
    nn::apply_weight_scheme(net, nn::WeightScheme::Wage);
    net.initialise(run);
    for (Parameter* p : net.parameters()) {
      CAPTURE(p->path);
      const std::vector<float> values = p->value.to_floats();
      if (!p->path.ends_with("weight")) {
        for (const float v : values) CHECK(v == 0);
        continue;
      }
      double squares = 0;
      float most = 0;
      for (const float v : values) {
        squares += static_cast<double>(v) * v;
        most = std::max(most, std::abs(v));
      }
      CHECK(most <= 0.75f);
      CHECK(most > 0.74f);
      // The variance of a uniform number is bound²/3, that of its square bound⁴·4/45: six deviations of the mean of n.
      const auto n = static_cast<double>(values.size());
      const double deviation = 0.5625 * std::sqrt(4.0 / 45 / n);
      CHECK(std::abs(squares / n - 0.1875) < 6 * deviation);
    }
    // n = 144: 0.75 / 0.1443 = 5.20, α = 4;  n = 512: 0.75 / 0.0765 = 9.80, α = 8. Powers of two: exact.
    const std::vector<Parameter*> p = net.parameters();
    std::vector<Parameter> inputs{{"x", random_tensor({2, 4, 4, 16}, -1, 1, 11), {}},
                                  {"conv", p[0]->value, {}},
                                  {"fc", p[2]->value, {}}};
    const auto plain = pass(inputs, [](Tape& t, const std::vector<Var>& in) {
      const Var h = ops::conv2d(t, in[0], in[1], {}, {.padding = 1});
      return ops::linear(t, ops::reshape(t, ops::scale(t, h, 0.25), {2, 512}), in[2], {});
    });
    Tape tape(run);
    Parameter x{"x", inputs[0].value, {}};
    const Var y = net(tape, tape.watch(x));
    const std::vector<float> expected = plain[0].to_floats(), got = y.value.to_floats();
    for (size_t i = 0; i < got.size(); ++i) CHECK(got[i] == expected[i] / 8);
    tape.backward(y, random_tensor(y.shape(), -1, 1, 5));
    const auto times = [](const Tensor& t, float factor) {
      std::vector<float> values = t.to_floats();
      for (float& v : values) v *= factor;
      return values;
    };
    // dx = g w / α twice; the weight's gradients lack the division of their own product.
    CHECK(x.grad.to_floats() == times(plain[1], 0.125f));
    CHECK(p[2]->grad.to_floats() == plain[3].to_floats());
    CHECK(p[0]->grad.to_floats() == times(plain[2], 0.125f / 0.25f));
  }

  TEST_CASE("a product's clamp mask is that of a quantizer before it") {
    OpFormats masked = OpFormats::make("fixed8.7-sym", "e5m2");
    masked.weight = masked.weight_dx = Quantizer::parse("fixed2.1-sym");
    masked.grad_input = Quantizer::parse("bf16");
    masked.clamp_mask = true;
    OpFormats plain = masked;
    plain.clamp_mask = false;
    const ops::QuantizeFormats before{"fixed8.7-sym", {}, true};

    std::vector<Parameter> in{{"x", random_tensor({5, 3, 11}, -2, 2, 1), {}},
                              {"w", random_tensor({7, 11}, -1, 1, 2), {}},
                              {"b", random_tensor({7}, -1, 1, 3), {}}};
    const auto own = pass(in, [&](Tape& t, const std::vector<Var>& v) {
      return ops::linear(t, v[0], v[1], v[2], masked);
    });
    check_same(own, pass(in, [&](Tape& t, const std::vector<Var>& v) {
                 return ops::linear(t, ops::quantize(t, v[0], before), v[1], v[2], plain);
               }));
    const int64_t held = zeros_of(own[1]);
    CHECK(held > 50);  // about half of 165
    CHECK(held < 115);

    std::vector<Parameter> images{{"x", random_tensor({2, 6, 5, 4}, -2, 2, 4), {}},
                                  {"w", random_tensor({3, 3, 3, 4}, -1, 1, 5), {}},
                                  {"b", random_tensor({3}, -1, 1, 6), {}}};
    for (const char* input : {"fixed8.7-sym", "fixed4.3-sym:sr", "e2m1", "bfp4-axis3:rtz"}) {
      CAPTURE(std::string(input));
      masked.input = masked.input_dw = plain.input = plain.input_dw = Quantizer::parse(input);
      const RandomSite site("conv"), quantizer("quantizer");
      const auto conv = [&](const OpFormats& f) {
        return pass(images, [&](Tape& t, const std::vector<Var>& v) {
          return ops::conv2d(t, v[0], v[1], v[2], {.padding = 1}, f, site);
        });
      };
      const auto with = conv(masked), without = conv(plain);
      CHECK(same_bits(with[0], without[0]));
      CHECK(same_bits(with[2], without[2]));
      // Where the values themselves lie tells which are clamped: none of a block, whose exponent follows the largest.
      const std::vector<float> x = images[0].value.to_floats(), dx = with[1].to_floats(),
                               all = without[1].to_floats();
      for (size_t i = 0; i < x.size(); ++i) {
        const bool fixed = input[0] == 'f';
        const double most = fixed ? limits_of(masked.input.format).max : 1e9;
        const double step = fixed ? std::exp2(-masked.input.format.fraction_bits) : 0;
        if (std::abs(x[i]) <= most) CHECK(dx[i] == all[i]);
        if (std::abs(x[i]) >= most + step) CHECK(dx[i] == 0);
      }
    }
  }

  TEST_CASE("a clamp mask of a format that has none is refused") {
    std::vector<Parameter> in{{"x", random_tensor({5, 11}, -2, 2, 1), {}},
                              {"w", random_tensor({7, 11}, -1, 1, 2), {}},
                              {"image", random_tensor({2, 4, 4, 3}, -2, 2, 3), {}},
                              {"kernel", random_tensor({5, 3, 3, 3}, -1, 1, 4), {}}};
    const auto refused = [&](const std::string& input, const std::string& why) {
      CAPTURE(input);
      OpFormats f;
      f.input = Quantizer::parse(input);
      f.clamp_mask = true;
      Run run(kCpu, 1);
      Tape tape(run);
      const auto contains = doctest::Contains((input + " " + why).c_str());
      CHECK_THROWS_WITH_AS(ops::linear(tape, tape.watch(in[0]), tape.watch(in[1]), {}, f), contains,
                           Error);
      CHECK_THROWS_WITH_AS(ops::conv2d(tape, tape.watch(in[2]), tape.watch(in[3]), {}, {}, f),
                           contains, Error);
      CHECK_THROWS_WITH_AS(ops::quantize(tape, tape.watch(in[0]), {f.input, {}, true}), contains,
                           Error);
      nn::Sequential net;
      net.add<nn::Linear>("fc1", 8, 4).add<nn::ReLU>("relu").add<nn::Linear>("fc2", 4, 2);
      nn::Policy policy;
      policy.rules.emplace_back();
      policy.rules.back().clamp_mask = true;
      policy.rules.back().origin = "a rule";
      policy.rules.back().roles[0] = f.input;
      REQUIRE(std::string(kRoles[0].name) == "input");
      const std::string whole = "a rule: fc1 (Linear 8 → 4): clamp_mask: input " + input;
      CHECK_THROWS_WITH_AS(nn::check(policy, nn::layers_of(net), 1),
                           doctest::Contains(whole.c_str()), Error);
      // Without a mask there is nothing to refuse.
      policy.rules.back().clamp_mask = false;
      nn::check(policy, nn::layers_of(net), 1);
    };
    refused("fixed8.4-noclamp",
            "has no bounds, so its clamp mask would hold nothing back; leave "
            "-noclamp or the mask out");
    refused("fixed8.4-wrap",
            "has no bounds, so its clamp mask would hold nothing back; leave "
            "-wrap or the mask out");
    OpFormats turned;
    turned.input = turned.weight = Quantizer::parse("e4m3+rht16");
    turned.clamp_mask = true;
    Run run(kCpu, 1);
    Tape tape(run);
    CHECK_THROWS_WITH_AS(ops::linear(tape, tape.watch(in[0]), tape.watch(in[1]), {}, turned),
                         doctest::Contains("e4m3+rht16 rotates; a clamp mask is for the values"),
                         Error);
    // What rounds nothing has nothing to hold back: --recipe wage --forward fp32.
    nn::Sequential net;
    net.add<nn::Linear>("fc1", 8, 4).add<nn::ReLU>("relu").add<nn::Linear>("fc2", 4, 2);
    nn::Policy policy;
    policy.rules.emplace_back();
    policy.rules.back().clamp_mask = true;
    nn::check(policy, nn::layers_of(net), 1);
  }

  TEST_CASE("steps of normalised gradients on an 8-bit grid are the paper's") {
    constexpr double kRate = 0.0625, kSigma = 1.0 / 128;  // 8 in units of the grid
    constexpr int64_t kCount = 3000;
    for (const double size : {1.0, 1e-3, 3e7}) {
      CAPTURE(size);
      Run run(kCpu, 21);
      Parameter matrix{"fc.weight", random_tensor({kCount}, -0.75, 0.75, 1), {}};
      Parameter vector{"fc.bias", random_tensor({5}, -0.5, 0.5, 2), {}};
      optim::OptimizerOptions o;
      o.lr = kRate;
      o.grad_normalisation = GradNormalisation::Shift;
      o.weight = "fixed8.7-sym:sr";
      optim::Optimizer optimizer(run, {&matrix, &vector}, o);
      double lag =
          0;  // Σ of what was moved against what was asked for, in units of σ, away from the ends
      int64_t compared = 0;
      for (uint32_t step = 0; step < 8; ++step) {
        const uint32_t random_step = run.state().random_step;
        std::vector<std::vector<float>> want;
        for (Parameter* p : {&matrix, &vector}) {
          // The bias' gradients are smaller: each parameter has a shift of its own.
          const double bound = size * (p == &matrix ? 1 : 0.01) * (step == 3 ? 0.25 : 1);
          p->grad = random_tensor(p->value.shape(), -bound, bound, 30 + step);
          if (step == 5 && p == &vector) p->grad = Tensor::zeros({5}, DType::F32, kCpu);
          StepState state;
          state.random_step = random_step;
          const RandomSource random({run.seed(), RandomSite(p->path).stream("weight"), 0, &state});
          const std::vector<float> w = p->value.to_floats(), g = p->grad.to_floats();
          float amax = 0;
          for (const float v : g) amax = std::max(amax, std::abs(v));
          want.emplace_back();
          for (size_t i = 0; i < w.size(); ++i) {
            const PlainStep plain =
                plain_step(w[i], g[i], amax, kRate, random.word(static_cast<int64_t>(i)));
            want.back().push_back(static_cast<float>(plain.value));
            const double moved = (plain.value - w[i]) / kSigma;
            CHECK(std::abs(moved) <= plain.most);
            if (std::abs(w[i]) > 0.8) continue;
            const double shift = amax == 0 ? 1 : std::exp2(std::round(std::log2(amax)));
            lag += moved + kRate * (g[i] / shift) / kSigma;
            ++compared;
          }
        }
        optimizer.step();
        CHECK(matrix.value.to_floats() == want[0]);
        CHECK(vector.value.to_floats() == want[1]);
      }
      // Rounding between neighbours deviates by at most half a step of the grid: six deviations of the sum.
      CHECK(std::abs(lag) < 6 * 0.5 * std::sqrt(static_cast<double>(compared)));
    }
  }

  TEST_CASE("gradients with Inf or NaN, formats of gradients, and the order of rounding") {
    const auto stepped = [](std::vector<float> grad, const optim::OptimizerOptions& options) {
      Run run(kCpu, 1);
      const auto n = static_cast<int64_t>(grad.size());
      Parameter p{"p", Tensor::zeros({n}, DType::F32, kCpu), {}};
      optim::OptimizerOptions o = options;
      o.lr = 1;
      o.grad_normalisation = GradNormalisation::Shift;
      optim::Optimizer optimizer(run, {&p}, o);
      p.grad = Tensor::from(grad, {n});
      optimizer.step();
      return p.value.to_floats();
    };
    using Values = std::vector<float>;
    CHECK(stepped({3, -1, 0}, {}) == Values{-0.75f, 0.25f, 0});  // log2 3 = 1.58
    CHECK(stepped({2.5f, -1, 0}, {}) == Values{-1.25f, 0.5f, 0});
    CHECK(stepped({0x1p-149f, 0}, {}) == Values{-0x1p-22f, 0});  // the least shift is 2^-127
    CHECK(stepped({0x1.8p127f}, {}) == Values{-0.75f});
    // 3 · 0.25 = 0.75, log2 −0.42: it becomes 0.75; e2m1 knows 0.5 and 1. Rounded first: 3 · 0.25 / 1.
    CHECK(stepped({3, 1.2f}, {.grad_scaling = 0.25, .grad = "e2m1"}) == Values{-1.0f, -0.5f});
    CHECK(stepped({3, 1.2f},
                  {.grad_scaling = 0.25, .grad_order = GradOrder::QuantiseFirst, .grad = "e2m1"}) ==
          Values{-0.75f, -0.25f});
    for (const float v : stepped({1, NAN, 0}, {})) CHECK(std::isnan(v));
    for (const float v : stepped({1, INFINITY, 0}, {})) CHECK(std::isnan(v));
    CHECK_THROWS_WITH_AS(stepped({1}, {.grad = "bfp8"}),
                         doctest::Contains("take a format without blocks, got bfp8"), Error);
  }
}
