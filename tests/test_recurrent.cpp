#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "autograd/recurrent.h"
#include "autograd/role_stats.h"
#include "core/scalar_math.h"
#include "nn/models/char_rnn.h"
#include "nn/policy.h"
#include "nn/recurrent.h"
#include "optim/optimizer.h"
#include "tests/near.h"
#include "tests/op_table.h"
#include "tests/paths.h"

using namespace ulp;
using namespace ulp::tests;
using nlohmann::json;

namespace {

std::unique_ptr<nn::Recurrent> make(const std::string& kind, int64_t in, int64_t hidden,
                                    const nn::RecurrentOptions& o = {},
                                    const ops::RecurrentFormats& f = {}) {
  if (kind == "lstm") return std::make_unique<nn::LSTM>(in, hidden, o, f);
  return std::make_unique<nn::GRU>(in, hidden, o, f);
}

/// "layer2.hidden_product.bias" → "bias_hh_l1".
std::string torch_name(const std::string& path) {
  const std::string layer(1, static_cast<char>(path[5] - 1));
  return (path.ends_with("bias") ? "bias_" : "weight_") +
         std::string(path.find("input_product") != std::string::npos ? "ih" : "hh") + "_l" + layer;
}

/// One layer of a stacked (layers, N, H).
json layer_of(const json& stacked, size_t layer) {
  auto shape = stacked.at("shape").get<std::vector<int64_t>>();
  const auto values = stacked.at("values").get<std::vector<double>>();
  const size_t size = static_cast<size_t>(shape[1] * shape[2]);
  shape.erase(shape.begin());
  const auto first = values.begin() + static_cast<std::ptrdiff_t>(layer * size);
  return {{"shape", shape},
          {"values", std::vector<double>(first, first + static_cast<std::ptrdiff_t>(size))}};
}

/// Σ v·g.
Var dot(Tape& tape, const Var& v, const json& g) {
  return ops::sum(tape, ops::multiply(tape, v, tape.constant(tensor_of(g))));
}

/// The role's quantizer applied by the kernel itself, with the draw that the op must have taken.
Tensor by_role(Run& run, const Tensor& x, const Quantizer& q, const std::string& part,
               const char* role, uint32_t ordinal = 0) {
  if (q.is_identity()) return x;
  Tensor out = Tensor::empty(x.shape(), DType::F32, kCpu);
  const RandomKey key{run.seed(), RandomSite(std::string(kSite) + "." + part).stream(role), ordinal,
                      run.device_state()};
  kernels::quantise(run.stream(), {kernels::contiguous(run.stream(), x), out, q, 1, key});
  return out;
}

Tensor product(Run& run, const Tensor& a, const Tensor& b, const Tensor& bias) {
  Tensor out = Tensor::empty({a.size(0), b.size(0)}, DType::F32, kCpu);
  kernels::matmul(run.stream(), {a, b.transpose(0, 1), bias, out, {}, {}, {}, Math::Strict});
  return out;
}

/// f(i) for every element of a matrix.
template <class F>
Tensor matrix(int64_t rows, int64_t columns, const F& f) {
  std::vector<float> values;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) values.push_back(f(i, j));
  return Tensor::from(values, {rows, columns});
}
float at(const Tensor& t, int64_t i, int64_t j) { return t.data<float>()[i * t.size(1) + j]; }

struct Problem {
  int64_t n, t, in, h, gates;
  Tensor x, wi, wh, bi, bh, h0, c0;
};
Problem problem(int64_t gates) {
  Problem p{3, 4, 5, 6, gates, {}, {}, {}, {}, {}, {}, {}};
  p.x = random_tensor({p.n, p.t, p.in}, -2, 2, 1);
  p.wi = random_tensor({gates * p.h, p.in}, -1, 1, 2);
  p.wh = random_tensor({gates * p.h, p.h}, -1, 1, 3);
  p.bi = random_tensor({gates * p.h}, -1, 1, 4);
  p.bh = random_tensor({gates * p.h}, -1, 1, 5);
  p.h0 = random_tensor({p.n, p.h}, -1, 1, 6);
  p.c0 = random_tensor({p.n, p.h}, -1, 1, 7);
  return p;
}

