#include <doctest/doctest.h>

#include "autograd/ops.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

Tensor vector_of(std::vector<float> values) {
  const auto n = static_cast<int64_t>(values.size());
  return Tensor::from(values, {n});
}

}  // namespace

TEST_SUITE("autograd") {
  TEST_CASE(
      "a tensor used several times gets the sum of its gradients, in fp32 and in tape order") {
    Run run;
    Tape tape(run);
    const Var x = tape.leaf(vector_of({1, 2, 3}));
    const Var y = ops::add(tape, ops::multiply(tape, x, x), ops::scale(tape, x, 3));
    tape.backward(y, vector_of({1, 1, 1}));
    CHECK(tape.grad(x).to_floats() == std::vector<float>{5, 7, 9});
  }

  TEST_CASE(
      "only what is needed is computed: constants have no node, unneeded inputs no gradient") {
    Run run;
    Tape tape(run);
    const Var x = tape.constant(random_tensor({4, 3}, -1, 1, 1));
    const Var w = tape.leaf(random_tensor({2, 3}, -1, 1, 2));
    CHECK(!x.needs_grad());
    const Var y = ops::linear(tape, x, w, {});
    CHECK(y.needs_grad());
    CHECK(!ops::relu(tape, x).needs_grad());
    CHECK(tape.nodes().size() == 2);  // the leaf and linear
    tape.backward(ops::sum(tape, y));
    CHECK(tape.grad(w).defined());
  }

  TEST_CASE("nodes carry their op's name and formats") {
    Run run;
    Tape tape(run);
    const OpFormats f = OpFormats::make("e4m3", "e5m2:sr");
    ops::linear(tape, tape.constant(random_tensor({4, 3}, -1, 1, 1)),
                tape.leaf(random_tensor({2, 3}, -1, 1, 2)), {}, f);
    CHECK(std::string(tape.nodes().back().op) == "linear");
    CHECK(tape.nodes().back().formats == f);
  }

  TEST_CASE("the loss's gradient is the step state's loss scale") {
    Run run;
    StepState state = run.state();
    state.loss_scale = 8;
    run.set_state(state);
    Tape tape(run);
    const Var x = tape.leaf(vector_of({3}));
    tape.backward(ops::sum(tape, x));
    CHECK(tape.grad(x).to_floats() == std::vector<float>{8});
  }

  TEST_CASE("linear takes empty axes anywhere") {
    Run run;
    const Shape cases[][2] = {{{2, 3, 0}, {4, 0}}, {{0, 3}, {4, 3}}, {{2, 3, 5}, {0, 5}}};
    for (const auto& [xs, ws] : cases) {
      Tape tape(run);
      const Var x = tape.leaf(Tensor::zeros(xs, DType::F32, kCpu)),
                w = tape.leaf(Tensor::zeros(ws, DType::F32, kCpu));
      const Var y = ops::linear(tape, x, w, {});
      CHECK(y.shape()[y.shape().rank() - 1] == ws[0]);
      tape.backward(y, Tensor::zeros(y.shape(), DType::F32, kCpu));
      CHECK(tape.grad(x).shape() == xs);
      CHECK(tape.grad(w).shape() == ws);
    }
  }

  TEST_CASE("shapes beyond what memory can address are refused") {
    for (const Shape& shape :
         {Shape{int64_t{1} << 32, int64_t{1} << 30}, Shape{int64_t{1} << 33, int64_t{1} << 31},
          Shape{0, int64_t{1} << 62}})
      CHECK_THROWS_WITH_AS(Tensor::empty(shape, DType::F32, kCpu), doctest::Contains("2^59"),
                           Error);
  }

  TEST_CASE("an op with several outputs gets a gradient for each that was used") {
    Run run;
    Tape tape(run);
    const Var x = tape.leaf(vector_of({1, 2}));
    const std::vector<Var> in{x};
    bool first_missing = false;
    const std::vector<Var> parts =
        tape.record("split", {}, in, {x.value.slice(0, 0, 1), x.value.slice(0, 1, 2)},
                    [&](std::span<const Tensor> grads, Needs needs) -> std::vector<Tensor> {
                      first_missing = !grads[0].defined();
                      CHECK(needs[0]);
                      return {vector_of({0, grads[1].to_floats()[0]})};
                    });
    tape.backward(parts[1], vector_of({5}));
    CHECK(first_missing);
    CHECK(tape.grad(x).to_floats() == std::vector<float>{0, 5});
  }

  TEST_CASE(
      "a parameter watched twice is one leaf, and gradients of several tapes add up until they are "
      "forgotten") {
    Run run;
    Parameter p{"p", vector_of({1, 2}), {}};
    for (int pass = 0; pass < 2; ++pass) {
      Tape tape(run);
      const Var a = tape.watch(p), b = tape.watch(p);
      CHECK(a.node == b.node);
      tape.backward(ops::sum(tape, ops::multiply(tape, a, b)));
    }
    CHECK(p.grad.to_floats() == std::vector<float>{4, 8});
  }

  TEST_CASE("writing to a tensor that an op saved is found out, by the op's name") {
    Run run;
    Tape tape(run);
    Tensor value = vector_of({1, 2});
    const Var x = tape.leaf(value);
    const Var y = ops::square(tape, x);
    value.mutable_data<float>()[0] = 9;
    CHECK_THROWS_WITH_AS(tape.backward(y, vector_of({1, 1})),
                         doctest::Contains("square: a tensor it saved"), Error);
  }

  TEST_CASE("misuse is named") {
    Run run;
    Tape tape(run), other(run);
    const Var x = tape.leaf(vector_of({1, 2}));
    const Var y = ops::square(tape, x);
    CHECK_THROWS_WITH_AS(tape.backward(y), doctest::Contains("a loss of one value"), Error);
    CHECK_THROWS_WITH_AS(tape.backward(y, vector_of({1})),
                         doctest::Contains("gradient of shape (2)"), Error);
    CHECK_THROWS_WITH_AS(tape.grad(x), doctest::Contains("run backward first"), Error);
    CHECK_THROWS_WITH_AS(ops::square(other, x), doctest::Contains("another tape"), Error);
    CHECK_THROWS_WITH_AS(tape.backward(tape.constant(vector_of({1}))),
                         doctest::Contains("depends on no parameter"), Error);
    tape.backward(ops::sum(tape, y));
    CHECK_THROWS_WITH_AS(tape.backward(ops::sum(tape, y)), doctest::Contains("swept already"),
                         Error);
    Parameter empty{"fc1.weight", {}, {}};
    CHECK_THROWS_WITH_AS(other.watch(empty), doctest::Contains("fc1.weight"), Error);
  }

  TEST_CASE("inference records nothing and gives the same values") {
    Run run;
    const Tensor x = random_tensor({4, 3}, -1, 1, 1), w = random_tensor({2, 3}, -1, 1, 2);
    const OpFormats f = OpFormats::make("e4m3:sr", "e5m2");
    Tape train(run), infer(run, Tape::Recording::Off);
    const Var a = ops::linear(train, train.leaf(x), train.leaf(w), {}, f, RandomSite("fc"));
    restart_step(run);
    const Var b = ops::linear(infer, infer.leaf(x), infer.leaf(w), {}, f, RandomSite("fc"));
    CHECK(infer.nodes().empty());
    CHECK(same_bits(a.value, b.value));
  }

  TEST_CASE(
      "each use of a random stream within a step draws its own words, and each step draws anew") {
    Run run;
    const Tensor x = random_tensor({64}, -1, 1, 1);
    const ops::QuantizeFormats q{Quantizer::parse("e2m1:sr"), {}, false};
    const auto draw = [&](Tape& tape) {
      return ops::quantize(tape, tape.constant(x), q, RandomSite("a")).value;
    };
    Tape tape(run);
    const Tensor first = draw(tape), second = draw(tape);
    CHECK(!same_bits(first, second));
    Tape micro_batch(run);  // of the same step
    const Tensor third = draw(micro_batch);
    CHECK(!same_bits(first, third));
    CHECK(!same_bits(second, third));
    restart_step(run);
    Tape again(run);
    CHECK(same_bits(first, draw(again)));
    StepState next = run.state();
    ++next.random_step;
    run.set_state(next);
    Tape later(run);
    CHECK(!same_bits(first, draw(later)));
  }

  TEST_CASE("saved tensors are freed as the sweep passes") {
    Run run;
    Tape tape(run);
    const int64_t before = memory_use(kCpu).now;
    const Var x = tape.leaf(Tensor::zeros({1000}, DType::F32, kCpu));
    {
      Var y = x;
      for (int i = 0; i < 10; ++i) y = ops::gelu(tape, y);
      tape.backward(ops::sum(tape, y));
    }
    // The input, its gradient; not the nine intermediates.
    CHECK(memory_use(kCpu).now - before <= 3 * 4000);
  }
}
