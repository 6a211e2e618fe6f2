#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <fstream>
#include <map>
#include <sstream>

#include "autograd/conv.h"
#include "kernels/conv.h"
#include "kernels/cpu/isa.h"
#include "kernels/quantised.h"
#include "nn/conv.h"
#include "nn/sequential.h"
#include "tests/near.h"
#include "tests/op_table.h"
#include "tests/paths.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

/// What a convolution is, said once more and plainly: output pixel o of an axis meets input pixel o·stride − padding +
/// k·dilation; a transposed one turns that round.
struct Axis {
  int64_t in, taps, stride, padding, dilation, more;
  bool transposed;
  int64_t out() const {
    return transposed ? (in - 1) * stride - 2 * padding + dilation * (taps - 1) + more + 1
                      : (in + 2 * padding - dilation * (taps - 1) - 1) / stride + 1;
  }
  /// The input place that tap k of output o reads, by search; −1: none.
  int64_t source(int64_t o, int64_t k) const {
    for (int64_t i = 0; i < in; ++i)
      if (transposed ? i * stride - padding + k * dilation == o
                     : o * stride - padding + k * dilation == i)
        return i;
    return -1;
  }
  /// The output place whose tap k reads input i.
  int64_t reader(int64_t i, int64_t k) const {
    for (int64_t o = 0; o < out(); ++o)
      if (source(o, k) == i) return o;
    return -1;
  }
};

struct Geometry {
  int64_t images, in, outputs, groups;
  Axis h, w;
  int64_t per_group() const { return in / groups; }
  int64_t depth() const { return h.taps * w.taps * per_group(); }
  Shape x() const { return {images, h.in, w.in, in}; }
  Shape weight() const { return {outputs, h.taps, w.taps, per_group()}; }
  Shape y() const { return {images, h.out(), w.out(), outputs}; }
};

Tensor like(const Shape& shape, const std::vector<float>& values) {
  return Tensor::from(values, shape);
}

/// (rows, KH·KW·C): the windows of one group of an image (N, H, W, channels); `back`: those of dx.
Tensor im2col(const Geometry& g, const Tensor& image, int64_t group, bool back) {
  const std::vector<float> values = image.to_floats();
  const int64_t all = image.size(3), c = all / g.groups;
  const int64_t high = back ? g.h.in : g.h.out(), wide = back ? g.w.in : g.w.out();
  std::vector<float> out;
  for (int64_t n = 0; n < g.images; ++n)
    for (int64_t i = 0; i < high; ++i)
      for (int64_t j = 0; j < wide; ++j)
        for (int64_t kh = 0; kh < g.h.taps; ++kh)
          for (int64_t kw = 0; kw < g.w.taps; ++kw)
            for (int64_t k = 0; k < c; ++k) {
              const int64_t a = back ? g.h.reader(i, kh) : g.h.source(i, kh);
              const int64_t b = back ? g.w.reader(j, kw) : g.w.source(j, kw);
              out.push_back(
                  a < 0 || b < 0
                      ? 0.0f
                      : values[static_cast<size_t>(
                            ((n * image.size(1) + a) * image.size(2) + b) * all + group * c + k)]);
            }
  return like({g.images * high * wide, g.h.taps * g.w.taps * c}, out);
}

Tensor matmul(const Tensor& a, const Tensor& b, const Factors& fa, const Factors& fb) {
  Tensor out = Tensor::empty({a.size(0), b.size(1)}, DType::F32, kCpu);
  MatmulArgs args;
  args.a = a;
  args.b = b;
  args.out = out;
  scaled_matmul(stream_of(kCpu), args, fa, fb);
  return out;
}

/// Groups' columns side by side.
Tensor beside(const std::vector<Tensor>& parts) {
  const int64_t rows = parts[0].size(0), each = parts[0].size(1);
  const int64_t all = each * static_cast<int64_t>(parts.size());
  std::vector<float> out(static_cast<size_t>(rows * all));
  for (size_t g = 0; g < parts.size(); ++g) {
    const std::vector<float> values = parts[g].to_floats();
    for (int64_t i = 0; i < rows * each; ++i)
      out[static_cast<size_t>(i / each * all + static_cast<int64_t>(g) * each + i % each)] =
          values[static_cast<size_t>(i)];
  }
  return like({rows, all}, out);
}

