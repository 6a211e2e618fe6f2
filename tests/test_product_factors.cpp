#include <doctest/doctest.h>

#include <cmath>

#include "autograd/conv.h"
#include "autograd/recurrent.h"
#include "tests/op_table.h"

// Gradients against finite differences and CPU against GPU: the rows "… with factors" of the op table.

using namespace ulp;
using namespace ulp::tests;

namespace {

/// A product as an op, with the shapes of x, w and b.
struct Case {
  const char* name;
  Shape x, w, b;
  std::function<Var(Tape&, const Var&, const Var&, const Var&, const OpFormats&,
                    const ProductFactors&)>
      build;
};

Case conv_case(const char* name, Shape x, Shape w, const ops::ConvOptions& o) {
  const int64_t outputs = w[0];
  return {
      name,
      x,
      w,
      {outputs},
      [o](Tape& t, const Var& x, const Var& w, const Var& b, const OpFormats& f,
          const ProductFactors& p) { return ops::conv2d(t, x, w, b, o, f, RandomSite(kSite), p); }};
}

std::vector<Case> cases() {
  return {
      {"linear",
       {33, 70},
       {17, 70},
       {17},
       [](Tape& t, const Var& x, const Var& w, const Var& b, const OpFormats& f,
          const ProductFactors& p) { return ops::linear(t, x, w, b, f, RandomSite(kSite), p); }},
      conv_case("conv2d", {2, 7, 6, 16}, {9, 3, 3, 16}, {.padding = 1}),
      conv_case("conv2d of a few channels", {3, 12, 12, 3}, {8, 3, 3, 3}, {.padding = 1}),
      conv_case("conv2d of one pixel", {2, 5, 4, 32}, {48, 1, 1, 32}, {}),
      conv_case("conv2d in groups", {2, 6, 5, 12}, {8, 3, 3, 6}, {.padding = 1, .groups = 2}),
      conv_case("conv2d depthwise", {2, 6, 5, 5}, {10, 3, 3, 1}, {.padding = 1, .groups = 5}),
      {"conv_transpose2d",
       {2, 3, 4, 12},
       {5, 3, 3, 12},
       {5},
       [](Tape& t, const Var& x, const Var& w, const Var& b, const OpFormats& f,
          const ProductFactors& p) {
         return ops::conv_transpose2d(t, x, w, b, {.stride = 2}, f, RandomSite(kSite), p);
       }},
      {"conv1d",
       {2, 11, 3},
       {4, 3, 3},
       {4},
       [](Tape& t, const Var& x, const Var& w, const Var& b, const OpFormats& f,
          const ProductFactors& p) {
         return ops::conv1d(t, x, w, b, {.padding = 1}, f, RandomSite(kSite), p);
       }},
  };
}

struct Results {
  std::vector<float> y, dx, dw, db;
};

enum class Biased : bool { No, Yes };

Results results(const Case& c, const OpFormats& f, const ProductFactors& factors, Biased biased) {
  Run run;
  Tape tape(run);
  const Var x = tape.leaf(random_tensor(c.x, -2, 2, 1)),
            w = tape.leaf(random_tensor(c.w, -2, 2, 2)),
            b = biased == Biased::Yes ? tape.leaf(random_tensor(c.b, -1, 1, 3)) : Var{};
  const Var y = c.build(tape, x, w, b, f, factors);
  tape.backward(y, random_tensor(y.shape(), -1, 1, 4));
  return {y.value.to_floats(), tape.grad(x).to_floats(), tape.grad(w).to_floats(),
          biased == Biased::Yes ? tape.grad(b).to_floats() : std::vector<float>{}};
}

/// x · factor, as products with a factor say.
std::vector<float> times(std::vector<float> x, double factor) {
  for (float& value : x) value = std::fma(value, static_cast<float>(factor), 0.0f);
  return x;
}

/// x (…, N) + b (N).
std::vector<float> plus(std::vector<float> x, const std::vector<float>& b) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += b[i % b.size()];
  return x;
}

}  // namespace

