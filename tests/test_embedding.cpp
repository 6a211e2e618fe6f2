#include <doctest/doctest.h>

#include <cmath>

#include "autograd/embedding.h"
#include "autograd/rotary.h"
#include "core/sum.h"
#include "kernels/embedding.h"
#include "nn/embedding.h"
#include "nn/linear.h"
#include "nn/pieces.h"
#include "nn/sequential.h"
#include "nn/swiglu.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

const RandomSite kHere(kSite);

Tensor tokens_of(const std::vector<int32_t>& tokens, const Shape& shape) {
  return Tensor::from(tokens, shape);
}

/// The role's quantizer applied by the kernel itself, with the first draw of its stream.
Tensor by_role(Run& run, const Tensor& x, const char* format, const char* role, int axis) {
  const Quantizer q = Quantizer::parse(format);
  if (q.is_identity()) return x;
  Tensor out = Tensor::empty(x.shape(), DType::F32, x.device());
  const RandomKey key{run.seed(), RandomSite(kSite).stream(role), 0, run.device_state()};
  kernels::quantise(run.stream(), {kernels::contiguous(run.stream(), x), out, q, axis, key, {}});
  return out;
}

/// A sum in the order of core/sum.h, written out.
float strict(const std::vector<float>& v) {
  if (static_cast<int64_t>(v.size()) <= kSumChunk)
    return sum_chunk<float>(static_cast<int64_t>(v.size()),
                            [&](int64_t i) { return v[static_cast<size_t>(i)]; });
  std::vector<float> chunks;
  for (size_t begin = 0; begin < v.size(); begin += kSumChunk)
    chunks.push_back(
        strict({v.begin() + static_cast<std::ptrdiff_t>(begin),
                v.begin() + static_cast<std::ptrdiff_t>(std::min(v.size(), begin + kSumChunk))}));
  return strict(chunks);
}

Tensor make(const Shape& shape) { return Tensor::empty(shape, DType::F32, kCpu); }

}  // namespace

