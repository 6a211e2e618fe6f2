#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "autograd/norm.h"
#include "autograd/pool.h"
#include "core/scalar_math.h"
#include "core/sum.h"
#include "kernels/norm.h"
#include "nn/data/checkpoint.h"
#include "nn/layers.h"
#include "optim/optimizer.h"
#include "tests/near.h"
#include "tests/op_table.h"
#include "tests/paths.h"
#include "tools/model_file.h"

using namespace ulp;
using namespace ulp::tests;
using nlohmann::json;

namespace {

std::pair<int64_t, int64_t> pair_of(const json& j) {
  return {j.at(0).get<int64_t>(), j.at(1).get<int64_t>()};
}

/// One case of tests/data/norm.json on the tape.
Var build(Tape& tape, const json& c, const std::map<std::string, Var>& in,
          const ops::RunningStatistics& running) {
  const std::string op = c.at("op");
  const json& o = c.at("options");
  const auto find = [&](const char* name) { return in.contains(name) ? in.at(name) : Var{}; };
  const Var x = in.at("x"), w = find("weight"), b = find("bias");
  if (op == "batch_norm")
    return ops::batch_norm(tape, x, w, b, running,
                           {o.at("eps"), o.at("momentum"), o.at("training").get<bool>()});
  if (op == "layer_norm") return ops::layer_norm(tape, x, w, b, o.at("eps"));
  if (op == "rms_norm") return ops::rms_norm(tape, x, w, o.at("eps"));
  if (op == "group_norm") return ops::group_norm(tape, x, o.at("groups"), w, b, o.at("eps"));
  if (op == "global_avg_pool") return ops::global_avg_pool(tape, x);
  ops::PoolOptions p;
  p.kernel = pair_of(o.at("kernel"));
  p.stride = pair_of(o.at("stride"));
  p.padding = pair_of(o.at("padding"));
  p.ceil = o.at("ceil");
  p.count_padding = o.at("count_padding");
  if (op == "max_pool2d") return ops::max_pool2d(tape, x, p);
  REQUIRE(op == "avg_pool2d");
  return ops::avg_pool2d(tape, x, p);
}

/// The role's quantizer applied by the kernel itself, with the draw that the op must have taken.
Tensor by_role(Run& run, const Tensor& x, const Quantizer& q, const char* role) {
  if (q.is_identity()) return x;
  Tensor out = Tensor::empty(x.shape(), DType::F32, x.device());
  const RandomKey key{run.seed(), RandomSite(kSite).stream(role), 0, run.device_state()};
  kernels::quantise(
      run.stream(),
      {kernels::contiguous(run.stream(), x), out, q, std::max(0, x.rank() - 1), key, {}});
  return out;
}

/// The rounding of one intermediate.
class Draw {
 public:
  Draw(const Run& run, const Quantizer& q) : run_(run), grid_(make_grid(q)) {}
  float operator()(uint32_t which, int64_t index, float value) const {
    const RandomSource random(
        {run_.seed(), RandomSite(kSite).stream("interior"), which, run_.device_state()});
    return quantise_value(value, grid_, random.word(static_cast<uint64_t>(index)));
  }

