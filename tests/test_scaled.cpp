#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "conformance.h"
#include "kernels/kernels.h"

namespace ulp {
namespace {

using conformance::compare_scaled;
using conformance::mixed_values;
using conformance::run;
using conformance::Scaled;
using conformance::ScaledCase;
using conformance::ScaledTensorReference;
using conformance::scramble;
using conformance::spread_float;
using conformance::Tally;
using conformance::TensorCase;
using reference::same;

void report(const Tally& tally) {
  INFO(tally.bad.first());
  CHECK(tally.bad.count() == 0);
  CHECK(tally.compared > 0);
}

/// Elements under every kind of scale and block, transforms, and all of them together.
std::vector<std::string> quantizers() {
  std::vector<std::string> names = {"nvfp4",        "nvfp4-g1", "nvfp4-g32", "nvfp4-t1x16",
                                    "nvfp4-t16x16", "nvfp4-g5", "nvfp4-t2x3"};
  for (const char* blocks : {"-g4", "-g16", "-axis0", "-axis2", "-t2x3", "-t16x16"}) {
    for (const char* element : {"e2m1", "e4m3", "e5m2", "e3m4", "e4m3-fnuz", "fixed8.0-sym",
                                "fixed4.1", "fixed8.6-u", "binary8p3"})
      for (const char* scale : {"-scalef32", "-scalee4m3"})
        names.push_back(std::string(element) + blocks + scale);
    for (const char* element : {"posit8.1", "posit6.2", "nf4", "pow2x4"})
      names.push_back(std::string(element) + blocks + "-scalef32");
  }
  for (const char* element : {"e4m3", "e5m2", "e2m1", "fp16", "e6m9-none", "fixed8.0",
                              "fixed12.3-sym", "posit8.2", "posit16.1", "nf4"})
    for (const char* scale : {"+scale=current", "+scale=row"})
      names.push_back(std::string(element) + scale);
  for (const char* element : {"e4m3", "e2m1", "fixed8.7-sym", "fixed8.0", "fixed12.3-sym"})
    for (const char* rule : {"floor", "ceil", "even", "rceil", "shift"})
      names.push_back(std::string(element) + "+scale=" + rule);
  for (const char* mx : {"mxfp8", "mxfp8-e5m2-ceil", "mxfp6-even", "mxfp4", "mxfp4-rceil", "mxint8",
                         "e2m1-axis1", "e3m4-t4x5-ceil"}) {
    for (const char* parts : {"+q34", "+rht16", "+rht32", "+rht16+q34", "+rht32+q34"})
      names.push_back(std::string(mx) + parts);
  }
  for (const char* rotation : {"+rht16", "+rht32"})
    for (const char* base : {"nvfp4", "nvfp4-t16x16", "e4m3-g8-scalef32", "nf4-g64-scalef32",
                             "e2m1-g16-scalee4m3", "e4m3", "bfp8-g16", "hbfp6"})
      names.push_back(std::string(base) + rotation);
  for (const char* rotation : {"+rht16", "+rht32"})
    for (const char* scale : {"+scale=current", "+scale=row"})
      names.push_back(std::string("e5m2") + rotation + scale);
  return names;
}

std::vector<DType> types_of(const std::string& name) {
  const DType narrow = gemm_type(Quantizer::parse(name));
  return narrow == DType::F32 ? std::vector{DType::F32} : std::vector{DType::F32, narrow};
}

}  // namespace

TEST_SUITE("scaled") {
  TEST_CASE("equal to numpy with ml_dtypes: values, factors, and both together") {
    const std::vector<ScaledCase> cases = conformance::scaled_table();
    REQUIRE(cases.size() == 13 * 22 + 3 * 4);
    Tally tally;
    for (const ScaledCase& one : cases) {
      Tally own;
      compare_scaled(one.quantizer, one.tensor, one.want, DType::F32, own);
      if (own.bad.count() > 0) tally.bad.add(one.input + ": " + own.bad.first());
      tally.compared += own.compared;
    }
    report(tally);
  }

  TEST_CASE("numpy and the definition in C++ agree") {
    Tally tally;
    for (const ScaledCase& one : conformance::scaled_table()) {
      const Scaled made = ScaledTensorReference(one.quantizer)(one.tensor, DType::F32);
      const std::string what = one.quantizer + " of " + one.input;
      conformance::compare_numbers(what + " v", made.values, one.want.values, tally);
      conformance::compare_numbers(what + " factors", made.factors, one.want.factors, tally);
      conformance::compare_numbers(what + " y", made.whole, one.want.whole, tally);
    }
    report(tally);
  }

  TEST_CASE("tensors: every element, scale, block, axis and rounding, against the definition") {
    const Shape shapes[] = {{3, 5, 7}, {2, 40, 33}, {1, 1, 1}, {2, 33, 66}};
    StepState state;
    state.random_step = 3;  // changes the words of stochastic rounding, not the signs of a rotation
    Tally tally;
    uint64_t turn = 0;
    for (const std::string& quantizer : quantizers())
      for (const Shape& shape : shapes) {
        ++turn;
        const std::string name =
            quantizer + ":" + conformance::kRoundings[turn % conformance::kRoundings.size()];
        TensorCase tensor{mixed_values(shape.numel(), turn, turn % 4 == 0),
                          shape,
                          static_cast<int>(scramble(turn) % 3),
                          {}};
        tensor.key = {scramble(turn) * uint64_t{0x100000001}, 6, 1, &state};
        const ScaledTensorReference reference(name);
        for (const DType out : types_of(name))
          compare_scaled(name, tensor, reference(tensor, out), out, tally);
      }
    report(tally);
  }

  TEST_CASE("tensors of one kind of number: ordinary, wide, huge, subnormal, constant") {
    struct Kind {
      int low, high;
    };
    Tally tally;
    uint64_t turn = 0;
    for (const std::string& quantizer : quantizers())
      for (const Kind kind :
           {Kind{-3, 2}, Kind{-40, 40}, Kind{120, 127}, Kind{-149, -127}, Kind{-130, -120}}) {
        const Shape shape{2, 37, 18};
        ++turn;
        TensorCase tensor{{}, shape, static_cast<int>(turn % 3), {turn, 1, 0, nullptr}};
        for (uint64_t i = 0; i < static_cast<uint64_t>(shape.numel()); ++i)
          tensor.x.push_back(spread_float(turn * 100000 + i, kind.low, kind.high));
        for (const char* mode : {"", ":sr"}) {
          const std::string name = quantizer + mode;
          compare_scaled(name, tensor, ScaledTensorReference(name)(tensor, DType::F32), DType::F32,
                         tally);
        }
      }
    for (const float x : {0.0f, -0.0f, 1.0f, -448.0f, 0x1p-149f, 0x1.fffffep127f}) {
      const TensorCase tensor{std::vector<float>(40, x), {40}, 0, {}};
      for (const char* name :
           {"nvfp4", "nvfp4+rht16", "e4m3-g16-scalef32", "nf4-g16-scalef32",
            "fixed8.0-sym-g16-scalee4m3", "e5m2+scale=row", "mxfp4+q34", "mxfp4+rht32+q34"})
        compare_scaled(name, tensor, ScaledTensorReference(name)(tensor, DType::F32), DType::F32,
                       tally);
    }
    report(tally);
  }

  TEST_CASE("one, two and three threads give the same bits, those of the definition") {
    const Shape shape{3, 210, 331};
    const std::vector<float> x = mixed_values(shape.numel(), 8, true);
    const std::vector<float> finite = mixed_values(shape.numel(), 9, false);
    const int threads = omp_get_max_threads();
    Tally tally;
    for (const char* name : {"nvfp4:sr", "nvfp4-t16x16+rht32", "e4m3-g128-scalef32:sr",
                             "e4m3-t128x128-scalef32", "e2m1-axis1-scalee4m3", "e5m2+scale=current",
                             "fixed8.0+scale=row:sr", "mxfp4+rht16+q34:sr"})
      for (const std::vector<float>* values : {&x, &finite}) {
        const TensorCase tensor{
            *values, shape, static_cast<int>(scramble(values->size()) % 3), {21, 4, 2, nullptr}};
        const Scaled want = ScaledTensorReference(name)(tensor, DType::F32);
        for (const int count : {1, 2, 3}) {
          omp_set_num_threads(count);
          compare_scaled(name, tensor, want, DType::F32, tally);
        }
        omp_set_num_threads(threads);
      }
    report(tally);
  }

  TEST_CASE(
      "delayed scaling follows the largest of the newest magnitudes, finite ones, until it is "
      "frozen") {
    const float inf = std::numeric_limits<float>::infinity();
    // x · S leaves fp32 where 10^20 follows three times 10^−30: it is finite, so it saturates.
    const std::vector<float> amaxes = {1,      100,    3,      0,     inf, 2, 1,
                                       1,      0.001f, 0,      0,     0,   5, std::nanf(""),
                                       1e-30f, 1e-30f, 1e-30f, 1e20f, 6,   7};
    for (const auto& [format, mode] :
         {std::pair{"e4m3", ""}, {"e5m2", ":sr"}, {"fixed8.0-sym", ":rtz"}}) {
      const std::string name = std::string(format) + "+scale=delayed3" + mode;
      Quantizer element = Quantizer::parse(std::string(format) + mode);
      element.format.overflow = Overflow::Saturate;
      const reference::Reference rounded(element);
      QuantiseArgs args;
      args.quantizer = Quantizer::parse(name);
      args.scaling = Tensor::from(std::vector<float>{1, 0, 0, 0}, {4});
      args.factors = Tensor::empty({1}, DType::F32, kCpu);
      args.out = Tensor::empty({40}, DType::F32, kCpu);
      std::vector<float> history;
      float scale = 1;
      for (size_t call = 0; call < amaxes.size(); ++call) {
        CAPTURE(name);
        CAPTURE(call);
        args.frozen = call >= amaxes.size() - 2;
        args.key = {call, 0, 0, nullptr};
        const RandomSource random(args.key);
        std::vector<float> x;
        for (uint64_t i = 0; i < 40; ++i)
          x.push_back(amaxes[call] * (static_cast<float>(scramble(100 * call + i) % 2001) - 1000) /
                      1000);
        x[7] = amaxes[call];
        args.in = Tensor::from(x, {40});
        kernels::quantise(Stream{}, args);
        if (std::isfinite(amaxes[call])) {
          CHECK(args.factors.to_floats()[0] == 1 / scale);
          const std::vector<float> values = args.out.to_floats();
          int wrong = 0;
          for (uint64_t i = 0; i < 40; ++i)
            wrong += same(values[i], rounded(x[i] * scale, random.word(i)).value) ? 0 : 1;
          CHECK(wrong == 0);
          if (!args.frozen) history.push_back(amaxes[call]);
        }
        float most = 0;
        for (size_t back = 1; back <= std::min<size_t>(3, history.size()); ++back)
          most = std::max(most, history[history.size() - back]);
        if (most > 0) scale = static_cast<float>(rounded.max()) / most;
        CHECK(args.scaling.to_floats()[0] == scale);
      }
    }
  }

  TEST_CASE("by hand") {
    const auto y_of = [](const char* name, const std::vector<float>& x) {
      return run(Quantizer::parse(name), {x, {static_cast<int64_t>(x.size())}, 0, {}}, DType::F32)
          .values;
    };
    using Values = std::vector<float>;
    // amax = 896 = 2 · 448: everything is halved, rounded to e4m3 and doubled.
    CHECK(y_of("e4m3+scale=current", {896, 33, -3, 0}) == Values{896, 32, -3, 0});
    CHECK(y_of("e4m3-g2-scalef32", {896, 33, 448, 33}) == Values{896, 32, 448, 32});
    // amax / 6 = 2 is an e4m3 number: elements are x / 2 in e2m1.
    CHECK(y_of("e2m1-g4-scalee4m3", {12, 5, -1, 0.4f}) == Values{12, 4, -1, 0});
    // The top of e8mY-none reads as Inf, but elements of scaled blocks saturate: amax · fl(M / amax) may lie above M.
    for (const char* name : {"e8m7-none+scale=current:ru", "e8m3-none-g1-scalef32:ru",
                             "e8m1-none+scale=row:ru", "e8m7-none-t1x1-scalef32:ru"})
      for (float amax = 1; amax < 1000; ++amax)
        CHECK(std::abs(y_of(name, {amax})[0] - amax) <= 0x1p-20f * amax);
    // A block of zeros beside, and a block whose scale is below e4m3: 2^−20/6 rounds to 0.
    CHECK(y_of("e2m1-g2-scalee4m3", {0, 0, 0x1p-20f, 0, 6, 6}) == Values{0, 0, 0, 0, 6, 6});
    // The floor rule clips 7.9 to 6; three quarters of it, 5.925, become 6, and 6 · 4/3 is 8.
    CHECK(y_of("mxfp4", {7.9f, 0})[0] == 6.0f);
    CHECK(y_of("mxfp4+q34", {7.9f, 0})[0] == 8.0f);
    // A tail shorter than a rotation is left alone.
    CHECK(y_of("mxfp4+rht16", {7.9f, 1, -3}) == y_of("mxfp4", {7.9f, 1, -3}));
    // One NaN or Inf in the tensor: all of nvfp4, one block of the others.
    for (const float bad : {std::nanf(""), -std::numeric_limits<float>::infinity()}) {
      for (const float y : y_of("nvfp4-g2", {1, 2, bad, 0})) CHECK(std::isnan(y));
      const Values blocks = y_of("e4m3-g2-scalef32", {1, 2, bad, 0});
      CHECK(blocks[1] == 2.0f);
      CHECK(std::isnan(blocks[2]));
      CHECK(std::isnan(blocks[3]));
    }
  }

  TEST_CASE("a rotation and its way back leave what is representable, and signs follow the seed") {
    // One non-zero number in a group becomes 16 of the same magnitude: mxfp4 holds them exactly.
    std::vector<float> x(32, 0.0f);
    x[5] = 8;
    x[16] = -2;
    std::set<std::vector<float>> rotated;
    for (uint64_t seed = 0; seed < 8; ++seed) {
      const TensorCase tensor{x, {32}, 0, {seed, 0, 0, nullptr}};
      const std::vector<float> y = run(Quantizer::parse("mxfp4+rht16"), tensor, DType::F32).values;
      for (size_t i = 0; i < x.size(); ++i) CHECK(y[i] == x[i]);
      rotated.insert(ScaledTensorReference("mxfp4+rht16")(tensor, DType::F32).values);
    }
    CHECK(rotated.size() > 2);  // of four sign patterns
  }
}

}  // namespace ulp