ops::RecurrentFormats some_formats(const char* products, const char* gates, const char* states) {
  ops::RecurrentFormats f;
  f.input_product = f.hidden_product = OpFormats::make(products, products);
  f.input_product.output = f.hidden_product.output = Quantizer::parse(states);
  f.hidden_product.grad_input = f.input_product.grad_weight = Quantizer::parse(states);
  f.gates.interior = Quantizer::parse(gates);
  f.gates.grad_input = Quantizer::parse(states);
  f.hidden_state.output = f.hidden_state.grad_input = Quantizer::parse(states);
  f.cell_state.output = f.cell_state.grad_input = Quantizer::parse(products);
  return f;
}

struct Outcome {
  Tensor y, h, c;
  std::vector<Tensor> grads;
};
Outcome run_op(Run& run, const Problem& p, const ops::RecurrentFormats& f) {
  restart_step(run);
  Tape tape(run);
  const bool lstm = p.gates == 4;
  std::vector<Var> v;
  for (const Tensor* t : {&p.x, &p.wi, &p.wh, &p.bi, &p.bh, &p.h0}) v.push_back(tape.leaf(*t));
  if (lstm) v.push_back(tape.leaf(p.c0));
  const ops::RecurrentSites sites(kSite);
  const ops::RecurrentWeights w{v[1], v[2], v[3], v[4]};
  const ops::RecurrentState s{v[5], lstm ? v[6] : Var{}};
  const ops::RecurrentResult r =
      lstm ? ops::lstm(tape, v[0], w, s, f, sites) : ops::gru(tape, v[0], w, s, f, sites);
  tape.backward(r.y, random_tensor(r.y.shape(), -1, 1, 8));
  Outcome o{r.y.value, r.state.h.value, r.state.c.value, {}};
  for (const Var& leaf : v) o.grads.push_back(tape.grad(leaf));
  return o;
}

}  // namespace