TEST_SUITE("product_factors") {
  TEST_CASE("each multiplies complete sums of one product, once; the bias is added after it") {
    const ProductFactors factors{0.3, -1.7, 12.5, 0.1};
    for (const Case& c : cases()) {
      CAPTURE(std::string(c.name));
      const Results plain = results(c, {}, {}, Biased::Yes), sums = results(c, {}, {}, Biased::No),
                    with = results(c, {}, factors, Biased::Yes);
      CHECK(with.y ==
            plus(times(sums.y, factors.forward), random_tensor(c.b, -1, 1, 3).to_floats()));
      CHECK(with.dx == times(plain.dx, factors.dx));
      CHECK(with.dw == times(plain.dw, factors.dw));
      std::vector<float> db = plain.db;
      for (float& value : db) value *= static_cast<float>(factors.db);
      CHECK(with.db == db);
    }
  }

  TEST_CASE("results are rounded after they are multiplied") {
    OpFormats f;
    f.output = "e4m3:sr";
    f.grad_input = "e5m2:sr";
    f.grad_weight = "bfp6:sr";
    const ProductFactors factors{0.3, 1.7, 0.01, 1};
    for (const Case& c : cases()) {
      CAPTURE(std::string(c.name));
      const Results whole = results(c, {}, factors, Biased::Yes),
                    rounded = results(c, f, factors, Biased::Yes);
      const auto same = [&](const std::vector<float>& got, const std::vector<float>& x,
                            const Shape& shape, const Quantizer& q, const char* role) {
        Run run;
        const Tensor out = Tensor::empty(shape, DType::F32, kCpu);
        kernels::quantise(
            run.stream(),
            {Tensor::from(x, shape), out, q, 1, run.key(RandomSite(kSite).stream(role)), {}});
        CHECK(got == out.to_floats());
      };
      const auto flat = [](const std::vector<float>& x) {
        return Shape{1, static_cast<int64_t>(x.size())};
      };
      same(rounded.y, whole.y, flat(whole.y), f.output, "output");
      same(rounded.dx, whole.dx, flat(whole.dx), f.grad_input, "grad_input");
      same(rounded.dw, whole.dw, flat(whole.dw), f.grad_weight, "grad_weight");
    }
  }

  TEST_CASE("powers of two are exact beside the factors that operands have") {
    const ProductFactors eighth{0.125, 4, 0x1p-10, 0.5};
    for (const char* q : {"fp32", "bf16", "e4m3+scale=current", "nvfp4", "mxfp4+q34",
                          "e4m3-g16-scalef32", "mxfp4+rht16+q34:sr"}) {
      OpFormats f = OpFormats::make(q, q);
      for (const Case& c : cases()) {
        const std::string name = c.name;
        const bool matrix = name == "linear" || name == "conv2d of one pixel";
        const bool blocks =
            f.input.transform.hadamard != 0 || std::string(q).find("-g16") != std::string::npos;
        if (blocks && !matrix) continue;  // windows take neither
        CAPTURE(name);
        CAPTURE(std::string(q));
        const Results plain = results(c, f, {}, Biased::No),
                      with = results(c, f, eighth, Biased::No);
        CHECK(with.y == times(plain.y, eighth.forward));
        CHECK(with.dx == times(plain.dx, eighth.dx));
        CHECK(with.dw == times(plain.dw, eighth.dw));
      }
    }
  }

  TEST_CASE("recurrent layers: each product's own") {
    const auto with = [](const ops::RecurrentFactors& factors) {
      Run run;
      Tape tape(run);
      const Var x = tape.leaf(random_tensor({2, 3, 5}, -1, 1, 1)),
                wi = tape.leaf(random_tensor({16, 5}, -1, 1, 2)),
                wh = tape.leaf(random_tensor({16, 4}, -1, 1, 3)),
                bi = tape.leaf(random_tensor({16}, -1, 1, 4)),
                bh = tape.leaf(random_tensor({16}, -1, 1, 5));
      const Var y = ops::lstm(tape, x, {wi, wh, bi, bh}, {}, {}, {}, factors).y;
      tape.backward(y, random_tensor(y.shape(), -1, 1, 6));
      std::vector<std::vector<float>> all{y.value.to_floats()};
      for (const Var& v : {x, wi, wh, bi, bh}) all.push_back(tape.grad(v).to_floats());
      return all;
    };
    const auto plain = with({});
    const auto own = with({{1, 2, 0.25, 0.5}, {1, 1, 8, 0.125}});
    CHECK(own[0] == plain[0]);
    CHECK(own[1] == times(plain[1], 2));
    CHECK(own[2] == times(plain[2], 0.25));
    CHECK(own[3] == times(plain[3], 8));
    CHECK(own[4] == times(plain[4], 0.5));
    CHECK(own[5] == times(plain[5], 0.125));
    // What goes back through time is multiplied at every step.
    CHECK(with({{}, {1, 0, 1, 1}})[3] != plain[3]);
    CHECK(with({{0.5, 1, 1, 1}, {}})[0] != plain[0]);
    CHECK(with({{}, {0.5, 1, 1, 1}})[0] != plain[0]);
  }
}