 private:
  const Run& run_;
  Grid grid_;
};

float sum_of(const std::vector<float>& v) {
  if (static_cast<int64_t>(v.size()) <= kSumChunk)
    return sum_chunk<float>(static_cast<int64_t>(v.size()),
                            [&](int64_t i) { return v[static_cast<size_t>(i)]; });
  std::vector<float> chunks;
  for (size_t begin = 0; begin < v.size(); begin += kSumChunk)
    chunks.push_back(
        sum_of({v.begin() + static_cast<std::ptrdiff_t>(begin),
                v.begin() + static_cast<std::ptrdiff_t>(std::min(v.size(), begin + kSumChunk))}));
  return sum_of(chunks);
}

/// A norm written out: which statistic each element belongs to, everything else in fp32 as the headers say.
struct Reference {
  std::vector<float> y, dx, dw, db;
};
struct Setting {
  int64_t rows, channels;
  std::function<int64_t(int64_t row, int64_t channel)> statistic;
  bool centred = true, batch = false;
  float eps = 1e-5f;
};
Reference written_out(const Setting& s, const std::vector<float>& x, const std::vector<float>& w,
                      const std::vector<float>& b, const std::vector<float>& g, const Draw* draw) {
  const auto round = [&](uint32_t which, int64_t i, float v) {
    return draw == nullptr ? v : (*draw)(which, i, v);
  };
  std::map<int64_t, std::vector<size_t>> groups;
  for (int64_t r = 0; r < s.rows; ++r)
    for (int64_t c = 0; c < s.channels; ++c)
      groups[s.statistic(r, c)].push_back(static_cast<size_t>(r * s.channels + c));
  const auto channel = [&](size_t i) { return i % static_cast<size_t>(s.channels); };
  Reference ref{std::vector<float>(x.size()), std::vector<float>(x.size()), {}, {}};
  std::vector<float> hat(x.size());
  for (const auto& [k, members] : groups) {
    const auto n = static_cast<float>(members.size());
    std::vector<float> values, squares, h, hx;
    for (const size_t i : members) values.push_back(x[i]);
    const float mean = s.centred ? round(0, k, sum_of(values) / n) : 0.0f;
    for (const float v : values) squares.push_back((v - mean) * (v - mean));
    const float variance = round(1, k, sum_of(squares) / n);
    const float inverse = round(2, k, 1.0f / std::sqrt(variance + s.eps));
    for (const size_t i : members) {
      hat[i] = round(3, static_cast<int64_t>(i), (x[i] - mean) * inverse);
      ref.y[i] = std::fma(hat[i], w[channel(i)], b[channel(i)]);
      h.push_back(s.batch ? g[i] : g[i] * w[channel(i)]);
      hx.push_back(h.back() * hat[i]);
    }
    const auto share = static_cast<float>(1.0 / static_cast<double>(members.size()));
    const float mean_h = s.centred ? sum_of(h) * share : 0.0f, mean_hx = sum_of(hx) * share;
    for (size_t m = 0; m < members.size(); ++m) {
      const size_t i = members[m];
      const float factor = s.batch ? w[channel(i)] * inverse : inverse;
      ref.dx[i] = (h[m] - std::fma(hat[i], mean_hx, mean_h)) * factor;
    }
  }
  for (size_t c = 0; c < static_cast<size_t>(s.channels); ++c) {
    std::vector<float> grads, products;
    for (size_t i = c; i < x.size(); i += static_cast<size_t>(s.channels)) {
      grads.push_back(g[i]);
      products.push_back(g[i] * hat[i]);
    }
    ref.db.push_back(sum_of(grads));
    ref.dw.push_back(sum_of(products));
  }
  return ref;
}

std::vector<uint32_t> bits_of_floats(const std::vector<float>& v) {
  std::vector<uint32_t> bits;
  for (const float x : v) bits.push_back(bits_of(x));
  return bits;
}

Var zeros(Tape& tape, const Shape& shape) {
  return tape.constant(Tensor::zeros(shape, DType::F32, kCpu));
}

/// A little image network with everything that has a state or draws.
std::unique_ptr<nn::Sequential> small_net() {
  OpFormats f;
  f.input = "e4m3";
  f.output = "e5m2:sr";
  f.grad_output_dx = "e5m2:sr";
  f.interior = "bf16:sr";
  auto net = std::make_unique<nn::Sequential>();
  net->add<nn::BatchNorm>("bn", 6, nn::BatchNormSettings{}, f)
      .add<nn::Dropout>("drop", 0.25)
      .add<nn::LayerNorm>("ln", 6)
      .add<nn::Linear>("fc", 6, 3);
  return net;
}

struct SmallTraining {
  Run run{kCpu, 11};
  std::unique_ptr<nn::Sequential> net = small_net();
  std::unique_ptr<optim::Optimizer> optimizer;

