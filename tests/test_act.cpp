#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>

#include "autograd/activations.h"
#include "autograd/losses.h"
#include "autograd/shape_ops.h"
#include "autograd/step_graph.h"
#include "core/scalar_math.h"
#include "core/sum.h"
#include "kernels/losses.h"
#include "kernels/place.h"
#include "nn/activations.h"
#include "nn/linear.h"
#include "nn/losses.h"
#include "nn/sequential.h"
#include "nn/shape_layers.h"
#include "optim/optimizer.h"
#include "tests/op_table.h"
#include "tests/paths.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNan = float_of(kNanBits);

Tensor vector_of(const std::vector<float>& values) {
  return Tensor::from(values, {static_cast<int64_t>(values.size())});
}

struct Result {
  std::vector<float> y, dx;
};
/// f and its gradient for a gradient of ones.
Result at(const std::vector<float>& x, const std::function<Var(Tape&, const Var&)>& f) {
  Run run;
  Tape tape(run);
  const Var in = tape.leaf(vector_of(x));
  const Var y = f(tape, in);
  tape.backward(y, vector_of(std::vector<float>(x.size(), 1.0f)));
  return {y.value.to_floats(), tape.grad(in).to_floats()};
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (bits_of(a[i]) != bits_of(b[i])) return false;
  return true;
}

/// A draw of a role's stream.
uint32_t draw(const Run& run, const char* role, uint32_t ordinal, int64_t index) {
  return RandomSource({run.seed(), RandomSite(kSite).stream(role), ordinal, run.device_state()})
      .word(static_cast<uint64_t>(index));
}

// ---- fixtures --------------------------------------------------------------------------------------------------------

struct Fixture {
  std::string name;
  std::vector<Tensor> inputs, grads;  // F64
  Tensor out, seed;
};

Tensor tensor_of(std::istringstream& words) {
  std::vector<int64_t> extents;
  std::string word;
  while (words >> word && word != ":") extents.push_back(std::stoll(word));
  std::vector<double> values;
  for (double v = 0; words >> v;) values.push_back(v);
  return Tensor::from(values, Shape(std::span<const int64_t>(extents)));
}

std::vector<Fixture> fixtures() {
  std::ifstream file(std::string(paths::kTestData) + "/act.txt");
  std::vector<Fixture> all;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string kind;
    words >> kind >> std::ws;
    if (kind == "case") {
      all.emplace_back();
      std::getline(words, all.back().name);
      continue;
    }
    const Tensor t = tensor_of(words);
    if (kind == "in") all.back().inputs.push_back(t);
    if (kind == "out") all.back().out = t;
    if (kind == "seed") all.back().seed = t;
    if (kind == "grad") all.back().grads.push_back(t);
  }
  return all;
}

Tensor labels_of(const Var& x) {
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < x.shape()[0]; ++i)
    labels.push_back(static_cast<int32_t>(i * 7 % x.shape()[1]));
  return Tensor::from(labels, {x.shape()[0]});
}

using Inputs = std::span<const Var>;
using Op = std::function<Var(Tape&, Inputs)>;
using Scalars = std::vector<double>;

/// By the first word of a fixture's name; the numbers after it are the op's scalars.
Var call(const std::string& op, const Scalars& s, Tape& t, Inputs in) {
  const Var& x = in[0];
  if (op == "relu6") return ops::relu6(t, x);
  if (op == "leaky_relu") return ops::leaky_relu(t, x, s.at(0));
  if (op == "elu") return ops::elu(t, x, s.at(0));
  if (op == "hardtanh") return ops::hardtanh(t, x, s.at(0), s.at(1));
  if (op == "clip") return ops::clip(t, x, s.at(0), s.at(1));
  if (op == "sigmoid") return ops::sigmoid(t, x);
  if (op == "tanh") return ops::tanh(t, x);
  if (op == "silu") return ops::silu(t, x);
  if (op == "softplus") return ops::softplus(t, x, s.at(0), s.at(1));
  if (op == "softmax") return ops::softmax(t, x);
  if (op == "log_softmax") return ops::log_softmax(t, x);
  if (op == "cross_entropy") return ops::cross_entropy(t, x, labels_of(x), s.at(0));
  if (op == "nll") return ops::nll(t, x, labels_of(x));
  if (op == "sum_of_squares") return ops::sum_of_squares(t, x, labels_of(x));
  if (op == "mse") return ops::mse(t, x, in[1]);
  if (op == "l1") return ops::l1(t, x, in[1]);
  if (op == "smooth_l1") return ops::smooth_l1(t, x, in[1], s.at(0));
  if (op == "huber") return ops::huber(t, x, in[1], s.at(0));
  if (op == "bce_with_logits") return ops::bce_with_logits(t, x, in[1]);
  if (op == "kl_divergence") return ops::kl_divergence(t, x, in[1]);
  if (op == "pad") return ops::pad(t, x, {{0, 0}, {2, 1}, {3, 4}, {1, 0}}, -0.5);
  if (op == "concat") return ops::concat(t, in, 1);
  if (op == "slice") return ops::slice(t, ops::slice(t, x, 1, 1, 3), 2, 0, 4, 3);
  if (op == "transpose") return ops::transpose(t, x, 1, 3);
  if (op == "permute") return ops::permute(t, x, {2, 0, 3, 1});
  if (op == "flatten") return ops::flatten(t, x);
  if (op == "residual") return ops::add(t, ops::relu6(t, x), ops::tanh(t, x));
  throw_error("no op for the fixture {}", op);
}