TEST_SUITE("recurrent") {
  TEST_CASE("layers against PyTorch in fp64: outputs, last states and every gradient") {
    std::ifstream file(std::string(paths::kTestData) + "/recurrent.json");
    const json all = json::parse(file);
    CHECK(all.at("cases").size() == 16);
    for (const json& c : all.at("cases")) {
      const std::string kind = c.at("op");
      const auto layers = c.at("layers").get<size_t>();
      CAPTURE(kind);
      CAPTURE(c.at("x").at("shape").dump());
      CAPTURE(layers);
      Run run;
      const auto net = make(kind, c.at("inputs"), c.at("hidden"),
                            {static_cast<int64_t>(layers), 0, c.at("bias").get<bool>()});
      net->initialise(run);
      CHECK(net->parameters().size() == c.at("weights").size());
      for (Parameter* p : net->parameters()) {
        const Tensor value = tensor_of(c.at("weights").at(torch_name(p->path)));
        REQUIRE(value.shape() == p->value.shape());
        p->value = value;
      }
      Tape tape(run);
      const Var x = tape.leaf(tensor_of(c.at("x")));
      std::vector<ops::RecurrentState> first;
      for (size_t k = 0; k < layers && c.at("states").contains("h"); ++k) {
        first.push_back({tape.leaf(tensor_of(layer_of(c.at("states").at("h"), k))), {}});
        if (kind == "lstm")
          first.back().c = tape.leaf(tensor_of(layer_of(c.at("states").at("c"), k)));
      }
      const nn::Recurrent::Result r = net->run(tape, x, first);
      Var loss = dot(tape, r.y, c.at("g").at("y"));
      const auto part = [](const ops::RecurrentState& s, const std::string& name) {
        return name == "h" ? s.h : s.c;
      };
      for (const auto& [name, value] : c.at("after").items())
        for (size_t k = 0; k < layers; ++k) {
          CHECK(near(part(r.states[k], name).value, layer_of(value, k)));
          if (c.at("g").contains(name))
            loss = ops::add(tape, loss,
                            dot(tape, part(r.states[k], name), layer_of(c.at("g").at(name), k)));
        }
      tape.backward(loss);
      CHECK(near(r.y.value, c.at("y")));
      CHECK(near(tape.grad(x), c.at("dx")));
      for (const auto& [name, value] : c.at("dstates").items())
        for (size_t k = 0; k < layers; ++k)
          CHECK(near(tape.grad(part(first[k], name)), layer_of(value, k)));
      for (const Parameter* p : net->parameters()) {
        CAPTURE(p->path);
        CHECK(near(p->grad, c.at("dweights").at(torch_name(p->path))));
      }
    }
  }

  TEST_CASE("law of the forward pass: every part by its formats, with draws of its own step") {
    Run run;
    for (const int64_t gates : {4, 3})
      for (const char* products : {"fp32", "e4m3", "e5m2:sr", "bfp8:sr", "bfp6-g4:sr"})
        for (const char* interior : {"fp32", "bf16:sr"})
          for (const char* states : {"fp32", "e5m2:sr", "bfp8:sr"}) {
            CAPTURE(gates);
            CAPTURE(std::string(products));
            CAPTURE(std::string(interior));
            CAPTURE(std::string(states));
            const Problem p = problem(gates);
            const ops::RecurrentFormats f = some_formats(products, interior, states);
            const Outcome o = run_op(run, p, f);
            restart_step(run);
            const Tensor rows =
                kernels::contiguous(run.stream(), p.x.transpose(0, 1)).reshape({p.t * p.n, p.in});
            const Tensor sums = by_role(
                run,
                product(run, by_role(run, rows, f.input_product.input, "input_product", "input"),
                        by_role(run, p.wi, f.input_product.weight, "input_product", "weight"),
                        p.bi),
                f.input_product.output, "input_product", "output");
            const Tensor wh =
                by_role(run, p.wh, f.hidden_product.weight, "hidden_product", "weight");
            Tensor h = p.h0, c = p.c0;
            const uint32_t draws = gates == 4 ? 3 : 2;
            for (int64_t t = 0; t < p.t; ++t) {
              const auto step = static_cast<uint32_t>(t);
              const Tensor u = by_role(
                  run,
                  product(run,
                          by_role(run, h, f.hidden_product.input, "hidden_product", "input", step),
                          wh, p.bh),
                  f.hidden_product.output, "hidden_product", "output", step);
              const auto inside = [&](const Tensor& v, uint32_t draw) {
                return by_role(run, v, f.gates.interior, "gates", "interior", draws * step + draw);
              };
              const auto x_at = [&](int64_t i, int64_t j) { return at(sums, t * p.n + i, j); };
              if (gates == 4) {
                const Tensor z =
                    inside(matrix(p.n, 4 * p.h,
                                  [&](int64_t i, int64_t j) { return x_at(i, j) + at(u, i, j); }),
                           0);
                const Tensor g = inside(matrix(p.n, 4 * p.h,
                                               [&](int64_t i, int64_t j) {
                                                 return j / p.h == 2 ? tanh_of(at(z, i, j))
                                                                     : sigmoid_of(at(z, i, j));
                                               }),
                                        1);
                c = by_role(run,
                            matrix(p.n, p.h,
                                   [&](int64_t i, int64_t j) {
                                     return fma_of(at(g, i, p.h + j), at(c, i, j),
                                                   at(g, i, j) * at(g, i, 2 * p.h + j));
                                   }),
                            f.cell_state.output, "cell_state", "output", step);
                const Tensor tc = inside(
                    matrix(p.n, p.h, [&](int64_t i, int64_t j) { return tanh_of(at(c, i, j)); }),
                    2);
                h = matrix(p.n, p.h, [&](int64_t i, int64_t j) {
                  return at(g, i, 3 * p.h + j) * at(tc, i, j);
                });
              } else {
                // n's sum wants r rounded: both draws twice, of the elements that are there.
                Tensor z = matrix(p.n, 3 * p.h,
                                  [&](int64_t i, int64_t j) { return x_at(i, j) + at(u, i, j); });
                const auto gate = [&](int64_t i, int64_t j) {
                  return j / p.h == 2 ? tanh_of(at(z, i, j)) : sigmoid_of(at(z, i, j));
                };
                const Tensor sums_now = z;
                z = inside(sums_now, 0);
                const Tensor r = inside(matrix(p.n, 3 * p.h, gate), 1);
                z = inside(matrix(p.n, 3 * p.h,
                                  [&](int64_t i, int64_t j) {
                                    return j / p.h < 2 ? at(sums_now, i, j)
                                                       : fma_of(at(r, i, j - 2 * p.h), at(u, i, j),
                                                                x_at(i, j));
                                  }),
                           0);
                const Tensor g = inside(matrix(p.n, 3 * p.h, gate), 1);
                h = matrix(p.n, p.h, [&](int64_t i, int64_t j) {
                  const float n = at(g, i, 2 * p.h + j);
                  return fma_of(at(g, i, p.h + j), at(h, i, j) - n, n);
                });
              }
              h = by_role(run, h, f.hidden_state.output, "hidden_state", "output", step);
              CHECK(same_bits(
                  h,
                  kernels::contiguous(run.stream(), o.y.slice(1, t, t + 1)).reshape({p.n, p.h})));
            }
            CHECK(same_bits(h, o.h));
            if (gates == 4) CHECK(same_bits(c, o.c));
          }
  }

  TEST_CASE("roles that are counted have the same bits, forward and backward") {
    Run run;
    for (const int64_t gates : {4, 3})
      for (const char* states : {"fp32", "e5m2:sr", "bfp8:sr"}) {
        const Problem p = problem(gates);
        const ops::RecurrentFormats f = some_formats("e4m3:sr", "bf16:sr", states);
        const Outcome plain = run_op(run, p, f);
        RoleStats stats(kCpu);
        const CountRoles count(run, stats);
        const Outcome counted = run_op(run, p, f);
        CHECK(same_bits(plain.y, counted.y));
        for (size_t k = 0; k < plain.grads.size(); ++k) {
          CAPTURE(k);
          CHECK(same_bits(plain.grads[k], counted.grads[k]));
        }
        const auto totals = stats.totals();
        CHECK(totals.contains(RandomSite(std::string(kSite) + ".hidden_product").stream("input")));
        for (const char* role : {"output", "grad_input"}) {  // with a format or without
          CAPTURE(std::string(role));
          CHECK(totals.contains(RandomSite(std::string(kSite) + ".hidden_state").stream(role)));
          CHECK(totals.contains(RandomSite(std::string(kSite) + ".cell_state").stream(role)) ==
                (gates == 4));
        }
        CHECK(totals.contains(RandomSite(std::string(kSite) + ".gates").stream("grad_input")));
      }
  }

  TEST_CASE("gradients of rounded passes go through the rounded weights and lie on their grids") {
    Run run;
    for (const int64_t gates : {4, 3}) {
      const Problem p = problem(gates);
      ops::RecurrentFormats f;
      f.input_product.grad_input = f.input_product.grad_weight = f.hidden_product.grad_weight =
          Quantizer::parse("e4m3:sr");
      const Outcome o = run_op(run, p, f), plain = run_op(run, p, {});
      CHECK(same_bits(o.y, plain.y));
      const Grid grid = make_grid(Quantizer::parse("e4m3"));
      for (const size_t k : {0, 1, 2}) {
        bool on_grid = true;
        for (const float v : o.grads[k].to_floats())
          on_grid = on_grid && quantise_value(v, grid, 0u) == v;
        CHECK(on_grid);
        CHECK(!same_bits(o.grads[k], plain.grads[k]));
      }
      CHECK(same_bits(o.grads[5], plain.grads[5]));
    }
  }

  TEST_CASE("states lie on their grids, and draws differ from step to step") {
    Run run;
    for (const std::string kind : {"lstm", "gru"}) {
      CAPTURE(kind);
      ops::RecurrentFormats f;
      f.hidden_state.output = Quantizer::parse("e4m3:sr");
      f.cell_state.output = Quantizer::parse("e5m2:sr");
      const auto net = make(kind, 3, 40, {}, f);
      net->initialise(run);
      // Nothing is carried: what is rounded is the same in every step.
      for (Parameter* p : net->parameters()) {
        const bool bias = p->path == "layer1.input_product.bias";
        std::vector<float> values(static_cast<size_t>(p->value.numel()), 0.0f);
        for (size_t i = 0; bias && i < values.size(); ++i) {
          const size_t gate = i / 40;
          values[i] = gate == 1 ? -100.0f : 0.3f + 0.01f * static_cast<float>(i % 40);
        }
        p->value = Tensor::from(values, p->value.shape());
      }
      Tape tape(run, Tape::Recording::Off);
      const nn::Recurrent::Result r =
          net->run(tape, tape.constant(Tensor::zeros({2, 6, 3}, DType::F32, kCpu)));
      const std::vector<float> y = r.y.value.to_floats();
      const Grid h_grid = make_grid(Quantizer::parse("e4m3")),
                 c_grid = make_grid(Quantizer::parse("e5m2"));
      for (const float v : y) CHECK(quantise_value(v, h_grid, 0u) == v);
      if (kind == "lstm")
        for (const float v : r.states[0].c.value.to_floats())
          CHECK(quantise_value(v, c_grid, 0u) == v);
      const auto step = [&](size_t t) {
        return std::vector<float>(y.begin() + static_cast<std::ptrdiff_t>(t * 40),
                                  y.begin() + static_cast<std::ptrdiff_t>(t * 40 + 40));
      };
      for (size_t t = 1; t < 6; ++t)
        for (size_t s = 0; s < t; ++s) CHECK(step(t) != step(s));
    }
  }

  TEST_CASE("piece by piece: the bits of the whole sequence, from states that are carried") {
    for (const std::string kind : {"lstm", "gru"})
      for (const char* format : {"fp32", "e4m3", "mxfp8", "bfp8-g4"}) {
        CAPTURE(kind);
        CAPTURE(std::string(format));
        Run run;
        OpFormats all = OpFormats::make(format, "fp32");
        all.output = Quantizer::parse(format);
        ops::RecurrentFormats f = ops::RecurrentFormats::all(all);
        if (f.gates.output.is_elementwise()) f.gates.interior = all.output;
        const auto net = make(kind, 5, 9, {3, 0.25}, f);
        net->initialise(run, "rnn");
        const nn::EvaluationMode evaluation(*net);
        CHECK(net->obstacle().empty());
        const Tensor x = random_tensor({3, 7, 5}, -2, 2, 4);
        Tape whole_tape(run, Tape::Recording::Off);
        const Tensor whole = (*net)(whole_tape, whole_tape.constant(x)).value;
        for (const std::vector<int64_t>& pieces :
             {std::vector<int64_t>{1, 1, 1, 1, 1, 1, 1}, {3, 4}, {7}, {1, 5, 1}}) {
          net->begin(3, 7);
          int64_t begin = 0;
          for (const int64_t piece : pieces) {
            Tape tape(run, Tape::Recording::Off);
            const Tensor y = (*net)(tape, tape.constant(x.slice(1, begin, begin + piece))).value;
            CHECK(same_bits(
                y, kernels::contiguous(run.stream(), whole.slice(1, begin, begin + piece))));
            begin += piece;
          }
          Tape tape(run, Tape::Recording::Off);
          CHECK_THROWS_WITH_AS((*net)(tape, tape.constant(x.slice(1, 0, 1))),
                               doctest::Contains("there is room for 0"), Error);
          CHECK_THROWS_WITH_AS((*net)(tape, tape.constant(x.slice(0, 0, 2))),
                               doctest::Contains("begun with 3 sequences"), Error);
        }
        net->end();
        Tape tape(run, Tape::Recording::Off);
        CHECK(same_bits((*net)(tape, tape.constant(x)).value, whole));
      }
  }

  TEST_CASE("what makes a piece depend on others is named") {
    Run run;
    const auto obstacle = [&](const ops::RecurrentFormats& f) {
      nn::LSTM net(3, 4, {2, 0}, f);
      net.initialise(run, "rnn");
      return net.obstacle();
    };
    ops::RecurrentFormats f;
    CHECK(obstacle(f).empty());
    f.hidden_product.input = Quantizer::parse("bfp8");  // of one step, either way
    CHECK(obstacle(f).empty());
    f.input_product.input = Quantizer::parse("bfp8");
    CHECK(obstacle(f) ==
          "rnn.layer1.input_product: input bfp8 shares a scale between elements of a sequence");
    f.input_product.input = Quantizer::parse("bfp8-axis0");
    CHECK(obstacle(f).empty());
    f.input_product.output = Quantizer::parse("e4m3:sr");
    CHECK(obstacle(f) ==
          "rnn.layer1.input_product: output e4m3:sr draws other random numbers for a piece");
  }

  TEST_CASE("policies reach every part by path and by type") {
    Run run;
    nn::GRU net(3, 4, {2, 0.1});
    net.initialise(run, "rnn");
    CHECK(net.describe() == "GRU 3 → 4, 2 layers");
    const std::vector<nn::Layer> layers = nn::layers_of(net);
    CHECK(layers.size() == 9);  // four parts of each layer, one dropout
    CHECK(layers[0].path == "rnn.layer1.input_product");
    CHECK(layers[0].description == "Input product 3 → 12");
    nn::Policy policy;
    nn::Rule all, one;
    all.types = {nn::LayerType::Recurrent};
    all.forward = Quantizer::parse("e4m3");
    one.path = "*.layer2.hidden_state";
    one.role("output") = Quantizer::parse("bfp8");
    policy.rules = {all, one};
    nn::apply(policy, net);
    const auto formats_of = [&](const std::string& path) -> const OpFormats& {
      for (const nn::Layer& layer : layers)
        if (layer.path == path) return *layer.formats;
      FAIL(path);
      return *layers[0].formats;
    };
    CHECK(formats_of("rnn.layer1.input_product").input == Quantizer::parse("e4m3"));
    CHECK(formats_of("rnn.layer2.hidden_product").weight_dx == Quantizer::parse("e4m3"));
    CHECK(formats_of("rnn.layer1.hidden_state").output.is_identity());
    CHECK(formats_of("rnn.layer2.hidden_state").output == Quantizer::parse("bfp8"));
  }

  TEST_CASE("character models learn, quantised or not, and go on piece by piece") {
    for (const nn::RecurrentKind kind : {nn::RecurrentKind::Lstm, nn::RecurrentKind::Gru})
      for (const char* format : {"fp32", "e4m3", "bfp8"}) {
        CAPTURE(static_cast<int>(kind));
        CAPTURE(std::string(format));
        Run run(kCpu, 3);
        const auto net = nn::char_rnn(kind, 7, 24, {2, 0, true}, OpFormats::make(format, format));
        net->initialise(run);
        CHECK(net->parameters()[0]->path == "embedding.weight");
        CHECK(net->parameters()[1]->path == (kind == nn::RecurrentKind::Lstm ? "lstm" : "gru") +
                                                std::string(".layer1.input_product.weight"));
        optim::OptimizerOptions options;
        options.algorithm = optim::Algorithm::Adam;
        options.lr = 0.01;
        optim::Optimizer adam(run, net->parameters(), options);
        // 0 1 2 3 4 5 6 0 … with every second element doubled: only a memory tells what comes.
        std::vector<int32_t> tokens, labels;
        const auto element = [](int32_t i) { return i % 3 == 2 ? i / 3 % 7 : i / 3 * 2 % 7; };
        for (int32_t n = 0; n < 4; ++n)
          for (int32_t t = 0; t < 12; ++t) {
            tokens.push_back(element(5 * n + t));
            labels.push_back(element(5 * n + t + 1));
          }
        const Tensor x = Tensor::from(tokens, {4, 12}), y = Tensor::from(labels, {48});
        double first = 0, last = 0;
        for (int step = 0; step < 60; ++step) {
          Tape tape(run);
          const Var logits = (*net)(tape, tape.constant(x));
          REQUIRE(logits.shape() == Shape{4, 12, 7});
          const Var loss = ops::cross_entropy(tape, ops::reshape(tape, logits, {48, 7}), y);
          last = loss.value.item();
          if (step == 0) first = last;
          tape.backward(loss);
          adam.step();
          adam.zero_grad();
        }
        CHECK(std::abs(first - std::log(7.0)) < 0.3);
        CHECK(last < 0.5 * first);
      }
  }

  TEST_CASE("shapes and options that do not fit are named") {
    Run run;
    Tape tape(run);
    const auto var = [&](const Shape& s) {
      return tape.constant(Tensor::zeros(s, DType::F32, kCpu));
    };
    const ops::RecurrentWeights w{var({8, 3}), var({8, 2}), var({8}), var({8})};
    CHECK_THROWS_WITH_AS(ops::lstm(tape, var({2, 3}), w), doctest::Contains("x must be (N, T, In)"),
                         Error);
    CHECK_THROWS_WITH_AS(ops::lstm(tape, var({2, 0, 3}), w), doctest::Contains("T >= 1"), Error);
    CHECK_THROWS_WITH_AS(ops::lstm(tape, var({2, 1, 4}), w),
                         doctest::Contains("the input weight must be (8, 4), got"), Error);
    CHECK_THROWS_WITH_AS(ops::gru(tape, var({2, 1, 3}), w),
                         doctest::Contains("the hidden weight must be (6, 2), got"), Error);
    CHECK_THROWS_WITH_AS(ops::lstm(tape, var({2, 1, 3}), {w.input, w.hidden, w.input_bias, {}}),
                         doctest::Contains("both biases or neither"), Error);
    CHECK_THROWS_WITH_AS(
        ops::lstm(tape, var({2, 1, 3}), {w.input, w.hidden, w.input_bias, var({7})}),
        doctest::Contains("the hidden bias must be (8)"), Error);
    CHECK_THROWS_WITH_AS(ops::lstm(tape, var({2, 1, 3}), w, {var({3, 2}), {}}),
                         doctest::Contains("the initial h must be (2, 2)"), Error);
    CHECK_THROWS_WITH_AS(ops::lstm(tape, var({2, 1, 3}), w, {{}, var({2, 3})}),
                         doctest::Contains("the initial c must be (2, 2)"), Error);
    CHECK_THROWS_WITH_AS(ops::gru(tape, var({2, 1, 3}), w, {{}, var({2, 2})}),
                         doctest::Contains("no cell state"), Error);
    CHECK_THROWS_WITH_AS(nn::LSTM(0, 3), doctest::Contains("at least 1"), Error);
    CHECK_THROWS_WITH_AS(nn::GRU(1, 3, {0, 0}), doctest::Contains("at least 1"), Error);
    CHECK_THROWS_WITH_AS(nn::GRU(1, 3, {2, 1.0}), doctest::Contains("dropout"), Error);
    ops::RecurrentFormats f;
    f.gates.interior = Quantizer::parse("bfp8");
    CHECK_THROWS_WITH_AS(ops::lstm(tape, var({2, 1, 3}), w, {}, f),
                         doctest::Contains("block formats cannot be applied inside"), Error);
  }
}
