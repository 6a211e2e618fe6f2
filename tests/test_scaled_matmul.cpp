#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "autograd/ops.h"
#include "conformance.h"
#include "kernels/cpu/isa.h"
#include "kernels/quantised.h"
#include "op_table.h"
#include "reference.h"
#include "tests/threads.h"

namespace ulp {
namespace {

using conformance::mixed_values;
using conformance::Scaled;
using conformance::ScaledTensorReference;
using conformance::spread_float;
using reference::Mismatches;
using reference::report;
using reference::same;
using Values = std::vector<float>;

constexpr uint64_t kSeed = 4711;
constexpr RandomKey kKeyA{kSeed, 5, 1, nullptr}, kKeyB{kSeed, 6, 0, nullptr};

/// Without factors; one for the tensor, for rows, for groups along k, for tiles larger and smaller than the matrix, for
/// each index of an axis; rotations.
constexpr const char* kQuantizers[] = {"fp32",
                                       "e4m3",
                                       "bfp8-g16:sr",
                                       "mxfp4",
                                       "e2m1-g16-scalee4m3",
                                       "e4m3+scale=current",
                                       "fixed8.0+scale=current:sr",
                                       "e5m2+scale=row:sr",
                                       "e4m3-g16-scalef32",
                                       "e4m3-g7-scalef32:sr",
                                       "fixed8.0-g32-scalef32",
                                       "nf4-g64-scalef32",
                                       "e4m3-axis0-scalef32",
                                       "e2m1-axis1-scalef32",
                                       "e4m3-t128x128-scalef32",
                                       "e5m2-t5x6-scalef32",
                                       "posit8.1-t16x16-scalef32:sr",
                                       "nvfp4:sr",
                                       "nvfp4-t4x8",
                                       "mxfp4+q34:sr",
                                       "mxfp4+rht16",
                                       "mxfp4+rht32+q34:sr",
                                       "nvfp4+rht16:sr",
                                       "e4m3-g24-scalef32+rht32"};

Tensor ordinary(const Shape& shape, uint64_t seed) {
  Values x;
  for (int64_t i = 0; i < shape.numel(); ++i)
    x.push_back(spread_float(seed * 1000003 + static_cast<uint64_t>(i), -4, 3));
  return Tensor::from(x, shape);
}

// ---- the definition -------------------------------------------------------------------------------------------------
/// A matrix as a product's operand: row m, k along the reduction.
struct Defined {
  Values values, factors;
  std::vector<size_t> areas;  // of each element, if it has a factor of its own
  int64_t rows = 0, depth = 0, row_step = 0, k_step = 0;

