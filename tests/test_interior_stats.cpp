// What statistics say about the role `interior` (autograd/role_stats.h), against counts made by hand: the named intermediates
// of each op, each once, with a rounding that shares nothing with the kernels (tests/reference.h).

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "autograd/activations.h"
#include "autograd/attention.h"
#include "autograd/losses.h"
#include "autograd/norm.h"
#include "autograd/recurrent.h"
#include "autograd/role_stats.h"
#include "core/scalar_math.h"
#include "kernels/quantised.h"
#include "tests/op_table.h"
#include "tests/reference.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

constexpr const char* kFormats[] = {"e4m3", "e4m3-sat", "e3m2-sat", "fixed8.4", "fp16", "e5m2:rtz"};

/// Counts by hand. Rounds by the reference, or, of a stochastic format, as the words of a draw say.
struct Counted {
  explicit Counted(const char* format) : reference(format), format(format) {}

  reference::Reference reference;
  std::string format;
  int64_t count = 0, overflow = 0, underflow = 0, nan = 0, infinite = 0, finite = 0;
  float amax = 0;
  double square = 0, square_error = 0;

  float operator()(float x) {
    const reference::Rounded r = reference(static_cast<double>(x));
    add(x, r.value, r.clamped);
    return r.value;
  }
  void add(float x, float y, bool clamped) {
    ++count;
    overflow += clamped;
    underflow += x != 0 && y == 0;
    nan += std::isnan(x);
    infinite += std::isinf(x);
    if (std::isfinite(x)) amax = std::max(amax, std::abs(x));
    if (!std::isfinite(y - x)) return;
    ++finite;
    square += static_cast<double>(x) * static_cast<double>(x);
    square_error += static_cast<double>(y - x) * static_cast<double>(y - x);
  }
  void check(const RoleStats& stats, const char* site = "here") const {
    CAPTURE(format);
    const auto totals = stats.totals();
    const auto at = totals.find(RandomSite(site).stream("interior"));
    REQUIRE(at != totals.end());
    const QuantiseStats& s = at->second.stats;
    CHECK(at->second.quantizer == Quantizer::parse(format));
    CHECK(s.count == count);
    CHECK(s.overflow == overflow);
    CHECK(s.underflow == underflow);
    CHECK(s.nan == nan);
    CHECK(s.infinite == infinite);
    CHECK(s.finite == finite);
    CHECK(s.amax() == amax);
    CHECK(s.square == doctest::Approx(square).epsilon(1e-5));
    CHECK(s.square_error == doctest::Approx(square_error).epsilon(1e-5));
  }
};

OpFormats interior(const char* format) {
  OpFormats f;
  f.interior = Quantizer::parse(format);
  return f;
}

/// The sum of at most 64 numbers in the order of core/sum.h.
float sum_of(std::vector<float> x) {
  x.resize(64, 0.0f);
  for (size_t half = 32; half > 0; half /= 2)
    for (size_t l = 0; l < half; ++l) x[l] += x[l + half];
  return x[0];
}

/// A large variance, one that vanishes, a mean that vanishes, bad numbers, ordinary ones. Sums are exact, but for those with bad
/// numbers.
const std::vector<float> kRows[] = {
    {60, -52, 44, -61, 12, 3, -8, 10}, {0x1p-12f, 3 * 0x1p-12f, -0x1p-12f, 0, 0, 0x1p-11f, 0, 0},
    {1, 1, 1, 1, 1, 1, 1, 1},          {INFINITY, 1, 2, 3, 4, 5, 6, 7},
    {1, NAN, 2, 3, 4, 5, 6, 7},        {1, -2, 3, 4, -5, 0.5f, 2, 4.5f}};
constexpr int64_t kRowCount = 6, kWidth = 8;