Var call(const std::string& name, Tape& t, Inputs in) {
  std::istringstream words(name.substr(0, name.find(',')));
  std::string op;
  words >> op;
  Scalars scalars;
  for (double v = 0; words >> v;) scalars.push_back(v);
  return call(op, scalars, t, in);
}

Tensor as(const Tensor& t, DType dtype) {
  if (dtype == DType::F64) return t;
  return Tensor::from(t.to_floats(), t.shape());
}

/// max|Δ| ≤ bound·max|ref|, and half a unit of the fixture's tenth decimal.
void check_near(const Tensor& got, const Tensor& wanted, double bound) {
  REQUIRE(got.shape() == wanted.shape());
  const std::vector<double> a = got.to_doubles(), b = wanted.to_doubles();
  double most = 0, difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    most = std::max(most, std::abs(b[i]));
    difference = a[i] == a[i] ? std::max(difference, std::abs(a[i] - b[i])) : HUGE_VAL;
  }
  CHECK(difference <= bound * most + 0.5e-10);
}

}  // namespace

TEST_SUITE("act") {
  TEST_CASE("what PyTorch computes in fp64, by tests/fixtures/make_act.py") {
    Run run;
    const std::vector<Fixture> all = fixtures();
    REQUIRE(all.size() == 51);
    for (const Fixture& f : all)
      for (const DType dtype : {DType::F32, DType::F64}) {
        CAPTURE(f.name);
        CAPTURE(std::string(to_string(dtype)));
        Tape tape(run);
        std::vector<Var> in;
        for (const Tensor& x : f.inputs)
          in.push_back(in.size() < f.grads.size() ? tape.leaf(as(x, dtype))
                                                  : tape.constant(as(x, dtype)));
        const Var y = call(f.name, tape, in);
        const double bound = dtype == DType::F64 ? 1e-9 : 1e-5;
        check_near(y.value, f.out, bound);
        tape.backward(y, as(f.seed, dtype));
        for (size_t k = 0; k < f.grads.size(); ++k) check_near(tape.grad(in[k]), f.grads[k], bound);
      }
  }

  TEST_CASE("extreme inputs: no activation overflows, all tails are right") {
    const std::vector<float> x = {-kInf, -1000, -100, -0.0f, 0, 100, 1000, kInf, kNan};
    const auto tail = [](double v) { return static_cast<float>(v); };
    const Result sigmoid = at(x, [](Tape& t, const Var& v) { return ops::sigmoid(t, v); });
    CHECK(same(sigmoid.y, {0, 0, sigmoid_of(-100.0f), 0.5f, 0.5f, 1, 1, 1, kNan}));
    CHECK(std::abs(sigmoid.y[2] - tail(std::exp(-100.0))) <= 0x1p-149f);
    CHECK(same(sigmoid.dx, {0, 0, sigmoid.y[2], 0.25f, 0.25f, sigmoid.y[2], 0, 0, kNan}));
    const Result tanh = at(x, [](Tape& t, const Var& v) { return ops::tanh(t, v); });
    CHECK(same(tanh.y, {-1, -1, -1, -0.0f, 0, 1, 1, 1, kNan}));
    CHECK(same(tanh.dx, {0, 0, 0, 1, 1, 0, 0, 0, kNan}));
    const Result silu = at(x, [](Tape& t, const Var& v) { return ops::silu(t, v); });
    CHECK(same(silu.y, {0, 0, -100 * sigmoid.y[2], -0.0f, 0, 100, 1000, kInf, kNan}));
    CHECK(silu.dx[0] == 0);
    CHECK(silu.dx[1] == 0);
    CHECK(silu.dx[6] == 1);
    CHECK(silu.dx[7] == 1);
    const Result softplus = at(x, [](Tape& t, const Var& v) { return ops::softplus(t, v); });
    CHECK(same(softplus.y,
               {0, 0, sigmoid.y[2], log1p_of(1.0f), log1p_of(1.0f), 100, 1000, kInf, kNan}));
    CHECK(same(softplus.dx, {0, 0, sigmoid.y[2], 0.5f, 0.5f, 1, 1, 1, kNan}));
    // Without a threshold worth the name it is the same function.
    const Result all = at(x, [](Tape& t, const Var& v) { return ops::softplus(t, v, 1, 1e30); });
    CHECK(same(all.y, softplus.y));
    CHECK(same(all.dx, softplus.dx));
    const Result elu = at(x, [](Tape& t, const Var& v) { return ops::elu(t, v, 2); });
    CHECK(same(elu.y, {-2, -2, -2, -0.0f, 0, 100, 1000, kInf, kNan}));
    CHECK(elu.dx[1] == 0);
    CHECK(elu.dx[4] == 2);
    CHECK(elu.dx[5] == 1);
  }

  TEST_CASE("bounds and kinks pass the gradient as PyTorch does") {
    const std::vector<float> x = {-3, -1, 0, 0.5f, 2, 7, kNan};
    const Result hard = at(x, [](Tape& t, const Var& v) { return ops::hardtanh(t, v, -1, 2); });
    CHECK(same(hard.y, {-1, -1, 0, 0.5f, 2, 2, kNan}));
    CHECK(same(hard.dx, {0, 0, 1, 1, 0, 0, 1}));
    const Result clip = at(x, [](Tape& t, const Var& v) { return ops::clip(t, v, -1, 2); });
    CHECK(same(clip.y, hard.y));
    CHECK(same(clip.dx, hard.dx));
    const Result open = at(x, [](Tape& t, const Var& v) { return ops::clip(t, v, 0, INFINITY); });
    CHECK(same(open.y, {0, 0, 0, 0.5f, 2, 7, kNan}));
    CHECK(same(open.dx, {0, 0, 0, 1, 1, 1, 1}));
    const Result relu6 =
        at({-0.0f, 0, 6, 5.5f, 9}, [](Tape& t, const Var& v) { return ops::relu6(t, v); });
    CHECK(same(relu6.y, {0, 0, 6, 5.5f, 6}));
    CHECK(same(relu6.dx, {0, 0, 0, 1, 0}));
    const Result leaky =
        at({-4, 0, 4, -kInf}, [](Tape& t, const Var& v) { return ops::leaky_relu(t, v, 0.25); });
    CHECK(same(leaky.y, {-1, 0, 4, -kInf}));
    CHECK(same(leaky.dx, {0.25f, 0.25f, 1, 0.25f}));
  }

  TEST_CASE("softmax: sums of 1, rows that hold NaN or +Inf are NaN, interior rounds every step") {
    Run run;
    Tape tape(run);
    const Tensor rows = Tensor::from(
        std::vector<float>{1, 2, 3, -1000, 0, 1000, kNan, 0, 0, kInf, 0, 0, -kInf, 0, 0}, {5, 3});
    const std::vector<float> y = ops::softmax(tape, tape.constant(rows)).value.to_floats();
    CHECK(std::abs(y[0] + y[1] + y[2] - 1) < 1e-6);
    CHECK(same({y.begin() + 3, y.begin() + 6}, {0, 0, 1}));
    CHECK(same({y.begin() + 6, y.begin() + 12}, std::vector<float>(6, kNan)));
    CHECK(same({y.begin() + 12, y.end()}, {0, 0.5f, 0.5f}));

    OpFormats f;
    f.interior = Quantizer::parse("e5m2:sr");
    const Tensor x = random_tensor({5, 7}, -4, 4, 12);
    restart_step(run);
    const std::vector<float> got =
        ops::softmax(tape, tape.constant(x), f, RandomSite(kSite)).value.to_floats();
    const std::vector<float> in = x.to_floats();
    const Grid grid = make_grid(f.interior);
    for (size_t n = 0; n < 5; ++n) {
      const float most = *std::max_element(in.begin() + static_cast<int64_t>(n * 7),
                                           in.begin() + static_cast<int64_t>(n * 7 + 7));
      float lanes[64] = {}, e[7];
      for (size_t j = 0; j < 7; ++j) {
        const auto i = static_cast<int64_t>(n * 7 + j);
        const float d = quantise_value(in[n * 7 + j] - most, grid, draw(run, "interior", 0, i));
        e[j] = lanes[j] = quantise_value(exp_of(d), grid, draw(run, "interior", 1, i));
      }
      const float sum =
          quantise_value(sum_lanes(lanes), grid, draw(run, "interior", 2, static_cast<int64_t>(n)));
      for (size_t j = 0; j < 7; ++j) CHECK(got[n * 7 + j] == e[j] / sum);
    }
  }

  TEST_CASE(
      "cross-entropy without smoothing keeps its bits; with it, it is the blend of two losses") {
    Run run;
    const Tensor x = random_tensor({33, 10}, -5, 5, 3);
    OpFormats f;
    f.interior = Quantizer::parse("e6m9:sr");
    f.grad_input = Quantizer::parse("e5m2:sr");
    const auto pass = [&](const std::function<Var(Tape&, const Var&, const Tensor&)>& loss) {
      restart_step(run);
      Tape tape(run);
      const Var in = tape.leaf(x);
      const Var y = loss(tape, in, labels_of(in));
      tape.backward(y);
      return Pass{y.value, {tape.grad(in)}};
    };
    CHECK(same_bits(pass([&](Tape& t, const Var& v, const Tensor& labels) {
                      return ops::cross_entropy(t, v, labels, f, RandomSite(kSite));
                    }),
                    pass([&](Tape& t, const Var& v, const Tensor& labels) {
                      return ops::cross_entropy(t, v, labels, 0.0, f, RandomSite(kSite));
                    })));
    // nll of log_softmax is the same loss; its gradient goes another way.
    const Pass one = pass([](Tape&t, const Var&v, const Tensor&labels) {
      return ops::cross_entropy(t, v, labels);
    }),
               two = pass([](Tape&t, const Var&v, const Tensor&labels) {
                 return ops::nll(t, ops::log_softmax(t, v), labels);
               });
    CHECK(same_bits(one.y, two.y));
    check_near(two.grads[0], one.grads[0], 1e-6);
  }

  TEST_CASE("nll reads the labelled elements only; sum of squares is a sum") {
    Run run;
    Tape tape(run);
    const Var x = tape.leaf(Tensor::from(std::vector<float>{-1, -kInf, kNan, -2}, {2, 2}));
    const Tensor labels = Tensor::from(std::vector<int32_t>{0, 1}, {2});
    const Var loss = ops::nll(tape, x, labels);
    CHECK(loss.value.item() == 1.5);
    tape.backward(loss);
    CHECK(same(tape.grad(x).to_floats(), {-0.5f, 0, 0, -0.5f}));

    Tape other(run);
    const Var y = other.leaf(Tensor::from(std::vector<float>{0.5f, 1, 3, -1}, {2, 2}));
    const Var squares = ops::sum_of_squares(other, y, labels);
    CHECK(squares.value.item() == 0.5 * (0.25 + 1 + 9 + 4));
    other.backward(squares);
    CHECK(same(other.grad(y).to_floats(), {-0.5f, 1, 3, -2}));

    Tape empty(run);
    const Var none = empty.leaf(Tensor::zeros({0, 2}, DType::F32, kCpu));
    const Var zero = ops::sum_of_squares(empty, none, Tensor::zeros({0}, DType::I32, kCpu));
    CHECK(zero.value.item() == 0);
    empty.backward(zero);
    CHECK(empty.grad(none).shape() == Shape{0, 2});
  }

  TEST_CASE("a label of no class makes a NaN loss, where the op could not look") {
    Run run;
    const Tensor labels = Tensor::from(std::vector<int32_t>{-1, 3, 2}, {3}),
                 in = random_tensor({3, 3}, -1, 1, 4);
    Tensor losses = Tensor::empty({3}, DType::F32, kCpu);
    for (const LabelLoss loss : {LabelLoss::Nll, LabelLoss::Squares}) {
      kernels::label_loss(run.stream(), {in, labels, losses, loss, LabelWeights::of(0, 3)});
      const std::vector<float> got = losses.to_floats();
      CHECK(same({got[0], got[1]}, {kNan, kNan}));
      CHECK(got[2] == got[2]);
    }
  }

  TEST_CASE("extreme losses: logits of ±100 and beyond, zero targets") {
    Run run;
    const auto pair = [&](const std::vector<float>& x, const std::vector<float>& t,
                          const std::function<Var(Tape&, const Var&, const Var&)>& loss) {
      Tape tape(run);
      const Var in = tape.leaf(vector_of(x)), target = tape.leaf(vector_of(t));
      const Var y = loss(tape, in, target);
      tape.backward(y);
      return std::vector<std::vector<float>>{y.value.to_floats(), tape.grad(in).to_floats(),
                                             tape.grad(target).to_floats()};
    };
    const auto bce = [](Tape& t, const Var& x, const Var& y) {
      return ops::bce_with_logits(t, x, y);
    };
    for (const float x : {100.0f, 1000.0f, kInf}) {
      const float small = exp_of(-x);
      CHECK(same(pair({x}, {1}, bce)[0], {small}));  // agrees
      CHECK(same(pair({x}, {1}, bce)[1], {0.0f - small}));
      CHECK(same(pair({-x}, {0}, bce)[0], {small}));
      CHECK(same(pair({-x}, {0}, bce)[1], {small}));
      CHECK(same(pair({x}, {0}, bce)[0], {x}));  // is wrong
      CHECK(same(pair({x}, {0}, bce)[1], {1}));
      CHECK(same(pair({-x}, {1}, bce)[0], {x}));
      CHECK(same(pair({-x}, {1}, bce)[1], {-1}));
      CHECK(same(pair({x}, {1}, bce)[2], {-x}));
    }
    CHECK(same(pair({kNan}, {1}, bce)[0], {kNan}));

    const auto kl = [](Tape& t, const Var& x, const Var& y) { return ops::kl_divergence(t, x, y); };
    CHECK(same(pair({-kInf, -1}, {0, 1}, kl)[0], {0.5f}));  // 1·(0 + 1) over two samples
    CHECK(same(pair({-2, -1}, {0, 1}, kl)[1], {-0.0f, -0.5f}));
    CHECK(same(pair({-2, -1}, {0, 1}, kl)[2], {1, 1}));
    CHECK(same(pair({kNan}, {0}, kl)[0], {kNan}));
    CHECK(same(pair({-1}, {-0.5f}, kl)[0], {kNan}));
    CHECK(same(pair({-kInf}, {0.5f}, kl)[0], {kInf}));

    const auto l1 = [](Tape& t, const Var& x, const Var& y) { return ops::l1(t, x, y); };
    CHECK(same(pair({1, 2, 3, 3}, {1, 4, 1, 3}, l1)[1], {0, -0.25f, 0.25f, 0}));
    const auto huge = [](Tape& t, const Var& x, const Var& y) {
      return ops::smooth_l1(t, x, y, 1e30);
    };
    CHECK(pair({1e25f}, {0}, huge)[0][0] < 1e20f);  // the square alone would overflow
    CHECK(
        same(pair({3}, {1},
                  [](Tape& t, const Var& x, const Var& y) { return ops::huber(t, x, y, 0.5); })[0],
             {0.5f * (2 - 0.25f)}));
  }

  TEST_CASE("interior of a loss of pairs rounds each element's loss before the sum") {
    Run run;
    OpFormats f;
    f.interior = Quantizer::parse("e5m2:sr");
    const Tensor x = random_tensor({4, 8}, -2, 2, 5), t = random_tensor({4, 8}, -2, 2, 6);
    restart_step(run);
    Tape tape(run);
    const Var in = tape.leaf(x);
    const Var y = ops::l1(tape, in, tape.constant(t), f, RandomSite(kSite));
    float lanes[64] = {};
    const Grid grid = make_grid(f.interior);
    for (size_t i = 0; i < 32; ++i)
      lanes[i] = quantise_value(std::abs(x.to_floats()[i] - t.to_floats()[i]), grid,
                                draw(run, "interior", 0, static_cast<int64_t>(i)));
    CHECK(same(y.value.to_floats(), {sum_lanes(lanes) / 32}));
    tape.backward(y);  // straight-through
    for (size_t i = 0; i < 32; ++i) CHECK(std::abs(tape.grad(in).to_floats()[i]) == 1.0f / 32);
  }

  TEST_CASE("slices and transposes are views; what they leave out gets a gradient of 0") {
    Run run;
    Tape tape(run);
    const Var x = tape.leaf(random_tensor({6, 5}, -1, 1, 7));
    const Var s = ops::slice(tape, x, 0, 1, 6, 2), t = ops::transpose(tape, s, 0, 1);
    CHECK(s.value.storage() == x.value.storage());
    CHECK(t.value.storage() == x.value.storage());
    CHECK(t.shape() == Shape{5, 3});
    const Var p = ops::permute(tape, t, {1, 0});
    CHECK(same_bits(p.value, s.value));
    tape.backward(ops::sum(tape, ops::scale(tape, p, 2)));
    const std::vector<float> dx = tape.grad(x).to_floats();
    for (size_t i = 0; i < dx.size(); ++i) CHECK(dx[i] == (i / 5 % 2 == 1 ? 2.0f : 0.0f));

    Tape other(run);
    const Var none = ops::slice(other, other.leaf(random_tensor({6, 5}, -1, 1, 7)), 1, 5, 5);
    CHECK(none.shape() == Shape{6, 0});
    CHECK(ops::flatten(other, other.constant(Tensor::zeros({0, 3, 4}, DType::F32, kCpu))).shape() ==
          Shape{0, 12});
    CHECK(ops::flatten(other, other.constant(Tensor::zeros({4}, DType::F32, kCpu))).shape() ==
          Shape{4, 1});
    CHECK(ops::flatten(other, other.constant(Tensor::zeros({4, 2}, DType::F32, kCpu)), 0).shape() ==
          Shape{8});
  }

  TEST_CASE("views used together with what they view: gradients add up") {
    Run run;
    Tape tape(run);
    const Var x = tape.leaf(Tensor::from(std::vector<float>{1, 2, 3, 4}, {2, 2}));
    const Var t = ops::transpose(tape, x, 0, 1);
    tape.backward(ops::sum(tape, ops::multiply(tape, x, t)));
    CHECK(same(tape.grad(x).to_floats(), {2, 6, 4, 8}));  // 2 xᵀ
  }

  TEST_CASE("narrow floats stay narrow where nothing else comes to them") {
    Run run;
    Tape tape(run);
    Tensor narrow = Tensor::empty({2, 3}, DType::BF16, kCpu);
    QuantiseArgs args;
    args.in = random_tensor({2, 3}, -1, 1, 8);
    args.out = narrow;
    args.quantizer = Quantizer::parse("bf16");
    kernels::quantise(run.stream(), args);
    const Var x = tape.leaf(narrow), wide = tape.leaf(random_tensor({2, 1}, -1, 1, 9));
    CHECK(ops::pad(tape, x, {{1, 1}, {0, 2}}).value.dtype() == DType::BF16);
    CHECK(ops::pad(tape, x, {{1, 1}, {0, 2}}, 0.3).value.dtype() == DType::F32);
    CHECK(ops::concat(tape, std::vector<Var>{x, x}, 1).value.dtype() == DType::BF16);
    const Var both = ops::concat(tape, std::vector<Var>{x, wide}, 1);
    CHECK(both.value.dtype() == DType::F32);
    CHECK(both.value.slice(1, 0, 3).to_floats() == narrow.to_floats());
    tape.backward(ops::sum(tape, both));
    CHECK(tape.grad(x).dtype() == DType::F32);
    CHECK(tape.grad(x).to_floats() == std::vector<float>(6, 1.0f));
  }

  TEST_CASE("layers compute what their ops compute, with their own streams and types") {
    Run run;
    const Quantizer q = Quantizer::parse("e4m3:sr");
    OpFormats f;
    f.output = q;
    nn::Sequential net;
    net.add<nn::Reshape>("image", Shape{4, 5, 3})
        .add<nn::Pad>("pad", 1, 0.5, f)
        .add<nn::ReLU6>("relu6")
        .add<nn::LeakyReLU>("leaky", 0.25)
        .add<nn::ELU>("elu", 0.75)
        .add<nn::Hardtanh>("hard", -1.5, 1.5)
        .add<nn::Sigmoid>("sigmoid")
        .add<nn::Tanh>("tanh")
        .add<nn::SiLU>("silu")
        .add<nn::Softplus>("softplus", 2.0, 8.0)
        .add<nn::Softmax>("softmax")
        .add<nn::LogSoftmax>("log_softmax")
        .add<nn::Flatten>("flat");
    net.initialise(run);
    const Tensor x = random_tensor({2, 60}, -3, 8, 10);
    restart_step(run);
    Tape tape(run), other(run);
    const Var y = net(tape, tape.constant(x));
    restart_step(run);
    Var z = ops::reshape(other, other.constant(x), {2, 4, 5, 3});
    z = ops::pad(other, z, {{0, 0}, {1, 1}, {1, 1}, {0, 0}}, 0.5, f, RandomSite("pad"));
    z = ops::leaky_relu(other, ops::relu6(other, z), 0.25);
    z = ops::hardtanh(other, ops::elu(other, z, 0.75), -1.5, 1.5);
    z = ops::silu(other, ops::tanh(other, ops::sigmoid(other, z)));
    z = ops::softmax(other, ops::softplus(other, z, 2, 8));
    z = ops::flatten(other, ops::log_softmax(other, z));
    CHECK(y.shape() == Shape{2, 6 * 7 * 3});
    CHECK(same_bits(y.value, z.value));
    CHECK(net.modules()[2]->type() == nn::LayerType::Pad);
    CHECK(net.modules()[3]->type() == nn::LayerType::Activation);
    CHECK(net.modules()[1]->formats() == nullptr);
    CHECK(net.modules()[2]->describe() == "Pad (1, 1) (1, 1) with 0.5");
    CHECK(net.modules()[6]->describe() == "Hardtanh [-1.5, 1.5]");
  }

  TEST_CASE("Residual adds body and shortcut with formats of its own") {
    Run run;
    OpFormats f;
    f.output = Quantizer::parse("e4m3:sr");
    f.grad_input = Quantizer::parse("e5m2:sr");
    const auto block = [&](bool with_shortcut) {
      auto body = std::make_unique<nn::Sequential>();
      body->add<nn::Linear>("fc", 6, 6);
      std::unique_ptr<nn::Module> shortcut;
      if (with_shortcut) shortcut = std::make_unique<nn::Linear>(6, 6);
      return std::make_unique<nn::Residual>(std::move(body), std::move(shortcut), f);
    };
    for (const bool with_shortcut : {false, true}) {
      const auto residual = block(with_shortcut);
      residual->initialise(run, "block");
      std::vector<std::string> paths;
      for (const Parameter* p : residual->parameters()) paths.push_back(p->path);
      std::vector<std::string> wanted = {"block.body.fc.weight", "block.body.fc.bias"};
      if (with_shortcut)
        wanted.insert(wanted.end(), {"block.shortcut.weight", "block.shortcut.bias"});
      CHECK(paths == wanted);
      const Tensor x = random_tensor({5, 6}, -1, 1, 11);
      restart_step(run);
      Tape tape(run);
      const Var in = tape.leaf(x);
      const Var y = (*residual)(tape, in);
      tape.backward(ops::sum(tape, y));
      restart_step(run);
      Tape other(run);
      const Var in2 = other.leaf(x);
      const auto p = residual->parameters();
      const Var body = ops::linear(other, in2, other.watch(*p[0]), other.watch(*p[1]));
      const Var shortcut =
          with_shortcut ? ops::linear(other, in2, other.watch(*p[2]), other.watch(*p[3])) : in2;
      const Var z = ops::add(other, body, shortcut, f, RandomSite("block"));
      other.backward(ops::sum(other, z));
      CHECK(same_bits(y.value, z.value));
      CHECK(same_bits(tape.grad(in), other.grad(in2)));
    }
  }

  TEST_CASE("Residual calls its parts as containers do: observed, and named in errors") {
    Run run;
    nn::Residual residual(std::make_unique<nn::Linear>(3, 3), std::make_unique<nn::Linear>(3, 3));
    residual.initialise(run, "block");
    std::vector<std::string> seen;
    residual.observe(
        [&](nn::Module& module, const Var&, const Var&) { seen.push_back(module.path()); });
    Tape tape(run);
    residual(tape, tape.constant(Tensor::zeros({2, 3}, DType::F32, kCpu)));
    CHECK(seen == std::vector<std::string>{"block.body", "block.shortcut", "block"});
    std::string message;
    try {
      residual(tape, tape.constant(Tensor::zeros({2, 4}, DType::F32, kCpu)));
    } catch (const Error& error) {
      message = error.what();
    }
    CAPTURE(message);
    CHECK(message.starts_with("block.body: "));
  }

  TEST_CASE("losses as layers have paths and streams; forward says what to call") {
    Run run;
    OpFormats f;
    f.grad_input = Quantizer::parse("e5m2:sr");
    nn::CrossEntropyLoss loss(0.1, f);
    loss.initialise(run, "loss");
    const Tensor x = random_tensor({4, 3}, -1, 1, 12);
    const auto gradient = [&](const std::function<Var(Tape&, const Var&)>& op) {
      restart_step(run);
      Tape tape(run);
      const Var in = tape.leaf(x);
      tape.backward(op(tape, in));
      return tape.grad(in);
    };
    CHECK(same_bits(
        gradient([&](Tape& t, const Var& v) { return loss.of(t, v, t.constant(labels_of(v))); }),
        gradient([&](Tape& t, const Var& v) {
          return ops::cross_entropy(t, v, labels_of(v), 0.1, f, RandomSite("loss"));
        })));
    CHECK(loss.type() == nn::LayerType::Loss);
    CHECK(loss.describe() == "CrossEntropyLoss, smoothing 0.1");
    Tape tape(run);
    CHECK_THROWS_WITH_AS(loss(tape, tape.constant(x)), doctest::Contains("of(tape, prediction"),
                         Error);
  }

  TEST_CASE("a step with all of them trains, and a recorded step would be the same") {
    const auto trained = [](StepGraph::Use use) {
      Run run(kCpu, 3);
      nn::Sequential net;
      net.add<nn::Reshape>("image", Shape{2, 2, 2}).add<nn::Pad>("pad", 1).add<nn::Flatten>("flat");
      auto body = std::make_unique<nn::Sequential>();
      body->add<nn::Linear>("fc", 32, 32, OpFormats::make("e4m3", "e5m2:sr")).add<nn::SiLU>("act");
      net.append("block", std::make_unique<nn::Residual>(std::move(body)))
          .add<nn::Linear>("head", 32, 3);
      nn::CrossEntropyLoss loss(0.1);
      net.initialise(run);
      loss.initialise(run, "loss");
      optim::Optimizer sgd(run, net.parameters(), {.lr = 0.1, .momentum = 0.9});
      StepGraph graph(run, use);
      const Tensor x = random_tensor({12, 8}, -1, 1, 13);
      std::vector<double> losses;
      for (int step = 0; step < 20; ++step)
        graph.run([&] {
          Tape tape(run);
          const Var y = net(tape, tape.constant(x));
          const Var value = loss.of(tape, y, tape.constant(labels_of(y)));
          losses.push_back(value.value.item());
          tape.backward(value);
          sgd.step();
        });
      CHECK(losses.back() < 0.6 * losses.front());
      return net.parameters()[0]->value;
    };
    CHECK(same_bits(trained(StepGraph::Use::Auto), trained(StepGraph::Use::Off)));
  }

  TEST_CASE("what does not fit is named with both shapes and the rule") {
    Run run;
    Tape tape(run);
    const auto var = [&](const Shape& s) {
      return tape.constant(Tensor::zeros(s, DType::F32, kCpu));
    };
    const auto says = [](const std::function<void()>& f, std::vector<const char*> texts) {
      try {
        f();
        FAIL("nothing was thrown");
      } catch (const Error& error) {
        for (const char* text : texts) {
          CAPTURE(std::string(error.what()));
          CHECK(std::string(error.what()).find(text) != std::string::npos);
        }
      }
    };
    const Var x = var({2, 3});
    says([&] { ops::hardtanh(tape, x, 2, 1); }, {"hardtanh", "low <= high", "2 and 1"});
    says([&] { ops::clip(tape, x, NAN, 1); }, {"clip", "low <= high"});
    says([&] { ops::elu(tape, x, INFINITY); }, {"elu", "finite"});
    says([&] { ops::leaky_relu(tape, x, NAN); }, {"leaky_relu", "finite"});
    says([&] { ops::softplus(tape, x, 0); }, {"softplus", "not 0"});
    says([&] { ops::relu6(tape, {}); }, {"relu6", "no tensor"});
    says([&] { ops::softmax(tape, var({3})); }, {"softmax", "(3)"});
    says([&] { ops::softmax(tape, var({3, 0})); }, {"softmax", "C >= 1"});
    says([&] { ops::pad(tape, x, {{1, 1}}); }, {"pad", "each axis", "(2, 3)", "got 1"});
    says([&] { ops::pad(tape, x, {{0, 0}, {0, -1}}); }, {"pad", "axis 1", "(2, 3)", "slice"});
    says([&] { ops::pad(tape, x, {{0, 0}, {INT64_MAX, 1}}); }, {"pad", "axis 1"});
    says([&] { ops::concat(tape, {}, 0); }, {"concat", "1 to 64"});
    says(
        [&] {
          ops::concat(tape, std::vector<Var>{x, var({3, 3})}, 1);
        },
        {"concat", "axis 1", "(2, 3)", "(3, 3)"});
    says(
        [&] {
          ops::concat(tape, std::vector<Var>{x, var({2, 3, 1})}, 1);
        },
        {"concat", "(2, 3)", "(2, 3, 1)"});
    says([&] { ops::concat(tape, std::vector<Var>{x}, 2); }, {"concat", "[0, 2)", "got 2"});
    says([&] { ops::slice(tape, x, 1, 2, 4); }, {"slice", "<= 3", "(2, 3)", "[2, 4)"});
    says([&] { ops::slice(tape, x, 1, 0, 2, 0); }, {"slice", "step"});
    says([&] { ops::transpose(tape, x, 0, 2); }, {"transpose", "(2, 3)", "got 2"});
    says([&] { ops::permute(tape, x, {0, 0}); }, {"permute", "(2, 3)", "(0, 0)"});
    says([&] { ops::flatten(tape, x, 3); }, {"flatten", "(2, 3)"});
    says([&] { ops::l1(tape, x, var({3, 2})); }, {"l1", "(2, 3)", "(3, 2)"});
    says([&] { ops::bce_with_logits(tape, var({0}), var({0})); }, {"bce", "no elements"});
    says([&] { ops::smooth_l1(tape, x, x, -1); }, {"smooth_l1", ">= 0"});
    says([&] { ops::huber(tape, x, x, 0); }, {"huber", "> 0"});
    says([&] { ops::kl_divergence(tape, var({}), var({})); }, {"kl_divergence", "first axis"});
    const Tensor labels = Tensor::from(std::vector<int32_t>{0, 3}, {2});
    says([&] { ops::nll(tape, x, labels); }, {"nll", "label 3 of sample 1", "[0, 3)"});
    says([&] { ops::nll(tape, var({3, 4}), labels); }, {"nll", "I32 (3)", "(3, 4)", "(2)"});
    says(
        [&] {
          ops::nll(tape, var({0, 4}), Tensor::zeros({0}, DType::I32, kCpu));
        },
        {"nll", "no samples"});
    says([&] { ops::cross_entropy(tape, x, labels, 1.5); }, {"label_smoothing", "[0, 1]"});
    nn::Sequential net;
    net.add<nn::Reshape>("image", Shape{4, 4, 1});
    net.initialise(run);
    says([&] { net(tape, x); }, {"image", "(2, 3)", "(4, 4, 1)", "16"});
    says([&] { nn::Pad(-1); }, {"Pad", ">= 0"});
    says([&] { nn::Residual(nullptr); }, {"Residual", "body"});
    nn::Residual residual(std::make_unique<nn::Linear>(3, 5));
    residual.initialise(run, "block");
    says([&] { residual(tape, x); }, {"block", "(2, 5)", "(2, 3)"});
    Tensor out = Tensor::zeros({2, 3}, DType::F32, kCpu);
    says(
        [&] {
          kernels::place(run.stream(), {x.value, out, {0, 1}, {1, 1}});
        },
        {"place", "axis 1", "(2, 3)"});
  }
}