/// Rows [group's] of a weight matrix (Out, K) as (K, O) of that group.
Tensor group_weight(const Geometry& g, const Tensor& weight, int64_t group) {
  const int64_t o = g.outputs / g.groups;
  return weight.slice(0, group * o, (group + 1) * o).transpose(0, 1);
}

/// The same for dx: (KH·KW·O, C).
Tensor turned_weight(const Geometry& g, const Tensor& weight, int64_t group) {
  const int64_t o = g.outputs / g.groups, taps = g.h.taps * g.w.taps, c = g.per_group();
  const std::vector<float> values = weight.to_floats();
  std::vector<float> out;
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t j = 0; j < o; ++j)
      for (int64_t k = 0; k < c; ++k)
        out.push_back(values[static_cast<size_t>(((group * o + j) * taps + t) * c + k)]);
  return like({taps * o, c}, out);
}

Tensor columns(const Tensor& t, int64_t group, int64_t groups) {
  const int64_t each = t.size(1) / groups;
  return t.slice(1, group * each, (group + 1) * each);
}

Tensor forward(const Geometry& g, const Operand& x, const Operand& w, const Tensor& bias) {
  std::vector<Tensor> parts;
  for (int64_t group = 0; group < g.groups; ++group)
    parts.push_back(matmul(im2col(g, x.values.reshape(g.x()), group, false),
                           group_weight(g, w.values, group), x.factors, w.factors));
  Tensor y = beside(parts);
  float* out = y.mutable_data<float>();
  for (int64_t i = 0; bias.defined() && i < y.numel(); ++i)
    out[i] = canonical(out[i] + bias.data<float>()[i % g.outputs]);
  return y;
}

Tensor input_gradient(const Geometry& g, const Operand& grad, const Operand& w) {
  std::vector<Tensor> parts;
  for (int64_t group = 0; group < g.groups; ++group)
    parts.push_back(matmul(im2col(g, grad.values.reshape(g.y()), group, true),
                           turned_weight(g, w.values, group), grad.factors, w.factors));
  return beside(parts);
}

Tensor weight_gradient(const Geometry& g, const Operand& grad, const Operand& x) {
  std::vector<float> out;
  for (int64_t group = 0; group < g.groups; ++group) {
    const Tensor part =
        matmul(columns(grad.values, group, g.groups).transpose(0, 1),
               im2col(g, x.values.reshape(g.x()), group, false), grad.factors, x.factors);
    const std::vector<float> values = part.to_floats();
    out.insert(out.end(), values.begin(), values.end());
  }
  return like({g.outputs, g.depth()}, out);
}

Var build(Tape& tape, const Geometry& g, const Var& x, const Var& w, const Var& b,
          const OpFormats& f) {
  const ops::Pair stride(g.h.stride, g.w.stride), padding(g.h.padding, g.w.padding),
      dilation(g.h.dilation, g.w.dilation);
  if (g.h.transposed)
    return ops::conv_transpose2d(tape, x, w, b,
                                 {stride, padding, {g.h.more, g.w.more}, dilation, g.groups}, f,
                                 RandomSite(kSite));
  return ops::conv2d(tape, x, w, b, {stride, padding, dilation, g.groups}, f, RandomSite(kSite));
}

struct Result {
  Tensor y, dx, dw, db;
};
Result run_conv(Run& run, const Geometry& g, const Tensor& x, const Tensor& w, const Tensor& b,
                const Tensor& grad, const OpFormats& f) {
  restart_step(run);
  Tape tape(run);
  const Var xv = tape.leaf(x), wv = tape.leaf(w), bv = b.defined() ? tape.leaf(b) : Var{};
  const Var y = build(tape, g, xv, wv, bv, f);
  tape.backward(y, grad);
  return {y.value, tape.grad(xv), tape.grad(wv), b.defined() ? tape.grad(bv) : Tensor{}};
}