/// The statistics of values and what they become, counted.
std::vector<float> normalised(Counted& q, const std::vector<float>& x, float eps, bool centred) {
  const auto n = static_cast<float>(x.size());
  const float mean = centred ? q(sum_of(x) / n) : 0.0f;
  std::vector<float> squares, y;
  for (const float v : x) squares.push_back((v - mean) * (v - mean));
  const float variance = q(sum_of(squares) / n);
  const float r = q(1.0f / std::sqrt(variance + eps));
  for (const float v : x) y.push_back(q((v - mean) * r));
  return y;
}

Tensor rows_tensor() {
  std::vector<float> all;
  for (const auto& row : kRows) all.insert(all.end(), row.begin(), row.end());
  return Tensor::from(all, {kRowCount, kWidth});
}
/// The same values, a column each.
Tensor columns_tensor() {
  std::vector<float> all;
  for (size_t i = 0; i < kWidth; ++i)
    for (const auto& row : kRows) all.push_back(row[i]);
  return Tensor::from(all, {kWidth, kRowCount});
}

/// The values of exp in the fraction that the kernels compute (core/scalar_math.h).
void softmax_by_hand(Counted& q, const std::vector<float>& x, float scale, bool log) {
  std::vector<float> e;
  float most = x[0];
  for (const float v : x) most = std::isnan(v) || v > most ? v : most;
  if (std::any_of(x.begin(), x.end(), [](float v) { return std::isnan(v); })) most = NAN;
  for (const float v : x) e.push_back(q(v * scale - most * scale));
  for (float& v : e) v = exp_of(v);
  for (float& v : e) v = q(v);
  const float sum = q(sum_of(e));
  if (log) q(log_of(sum));
}

}  // namespace