  size_t index(int64_t m, int64_t k) const {
    return static_cast<size_t>(m * row_step + k * k_step);
  }
  float value(int64_t m, int64_t k) const { return values[index(m, k)]; }
  float factor(int64_t m, int64_t k) const {
    if (factors.empty()) return 1.0f;
    return factors[areas.empty() ? 0 : areas[index(m, k)]];
  }
  bool begins(int64_t m, int64_t k) const {  // an area, at k > 0
    return !areas.empty() && areas[index(m, k)] != areas[index(m, k - 1)];
  }
  /// The transposed matrix, reduced along its columns.
  Defined turned() const {
    Defined t = *this;
    std::swap(t.rows, t.depth);
    std::swap(t.row_step, t.k_step);
    return t;
  }
};

Quantizer unrotated(Quantizer q) {
  q.transform.hadamard = 0;
  return q;
}

Scaled delayed(const Quantizer& q, const Tensor& x, const QuantiseUse& use) {
  Quantizer element = q;
  element.scale = {};
  element.block = {};
  element.format.overflow = Overflow::Saturate;
  const reference::Reference rounded(element);
  const RandomSource random(use.key);
  const float scale = use.scaling.to_floats()[0];
  Scaled result{{}, {1 / scale}, {}};
  for (int64_t i = 0; i < x.numel(); ++i)
    result.values.push_back(
        rounded(x.data<float>()[i] * scale, random.word(static_cast<uint64_t>(i))).value);
  return result;
}

/// x: a matrix, reduced along use.axis; the result is reduced along its columns.
Defined defined(const Tensor& x, const QuantiseUse& use, Side side) {
  Defined d;
  d.rows = x.size(0);
  d.depth = x.size(1);
  d.row_step = d.depth;
  d.k_step = 1;
  const Quantizer q = unrotated(use.quantizer);
  Tensor source = x;
  if (const int n = use.quantizer.transform.hadamard; n != 0) {
    source = Tensor::empty(x.shape(), DType::F32, kCpu);
    const int exponent = n == 32 && side == Side::Right ? -3 : -2;
    kernels::rotate(Stream{}, {x, source, use.axis, n, exponent, use.key.seed, false});
  }
  if (q.is_identity()) {
    d.values = source.to_floats();
  } else {
    const Scaled made = q.scale.kind == Scale::Kind::Delayed
                            ? delayed(q, source, use)
                            : ScaledTensorReference(to_string(q))(
                                  {source.to_floats(), x.shape(), use.axis, use.key}, gemm_type(q));
    d.values = made.values;
    d.factors = made.factors;
  }
  if (d.factors.size() > 1) {
    d.areas.resize(d.values.size());
    const auto blocks = conformance::blocks_of(q.block, x.shape(), use.axis);
    for (size_t area = 0; area < blocks.size(); ++area)
      for (const int64_t i : blocks[area]) d.areas[static_cast<size_t>(i)] = area;
  }
  return use.axis == 0 ? d.turned() : d;
}

/// Strict sum of products: chunks of 4096 from `begin` on, each from 0 by fma, added in ascending order.
float strict_sum(const Defined& a, int64_t m, const Defined& b, int64_t n, int64_t begin,
                 int64_t end) {
  float sum = 0;
  for (int64_t first = begin; first < end; first += 4096) {
    float chunk = 0;
    for (int64_t k = first; k < std::min(end, first + 4096); ++k)
      chunk = std::fma(a.value(m, k), b.value(n, k), chunk);
    sum = first == begin ? chunk : sum + chunk;
  }
  return sum;
}

/// a · bᵀ (+ bias): sums over the k that share one factor in each operand, joined by fma in ascending order.
Values product(const Defined& a, const Defined& b, const Values& bias = {}) {
  Values result;
  for (int64_t m = 0; m < a.rows; ++m)
    for (int64_t n = 0; n < b.rows; ++n) {
      float acc = 0;
      for (int64_t begin = 0; begin < a.depth;) {
        int64_t end = begin + 1;
        while (end < a.depth && !a.begins(m, end) && !b.begins(n, end)) ++end;
        acc = std::fma(strict_sum(a, m, b, n, begin, end), a.factor(m, begin) * b.factor(n, begin),
                       acc);
        begin = end;
      }
      result.push_back(bias.empty() ? acc : acc + bias[static_cast<size_t>(n)]);
    }
  return result;
}

// ---- what is tested -------------------------------------------------------------------------------------------------
/// An operand reduced along axis 0, turned so that it is reduced along its columns.
Operand turned(const Operand& o) {
  return {o.values.transpose(0, 1), transposed(Stream{}, o.factors, o.values.shape()), o.hadamard};
}

Operand operand(const Tensor& x, const QuantiseUse& use, Side side) {
  const Operand o = quantised_operand(Stream{}, x, use, side);
  return use.axis == 0 ? turned(o) : o;
}

MatmulArgs arguments(const Operand& a, const Operand& b) {
  MatmulArgs args;
  args.a = a.values;
  args.b = b.values.transpose(0, 1);
  args.out = Tensor::empty({a.values.size(0), b.values.size(0)}, DType::F32, kCpu);
  return args;
}

Values multiplied(const Operand& a, const Operand& b) {
  const MatmulArgs args = arguments(a, b);
  scaled_matmul(Stream{}, args, a.factors, b.factors);
  return args.out.to_floats();
}

void compare(const std::string& what, const Values& got, const Values& want, Mismatches& bad) {
  if (got.size() != want.size()) return bad.add(what + ": another number of elements");
  for (size_t i = 0; i < got.size(); ++i)
    if (!same(got[i], want[i]))
      bad.add(format_message("{}: element {} is {}, want {}",
                             {what, i, conformance::hex(got[i]), conformance::hex(want[i])}));
}

bool same_values(const Values& a, const Values& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), same);
}