const Geometry kGeometries[] = {
    {2, 3, 5, 1, {7, 3, 1, 1, 1, 0, false}, {6, 3, 1, 1, 1, 0, false}},
    {3, 1, 6, 1, {12, 5, 1, 2, 1, 0, false}, {11, 5, 1, 0, 1, 0, false}},
    {2, 9, 30, 1, {7, 3, 1, 1, 1, 0, false}, {21, 3, 1, 1, 1, 0, false}},
    {2, 24, 61, 1, {6, 3, 1, 0, 1, 0, false}, {9, 2, 1, 1, 2, 0, false}},
    {2, 16, 33, 1, {9, 3, 2, 1, 1, 0, false}, {8, 3, 2, 1, 1, 0, false}},
    {2, 5, 7, 1, {9, 2, 3, 0, 1, 0, false}, {10, 4, 5, 1, 1, 0, false}},
    {2, 4, 9, 1, {13, 3, 1, 2, 3, 0, false}, {12, 2, 2, 1, 4, 0, false}},
    {2, 20, 34, 1, {5, 1, 1, 0, 1, 0, false}, {6, 1, 1, 0, 1, 0, false}},
    {2, 6, 9, 3, {6, 3, 1, 1, 1, 0, false}, {7, 3, 2, 1, 1, 0, false}},
    {2, 12, 8, 2, {6, 3, 1, 1, 1, 0, false}, {7, 3, 2, 1, 1, 0, false}},
    {2, 70, 70, 70, {6, 3, 1, 1, 1, 0, false}, {7, 3, 1, 1, 1, 0, false}},
    {2, 35, 70, 35, {6, 3, 2, 1, 1, 0, false}, {7, 5, 2, 2, 1, 0, false}},
    {1, 520, 3, 1, {4, 3, 1, 1, 1, 0, false}, {4, 3, 1, 1, 1, 0, false}},
    {5, 2, 18, 1, {33, 5, 1, 2, 1, 0, false}, {34, 3, 1, 2, 1, 0, false}},
    {5, 3, 3, 3, {33, 3, 1, 1, 1, 0, false}, {34, 3, 1, 1, 1, 0, false}},
    {2, 3, 4, 1, {3, 3, 2, 1, 1, 1, true}, {4, 3, 2, 1, 1, 1, true}},
    {2, 12, 8, 2, {4, 2, 1, 0, 2, 0, true}, {5, 4, 3, 1, 1, 2, true}},
};

bool same(const Tensor& a, const Tensor& b) {
  return same_bits(a.reshape({a.numel()}), b.reshape({b.numel()}));
}

}  // namespace