TEST_SUITE("interior_stats") {
  TEST_CASE("norms of rows: mean, variance, inverse deviation and normalised values, each once") {
    for (const char* format : kFormats) {
      const OpFormats f = interior(format);
      const Tensor x = rows_tensor(), w = random_tensor({kWidth}, 0.5, 2, 1);
      for (const bool centred : {true, false}) {
        CAPTURE(centred);
        Counted by_hand(format);
        for (const auto& row : kRows) normalised(by_hand, row, 1e-5f, centred);
        Run run(kCpu, 3);
        RoleStats stats(kCpu);
        const CountRoles counting(run, stats);
        Tape tape(run);
        const Var in = tape.leaf(x), weight = tape.leaf(w);
        const Var y = centred ? ops::layer_norm(tape, in, weight, {}, 1e-5, f, RandomSite("here"))
                              : ops::rms_norm(tape, in, weight, 1e-5, f, RandomSite("here"));
        by_hand.check(stats);
        tape.backward(ops::sum(tape, y));  // makes the same numbers again
        by_hand.check(stats);
        CHECK((by_hand.overflow + by_hand.underflow > 0) == (std::string(format) != "fp16"));
      }
    }
  }

  TEST_CASE("batch norm: of the batch, and of the running statistics") {
    for (const char* format : kFormats) {
      const OpFormats f = interior(format);
      const Tensor x = columns_tensor();
      {
        Counted by_hand(format);
        for (const auto& row : kRows) normalised(by_hand, row, 1e-5f, true);
        Run run(kCpu, 3);
        RoleStats stats(kCpu);
        const CountRoles counting(run, stats);
        Tape tape(run);
        const Var in = tape.leaf(x);
        const Var y = ops::batch_norm(tape, in, tape.leaf(random_tensor({kRowCount}, 0.5, 2, 1)),
                                      {}, {}, {.eps = 1e-5}, f, RandomSite("here"));
        by_hand.check(stats);
        tape.backward(ops::sum(tape, y));
        by_hand.check(stats);
      }
      {
        const std::vector<float> mean{1, -0x1p-12f, 700, 3, 0.3f, 1}, variance{9, 1e4f, 1, 0, 1, 1};
        Counted by_hand(format);
        for (size_t c = 0; c < kRowCount; ++c) {
          const float m = by_hand(mean[c]);
          const float r = by_hand(1.0f / std::sqrt(by_hand(variance[c]) + 1e-5f));
          for (const float v : kRows[c]) by_hand((v - m) * r);
        }
        Run run(kCpu, 3);
        RoleStats stats(kCpu);
        const CountRoles counting(run, stats);
        Tape tape(run);
        ops::batch_norm(tape, tape.constant(x), {}, {},
                        {Tensor::from(mean, {kRowCount}), Tensor::from(variance, {kRowCount})},
                        {.eps = 1e-5, .training = false}, f, RandomSite("here"));
        by_hand.check(stats);
      }
    }
  }

  TEST_CASE("group norm: the values of a sample's group") {
    for (const char* format : kFormats) {
      // (N, 4, C = 4), two groups: values 2s and 2s + 1 of place s.
      std::vector<float> all(kRowCount * kWidth);
      for (size_t n = 0; n < kRowCount / 2; ++n)
        for (size_t s = 0; s < 4; ++s)
          for (size_t c = 0; c < 4; ++c)
            all[(n * 4 + s) * 4 + c] = kRows[2 * n + c / 2][2 * s + c % 2];
      Counted by_hand(format);
      for (const auto& row : kRows) normalised(by_hand, row, 1e-5f, true);
      Run run(kCpu, 3);
      RoleStats stats(kCpu);
      const CountRoles counting(run, stats);
      Tape tape(run);
      ops::group_norm(tape, tape.constant(Tensor::from(all, {kRowCount / 2, 4, 4})), 2, {}, {},
                      1e-5, interior(format), RandomSite("here"));
      by_hand.check(stats);
    }
  }

  TEST_CASE("softmax, log-softmax and cross-entropy: differences, exps, sum, logarithm") {
    for (const char* format : kFormats) {
      const OpFormats f = interior(format);
      const Tensor x = rows_tensor();
      for (const bool log : {false, true}) {
        Counted by_hand(format);
        for (const auto& row : kRows) softmax_by_hand(by_hand, row, 1, log);
        Run run(kCpu, 3);
        RoleStats stats(kCpu);
        const CountRoles counting(run, stats);
        Tape tape(run);
        const Var in = tape.leaf(x);
        const Var y = log ? ops::log_softmax(tape, in, f, RandomSite("here"))
                          : ops::softmax(tape, in, f, RandomSite("here"));
        by_hand.check(stats);
        tape.backward(ops::sum(tape, y));
        by_hand.check(stats);
        if (!log) continue;
        const Tensor labels = Tensor::from(std::vector<int32_t>{0, 1, 2, 3, 4, 5}, {kRowCount});
        Tape again(run);
        again.backward(ops::cross_entropy(again, again.leaf(x), labels, f, RandomSite("loss")));
        by_hand.check(stats, "loss");
        Tape once_more(run);
        ops::cross_entropy(once_more, once_more.leaf(x), labels, 0.1, f, RandomSite("smooth"));
        by_hand.check(stats, "smooth");
      }
    }
  }

  TEST_CASE("attention: what a row sees, and nothing else") {
    // Scores q·k of one number each, exact. The second sequence has three keys.
    const std::vector<float> q{1, 30, -3, 0.25f, 2, -20, 1, 8}, k{1, -2, 20, 3, 0.5f, 4, -1, NAN};
    for (const char* format : kFormats)
      for (const bool causal : {true, false})
        for (const bool ragged : {true, false}) {
          CAPTURE(causal);
          CAPTURE(ragged);
          Counted by_hand(format);
          for (size_t n = 0; n < 2; ++n)
            for (size_t t = 0; t < 4; ++t) {
              const size_t length = ragged ? (n == 0 ? 4 : 0) : 4;
              std::vector<float> row;
              for (size_t s = 0; s < std::min(causal ? t + 1 : 4, length); ++s)
                row.push_back(q[n * 4 + t] * k[n * 4 + s]);
              if (!row.empty()) softmax_by_hand(by_hand, row, 0.5f, false);
            }
          Run run(kCpu, 3);
          RoleStats stats(kCpu);
          const CountRoles counting(run, stats);
          Tape tape(run);
          ops::AttentionOptions o;
          o.causal = causal;
          o.scale = 0.5;
          if (ragged) o.lengths = Tensor::from(std::vector<int32_t>{4, 0}, {2});
          ops::AttentionFormats f;
          f.softmax.interior = Quantizer::parse(format);
          ops::AttentionSites sites;
          sites.softmax = RandomSite("here");
          const Var x = tape.leaf(Tensor::from(q, {2, 4, 1}));
          const Var y = ops::attention(tape, x, tape.leaf(Tensor::from(k, {2, 4, 1})),
                                       tape.leaf(Tensor::from(q, {2, 4, 1})), o, f, sites);
          by_hand.check(stats);
          tape.backward(ops::sum(tape, y));  // makes the same numbers again
          by_hand.check(stats);
        }
  }

  TEST_CASE("recurrent steps: sums, gates and tanh(c)") {
    // One cell; the products are exact: sums are x times 1, 2, 3, 4 and the state before times ½.
    for (const char* format : kFormats) {
      const std::vector<float> x{0.5f, -300, 0.0001f, 12};
      Counted lstm(format), gru(format);
      float h = 0, c = 0, s = 0;
      for (const float v : x) {
        float gate[4];
        for (int g = 0; g < 4; ++g) gate[g] = lstm(v * static_cast<float>(g + 1) + h * 0.5f);
        for (int g = 0; g < 4; ++g) gate[g] = lstm(g == 2 ? tanh_of(gate[g]) : sigmoid_of(gate[g]));
        c = fma_of(gate[1], c, gate[0] * gate[2]);
        h = gate[3] * lstm(tanh_of(c));
        const float r = gru(sigmoid_of(gru(v + s * 0.5f)));
        const float z = gru(sigmoid_of(gru(v * 2 + s * 0.5f)));
        const float n = gru(tanh_of(gru(fma_of(r, s * 0.5f, v * 3))));
        s = fma_of(z, s - n, n);
      }
      Run run(kCpu, 3);
      RoleStats stats(kCpu);
      const CountRoles counting(run, stats);
      const auto train = [&](bool is_lstm, const char* cell, const char* site) {
        Tape tape(run);
        const std::vector<float> in{1, 2, 3, 4}, of_h(4, 0.5f);
        const int64_t gates = is_lstm ? 4 : 3;
        const auto column = [&](const std::vector<float>& w) {
          return tape.leaf(Tensor::from(w, {4, 1}).slice(0, 0, gates));
        };
        const ops::RecurrentWeights weights{column(in), column(of_h)};
        ops::RecurrentFormats f;
        f.gates.interior = Quantizer::parse(format);
        f.cell_state.output = cell;
        ops::RecurrentSites sites;
        sites.gates = RandomSite(site);
        const Var sequence = tape.leaf(Tensor::from(x, {1, 4, 1}));
        const ops::RecurrentResult y = is_lstm ? ops::lstm(tape, sequence, weights, {}, f, sites)
                                               : ops::gru(tape, sequence, weights, {}, f, sites);
        tape.backward(ops::sum(tape, y.y));
      };
      train(true, "fp32", "lstm");
      lstm.check(stats, "lstm");
      train(false, "fp32", "gru");
      gru.check(stats, "gru");
      // A cell of 8 bits with a factor is rounded between the halves of a step.
      train(true, "e4m3+scale=current", "halves");
      CHECK(stats.totals().at(RandomSite("halves").stream("interior")).stats.count == lstm.count);
    }
  }

  TEST_CASE("stochastic formats: with the words of their draws") {
    Run run(kCpu, 5);
    const Tensor x = random_tensor({40, 33}, -3, 3, 8);
    RoleStats stats(kCpu);
    {
      const CountRoles counting(run, stats);
      Tape tape(run);
      ops::layer_norm(tape, tape.constant(x), {}, {}, 1e-5, interior("e2m1-sat:sr"),
                      RandomSite("here"));
    }
    QuantiseStats want;
    const auto rounded = [&](uint32_t draw, const std::vector<float>& values) {
      QuantiseUse use;
      use.quantizer = "e2m1-sat:sr";
      use.key = {5, RandomSite("here").stream("interior"), draw, run.device_state()};
      use.stats = Tensor::empty({static_cast<int64_t>(sizeof(QuantiseStats))}, DType::U8, kCpu);
      const Tensor t = Tensor::from(values, {static_cast<int64_t>(values.size())});
      const Tensor y = quantised(stream_of(kCpu), t, use);
      QuantiseStats s;
      std::memcpy(&s, use.stats.raw(), sizeof s);
      want.count += s.count;
      want.overflow += s.overflow;
      want.underflow += s.underflow;
      want.square_error += s.square_error;
      want.error += s.error;
      want.amax_bits = std::max(want.amax_bits, s.amax_bits);
      return y.to_floats();
    };
    const std::vector<float> values = x.to_floats();
    std::vector<float> sums, squares, deviations, hats;
    const auto row = [&](size_t n) {
      return std::vector<float>(values.begin() + static_cast<int64_t>(n) * 33,
                                values.begin() + static_cast<int64_t>(n + 1) * 33);
    };
    for (size_t n = 0; n < 40; ++n) sums.push_back(sum_of(row(n)) / 33.0f);
    const std::vector<float> means = rounded(0, sums);
    for (size_t n = 0; n < 40; ++n) {
      std::vector<float> about = row(n);
      for (float& v : about) v = (v - means[n]) * (v - means[n]);
      squares.push_back(sum_of(about) / 33.0f);
    }
    const std::vector<float> variances = rounded(1, squares);
    for (const float v : variances) deviations.push_back(1.0f / std::sqrt(v + 1e-5f));
    const std::vector<float> inverses = rounded(2, deviations);
    for (size_t n = 0; n < 40; ++n)
      for (const float v : row(n)) hats.push_back((v - means[n]) * inverses[n]);
    rounded(3, hats);
    const QuantiseStats got = stats.totals().at(RandomSite("here").stream("interior")).stats;
    CHECK(got.count == 40 * (33 + 3));
    CHECK(got.overflow == want.overflow);
    CHECK(got.underflow == want.underflow);
    CHECK(got.underflow > 100);
    CHECK(got.amax_bits == want.amax_bits);
    CHECK(got.square_error == want.square_error);
    CHECK(got.error == want.error);
  }

  TEST_CASE("whatever is counted, results stay as they are; fp32 interiors are not counted") {
    for (const char* format : {"e4m3-sat:sr", "e5m2", "fp32"}) {
      CAPTURE(std::string(format));
      OpFormats f = interior(format);
      f.output = f.grad_input = format;
      int counted = 0;
      for (const OpRow& row : op_table()) {
        CAPTURE(std::string(row.name));
        for (const std::vector<Shape>& shapes : row.shapes) {
          std::vector<Tensor> inputs;
          for (const Shape& shape : shapes)
            inputs.push_back(random_tensor(shape, row.low, row.high, 7 + inputs.size()));
          Run run(kCpu, 2), plain_run(kCpu, 2);
          RoleStats stats(kCpu);
          const Pass plain = run_row(row, plain_run, inputs, f);
          const CountRoles counting(run, stats);
          CHECK(same_bits(run_row(row, run, inputs, f), plain));
          counted += stats.totals().contains(RandomSite(kSite).stream("interior"));
        }
      }
      CHECK((counted > 20) == (std::string(format) != "fp32"));
    }
  }
}
