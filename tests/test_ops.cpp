#include <doctest/doctest.h>

#include <cmath>
#include <set>

#include "autograd/norm.h"
#include "core/scalar_math.h"
#include "core/sum.h"
#include "kernels/cpu/isa.h"
#include "kernels/names.h"
#include "kernels/quantised.h"
#include "tests/kernel_rows.h"
#include "tests/op_table.h"
#include "tests/threads.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

std::vector<Tensor> draw_inputs(const OpRow& row, const std::vector<Shape>& shapes, DType dtype) {
  std::vector<Tensor> inputs;
  for (size_t k = 0; k < shapes.size(); ++k) {
    std::vector<double> values = random_values(shapes[k].numel(), row.low, row.high, 1000 + k);
    for (double& v : values)
      if (std::abs(v - row.kink) < 1e-3) v = row.kink + 0.25;
    inputs.push_back(
        dtype == DType::F64
            ? Tensor::from(values, shapes[k])
            : Tensor::from(std::vector<float>(values.begin(), values.end()), shapes[k]));
  }
  return inputs;
}

double dot(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = a.to_doubles(), y = b.to_doubles();
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

Tensor moved(const Tensor& x, int64_t at, double by) {
  std::vector<double> values = x.to_doubles();
  values[static_cast<size_t>(at)] += by;
  return Tensor::from(values, x.shape());
}

/// The role's quantizer applied by the kernel itself, with the draw that the op must have taken.
Tensor by_role(Run& run, const Tensor& x, const Quantizer& q, const char* role, int axis,
               uint32_t ordinal = 0) {
  if (q.is_identity()) return x;
  Tensor out = Tensor::empty(x.shape(), DType::F32, x.device());
  const RandomKey key{run.seed(), RandomSite(kSite).stream(role), ordinal, run.device_state()};
  kernels::quantise(run.stream(), {kernels::contiguous(run.stream(), x), out, q, axis, key, {}});
  return out;
}

const char* const kFormats[] = {"e4m3",       "e5m2:sr",    "bfp8:sr",      "bfp8-axis0:sr",
                                "bfp8-axis1", "bfp6-g4:sr", "fixed8.4:rtz", "e6m9:sr8"};

}  // namespace