  SmallTraining() {
    net->initialise(run);
    optim::OptimizerOptions o = optim::OptimizerOptions::of(optim::Algorithm::Sgd);
    o.lr = 0.05;
    optimizer = std::make_unique<optim::Optimizer>(run, net->parameters(), o);
  }
  void step(uint64_t seed) {
    Tape tape(run);
    const Var y = (*net)(tape, tape.constant(random_tensor({8, 6}, -1, 3, seed)));
    const Tensor labels = Tensor::from(std::vector<int32_t>{0, 1, 2, 0, 1, 2, 0, 1}, {8});
    tape.backward(ops::cross_entropy(tape, y, labels));
    optimizer->step();
  }
  nn::Checkpoint checkpoint() const {
    nn::Checkpoint c = nn::checkpoint_of(run, *net);
    c.add(optimizer->tensors(), optimizer->formats());
    return c;
  }
  Tensor evaluated() {
    const nn::EvaluationMode mode(*net);
    Tape tape(run, Tape::Recording::Off);
    return (*net)(tape, tape.constant(random_tensor({5, 6}, -1, 3, 77))).value;
  }
};

std::string temporary(const char* name) {
  return (std::filesystem::temp_directory_path() /
          (std::string("ulp-norm-") + std::to_string(getpid()) + "-" + name))
      .string();
}

}  // namespace