TEST_SUITE("embedding") {
  TEST_CASE("rows of the table, and their gradients summed in the strict order") {
    Run run;
    for (const int64_t n : {5, 700, 9001})
      for (const int64_t columns : {3, 65}) {
        const int64_t count = 7;
        std::vector<int32_t> tokens;
        for (int64_t i = 0; i < n; ++i)
          tokens.push_back(static_cast<int32_t>(i % 11 < 8 ? 2 : (i * i) % 6));  // 6 never
        const Tensor table = random_tensor({count, columns}, -2, 2, 1);
        Tape tape(run);
        const Var leaf = tape.leaf(table);
        const Var y = ops::embedding(tape, tokens_of(tokens, {n}), leaf, {}, kHere);
        REQUIRE(y.shape() == Shape{n, columns});
        const Tensor g = random_tensor({n, columns}, -1, 1, 2);
        tape.backward(y, g);
        const std::vector<float> got = y.value.to_floats(), rows = table.to_floats(),
                                 grads = g.to_floats(), dw = tape.grad(leaf).to_floats();
        int64_t wrong = 0;
        for (int64_t i = 0; i < n; ++i)
          for (int64_t c = 0; c < columns; ++c)
            wrong += got[static_cast<size_t>(i * columns + c)] !=
                     rows[static_cast<size_t>(tokens[static_cast<size_t>(i)] * columns + c)];
        CHECK(wrong == 0);
        for (int64_t v = 0; v < count; ++v)
          for (int64_t c = 0; c < columns; ++c) {
            std::vector<float> terms;
            for (int64_t i = 0; i < n; ++i)
              if (tokens[static_cast<size_t>(i)] == v)
                terms.push_back(grads[static_cast<size_t>(i * columns + c)]);
            wrong += bits_of(dw[static_cast<size_t>(v * columns + c)]) != bits_of(strict(terms));
          }
        CHECK(wrong == 0);
      }
  }

  TEST_CASE("law: the table, the result and both gradients by their formats") {
    Run run;
    const std::vector<int32_t> tokens{3, 0, 3, 1, 1, 3};
    const Tensor table = random_tensor({5, 32}, -2, 2, 1), g = random_tensor({2, 3, 32}, -1, 1, 2);
    for (const char* a : {"fp32", "e4m3", "e5m2:sr", "bfp8:sr", "mxfp4", "bfp6-g4:sr"})
      for (const char* b : {"fp32", "bf16:sr", "bfp8-axis0"}) {
        CAPTURE(std::string(a));
        CAPTURE(std::string(b));
        OpFormats f;
        f.weight = f.grad_output_dw = Quantizer::parse(a);
        f.output = f.grad_weight = Quantizer::parse(b);
        restart_step(run);
        Tape tape(run);
        const Var leaf = tape.leaf(table);
        const Var y = ops::embedding(tape, tokens_of(tokens, {2, 3}), leaf, f, kHere);
        tape.backward(y, g);
        // The plain op at the rounded table, with the rounded gradient.
        Tape plain(run);
        const Var at = plain.leaf(by_role(run, table, a, "weight", 1));
        const Var z = ops::embedding(plain, tokens_of(tokens, {6}), at);
        plain.backward(z, by_role(run, g.reshape({6, 32}), a, "grad_output_dw", 0));
        CHECK(same_bits(y.value.reshape({6, 32}), by_role(run, z.value, b, "output", 1)));
        CHECK(same_bits(tape.grad(leaf), by_role(run, plain.grad(at), b, "grad_weight", 1)));
      }
  }

  TEST_CASE("tokens that are none are named with their place") {
    Run run;
    Tape tape(run);
    const Var table = tape.leaf(random_tensor({5, 3}, -1, 1, 1));
    CHECK_THROWS_WITH_AS(ops::embedding(tape, tokens_of({0, 1, 2, 3, 5, 4}, {2, 3}), table),
                         "embedding: token 5 at sequence 1, place 1 is not in [0, 5)", Error);
    CHECK_THROWS_WITH_AS(ops::embedding(tape, tokens_of({0, -1}, {2}), table),
                         "embedding: token -1 at place 1 is not in [0, 5)", Error);
    CHECK_THROWS_AS(ops::embedding(tape, Tensor::zeros({2}, DType::F32, kCpu), table), Error);
    CHECK_THROWS_AS(
        ops::embedding(tape, tokens_of({0}, {1}), tape.leaf(random_tensor({5}, -1, 1, 1))), Error);
    // The kernel, which cannot throw for them on a GPU, makes NaN and leaves them out of sums.
    const Tensor tokens = tokens_of({1, 7, -3, 1}, {4});
    const Tensor rows = random_tensor({2, 3}, -1, 1, 1),
                 out = Tensor::zeros({4, 3}, DType::F32, kCpu);
    kernels::embedding(run.stream(), {rows, tokens, out});
    CHECK(std::isnan(out.to_floats()[3]));
    CHECK(std::isnan(out.to_floats()[6]));
    CHECK(out.to_floats()[9] == rows.to_floats()[3]);
    const Tensor order = Tensor::zeros({4}, DType::I32, kCpu),
                 starts = Tensor::zeros({3}, DType::I32, kCpu);
    kernels::group_tokens(run.stream(), {tokens, order, starts});
    CHECK(starts.to_floats() == std::vector<float>{0, 0, 2});
    CHECK(order.to_floats() == std::vector<float>{0, 3, 1, 2});
  }

  TEST_CASE("positions: added, summed over the batch, and refused beyond the context") {
    Run run;
    Tape tape(run);
    const Tensor x = random_tensor({3, 2, 4}, -1, 1, 1), p = random_tensor({5, 4}, -1, 1, 2);
    const Var table = tape.leaf(p), in = tape.leaf(x);
    const Var y = ops::add_positions(tape, in, table, 2);
    const Tensor g = random_tensor({3, 2, 4}, -1, 1, 3);
    tape.backward(y, g);
    for (int64_t i = 0; i < 24; ++i)
      CHECK(y.value.to_floats()[static_cast<size_t>(i)] ==
            x.to_floats()[static_cast<size_t>(i)] + p.to_floats()[static_cast<size_t>(8 + i % 8)]);
    CHECK(same_bits(tape.grad(in), g));
    const std::vector<float> dp = tape.grad(table).to_floats(), gs = g.to_floats();
    for (size_t i = 0; i < 20; ++i)
      CHECK(dp[i] == (i < 8 || i >= 16 ? 0.0f : (gs[i - 8] + gs[i]) + gs[i + 8]));
    CHECK_THROWS_WITH_AS(ops::add_positions(tape, in, table, 4),
                         "positions: there are 5 of them, and x (3, 2, 4) begins at number 4; take "
                         "shorter sequences",
                         Error);
    CHECK_THROWS_AS(ops::add_positions(tape, in, tape.leaf(random_tensor({5, 3}, -1, 1, 2)), 0),
                    Error);
  }

  TEST_CASE("rotary: pairs turned by the angle of their position, and back") {
    Run run;
    Tape tape(run);
    const Tensor x = random_tensor({2, 100, 3, 10}, -2, 2, 1);
    const Var in = tape.leaf(x);
    const Var y = ops::rotary(tape, in, 70);
    const std::vector<float> from = x.to_floats(), to = y.value.to_floats();
    double worst = 0;
    for (int64_t row = 0; row < 600; ++row)
      for (int64_t i = 0; i < 5; ++i) {
        const double t = static_cast<double>(row / 3 % 100 + 70);
        const double angle = t * std::pow(10000.0, -2.0 * static_cast<double>(i) / 10);
        const auto a = static_cast<double>(from[static_cast<size_t>(row * 10 + i)]),
                   b = static_cast<double>(from[static_cast<size_t>(row * 10 + i + 5)]);
        const double u = a * std::cos(angle) - b * std::sin(angle),
                     v = b * std::cos(angle) + a * std::sin(angle);
        worst = std::max(
            {worst, std::abs(u - static_cast<double>(to[static_cast<size_t>(row * 10 + i)])),
             std::abs(v - static_cast<double>(to[static_cast<size_t>(row * 10 + i + 5)]))});
      }
    CHECK(worst < 1e-6);
    tape.backward(y, y.value);  // turned back: x again
    double off = 0;
    const std::vector<float> back = tape.grad(in).to_floats();
    for (size_t i = 0; i < back.size(); ++i)
      off = std::max(off, std::abs(static_cast<double>(back[i]) - static_cast<double>(from[i])));
    CHECK(off < 1e-6);
    // A piece is turned as in the whole, whatever was turned before.
    Tape other(run);
    for (const int64_t begin : {0, 63, 99}) {
      const Tensor piece = kernels::contiguous(run.stream(), x.slice(1, begin, begin + 1));
      const Tensor whole = kernels::contiguous(run.stream(), y.value.slice(1, begin, begin + 1));
      CHECK(same_bits(ops::rotary(other, other.constant(piece), 70 + begin).value, whole));
    }
    CHECK_THROWS_AS(ops::rotary(tape, tape.leaf(random_tensor({1, 2, 1, 3}, -1, 1, 1)), 0), Error);
    CHECK_THROWS_AS(ops::rotary(tape, in, -1), Error);
    CHECK_THROWS_AS(ops::rotary(tape, in, 0, 0), Error);
  }

  TEST_CASE("law of rotary and swiglu: f of the rounded input, gradient there, results rounded") {
    Run run;
    for (const OpRow& row : text_op_rows()) {
      const std::string name = row.name;
      if (name != "rotary" && name != "swiglu") continue;
      for (const char* a : {"e4m3", "e5m2:sr", "bfp8:sr", "bfp6-g4:sr", "fixed8.4:rtz", "mxfp8"})
        for (const char* b : {"e5m2:sr", "bfp8"}) {
          CAPTURE(name);
          CAPTURE(std::string(a));
          OpFormats f;
          f.input = f.grad_output_dx = Quantizer::parse(a);
          f.output = f.grad_input = Quantizer::parse(b);
          const Tensor x = random_tensor({2, 5, 3, 34}, -3, 3, 8);
          const std::vector<Tensor> in{x};
          const Pass pass = run_row(row, run, in, f);
          Tape tape(run);
          const Var leaf = tape.leaf(by_role(run, x, a, "input", 3));
          const Var y = row.build(tape, std::vector<Var>{leaf}, {});
          const Tensor g = random_tensor(y.shape(), -1, 1, 99);
          tape.backward(y, by_role(run, g, a, "grad_output_dx", 3));
          CHECK(same_bits(pass.y, by_role(run, y.value, b, "output", 3)));
          CHECK(same_bits(pass.grads[0], by_role(run, tape.grad(leaf), b, "grad_input", 3)));
        }
    }
  }

  TEST_CASE("cross-entropy over many classes has the bits of log_softmax and keeps the logits") {
    Run run;
    for (const int64_t classes : {1025, 5000}) {
      Tensor x = random_tensor({4, classes}, -9, 9, 1);
      std::vector<float> values = x.to_floats();
      values[3] = 80;
      values[static_cast<size_t>(classes) + 5] = -float_of(kInfinityBits);
      x = Tensor::from(values, {4, classes});
      const Tensor labels = tokens_of({3, 7, 0, static_cast<int32_t>(classes - 1)}, {4});
      Tape tape(run);
      const Var in = tape.leaf(x);
      const Var loss = ops::cross_entropy(tape, in, labels);
      CHECK(tape.saved_bytes() == x.bytes() + 4 * 2 * 4);
      tape.backward(loss);
      const Tensor y = Tensor::empty(x.shape(), DType::F32, kCpu),
                   each = Tensor::empty({4}, DType::F32, kCpu), dx = make(x.shape()),
                   mean = make({});
      kernels::log_softmax(run.stream(), {x, y, {}, {}, labels, each});
      kernels::sum(run.stream(), {each, mean, 1, 4, 1, 0.25});
      kernels::cross_entropy_backward(
          run.stream(), {y, labels, Tensor::from(std::vector<float>{1}, {}), dx, 0.25});
      CHECK(same_bits(loss.value, mean));
      CHECK(same_bits(tape.grad(in), dx));
    }
  }

  TEST_CASE("layers: a table shared with the output gets the gradients of both") {
    Run run;
    auto net = std::make_unique<nn::Sequential>();
    auto embedding = std::make_unique<nn::Embedding>(6, 4);
    nn::Embedding& table = *embedding;
    net->append("tokens", std::move(embedding));
    net->append("head", std::make_unique<nn::TiedLinear>(table));
    net->initialise(run);
    REQUIRE(net->parameters().size() == 1);
    CHECK(net->parameters()[0]->path == "tokens.weight");
    const Tensor tokens = tokens_of({1, 4, 1}, {1, 3}), g = random_tensor({1, 3, 6}, -1, 1, 4);
    Tape tape(run);
    const Var y = (*net)(tape, tape.constant(tokens));
    CHECK(y.shape() == Shape{1, 3, 6});
    tape.backward(y, g);
    // The same with two tables.
    Tape apart(run);
    const Var one = apart.leaf(table.weight().value), two = apart.leaf(table.weight().value);
    const Var z = ops::linear(apart, ops::embedding(apart, tokens, one), two, {});
    apart.backward(z, g);
    CHECK(same_bits(y.value, z.value));
    Tensor both = Tensor::empty({6, 4}, DType::F32, kCpu);
    kernels::add(run.stream(), {{apart.grad(two), apart.grad(one), {}}, both, 0, {}, {}});
    CHECK(same_bits(table.weight().grad, both));
    CHECK_THROWS_AS(nn::Embedding(0, 3), Error);
    CHECK_THROWS_AS(nn::LearnedPositions(3, 0), Error);
  }

  TEST_CASE("positions piece by piece, and what stands in the way") {
    Run run;
    nn::LearnedPositions positions(7, 4);
    positions.initialise(run, "positions");
    const Tensor x = random_tensor({2, 6, 4}, -1, 1, 1);
    Tape tape(run, Tape::Recording::Off);
    const nn::EvaluationMode mode(positions);
    const Tensor whole = positions(tape, tape.constant(x)).value;
    {
      const nn::InPieces pieces(positions, 2, 6);
      for (int64_t t = 0; t < 6; t += 2) {
        const Tensor piece = kernels::contiguous(run.stream(), x.slice(1, t, t + 2));
        CHECK(same_bits(positions(tape, tape.constant(piece)).value,
                        kernels::contiguous(run.stream(), whole.slice(1, t, t + 2))));
      }
      const Tensor more = random_tensor({2, 2, 4}, -1, 1, 1);
      CHECK_THROWS_AS(positions(tape, tape.constant(more)), Error);
    }
    CHECK(same_bits(positions(tape, tape.constant(x)).value, whole));
    CHECK_THROWS_AS(nn::InPieces(positions, 1, 8), Error);
    CHECK(nn::obstacle_of(positions).empty());
    *positions.formats() = OpFormats{};
    positions.formats()->output = "mxfp8";
    CHECK(nn::obstacle_of(positions).empty());
    positions.formats()->output = "e4m3:sr";
    CHECK(nn::obstacle_of(positions) == "positions: output e4m3:sr draws random numbers");
    positions.formats()->output = "bfp8";
    CHECK(nn::obstacle_of(positions) ==
          "positions: output bfp8 has scales that several places share");
    nn::Linear linear(4, 4);
    linear.initialise(run, "linear");
    linear.formats()->weight = "bfp8";
    linear.formats()->input = "e4m3";
    CHECK(nn::obstacle_of(linear).empty());
    linear.formats()->input = "e4m3+scale=current";
    CHECK(nn::obstacle_of(linear).starts_with("linear: input e4m3"));
    const Tensor outside = Tensor::zeros({1, 1, 4}, DType::F32, kCpu);
    positions.set_mode(nn::Mode::Train);
    CHECK_THROWS_AS(nn::InPieces(positions, 1, 1), Error);
  }
}