TEST_SUITE("ops") {
  TEST_CASE("gradients equal finite differences in fp64, for a random cotangent") {
    Run run;
    for (const OpRow& row : op_table())
      for (const auto& shapes : row.shapes) {
        const std::vector<Tensor> inputs = draw_inputs(row, shapes, DType::F64);
        const Pass pass = run_row(row, run, inputs, {});
        const Tensor cotangent = random_tensor(pass.y.shape(), -1, 1, 99, DType::F64);
        for (size_t k = 0; k < inputs.size(); ++k) {
          CAPTURE(std::string(row.name));
          CAPTURE(to_string(shapes[0]));
          REQUIRE(pass.grads[k].shape() == inputs[k].shape());
          const std::vector<double> grad = pass.grads[k].to_doubles();
          const int64_t n = inputs[k].numel(), stride = std::max<int64_t>(1, n / 40);
          for (int64_t i = 0; i < n; i += stride) {
            const double h = 1e-5;
            const auto loss = [&](double by) {
              std::vector<Tensor> shifted = inputs;
              shifted[k] = moved(inputs[k], i, by);
              return dot(run_row(row, run, shifted, {}).y, cotangent);
            };
            const double numeric = (loss(h) - loss(-h)) / (2 * h);
            // Truncation h²·f‴/6 and rounding ε·|L|/h, both far below 1e-6 here.
            const double bound = 1e-6 * std::max(1.0, std::abs(numeric));
            CHECK(std::abs(grad[static_cast<size_t>(i)] - numeric) <= bound);
          }
        }
      }
  }

  TEST_CASE("fp32 results are near fp64 ones") {
    Run run;
    for (const OpRow& row : op_table())
      for (const auto& shapes : row.shapes) {
        CAPTURE(std::string(row.name));
        const Pass wide = run_row(row, run, draw_inputs(row, shapes, DType::F64), {});
        const Pass narrow = run_row(row, run, draw_inputs(row, shapes, DType::F32), {});
        const auto near = [&](const Tensor& a, const Tensor& b) {
          const std::vector<double> x = a.to_doubles(), y = b.to_doubles();
          double most = 0, difference = 0;
          for (size_t i = 0; i < x.size(); ++i) {
            most = std::max(most, std::abs(y[i]));
            difference = std::max(difference, std::abs(x[i] - y[i]));
          }
          // ≤ 8 roundings deep apart from sums, whose terms are ≤ 15,000 and add in a tree of depth ≤ 78: 2⁻²⁴·90.
          return difference <= 90 * 0x1p-24 * std::max(most, 1.0);
        };
        CHECK(near(narrow.y, wide.y));
        for (size_t k = 0; k < narrow.grads.size(); ++k)
          CHECK(near(narrow.grads[k], wide.grads[k]));
      }
  }

  TEST_CASE("bits depend neither on threads nor on the instruction set, hard values included") {
    Run run;
    for (const OpRow& row : op_table())
      for (const auto& shapes : row.shapes)
        for (const char* format : {"fp32", "e5m2:sr", "bfp8:sr"}) {
          CAPTURE(std::string(row.name));
          CAPTURE(std::string(format));
          CHECK(
              same_on_every_cpu(row, run, hard_inputs(shapes), formats_of(row, {format, "fp32"})));
        }
  }

  TEST_CASE("every NaN that comes out is the one NaN, and a NaN that goes in comes out") {
    Run run;
    for (const OpRow& row : op_table())
      for (const auto& shapes : row.shapes) {
        if (shapes[0].numel() == 0) continue;
        CAPTURE(std::string(row.name));
        std::vector<Tensor> inputs;
        for (const Shape& shape : shapes) inputs.push_back(random_tensor(shape, 0.5, 1.5, 3));
        inputs[0].mutable_data<float>()[0] = float_of(0xFF800001u);
        const Pass pass = run_row(row, run, inputs, {});
        bool some = false, canonical_only = true;
        const auto look = [&](const Tensor& t) {
          for (const uint32_t b : bits_of_tensor(t))
            if ((b & ~kSignBit) > kInfinityBits) canonical_only = canonical_only && b == kNanBits;
        };
        for (const uint32_t b : bits_of_tensor(pass.y))
          some = some || (b & ~kSignBit) > kInfinityBits;
        const std::string name = row.name;
        if (name != "reshape" && name != "dropout in evaluation" && !row.moves_only &&
            !name.starts_with("quantize")) {  // without a format they pass it on
          look(pass.y);
          for (const Tensor& g : pass.grads) look(g);
        }
        CHECK(some);
        CHECK(canonical_only);
      }
  }

  TEST_CASE("permuted and sliced inputs give what contiguous ones give") {
    Run run;
    for (const OpRow& row : op_table())
      for (const auto& shapes : row.shapes) {
        CAPTURE(std::string(row.name));
        std::vector<Tensor> plain, permuted, sliced;
        for (size_t k = 0; k < shapes.size(); ++k) {
          const Tensor t = random_tensor(shapes[k], -2, 2, 20 + k);
          plain.push_back(t);
          Tensor twisted = t;
          if (t.rank() >= 2) {
            Tensor turned = Tensor::empty(t.transpose(0, 1).shape(), DType::F32, kCpu);
            kernels::copy(run.stream(), {t.transpose(0, 1), turned});
            twisted = turned.transpose(0, 1);
          }
          permuted.push_back(twisted);
          Shape wide = t.shape();
          wide[t.rank() - 1] += 3;
          std::vector<float> values(static_cast<size_t>(wide.numel()), 77.0f);
          const std::vector<float> own = t.to_floats();
          const int64_t width = t.size(t.rank() - 1);
          for (int64_t i = 0; i < t.numel(); ++i)
            values[static_cast<size_t>(i / width * (width + 3) + 2 + i % width)] =
                own[static_cast<size_t>(i)];
          sliced.push_back(Tensor::from(values, wide).slice(t.rank() - 1, 2, 2 + width));
        }
        const Pass expected = run_row(row, run, plain, {});
        CHECK(same_bits(expected, run_row(row, run, permuted, {})));
        CHECK(same_bits(expected, run_row(row, run, sliced, {})));
      }
  }

  TEST_CASE("results in the narrowest type: the same numbers, of narrow inputs and gradients too") {
    for (const OpRow& row : op_table())
      for (const char* format : {"fp32", "bf16", "e4m3", "e5m2:sr", "fp16:rtz"}) {
        CAPTURE(std::string(row.name));
        CAPTURE(std::string(format));
        OpFormats f;
        for (const char* name : row.roles)
          for (const Role& role : kRoles)
            if (std::string_view(role.name) == name) f.*role.quantizer = Quantizer::parse(format);
        const auto pass = [&](bool narrow) {
          Run run;
          run.keep_narrow(narrow);
          // bf16 numbers, as they are or in F32.
          const auto given = [&](const Shape& shape, uint64_t seed) {
            QuantiseUse use;
            use.quantizer = "bf16";
            return quantised(run.stream(), random_tensor(shape, row.low, row.high, seed), use,
                             narrow ? DType::BF16 : DType::F32);
          };
          Tape tape(run);
          std::vector<Var> vars;
          uint64_t seed = 40;
          for (const Shape& shape : row.shapes.back())
            vars.push_back(tape.leaf(given(shape, ++seed)));
          const Var y = row.build(tape, vars, f);
          tape.backward(y, given(y.shape(), 7));
          Pass result{y.value, {}};
          for (const Var& var : vars) result.grads.push_back(tape.grad(var));
          return result;
        };
        CHECK(same_bits(pass(false), pass(true)));
      }
  }

  TEST_CASE(
      "linear layers, activations, norms and sums keep their results narrow where a run does") {
    Run run;
    for (const bool narrow : {false, true}) {
      run.keep_narrow(narrow);
      Tape tape(run);
      OpFormats f;
      f.output = f.grad_input = f.grad_weight = "bf16";
      const auto stored = [&](const Var& v) { return v.value.dtype(); };
      const DType wanted = narrow ? DType::BF16 : DType::F32;
      const Var x = tape.leaf(random_tensor({6, 8}, -1, 1, 1)),
                w = tape.leaf(random_tensor({8, 8}, -1, 1, 2));
      const Var y = ops::linear(tape, x, w, {}, f), z = ops::gelu(tape, y, ops::Gelu::Erf, f),
                n = ops::layer_norm(tape, z, {}, {}, 1e-5, f), sum = ops::add(tape, n, y, f);
      for (const Var& v : {y, z, n, sum}) CHECK(stored(v) == wanted);
      f.output = "e4m3";
      CHECK(stored(ops::scale(tape, sum, 2, f)) == (narrow ? DType::F8E4M3 : DType::F32));
      f.output = "bfp8";
      CHECK(stored(ops::linear(tape, x, w, {}, f)) == DType::F32);
      tape.backward(sum, random_tensor({6, 8}, -1, 1, 3));
      CHECK(tape.grad(x).dtype() == wanted);
      CHECK(tape.grad(w).dtype() == DType::F32);
    }
  }

  TEST_CASE("law of linear: plain products of quantised operands, results rounded by role") {
    Run run;
    for (const char* a : kFormats)
      for (const char* b : {"fp32", "e5m2:sr", "bfp6-g4:sr"}) {
        CAPTURE(std::string(a));
        CAPTURE(std::string(b));
        OpFormats f;
        f.input = f.weight = Quantizer::parse(a);
        f.weight_dx = f.input_dw = Quantizer::parse(a);
        f.grad_output_dx = Quantizer::parse(b);
        f.grad_output_dw = Quantizer::parse(a);
        f.output = f.grad_input = f.grad_weight = Quantizer::parse(b);
        const OpRow& row = op_table()[0];
        const std::vector<Tensor> in = {random_tensor({33, 65}, -2, 2, 1),
                                        random_tensor({17, 65}, -2, 2, 2),
                                        random_tensor({17}, -1, 1, 3)};
        const Pass pass = run_row(row, run, in, f);
        const Tensor g = random_tensor({33, 17}, -1, 1, 99);

        const bool along = f.input.follows_reduction();  // else one draw serves both uses
        const Tensor xq = by_role(run, in[0], f.input, "input", 1),
                     wq = by_role(run, in[1], f.weight, "weight", 1);
        const Tensor x_dw = along ? by_role(run, in[0], f.input_dw, "input_dw", 0) : xq;
        const Tensor w_dx = along ? by_role(run, in[1], f.weight_dx, "weight_dx", 0) : wq;
        const bool same =
            f.grad_output_dx == f.grad_output_dw && !f.grad_output_dx.follows_reduction();
        const Tensor g_dx = by_role(run, g, f.grad_output_dx, "grad_output_dx", 1);
        const Tensor g_dw = same ? g_dx : by_role(run, g, f.grad_output_dw, "grad_output_dw", 0);
        const auto product = [&](const Tensor& l, const Tensor& r, const Tensor& bias) {
          Tensor out = Tensor::empty({l.size(0), r.size(1)}, DType::F32, kCpu);
          kernels::matmul(run.stream(), {l, r, bias, out, {}, {}, {}, Math::Strict});
          return out;
        };
        CHECK(same_bits(
            pass.y, by_role(run, product(xq, wq.transpose(0, 1), in[2]), f.output, "output", 1)));
        CHECK(same_bits(pass.grads[0],
                        by_role(run, product(g_dx, w_dx, {}), f.grad_input, "grad_input", 1)));
        CHECK(same_bits(pass.grads[1], by_role(run, product(g_dw.transpose(0, 1), x_dw, {}),
                                               f.grad_weight, "grad_weight", 1)));
        Tensor db = Tensor::empty({17}, DType::F32, kCpu);
        kernels::sum(run.stream(), {g, db, 1, 33, 17});
        CHECK(same_bits(pass.grads[2], db));
      }
  }

  TEST_CASE("law of activations: f of the rounded input, gradient of f there, results rounded") {
    Run run;
    for (const OpRow& row : op_table()) {
      if (row.roles.size() != 4 || !row.common_law) continue;
      for (const char* a : kFormats) {
        CAPTURE(std::string(row.name));
        CAPTURE(std::string(a));
        OpFormats f;
        f.input = f.grad_output_dx = Quantizer::parse(a);
        f.output = f.grad_input = Quantizer::parse("e5m2:sr");
        std::vector<Tensor> in;
        in.push_back(random_tensor({17, 33}, -3, 3, 8));
        const bool biased = row.shapes[0].size() == 2;  // the bias and its gradient are not rounded
        if (biased) in.push_back(random_tensor({33}, -1, 1, 9));
        const Pass pass = run_row(row, run, in, f);
        // The plain op at the quantised input, with the quantised cotangent.
        Tape tape(run);
        const Var x = tape.leaf(by_role(run, in[0], f.input, "input", 1));
        std::vector<Var> vars = {x};
        if (biased) vars.push_back(tape.leaf(in[1]));
        const Var y = row.build(tape, vars, {});
        tape.backward(y, by_role(run, random_tensor({17, 33}, -1, 1, 99), f.grad_output_dx,
                                 "grad_output_dx", 1));
        CHECK(same_bits(pass.y, by_role(run, y.value, f.output, "output", 1)));
        CHECK(same_bits(pass.grads[0], by_role(run, tape.grad(x), f.grad_input, "grad_input", 1)));
        if (biased) CHECK(same_bits(pass.grads[1], tape.grad(vars[1])));
        if (!biased || std::string(row.name) != "bias_relu") continue;
        Tensor sums = Tensor::empty({33}, DType::F32, kCpu);
        kernels::sum(run.stream(), {tape.grad(x), sums, 1, 17, 33});
        CHECK(same_bits(pass.grads[1], sums));
      }
    }
  }

  TEST_CASE("law of the other ops: results rounded by output and grad_input") {
    Run run;
    for (const OpRow& row : op_table()) {
      if (row.roles.size() > 2 || row.roles.empty() || !row.common_law) continue;
      const auto& shapes = row.shapes[row.shapes.size() - 2];
      for (const char* a : kFormats) {
        CAPTURE(std::string(row.name));
        CAPTURE(std::string(a));
        std::vector<Tensor> in;
        for (size_t k = 0; k < shapes.size(); ++k)
          in.push_back(random_tensor(shapes[k], -2, 2, 30 + k));
        const Quantizer q = Quantizer::parse(a);
        if (q.block.kind == Block::Kind::Axis && q.block.axis >= shapes[0].rank()) continue;
        const Pass plain = run_row(row, run, in, {});
        for (const char* name : row.roles) {
          OpFormats f;
          const bool forward = std::string(name) == "output";
          (forward ? f.output : f.grad_input) = q;
          const Pass pass = run_row(row, run, in, f);
          if (forward) {
            CHECK(same_bits(pass.y, by_role(run, plain.y, q, name, plain.y.rank() - 1)));
            for (size_t k = 0; k < plain.grads.size();
                 ++k)  // rounding the result is straight-through
              CHECK(same_bits(pass.grads[k], plain.grads[k]));
            continue;
          }
          CHECK(same_bits(pass.y, plain.y));
          for (size_t k = 0; k < plain.grads.size(); ++k)
            CHECK(same_bits(pass.grads[k],
                            by_role(run, plain.grads[k], q, k == 0 ? name : "grad_input2",
                                    plain.grads[k].rank() - 1)));
        }
      }
    }
  }

  TEST_CASE(
      "law of quantize: both directions by their formats and streams, zero exactly where clamped") {
    Run run;
    for (const OpRow& row : op_table()) {
      if (!std::string(row.name).starts_with("quantize")) continue;
      const bool masked = std::string(row.name) != "quantize";
      for (const char* a : {"fixed8.6:sr", "e4m3-bias15", "bfp4:sr", "bfp6-g4:rtz"}) {
        CAPTURE(std::string(row.name));
        CAPTURE(std::string(a));
        OpFormats f;
        f.output = Quantizer::parse(a);
        f.grad_input = Quantizer::parse("e5m2:sr");
        const std::vector<Tensor> in = {random_tensor({17, 33}, -3, 3, 8)};
        const Pass pass = run_row(row, run, in, f);
        Tensor mask = Tensor::zeros({17, 33}, DType::U8, kCpu),
               out = Tensor::empty({17, 33}, DType::F32, kCpu);
        const RandomKey key{run.seed(), RandomSite(kSite).stream("forward"), 0, run.device_state()};
        kernels::quantise(run.stream(), {in[0], out, f.output, 1, key, mask});
        CHECK(same_bits(pass.y, out));
        const std::vector<float> g =
            by_role(run, random_tensor({17, 33}, -1, 1, 99), f.grad_input, "backward", 1)
                .to_floats();
        int64_t clamped = 0, wrong = 0;
        for (size_t i = 0; i < g.size(); ++i) {
          const bool zero = masked && mask.data<uint8_t>()[i] != 0;
          clamped += mask.data<uint8_t>()[i];
          wrong += pass.grads[0].to_floats()[i] != (zero ? 0.0f : g[i]);
        }
        CHECK(wrong == 0);
        if (f.output.is_elementwise()) CHECK(clamped > 20);
      }
    }
  }

  TEST_CASE("quantize: values and gradients by their formats, zero where clamped") {
    Run run;
    const Tensor x = Tensor::from(std::vector<float>{-9, -1.2f, 0, 0.6f, 7.96f, 8.1f, 100}, {7});
    const ops::QuantizeFormats q{Quantizer::parse("fixed8.4"), Quantizer::parse("e5m2"), true};
    Tape tape(run);
    const Var in = tape.leaf(x);
    const Var y = ops::quantize(tape, in, q, RandomSite(kSite));
    CHECK(y.value.to_floats() ==
          std::vector<float>{-8, -1.1875f, 0, 0.625f, 7.9375f, 7.9375f, 7.9375f});
    tape.backward(y, Tensor::from(std::vector<float>{1, 1.1f, 1, 1, 1, 1, 1}, {7}));
    CHECK(tape.grad(in).to_floats() == std::vector<float>{0, 1, 1, 1, 1, 0, 0});
  }

  TEST_CASE("interior formats of log_softmax round every named intermediate") {
    Run run;
    OpFormats f;
    f.interior = Quantizer::parse("e5m2:sr");
    const Tensor x = random_tensor({5, 7}, -4, 4, 12);
    Tape tape(run);
    const Tensor y = ops::log_softmax(tape, tape.constant(x), f, RandomSite(kSite)).value;
    for (int64_t n = 0; n < 5; ++n) {
      const Tensor row = kernels::contiguous(run.stream(), x.slice(0, n, n + 1));
      const std::vector<float> v = row.to_floats();
      const float most = *std::max_element(v.begin(), v.end());
      const Grid grid = make_grid(f.interior);
      const auto draw = [&](uint32_t which, int64_t index) {
        return RandomSource(
                   {run.seed(), RandomSite(kSite).stream("interior"), which, run.device_state()})
            .word(static_cast<uint64_t>(index));
      };
      std::vector<float> d(7), e(7);
      for (size_t j = 0; j < 7; ++j) {
        const int64_t at = n * 7 + static_cast<int64_t>(j);
        d[j] = quantise_value(v[j] - most, grid, draw(0, at));
        e[j] = quantise_value(exp_of(d[j]), grid, draw(1, at));
      }
      float lanes[64] = {};
      for (size_t j = 0; j < 7; ++j) lanes[j] = e[j];
      const float sum = quantise_value(sum_lanes(lanes), grid, draw(2, n));
      const float log = quantise_value(log_of(sum), grid, draw(3, n));
      for (size_t j = 0; j < 7; ++j)
        CHECK(y.to_floats()[static_cast<size_t>(n) * 7 + j] == d[j] - log);
    }
  }

  TEST_CASE("every kernel stands in a row") {
    std::set<std::string> covered;
    for (const OpRow& row : op_table()) covered.insert(row.kernels.begin(), row.kernels.end());
    for (const KernelRow& row : kernel_rows()) covered.insert(row.name);
    for (const char* name : kernels::all_names()) {
      CAPTURE(std::string(name));
      CHECK(covered.count(name) == 1);
    }
  }

  TEST_CASE("shapes that do not fit are named") {
    Run run;
    Tape tape(run);
    const auto var = [&](const Shape& s) {
      return tape.constant(Tensor::zeros(s, DType::F32, kCpu));
    };
    CHECK_THROWS_WITH_AS(ops::linear(tape, var({2, 3}), var({4, 5}), {}),
                         doctest::Contains("x must be (…, 5)"), Error);
    CHECK_THROWS_WITH_AS(ops::linear(tape, var({2, 5}), var({4, 5}), var({3})),
                         doctest::Contains("b must be (4)"), Error);
    CHECK_THROWS_WITH_AS(ops::add(tape, var({2, 5}), var({5, 2})), doctest::Contains("one shape"),
                         Error);
    CHECK_THROWS_WITH_AS(ops::mean(tape, var({0})), doctest::Contains("no elements"), Error);
    CHECK_THROWS_WITH_AS(
        ops::cross_entropy(tape, var({2, 3}), Tensor::from(std::vector<int32_t>{0, 3}, {2})),
        doctest::Contains("label 3 of sample 1 is not in [0, 3)"), Error);
    CHECK_THROWS_WITH_AS(
        ops::cross_entropy(tape, var({2, 3}), Tensor::from(std::vector<int32_t>{0}, {1})),
        doctest::Contains("labels must be I32 (2)"), Error);
    CHECK_THROWS_WITH_AS(ops::log_softmax(tape, var({3})), doctest::Contains("(N, C)"), Error);
    OpFormats f;
    f.input = Quantizer::parse("e4m3");
    CHECK_THROWS_WITH_AS(ops::linear(tape, tape.constant(Tensor::zeros({1, 2}, DType::F64, kCpu)),
                                     tape.constant(Tensor::zeros({1, 2}, DType::F64, kCpu)), {}, f),
                         doctest::Contains("F64"), Error);
  }

#if defined(ULP_GUARD)
  TEST_CASE("guard bytes are intact, and a write beyond a tensor is noticed") {
    CHECK(guard_violations() == 0);
    {
      Tensor t = Tensor::empty({4}, DType::U8, kCpu);
      static_cast<volatile uint8_t*>(t.mutable_raw())[4] = 1;
    }
    CHECK(guard_violations() == 1);
  }
#endif
}