/// Both sides of products: what the kernels make and the definition.
struct Pair {
  std::string name;
  Operand made;
  Defined want;
};
Pair make_pair(const char* name, int axis, const Tensor& x, Side side) {
  const QuantiseUse use{Quantizer::parse(name), axis, side == Side::Left ? kKeyA : kKeyB};
  return {format_message("{} axis {}", {name, axis}), operand(x, use, side), defined(x, use, side)};
}

/// (rows, depth) or, for axis 0, (depth, rows).
Tensor matrix(int64_t rows, int64_t depth, int axis, uint64_t seed) {
  return ordinary(axis == 0 ? Shape{depth, rows} : Shape{rows, depth}, seed);
}

// ---- linear ---------------------------------------------------------------------------------------------------------
uint32_t stream_of(const char* role) { return RandomSite(tests::kSite).stream(role); }

/// The tensors of one pass of ops::linear and what it remembered before.
struct LinearLaw {
  Run& run;
  OpFormats f;
  std::vector<Tensor> in;
  std::map<uint32_t, Tensor> scalings;

  QuantiseUse use_of(const Quantizer& q, const char* role, int axis) const {
    QuantiseUse use{q, axis, {run.seed(), stream_of(role), 0, run.device_state()}};
    if (q.scale.kind != Scale::Kind::Delayed) return use;
    const auto remembered = scalings.find(stream_of(role));
    use.scaling = remembered == scalings.end() ? fresh_scaling(q, kCpu) : remembered->second;
    return use;
  }
  Defined operand(const Tensor& x, const Quantizer& q, const char* role, int axis,
                  Side side) const {
    return defined(x, use_of(q, role, axis), side);
  }
  /// The second use of a tensor: of the same values if the quantizers are one and follow no axis of the product.
  Defined second(const Defined& first, const Quantizer& first_q, const Tensor& x,
                 const Quantizer& q, const char* role, Side side) const {
    if (q == first_q && !q.follows_reduction()) return first.turned();
    return operand(x, q, role, 0, side);
  }
  Values rounded(const Values& x, const Shape& shape, const Quantizer& q, const char* role) const {
    if (q.is_identity()) return x;
    return quantised(Stream{}, Tensor::from(x, shape), use_of(q, role, 1)).to_floats();
  }
};

std::map<uint32_t, Tensor> copies(const std::map<uint32_t, Tensor>& scalings) {
  std::map<uint32_t, Tensor> result;
  for (const auto& [stream, state] : scalings)
    result[stream] = Tensor::from(state.to_floats(), state.shape());
  return result;
}

void check_linear(Run& run, const OpFormats& f, uint64_t seed) {
  const Shape x_shape{33, 70}, w_shape{19, 70}, y_shape{33, 19};
  const std::vector<Tensor> in = {ordinary(x_shape, seed), ordinary(w_shape, seed + 1),
                                  ordinary({19}, seed + 2)};
  const LinearLaw law{run, f, in, copies(run.scalings())};
  const tests::Pass pass = tests::run_row(tests::op_table()[0], run, in, f);
  const Tensor g = tests::random_tensor(y_shape, -1, 1, 99);

  const Defined x = law.operand(in[0], f.input, "input", 1, Side::Left),
                w = law.operand(in[1], f.weight, "weight", 1, Side::Right),
                x_dw = law.second(x, f.input, in[0], f.input_dw, "input_dw", Side::Right),
                w_dx = law.second(w, f.weight, in[1], f.weight_dx, "weight_dx", Side::Right),
                g_dx = law.operand(g, f.grad_output_dx, "grad_output_dx", 1, Side::Left),
                g_dw = law.second(g_dx, f.grad_output_dx, g, f.grad_output_dw, "grad_output_dw",
                                  Side::Left);
  Mismatches bad;
  compare("y", pass.y.to_floats(),
          law.rounded(product(x, w, in[2].to_floats()), y_shape, f.output, "output"), bad);
  compare("dx", pass.grads[0].to_floats(),
          law.rounded(product(g_dx, w_dx), x_shape, f.grad_input, "grad_input"), bad);
  compare("dw", pass.grads[1].to_floats(),
          law.rounded(product(g_dw, x_dw), w_shape, f.grad_weight, "grad_weight"), bad);
  report(bad);
}

}  // namespace