TEST_SUITE("conv") {
  TEST_CASE("bits are those of matmul with the windows' matrix, hard values included") {
    Run run;
    for (const Geometry& g : kGeometries)
      for (const bool hard : {false, true}) {
        CAPTURE(to_string(g.x()));
        CAPTURE(to_string(g.weight()));
        CAPTURE(hard);
        const auto draw = [&](const Shape& shape, uint64_t seed) {
          return hard ? hard_tensor(shape, seed) : random_tensor(shape, -2, 2, seed);
        };
        const Tensor x = draw(g.x(), 1), w = draw(g.weight(), 2), b = draw({g.outputs}, 3),
                     grad = draw(g.y(), 4);
        const Operand xo{x.reshape({g.images * g.h.in * g.w.in, g.in}), {}, 0, false},
            wo{w.reshape({g.outputs, g.depth()}), {}, 0, false},
            go{grad.reshape({grad.numel() / g.outputs, g.outputs}), {}, 0, false};
        const int before = omp_get_max_threads();
        const cpu::Isa isa_before = cpu::current_isa();
        for (const int threads : {1, 3})
          for (const cpu::Isa isa : {cpu::Isa::Portable, cpu::Isa::Avx2, cpu::Isa::Avx512}) {
            if (!cpu::has_isa(isa)) continue;
            omp_set_num_threads(threads);
            cpu::set_isa(isa);
            const Result r = run_conv(run, g, x, w, b, grad, {});
            CHECK(r.y.shape() == g.y());
            CHECK(same(r.y, forward(g, xo, wo, b)));
            CHECK(same(r.dx, input_gradient(g, go, wo)));
            CHECK(same(r.dw, weight_gradient(g, go, xo)));
          }
        omp_set_num_threads(before);
        cpu::set_isa(isa_before);
      }
  }

  TEST_CASE("laws: products of operands rounded where they lie, results rounded by role") {
    Run run;
    const char* kOperands[] = {
        "fp32",         "e4m3:sr", "bfp8:sr",  "bfp8-axis0:sr",      "bfp6-axis2", "bfp6-g4:sr",
        "fixed8.4:rtz", "mxfp8",   "mxfp4:sr", "e4m3+scale=current", "nvfp4",      "bfp5-t4x3:sr"};
    for (const size_t which : {0u, 4u, 7u, 9u, 10u, 16u})
      for (const char* a : kOperands)
        for (const char* b : {"e5m2:sr", "bfp6-g4:sr", "bfp8-axis0:sr"}) {
          const Geometry& g = kGeometries[which];
          CAPTURE(to_string(g.x()));
          CAPTURE(to_string(g.weight()));
          CAPTURE(std::string(a));
          CAPTURE(std::string(b));
          OpFormats f;
          f.input = f.weight = f.weight_dx = f.input_dw = f.grad_output_dw = Quantizer::parse(a);
          f.grad_output_dx = f.output = f.grad_input = f.grad_weight = Quantizer::parse(b);
          const Tensor x = random_tensor(g.x(), -2, 2, 1), w = random_tensor(g.weight(), -2, 2, 2),
                       bias = random_tensor({g.outputs}, -1, 1, 3),
                       grad = random_tensor(g.y(), -1, 1, 4);
          const Result r = run_conv(run, g, x, w, bias, grad, f);

          const auto use = [&](const Quantizer& q, const char* role, int axis) {
            QuantiseUse u;
            u.quantizer = q;
            u.axis = axis;
            u.key = {run.seed(), RandomSite(kSite).stream(role), 0, run.device_state()};
            return u;
          };
          const auto operand = [&](const Tensor& t, const Shape& matrix, const Quantizer& q,
                                   const char* role, int axis) {
            if (q.block.kind == Block::Kind::Axis) {
              Operand o;
              o.values = quantised(run.stream(), t, use(q, role, 3)).reshape(matrix);
              return o;
            }
            return quantised_operand(run.stream(), t.reshape(matrix), use(q, role, axis),
                                     Side::Left);
          };
          const auto result = [&](const Tensor& t, const Shape& shape, const Quantizer& q,
                                  const char* role) {
            return q.block.kind == Block::Kind::Axis
                       ? quantised(run.stream(), t.reshape(shape), use(q, role, 3))
                       : quantised(run.stream(), t, use(q, role, 1));
          };
          const Shape xm{g.images * g.h.in * g.w.in, g.in}, wm{g.outputs, g.depth()},
              gm{grad.numel() / g.outputs, g.outputs};
          const bool along = f.input.follows_reduction();
          const Operand xq = operand(x, xm, f.input, "input", 1),
                        wq = operand(w, wm, f.weight, "weight", 1);
          const Operand x_dw = along ? operand(x, xm, f.input_dw, "input_dw", 0) : xq;
          const Operand w_dx = along ? operand(w, wm, f.weight_dx, "weight_dx", 0) : wq;
          const Operand g_dx = operand(grad, gm, f.grad_output_dx, "grad_output_dx", 1);
          const bool alike =
              f.grad_output_dx == f.grad_output_dw && !f.grad_output_dx.follows_reduction();
          const Operand g_dw =
              alike ? g_dx : operand(grad, gm, f.grad_output_dw, "grad_output_dw", 0);
          CHECK(same(r.y, result(forward(g, xq, wq, bias), g.y(), f.output, "output")));
          CHECK(
              same(r.dx, result(input_gradient(g, g_dx, w_dx), g.x(), f.grad_input, "grad_input")));
          CHECK(same(r.dw, result(weight_gradient(g, g_dw, x_dw), g.weight(), f.grad_weight,
                                  "grad_weight")));
          Tensor db = Tensor::empty({g.outputs}, DType::F32, kCpu);
          kernels::sum(run.stream(), {grad, db, 1, gm[0], gm[1]});
          CHECK(same(r.db, db));
        }
  }

  TEST_CASE("kernels of one pixel are linear layers, block factors and rotations included") {
    Run run;
    for (const char* q : {"mxfp4+rht16:sr", "e4m3-g16-scalef32", "bfp8:sr"}) {
      CAPTURE(std::string(q));
      OpFormats f = OpFormats::make(q, q);
      const Tensor x = random_tensor({2, 3, 4, 32}, -2, 2, 1),
                   w = random_tensor({48, 32}, -2, 2, 2),
                   grad = random_tensor({2, 3, 4, 48}, -1, 1, 3);
      restart_step(run);
      Tape conv(run);
      const Var xc = conv.leaf(x), wc = conv.leaf(w.reshape({48, 1, 1, 32}));
      const Var y = ops::conv2d(conv, xc, wc, {}, {}, f, RandomSite(kSite));
      conv.backward(y, grad);
      restart_step(run);
      Tape linear(run);
      const Var xl = linear.leaf(x), wl = linear.leaf(w);
      const Var z = ops::linear(linear, xl, wl, {}, f, RandomSite(kSite));
      linear.backward(z, grad);
      CHECK(same(y.value, z.value));
      CHECK(same(conv.grad(xc), linear.grad(xl)));
      CHECK(same(conv.grad(wc), linear.grad(wl)));
    }
  }

  TEST_CASE("what PyTorch computes in fp64, by tests/fixtures/make_conv.py") {
    std::ifstream file(std::string(paths::kTestData) + "/conv.txt");
    REQUIRE(file.good());
    const auto value = [](uint32_t i, uint32_t seed) {
      uint32_t h = i * 2654435761u + seed * 2246822519u;
      h ^= h >> 15;
      h *= 2246822519u;
      h ^= h >> 13;
      return static_cast<float>(static_cast<double>(h >> 16) / 32768.0 - 1.0);
    };
    const auto tensor = [&](const Shape& shape, uint32_t seed) {
      std::vector<float> values;
      for (int64_t i = 0; i < shape.numel(); ++i)
        values.push_back(value(static_cast<uint32_t>(i), seed));
      return Tensor::from(values, shape);
    };
    Run run;
    int cases = 0;
    std::string line;
    while (std::getline(file, line)) {
      if (line.empty() || line[0] == '#') continue;
      // kind N H W In Out KH KW stride padding output_padding dilation (h w each) groups bias
      CAPTURE(line);
      std::istringstream head(line);
      std::string kind;
      int64_t v[16];
      head >> kind;
      for (int64_t& n : v) head >> n;
      REQUIRE(head);
      const bool turned = kind == "conv_transpose2d", one = kind == "conv1d";
      const Geometry g{v[0],
                       v[3],
                       v[4],
                       v[15] % 100,
                       {v[1], v[5], v[7], v[9], v[13], v[11], turned},
                       {v[2], v[6], v[8], v[10], v[14], v[12], turned}};
      const bool biased = v[15] >= 100;
      const auto flat = [&](const Shape& s, int axis) {
        return one ? Shape{s[0], s[2], s[3]} : (static_cast<void>(axis), s);
      };
      const Tensor x = tensor(flat(g.x(), 1), 1), w = tensor(flat(g.weight(), 1), 2),
                   b = biased ? tensor({g.outputs}, 3) : Tensor{}, grad = tensor(flat(g.y(), 1), 4);
      Result r;
      if (one) {
        Tape tape(run);
        const Var xv = tape.leaf(x), wv = tape.leaf(w), bv = biased ? tape.leaf(b) : Var{};
        const Var y =
            ops::conv1d(tape, xv, wv, bv, {g.w.stride, g.w.padding, g.w.dilation, g.groups});
        tape.backward(y, grad);
        r = {y.value, tape.grad(xv), tape.grad(wv), biased ? tape.grad(bv) : Tensor{}};
      } else {
        r = run_conv(run, g, x, w, b, grad, {});
      }
      std::vector<std::pair<const char*, Tensor>> parts{{"y", r.y}, {"dx", r.dx}, {"dw", r.dw}};
      if (biased) parts.push_back({"db", r.db});
      for (const auto& [name, ours] : parts) {
        REQUIRE(std::getline(file, line));
        std::istringstream numbers(line);
        std::string label;
        numbers >> label;
        CHECK(label == name);
        std::vector<double> wanted(static_cast<size_t>(ours.numel()), NAN);
        for (double& value : wanted) numbers >> value;
        CHECK(near(ours, wanted));
        CHECK(!(numbers >> label));  // as many as there are
      }
      ++cases;
    }
    CHECK(cases >= 12);
  }

  TEST_CASE("the tape keeps the image and the weight in their narrow types, and no windows") {
    Run run;
    Tape tape(run);
    const Var x = tape.leaf(random_tensor({4, 16, 16, 32}, -1, 1, 1)),
              w = tape.leaf(random_tensor({32, 3, 3, 32}, -1, 1, 2));
    ops::conv2d(tape, x, w, {}, {.padding = 1}, OpFormats::make("e4m3", "e5m2"));
    CHECK(tape.saved_bytes() == 2 * (4 * 16 * 16 * 32 + 32 * 3 * 3 * 32));  // bf16
  }

  TEST_CASE("what does not fit is named") {
    Run run;
    Tape tape(run);
    const auto var = [&](const Shape& s) {
      return tape.constant(Tensor::zeros(s, DType::F32, kCpu));
    };
    const auto says = [](const auto& f, const char* what) {
      CHECK_THROWS_WITH_AS(f(), doctest::Contains(what), Error);
    };
    const auto conv = [&](const Shape& x, const Shape& w, ops::ConvOptions o = {},
                          const Shape& b = {}) {
      return [=, &tape] { ops::conv2d(tape, var(x), var(w), b.rank() == 0 ? Var{} : var(b), o); };
    };
    says(conv({1, 5, 5, 3}, {4, 3, 3, 2}),
         "conv2d: x must be (N, H, W, In) with 2 channels for a weight of shape (4, 3, 3, 2) (its "
         "last axis times groups = 1), got F32 (1, 5, 5, 3)");
    says(conv({5, 5, 3}, {4, 3, 3, 3}), "x must be (N, H, W, In) with 3 channels");
    says(conv({1, 5, 5, 3}, {4, 3, 3}), "w must be (Out, KH, KW, In/groups)");
    says(conv({1, 5, 5, 4}, {5, 3, 3, 2}, {.groups = 2}), "Out must be a multiple of groups");
    says(conv({1, 5, 5, 4}, {5, 3, 3, 4}, {.groups = 0}), "groups must be at least 1, got 0");
    says(conv({1, 2, 5, 3}, {4, 3, 3, 3}),
         "a kernel of 3 × 3 with dilation 1 × 1 does not fit into an image of 2 × 5 padded by 0 × "
         "0; got x (1, 2, 5, 3) and w (4, 3, 3, 3)");
    says(conv({1, 5, 5, 3}, {4, 3, 3, 3}, {.stride = 0}), "stride must be at least 1");
    says(conv({1, 5, 5, 3}, {4, 3, 3, 3}, {.padding = {0, -1}}), "padding must be at least 0");
    says(conv({1, 5, 5, 3}, {4, 3, 3, 3}, {.dilation = 0}), "dilation must be at least 1");
    says(conv({1, 5, 5, 3}, {4, 3, 3, 3}, {}, {3}), "b must be (4)");
    says(
        [&] {
          ops::conv1d(tape, var({2, 3, 4, 5}), var({4, 3, 5}), {});
        },
        "conv1d: x must be (N, L, In) with 5 channels");
    says(
        [&] {
          ops::conv_transpose2d(tape, var({1, 3, 3, 2}), var({4, 3, 3, 2}), {},
                                {.stride = 2, .output_padding = 2});
        },
        "output_padding 2 × 2 must be less than stride 2 × 2 or dilation 1 × 1");
    says(
        [&] {
          ops::conv_transpose2d(tape, var({1, 1, 1, 2}), var({4, 1, 1, 2}), {}, {.padding = 1});
        },
        "conv_transpose2d: padding 1 × 1 leaves nothing");
    OpFormats f;
    f.input = Quantizer::parse("mxfp4+rht16");
    says(
        [&] {
          ops::conv2d(tape, var({1, 5, 5, 16}), var({4, 3, 3, 16}), {}, {}, f);
        },
        "conv2d: input cannot be mxfp4+rht16: a rotation is for kernels of one pixel");
    f = {};
    f.weight_dx = Quantizer::parse("e4m3-g16-scalef32");
    says(
        [&] {
          ops::conv2d(tape, var({1, 5, 5, 16}), var({4, 3, 3, 16}), {}, {}, f);
        },
        "conv2d: weight_dx cannot be e4m3-g16-scalef32: a factor for each block");
    f = OpFormats::make("e4m3", "e5m2");
    says(
        [&] {
          ops::conv2d(tape, tape.constant(Tensor::zeros({1, 5, 5, 2}, DType::F64, kCpu)),
                      tape.constant(Tensor::zeros({4, 3, 3, 2}, DType::F64, kCpu)), {}, {}, f);
        },
        "F64");
  }

  TEST_CASE("layers: parameters, description, path in errors") {
    Run run;
    nn::Conv2d conv(3, 16, 3, {.stride = 2, .padding = 1}, {}, nn::Conv2d::Bias::No);
    CHECK(conv.describe() == "Conv2d 3 → 16, 3 × 3, stride 2, padding 1, no bias");
    CHECK(conv.type() == nn::LayerType::Conv);
    CHECK(conv.formats() != nullptr);
    CHECK(conv.roles().size() == 9);
    conv.initialise(run, "features.conv1");
    REQUIRE(conv.parameters().size() == 1);
    const Tensor& w = conv.parameters()[0]->value;
    CHECK(conv.parameters()[0]->path == "features.conv1.weight");
    CHECK(w.shape() == Shape{16, 3, 3, 3});
    float most = 0;
    for (const float x : w.to_floats()) most = std::max(most, std::abs(x));
    const float bound = std::sqrt(6.0f / 27);
    CHECK(most <= bound);
    CHECK(most > 0.9f * bound);
    Tape tape(run);
    CHECK(conv(tape, tape.constant(random_tensor({2, 8, 8, 3}, -1, 1, 1))).shape() ==
          Shape{2, 4, 4, 16});
    CHECK_THROWS_WITH_AS(conv(tape, tape.constant(random_tensor({2, 8, 8, 4}, -1, 1, 1))),
                         doctest::Contains("features.conv1: conv2d: x must be"), Error);

    nn::ConvTranspose2d up(4, 6, {3, 2}, {.stride = 2, .output_padding = {1, 0}, .groups = 2});
    CHECK(up.describe() ==
          "ConvTranspose2d 4 → 6, 3 × 2, stride 2, output padding 1 × 0, groups 2");
    up.initialise(run, "up");
    CHECK(up.parameters()[0]->value.shape() == Shape{6, 3, 2, 2});
    CHECK(up(tape, tape.constant(random_tensor({1, 3, 3, 4}, -1, 1, 1))).shape() ==
          Shape{1, 8, 6, 6});

    nn::Conv1d line(2, 5, 3, {.padding = 1});
    CHECK(line.describe() == "Conv1d 2 → 5, 3, padding 1");
    line.initialise(run, "line");
    CHECK(line(tape, tape.constant(random_tensor({1, 9, 2}, -1, 1, 1))).shape() == Shape{1, 9, 5});

    CHECK_THROWS_WITH_AS(nn::Conv2d(3, 16, 3, {.groups = 2}),
                         doctest::Contains("multiples of groups"), Error);
    CHECK_THROWS_WITH_AS(nn::Conv2d(3, 16, 0), doctest::Contains("at least one element"), Error);
  }
}