TEST_SUITE("norm") {
  TEST_CASE("norms and pools are those of PyTorch in fp64, forward and backward") {
    std::ifstream file(std::string(paths::kTestData) + "/norm.json");
    const json all = json::parse(file);
    std::map<std::string, int> seen;
    for (const json& c : all.at("cases")) {
      const std::string op = c.at("op");
      const int number = seen[op]++;
      CAPTURE(op);
      CAPTURE(number);
      Run run;
      Tape tape(run);
      ops::RunningStatistics running;
      std::map<std::string, Var> in;
      Tensor g;
      for (const auto& [name, value] : c.at("inputs").items()) {
        const Tensor t = tensor_of(value);
        if (name == "g")
          g = t;
        else if (name == "running_mean")
          running.mean = t;
        else if (name == "running_var")
          running.variance = t;
        else
          in[name] = tape.leaf(t);
      }
      const Var y = build(tape, c, in, running);
      tape.backward(y, g);
      int compared = 0;
      for (const auto& [name, value] : c.at("results").items()) {
        CAPTURE(name);
        const Tensor result = name == "y"              ? y.value
                              : name == "running_mean" ? running.mean
                              : name == "running_var"  ? running.variance
                                                       : tape.grad(in.at(name.substr(1)));
        CHECK(near(result, value));
        ++compared;
      }
      CHECK(compared >= 2);
    }
    CHECK(seen.size() == 7);
  }

  TEST_CASE("every named intermediate is rounded, as written out, forward and backward") {
    // Rows of several thousand, so that sums have chunks; the interior is none, nearest and stochastic.
    for (const char* interior : {"fp32", "bf16", "e5m2:sr", "fixed16.8:sr"})
      for (const int which : {0, 1, 2, 3, 4, 5}) {
        CAPTURE(std::string(interior));
        CAPTURE(which);
        Run run;
        OpFormats f;
        f.interior = Quantizer::parse(interior);
        const Draw draw(run, f.interior);
        const Draw* const rounds = f.interior.is_identity() ? nullptr : &draw;
        const Shape shape = which == 0   ? Shape{3, 2, 3, 5}
                            : which == 1 ? Shape{4100, 3}
                            : which == 5 ? Shape{2, 700, 12}
                            : which == 2 ? Shape{4, 4100}
                                         : Shape{2, 3, 12};
        const int64_t channels = shape[shape.rank() - 1], rows = shape.numel() / channels;
        const Tensor x = random_tensor(shape, -2, 3, 1), w = random_tensor({channels}, 0.5, 2, 2),
                     b = random_tensor({channels}, -1, 1, 3), g = random_tensor(shape, -1, 1, 4);
        Tape tape(run);
        const Var xv = tape.leaf(x), wv = tape.leaf(w), bv = tape.leaf(b);
        Setting s{rows, channels, {}};
        Var y;
        if (which < 2) {
          s.batch = true;
          s.statistic = [](int64_t, int64_t c) { return c; };
          y = ops::batch_norm(tape, xv, wv, bv, {}, {}, f, RandomSite(kSite));
        } else if (which == 2) {
          s.statistic = [](int64_t r, int64_t) { return r; };
          y = ops::layer_norm(tape, xv, wv, bv, 1e-5, f, RandomSite(kSite));
        } else if (which == 3) {
          s.statistic = [](int64_t r, int64_t) { return r; };
          s.centred = false;
          y = ops::rms_norm(tape, xv, wv, 1e-5, f, RandomSite(kSite));
        } else {
          const int64_t span = rows / 2, groups = 3, width = channels / groups;
          s.statistic = [=](int64_t r, int64_t c) { return r / span * groups + c / width; };
          y = ops::group_norm(tape, xv, groups, wv, bv, 1e-5, f, RandomSite(kSite));
        }
        tape.backward(y, g);
        const std::vector<float> bias =
            which == 3 ? std::vector<float>(static_cast<size_t>(channels)) : b.to_floats();
        const Reference ref =
            written_out(s, x.to_floats(), w.to_floats(), bias, g.to_floats(), rounds);
        CHECK(bits_of_tensor(y.value) == bits_of_floats(ref.y));
        CHECK(bits_of_tensor(tape.grad(xv)) == bits_of_floats(ref.dx));
        CHECK(bits_of_tensor(tape.grad(wv)) == bits_of_floats(ref.dw));
        if (which != 3) CHECK(bits_of_tensor(tape.grad(bv)) == bits_of_floats(ref.db));
      }
  }

  TEST_CASE("law: the plain op at the rounded input and gradient, results rounded by role") {
    Run run;
    // The other rows round intermediates where they are given formats.
    const std::set<std::string> lawful = {"batch_norm",
                                          "layer_norm",
                                          "max_pool2d",
                                          "max_pool2d with overlaps",
                                          "max_pool2d of a large window",
                                          "avg_pool2d",
                                          "avg_pool2d with overlaps",
                                          "avg_pool2d without padding in the divisor",
                                          "global_avg_pool",
                                          "dropout"};
    size_t rows = 0;
    for (const OpRow& row : norm_op_rows()) {
      if (!lawful.contains(row.name)) continue;
      ++rows;
      const auto& shapes = row.shapes[row.shapes.size() - 2];
      for (const char* a : {"e4m3", "e5m2:sr", "bfp8:sr", "bfp6-g4:sr", "fixed8.4:rtz"}) {
        CAPTURE(std::string(row.name));
        CAPTURE(std::string(a));
        OpFormats f;
        f.input = f.grad_output_dx = Quantizer::parse(a);
        f.output = f.grad_input = "e5m2:sr";
        std::vector<Tensor> in;
        for (size_t k = 0; k < shapes.size(); ++k)
          in.push_back(random_tensor(shapes[k], 0.25, 3, 30 + k));
        const Pass pass = run_row(row, run, in, f);

        restart_step(run);
        Tape tape(run);
        std::vector<Var> vars = {tape.leaf(by_role(run, in[0], f.input, "input"))};
        for (size_t k = 1; k < in.size(); ++k) vars.push_back(tape.leaf(in[k]));
        const Var y = row.build(tape, vars, {});
        tape.backward(y, by_role(run, random_tensor(y.shape(), -1, 1, 99), f.grad_output_dx,
                                 "grad_output_dx"));
        CHECK(same_bits(pass.y, by_role(run, y.value, f.output, "output")));
        CHECK(
            same_bits(pass.grads[0], by_role(run, tape.grad(vars[0]), f.grad_input, "grad_input")));
        for (size_t k = 1; k < in.size(); ++k) CHECK(same_bits(pass.grads[k], tape.grad(vars[k])));
      }
    }
    CHECK(rows == lawful.size());
  }

  TEST_CASE("running statistics move in place, and evaluation takes them and leaves them") {
    Run run;
    const Tensor mean = Tensor::from(std::vector<float>{1, -1}, {2}),
                 variance = Tensor::from(std::vector<float>{4, 0.25f}, {2});
    const void* const before = mean.raw();
    const Tensor x = Tensor::from(std::vector<float>{1, 0, 3, 8, 5, 1}, {3, 2});
    ops::BatchNormOptions o;
    o.momentum = 0.25;
    {
      Tape tape(run);
      ops::batch_norm(tape, tape.constant(x), {}, {}, {mean, variance}, o);
    }
    // Means 3 and 3, variances with 1 / (R − 1): 4 and 19.
    CHECK(mean.raw() == before);
    CHECK(mean.to_floats() == std::vector<float>{0.75f * 1 + 0.25f * 3, 0.75f * -1 + 0.25f * 3});
    CHECK(std::abs(variance.to_floats()[0] - 4) < 1e-6);
    CHECK(std::abs(variance.to_floats()[1] - (0.75 * 0.25 + 0.25 * 19)) < 1e-5);
    const std::vector<float> m = mean.to_floats(), v = variance.to_floats();
    o.training = false;
    Tape tape(run);
    const Tensor y = ops::batch_norm(tape, tape.constant(x), {}, {}, {mean, variance}, o).value;
    for (size_t i = 0; i < 6; ++i)
      CHECK(y.to_floats()[i] ==
            (x.to_floats()[i] - m[i % 2]) * (1.0f / std::sqrt(v[i % 2] + 1e-5f)));
    CHECK(mean.to_floats() == m);
    CHECK(variance.to_floats() == v);
  }

  TEST_CASE("the variance is taken about the mean: a large offset costs no digits") {
    Run run;
    for (const float offset : {0.0f, 4096.0f, 65536.0f}) {
      CAPTURE(offset);
      // Values that fp32 holds beside the offset.
      std::vector<float> values = random_tensor({5000, 3}, -2, 2, 6).to_floats();
      for (float& v : values) v = std::round(v * 64) / 64 + offset;
      Tape tape(run);
      const std::vector<float> y =
          ops::batch_norm(tape, tape.constant(Tensor::from(values, {5000, 3})), {}, {}, {})
              .value.to_floats();
      for (size_t c = 0; c < 3; ++c) {
        double mean = 0, variance = 0;
        for (size_t r = 0; r < 5000; ++r) mean += static_cast<double>(values[3 * r + c]) / 5000;
        for (size_t r = 0; r < 5000; ++r)
          variance += std::pow(static_cast<double>(values[3 * r + c]) - mean, 2) / 5000;
        double most = 0;
        for (size_t r = 0; r < 5000; ++r)
          most = std::max(most,
                          std::abs(y[3 * r + c] - (static_cast<double>(values[3 * r + c]) - mean) /
                                                      std::sqrt(variance + 1e-5)));
        // The mean's own rounding is half an ulp of the offset and a few more of its sum.
        CHECK(most <= 1e-5 + 8 * 0x1p-24 * static_cast<double>(offset));
      }
    }
  }

  TEST_CASE("saved for backward: the narrow input, and two numbers a statistic") {
    Run run;
    OpFormats f;
    f.input = "e4m3";
    Tape tape(run);
    const Var x = tape.leaf(random_tensor({64, 16}, -1, 1, 1));
    ops::batch_norm(tape, x, {}, {}, {}, {}, f);
    CHECK(tape.saved_bytes() == 64 * 16 * 2 + 2 * 16 * 4);  // bf16, what the pipeline narrows to
    Tape rows(run);
    ops::rms_norm(rows, rows.leaf(random_tensor({64, 16}, -1, 1, 1)), {}, 1e-6, f);
    CHECK(rows.saved_bytes() == 64 * 16 * 2 + 64 * 4);
  }

  TEST_CASE("what does not fit is named") {
    Run run;
    Tape tape(run);
    const auto throws = [&](const std::function<void()>& call, const char* text) {
      CAPTURE(std::string(text));
      CHECK_THROWS_WITH_AS(call(), doctest::Contains(text), Error);
    };
    const Var x = zeros(tape, {4, 3}), none;
    throws(
        [&] {
          ops::batch_norm(tape, zeros(tape, {1, 3}), none, none, {});
        },
        "batch_norm: training wants more than one value a channel, got x of shape (1, 3)");
    throws(
        [&] {
          ops::batch_norm(tape, zeros(tape, {1, 1, 1, 3}), none, none, {});
        },
        "more than one value a channel");
    throws(
        [&] {
          ops::batch_norm(tape, zeros(tape, {0, 3}), none, none, {});
        },
        "more than one value a channel");
    throws([&] { ops::batch_norm(tape, zeros(tape, {3}), none, none, {}); }, "x must be (…, C)");
    throws([&] { ops::batch_norm(tape, x, zeros(tape, {4}), none, {}); },
           "batch_norm: weight must be (3), one value a channel of x (4, 3)");
    throws([&] { ops::layer_norm(tape, x, none, zeros(tape, {2})); },
           "layer_norm: bias must be (3)");
    throws([&] { ops::rms_norm(tape, x, zeros(tape, {3, 1})); }, "rms_norm: weight must be (3)");
    throws([&] { ops::group_norm(tape, x, 2, none, none); },
           "group_norm: 2 groups do not divide the 3 channels of x (4, 3)");
    throws([&] { ops::group_norm(tape, x, 0, none, none); }, "group_norm: 0 groups");
    ops::BatchNormOptions o;
    o.training = false;
    throws([&] { ops::batch_norm(tape, x, none, none, {}, o); }, "no running statistics");
    const Tensor two = Tensor::zeros({2}, DType::F32, kCpu);
    throws(
        [&] {
          ops::batch_norm(tape, x, none, none, {two, two});
        },
        "running statistics must be F32 (3), one value a channel of x (4, 3)");
    o.training = true;
    o.momentum = 1.5;
    throws([&] { ops::batch_norm(tape, x, none, none, {}, o); }, "momentum");
    throws([&] { ops::layer_norm(tape, x, none, none, -1); }, "eps");
    OpFormats f;
    f.interior = "bfp8";
    throws([&] { ops::layer_norm(tape, x, none, none, 1e-5, f); },
           "layer_norm: interior takes element-wise formats, got bfp8");
    throws([&] { nn::GroupNorm(3, 4); }, "3 groups do not divide 4 channels");
    throws([&] { nn::BatchNorm(0); }, "at least 1 channel");
    throws([&] { nn::RMSNorm(4, 1e-6, nn::Norm::Affine::WeightAndBias); }, "no bias");
  }

  TEST_CASE("layers: parameters, buffers, roles and lines") {
    Run run;
    nn::Sequential net;
    net.add<nn::BatchNorm>("bn", 4)
        .add<nn::LayerNorm>("ln", 4, 1e-5, nn::Norm::Affine::Weight)
        .add<nn::RMSNorm>("rms", 4)
        .add<nn::GroupNorm>("gn", 2, 4, 1e-5, nn::Norm::Affine::None)
        .add<nn::MaxPool2d>("max", 2)
        .add<nn::AvgPool2d>("avg",
                            ops::PoolOptions{.kernel = {3, 2}, .stride = {1, 2}, .padding = {1, 1}})
        .add<nn::GlobalAvgPool>("all")
        .add<nn::Dropout>("drop", 0.25);
    net.initialise(run);
    std::vector<std::string> names, lines;
    for (const Parameter* p : net.parameters()) names.push_back(p->path);
    for (const nn::Buffer* b : net.buffers()) names.push_back(b->path);
    for (nn::Module* m : net.modules()) lines.push_back(m->describe());
    CHECK(names == std::vector<std::string>{"bn.weight", "bn.bias", "ln.weight", "rms.weight",
                                            "bn.running_mean", "bn.running_var"});
    CHECK(lines == std::vector<std::string>{
                       "Sequential", "BatchNorm 4", "LayerNorm 4, no bias", "RMSNorm 4, no bias",
                       "GroupNorm 4, no weight, 2 groups", "MaxPool2d 2×2",
                       "AvgPool2d 3×2, stride 1×2, padding 1×1", "GlobalAvgPool", "Dropout 0.25"});
    CHECK(net.buffers()[0]->value.to_floats() == std::vector<float>(4, 0.0f));
    CHECK(net.buffers()[1]->value.to_floats() == std::vector<float>(4, 1.0f));
    CHECK(net.modules()[1]->type() == nn::LayerType::Normalization);
    CHECK(net.modules()[5]->type() == nn::LayerType::Pool);
    CHECK(net.modules()[8]->type() == nn::LayerType::Dropout);

    Tape tape(run);
    const Var y = net(tape, tape.constant(random_tensor({2, 6, 6, 4}, -1, 1, 3)));
    CHECK(y.shape() == Shape{2, 4});
    tape.backward(y, random_tensor({2, 4}, -1, 1, 4));
    for (const Parameter* p : net.parameters()) CHECK(p->grad.shape() == p->value.shape());
  }

  TEST_CASE("a run resumed from a checkpoint has the same running statistics and bits") {
    SmallTraining whole;
    for (uint64_t k = 0; k < 6; ++k) whole.step(k);
    SmallTraining first;
    for (uint64_t k = 0; k < 3; ++k) first.step(k);
    const std::string file = temporary("checkpoint");
    nn::save_checkpoint(file, first.checkpoint());
    SmallTraining second;
    nn::restore(nn::load_checkpoint(file), file, second.run, second.checkpoint());
    std::filesystem::remove(file);
    for (uint64_t k = 3; k < 6; ++k) second.step(k);
    const nn::Checkpoint a = whole.checkpoint(), b = second.checkpoint();
    CHECK(a.tensors.contains("bn.running_mean"));
    CHECK(a.tensors.contains("bn.running_var"));
    REQUIRE(a.tensors.size() == b.tensors.size());
    for (const auto& [name, tensor] : a.tensors) {
      CAPTURE(name);
      CHECK(same_bits(tensor, b.tensors.at(name)));
    }
    CHECK(same_bits(whole.evaluated(), second.evaluated()));
    CHECK(whole.net->buffers()[0]->value.to_floats() != std::vector<float>(6, 0.0f));

    // A checkpoint without them is none of this run.
    nn::Checkpoint without = first.checkpoint();
    without.tensors.erase("bn.running_var");
    CHECK_THROWS_WITH_AS(nn::restore(without, "x", second.run, second.checkpoint()),
                         doctest::Contains("x: there is no tensor bn.running_var"), Error);
  }

  TEST_CASE("model.safetensors holds the buffers; one without them is named") {
    SmallTraining trained;
    for (uint64_t k = 0; k < 3; ++k) trained.step(k);
    const std::string file = temporary("model");
    tools::save_model(trained.run, *trained.net, file, trained.run.state().random_step, "fp32");
    SmallTraining other;
    CHECK(!same_bits(other.evaluated(), trained.evaluated()));
    restart_step(trained.run);
    CHECK(tools::load_weights(other.run, *other.net, file).empty());
    CHECK(same_bits(other.evaluated(), trained.evaluated()));
    const auto x = other.net->buffers(), y = trained.net->buffers();
    for (size_t k = 0; k < x.size(); ++k) CHECK(same_bits(x[k]->value, y[k]->value));

    // Files of a model without buffers are what they were; here they lack something.
    nn::SafetensorsFile saved = nn::load_safetensors(file);
    saved.tensors.erase("bn.running_mean");
    nn::save_safetensors(file, saved.tensors, saved.metadata);
    CHECK_THROWS_WITH_AS(tools::load_weights(other.run, *other.net, file),
                         doctest::Contains("there is no tensor bn.running_mean"), Error);
    saved.tensors["bn.running_mean"] = Tensor::zeros({5}, DType::F32, kCpu);
    nn::save_safetensors(file, saved.tensors, saved.metadata);
    CHECK_THROWS_WITH_AS(tools::load_weights(other.run, *other.net, file),
                         doctest::Contains("bn.running_mean must be a float tensor of shape (6)"),
                         Error);
    std::filesystem::remove(file);
  }
}