TEST_SUITE("scaled_matmul") {
  TEST_CASE("an operand: exact values in gemm_type, rotated by side, and a factor for each area") {
    Mismatches bad;
    for (const char* name : kQuantizers)
      for (const int axis : {0, 1})
        for (const Side side : {Side::Left, Side::Right}) {
          const Tensor x = matrix(19, 70, axis, 3);
          const Pair p = make_pair(name, axis, x, side);
          const Quantizer q = name;
          const Factors& f = p.made.factors;
          if (p.made.values.dtype() != gemm_type(q)) bad.add(p.name + ": another type");
          if (p.made.hadamard != q.transform.hadamard) bad.add(p.name + ": another rotation");
          if (p.made.has_factors() != q.has_factor()) bad.add(p.name + ": factors");
          Values values, want, factors, want_factors;
          const Values flat = kernels::contiguous(Stream{}, p.made.values).to_floats();
          for (int64_t m = 0; m < 19; ++m)
            for (int64_t k = 0; k < 70; ++k) {
              values.push_back(flat[static_cast<size_t>(m * 70 + k)]);
              want.push_back(p.want.value(m, k));
              if (!p.made.has_factors()) continue;
              const int64_t across = (70 + f.columns - 1) / f.columns;
              factors.push_back(f.values.data<float>()[m / f.rows * across + k / f.columns]);
              want_factors.push_back(p.want.factor(m, k));
            }
          compare(p.name + " values", values, want, bad);
          compare(p.name + " factors", factors, want_factors, bad);
        }
    report(bad);
  }

  TEST_CASE(
      "products of every pair of operands, reduced along both axes: equal to the definition") {
    Mismatches bad;
    std::vector<Pair> left, right;
    for (const char* name : kQuantizers)
      for (const int axis : {0, 1}) {
        left.push_back(make_pair(name, axis, matrix(9, 70, axis, 3), Side::Left));
        right.push_back(make_pair(name, axis, matrix(11, 70, axis, 4), Side::Right));
      }
    for (const Pair& a : left)
      for (const Pair& b : right)
        compare(a.name + " by " + b.name, multiplied(a.made, b.made), product(a.want, b.want), bad);
    report(bad);
  }

  TEST_CASE("odd extents, none, and sums longer than a chunk") {
    struct Extents {
      int64_t rows, columns, depth;
    };
    Mismatches bad;
    for (const Extents& e : {Extents{1, 1, 1},
                             {3, 2, 16},
                             {2, 5, 33},
                             {2, 3, 4095},
                             {2, 2, 9001},
                             {0, 3, 40},
                             {3, 0, 40}})
      for (const auto& [a, b] : {std::pair{"e4m3+scale=current", "e4m3+scale=row"},
                                 {"e4m3+scale=current", "e4m3-g128-scalef32"},
                                 {"e4m3-g5000-scalef32", "fp32"},
                                 {"e5m2-t3x4500-scalef32", "e4m3-g1000-scalef32"},
                                 {"nvfp4+rht16", "nvfp4+rht16"},
                                 {"mxfp4+q34", "e4m3"}}) {
        const Pair l = make_pair(a, 1, matrix(e.rows, e.depth, 1, 5), Side::Left),
                   r = make_pair(b, 1, matrix(e.columns, e.depth, 1, 6), Side::Right);
        compare(format_message("{} by {} ({}, {}, {})", {a, b, e.rows, e.columns, e.depth}),
                multiplied(l.made, r.made), product(l.want, r.want), bad);
      }
    report(bad);
    for (const char* name : {"e4m3+scale=current", "e4m3-g16-scalef32", "nvfp4"}) {  // no k
      const Operand a = make_pair(name, 1, matrix(2, 0, 1, 5), Side::Left).made,
                    b = make_pair(name, 1, matrix(3, 0, 1, 5), Side::Right).made;
      CHECK(multiplied(a, b) == Values(6, 0.0f));
    }
  }

  TEST_CASE("hard values: zeros, subnormals, the largest numbers, Inf and NaN") {
    Mismatches bad;
    for (const bool specials : {false, true})
      for (const char* name : kQuantizers) {
        const auto a = Tensor::from(mixed_values(9 * 70, 1, specials), {9, 70}),
                   b = Tensor::from(mixed_values(11 * 70, 2, specials), {11, 70});
        const Pair l = make_pair(name, 1, a, Side::Left), r = make_pair(name, 1, b, Side::Right);
        compare(l.name, multiplied(l.made, r.made), product(l.want, r.want), bad);
      }
    report(bad);
  }

  TEST_CASE("bias and the result's rounding come after the last partial sum") {
    Mismatches bad;
    const Tensor bias = ordinary({11}, 7);
    const RandomKey key{kSeed, 9, 0, nullptr};
    for (const char* name : {"e4m3+scale=current", "e4m3-g16-scalef32", "nvfp4", "e4m3"})
      for (const char* output : {"fp32", "e5m2:sr", "fixed8.2"}) {
        const Pair a = make_pair(name, 1, matrix(9, 70, 1, 3), Side::Left),
                   b = make_pair(name, 1, matrix(11, 70, 1, 4), Side::Right);
        MatmulArgs args = arguments(a.made, b.made);
        args.bias = bias;
        args.output = output;
        args.key = key;
        scaled_matmul(Stream{}, args, a.made.factors, b.made.factors);
        const auto sum = Tensor::from(product(a.want, b.want, bias.to_floats()), args.out.shape());
        compare(format_message("{} to {}", {name, output}), args.out.to_floats(),
                quantised(Stream{}, sum, {output, 1, key}).to_floats(), bad);
      }
    report(bad);
  }

  TEST_CASE("the same bits for 1, 2 and 3 threads and every instruction set") {
    const cpu::Isa before = cpu::current_isa();
    for (const char* name : {"e4m3-g128-scalef32", "e4m3-t128x128-scalef32", "nvfp4+rht16:sr"}) {
      CAPTURE(std::string(name));
      const auto run = [&] {
        return multiplied(make_pair(name, 1, matrix(150, 333, 1, 3), Side::Left).made,
                          make_pair(name, 0, matrix(140, 333, 0, 4), Side::Right).made);
      };
      const Values first = run();
      for (const cpu::Isa isa : {cpu::Isa::Portable, cpu::Isa::Avx2, cpu::Isa::Avx512}) {
        if (!cpu::has_isa(isa)) continue;
        cpu::set_isa(isa);
        for (const int threads : {1, 2, 3}) {
          const tests::Threads scope(threads);
          CHECK(same_values(run(), first));
        }
      }
      cpu::set_isa(before);
    }
  }

  TEST_CASE("near the product of the unquantised matrices, within the format's error") {
    struct Error {
      const char* quantizer;
      // |v·F − x| ≤ relative·|x| + absolute·(largest magnitude): half a step of normal and of subnormal numbers.
      double relative, absolute;
    };
    const int64_t rows = 21, columns = 17, depth = 150;
    for (
        const Error& e :
        {Error{"e4m3+scale=current", 0x1p-4, 0x1p-10 / 448},
         Error{"e4m3+scale=row", 0x1p-4, 0x1p-10 / 448},
         Error{"e4m3-g16-scalef32", 0x1p-4, 0x1p-10 / 448},
         Error{"e4m3-g16-scalef32+rht16", 0x1p-4, 0x1p-10 / 448},
         Error{"e4m3-t128x128-scalef32", 0x1p-4, 0x1p-10 / 448},
         Error{"fixed8.0-sym-g32-scalef32", 0, 0.5 / 127},
         Error{"fixed8.0-sym-g48-scalef32+rht32", 0, 0.5 / 127},
         // nvfp4: d is off by up to 2^−4; 3/4 of x under a floor scale is below 6, a step is 1/2 for x ≤ 16/3.
         Error{"nvfp4", 0.25, 0.25 / 6 * 1.0625}, Error{"mxfp4+q34", 0.25, 1.0 / 12},
         Error{"mxfp4+rht32+q34", 0.25, 1.0 / 12}}) {
      CAPTURE(std::string(e.quantizer));
      // Positive numbers, so that sums do not cancel and a wrong factor shows.
      const Tensor a = tests::random_tensor({rows, depth}, 0.25, 2, 1),
                   b = tests::random_tensor({columns, depth}, 0.25, 2, 2);
      const QuantiseUse use{Quantizer::parse(e.quantizer), 1, kKeyA};
      const Operand left = operand(a, use, Side::Left), right = operand(b, use, Side::Right);
      const Values got = multiplied(left, right);
      // A rotation keeps lengths; its largest magnitude is at most √n times as large, all of one sign.
      const int n = use.quantizer.transform.hadamard;
      const double most = 2 * std::sqrt(std::max(n, 1));
      const auto length = [&](const Tensor& x, int64_t row) {
        double square = 0;
        for (int64_t k = 0; k < depth; ++k)
          square += std::pow(static_cast<double>(x.data<float>()[row * depth + k]), 2);
        return std::sqrt(square);
      };
      const auto error = [&](double row_length) {
        return e.relative * row_length + e.absolute * most * std::sqrt(static_cast<double>(depth));
      };
      int64_t wrong = 0;
      for (int64_t i = 0; i < rows * columns; ++i) {
        const int64_t m = i / columns, c = i % columns;
        double want = 0;
        for (int64_t k = 0; k < depth; ++k)
          want += static_cast<double>(a.data<float>()[m * depth + k]) *
                  static_cast<double>(b.data<float>()[c * depth + k]);
        const double la = length(a, m), lb = length(b, c), ea = error(la), eb = error(lb);
        const double sums = 2 * static_cast<double>(depth) * 0x1p-24 * (la + ea) * (lb + eb);
        const double bound = ea * lb + eb * la + ea * eb + sums;
        wrong += std::abs(got[static_cast<size_t>(i)] - want) <= bound ? 0 : 1;
      }
      CHECK(wrong == 0);
    }
  }

  TEST_CASE("views are quantised as their elements stand; what is no matrix is refused") {
    const Tensor x = ordinary({70, 19}, 3);
    const QuantiseUse use{"e4m3-g16-scalef32:sr", 1, kKeyA};
    const Tensor view = x.transpose(0, 1);
    const Operand a = quantised_operand(Stream{}, view, use, Side::Left),
                  b = quantised_operand(Stream{}, kernels::contiguous(Stream{}, view), use,
                                        Side::Left);
    CHECK(same_values(a.values.to_floats(), b.values.to_floats()));
    CHECK(same_values(a.factors.values.to_floats(), b.factors.values.to_floats()));
    CHECK_THROWS_WITH_AS(quantised_operand(Stream{}, ordinary({2, 3, 4}, 1), use, Side::Left),
                         doctest::Contains("an operand is a matrix"), Error);
    MatmulArgs args = arguments(a, b);
    args.out = Tensor::empty({19, 19}, DType::BF16, kCpu);
    CHECK_THROWS_WITH_AS(scaled_matmul(Stream{}, args, a.factors, b.factors),
                         doctest::Contains("are kept in F32"), Error);
  }

  TEST_CASE("law of linear: products of the operands forward and backward, results rounded") {
    uint64_t seed = 100;
    for (const auto& [forward, backward] :
         {std::pair{"e4m3+scale=current", "e5m2+scale=current:sr"},
          {"e4m3+scale=row", "e5m2+scale=row:sr"},
          {"e4m3-g16-scalef32", "e4m3-g16-scalef32:sr"},
          {"nvfp4+rht16", "nvfp4+rht16:sr"},
          {"nvfp4-t16x16", "nvfp4:sr"},
          {"e4m3-t128x128-scalef32", "e4m3-g7-scalef32"},
          {"e4m3-t5x6-scalef32", "e4m3-t5x6-scalef32:sr"},
          {"mxfp4+q34", "mxfp4+q34:sr"},
          {"mxfp4+rht32+q34", "mxfp4+rht32:sr"},
          {"e4m3-axis0-scalef32", "e5m2-axis1-scalef32"},
          {"nf4-g64-scalef32", "fp32"},
          {"fp32", "fixed8.0-g32-scalef32:sr"}})
      for (const auto& [output, gradient] : {std::pair{"fp32", "fp32"},
                                             {"e5m2:sr", "bf16"},
                                             {"e4m3+scale=current", "mxfp8:sr"},
                                             {"nvfp4+rht16:sr", "e4m3-g7-scalef32"}}) {
        CAPTURE(std::string(forward));
        CAPTURE(std::string(backward));
        CAPTURE(std::string(output));
        OpFormats f = OpFormats::make(forward, backward);
        f.output = Quantizer::parse(output);
        f.grad_input = f.grad_weight = Quantizer::parse(gradient);
        Run run;
        check_linear(run, f, seed += 3);
      }
  }

  TEST_CASE("law of linear: every operand with a quantizer of its own") {
    OpFormats f;
    f.input = "e4m3-g16-scalef32";
    f.weight = "e4m3-t16x16-scalef32:sr";
    f.weight_dx = "mxfp4+rht16:sr";
    f.grad_output_dx = "nvfp4+rht16:sr";
    f.grad_output_dw = "e5m2+scale=row:sr";
    f.input_dw = "bfp8-g7:sr";
    Run run;
    check_linear(run, f, 50);
  }

  // arXiv 2502.20586, section 3: rounding up and down by chance is unbiased where nothing is clipped, which ¾ sees to.
  TEST_CASE("MXFP4 gradients are unbiased if stochastic and scaled by 3/4, rotated or not") {
    const Shape x_shape{32, 64}, w_shape{32, 64};
    const std::vector<Tensor> in = {ordinary(x_shape, 7), ordinary(w_shape, 8), ordinary({32}, 9)};
    /// RMS over all elements of dx and dw of: the mean's distance to the exact gradient in its own standard errors.
    const auto distance = [&](const char* backward) {
      constexpr uint32_t kDraws = 300;
      OpFormats f;
      Run exact_run;
      const tests::Pass exact = tests::run_row(tests::op_table()[0], exact_run, in, f);
      f.grad_output_dx = f.weight_dx = f.grad_output_dw = f.input_dw = Quantizer::parse(backward);
      std::vector<double> sums, squares, wanted;
      for (const int which : {0, 1})
        for (const float v : exact.grads[which].to_floats()) wanted.push_back(v);
      sums.resize(wanted.size());
      squares.resize(wanted.size());
      Run run;
      for (uint32_t draw = 0; draw < kDraws; ++draw) {
        StepState state = run.state();
        state.random_step = draw + 1;
        run.set_state(state);
        const tests::Pass pass = tests::run_row(tests::op_table()[0], run, in, f);
        size_t i = 0;
        for (const int which : {0, 1})
          for (const float v : pass.grads[which].to_floats()) {
            const double error = v - wanted[i];
            sums[i] += error;
            squares[i++] += error * error;
          }
      }
      double total = 0;
      for (size_t i = 0; i < wanted.size(); ++i) {
        const double mean = sums[i] / kDraws,
                     variance = (squares[i] / kDraws - mean * mean) / (kDraws - 1);
        total += mean * mean / (variance + 1e-12);
      }
      return std::sqrt(total / static_cast<double>(wanted.size()));
    };
    // 1 is what no bias gives; its deviation over these 4096 numbers, were they independent, is 0.011.
    CHECK(distance("mxfp4+rht32+q34:sr") == doctest::Approx(1).epsilon(0.06));
    CHECK(distance("mxfp4+q34:sr") == doctest::Approx(1).epsilon(0.06));
    CHECK(distance("mxfp4:sr") > 1.25);     // the largest of a group may be clipped
    CHECK(distance("mxfp4+rht32") > 1.25);  // nearest: the signs of a rotation are all that changes
  }

  TEST_CASE("law of linear: delayed scaling, call after call") {
    Run run;
    OpFormats f = OpFormats::make("e4m3+scale=delayed2", "e5m2+scale=delayed3:sr");
    f.output = "fixed8.0-sym+scale=delayed2";
    for (uint64_t call = 0; call < 4; ++call) {
      CAPTURE(call);
      check_linear(run, f, 10 + 5 * call);
      // The largest input of this call is the newest in the history, whose own largest makes the scale.
      const Values state = run.scalings().at(stream_of("input")).to_floats();
      CHECK(state[0] == 448 / std::max(state[1], state[2]));
      CHECK(run.scalings().count(stream_of("input_dw")) == 0);  // one use serves both
    }
    CHECK(run.scalings().size() == 4);
  }

  TEST_CASE("what delayed scaling remembers changes only while the tape records") {
    Run run;
    OpFormats f = OpFormats::make("e4m3+scale=delayed2", "fp32");
    f.output = "e5m2+scale=delayed2";
    const Tensor x = ordinary({8, 16}, 1), w = ordinary({4, 16}, 2);
    const auto forward = [&](Tape::Recording recording) {
      Tape tape(run, recording);
      return ops::linear(tape, tape.constant(x), tape.constant(w), {}, f, RandomSite(tests::kSite))
          .value.to_floats();
    };
    const auto state = [&](const char* role) {
      return run.scalings().at(stream_of(role)).to_floats();
    };
    forward(Tape::Recording::Off);
    for (const char* role : {"input", "weight", "output"}) CHECK(state(role) == Values{1, 0, 0});
    forward(Tape::Recording::On);
    for (const char* role : {"input", "weight", "output"}) CHECK(state(role) != Values{1, 0, 0});
    const auto before = copies(run.scalings());
    const Values y = forward(Tape::Recording::Off);
    CHECK(same_values(forward(Tape::Recording::Off), y));
    for (const auto& [stream, remembered] : before)
      CHECK(run.scalings().at(stream).to_floats() == remembered.to_floats());
    // It is used while it is frozen.
    const LinearLaw law{run, f, {}, before};
    const Values sum = product(law.operand(x, f.input, "input", 1, Side::Left),
                               law.operand(w, f.weight, "weight", 1, Side::Right));
    CHECK(same_values(y, law.rounded(sum, {8, 4}, f.output, "output")));
  }

  TEST_CASE("operands rotated in different groups are refused, with the product's name") {
    Run run;
    const auto pass = [&](const OpFormats& f) {
      tests::run_row(tests::op_table()[0], run,
                     std::vector{ordinary({33, 64}, 1), ordinary({17, 64}, 2), ordinary({17}, 3)},
                     f);
    };
    OpFormats f;
    f.input = "mxfp4+rht16";
    CHECK_THROWS_WITH_AS(pass(f), doctest::Contains("of output are rotated in groups of 16 and 0"),
                         Error);
    f.weight = "mxfp4+rht32";
    CHECK_THROWS_WITH_AS(pass(f), doctest::Contains("groups of 16 and 32"), Error);
    f.weight = "e4m3+rht16";
    CHECK_NOTHROW(pass(f));
    f.grad_output_dx = "mxfp4+rht16";
    CHECK_THROWS_WITH_AS(pass(f), doctest::Contains("of grad_input are rotated"), Error);
    f.weight_dx = "mxfp4+rht16";
    CHECK_NOTHROW(pass(f));
    f.input_dw = "mxfp4+rht32";
    CHECK_THROWS_WITH_AS(pass(f), doctest::Contains("of grad_weight are rotated"), Error);
  }
}

}  // namespace ulp
