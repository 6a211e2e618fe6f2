// Simulated accumulators: the arithmetic against rounding modes of the hardware, products against sums written out term by
// term in double with the rounding of tests/reference.h, and what layers make of them.

#include <doctest/doctest.h>

#include <cfenv>
#include <cmath>
#include <random>

#include "autograd/conv.h"
#include "core/accumulate.h"
#include "kernels/attention.h"
#include "kernels/conv.h"
#include "kernels/cpu/isa.h"
#include "kernels/quantised.h"
#include "nn/layers.h"
#include "nn/models.h"
#include "nn/pieces.h"
#include "nn/policy.h"
#include "tests/command.h"
#include "tests/op_table.h"
#include "tests/reference.h"
#include "tests/threads.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

constexpr Stream kStream{kCpu};

std::string refusal(const std::string& text) {
  try {
    Accumulator::parse(text);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

/// One rounding of an exact number.
class ExactRounding {
 public:
  ExactRounding(const Quantizer& format, RandomKey key, uint32_t draw)
      : fp32_(format.is_identity()) {
    if (!fp32_) reference_.emplace(format);
    stochastic_ = format.is_stochastic();
    key.ordinal += draw;
    source_ = RandomSource(key);
  }
  double operator()(double exact, uint64_t word) const {
    if (fp32_) return static_cast<float>(exact);
    return (*reference_)(exact, stochastic_ ? source_.word(word) : 0).value;
  }

 private:
  bool fp32_, stochastic_ = false;
  std::optional<reference::Reference> reference_;
  RandomSource source_;
};

/// Σ a[k]·b[k] as core/accumulator.h says, for the output whose words begin at `first` and lie `step` apart.
float written_out(const std::vector<double>& a, const std::vector<double>& b, const Sums& sums,
                  const std::vector<ExactRounding>& f, uint64_t first, uint64_t step) {
  using Kind = Accumulator::Kind;
  const Accumulator& how = sums.how;
  double s = 0, t = 0;
  for (size_t k = 0; k < a.size(); ++k) {
    const uint64_t word = first + step * (static_cast<uint64_t>(sums.first_k) + k);
    const double product = a[k] * b[k];
    if (how.kind == Kind::Fused) s = f[0](product + s, word);
    if (how.kind == Kind::Rounded) s = f[1](f[0](product, word) + s, word);
    if (how.kind == Kind::Chunked) {
      t = f[0](product + t, word);
      if ((k + 1) % static_cast<size_t>(how.chunk) != 0 && k + 1 != a.size()) continue;
      s = f[1](t + s, word);
      t = 0;
    }
    if (how.kind == Kind::Kahan) {
      const double y = f[0](product - t, word), next = f[1](s + y, word);
      t = f[3](f[2](next - s, word) - y, word);
      s = next;
    }
  }
  return static_cast<float>(s);
}

std::vector<ExactRounding> roundings_of(const Sums& sums) {
  std::vector<ExactRounding> all;
  for (uint32_t r = 0; r < sums.how.draws(); ++r)
    all.emplace_back(*sums.how.roundings()[r], sums.key, r);
  return all;
}

/// Numbers of few bits, so that every sum is exact in double and, where `floats`, in fp32.
Tensor numbers(const Shape& shape, uint64_t seed, bool floats) {
  std::mt19937_64 words(seed);
  std::vector<float> values;
  const int bits = floats ? 5 : 19;
  for (int64_t i = 0; i < shape.numel(); ++i) {
    const auto whole = static_cast<int64_t>(words() % (uint64_t{2} << bits)) - (int64_t{1} << bits);
    values.push_back(std::ldexp(static_cast<float>(whole), -bits + static_cast<int>(words() % 3)));
  }
  return Tensor::from(values, shape);
}

RandomKey key_of(const StepState& state) { return {7, 11, 2, &state}; }

constexpr const char* kNearest[] = {"e6m9",
                                    "bf16",
                                    "e5m2",
                                    "fixed16.6",
                                    "e3m4",
                                    "e4m3/e6m9",
                                    "e5m2/fp32",
                                    "fp32/fp16",
                                    "chunk3/e6m9",
                                    "chunk4/e6m9/bf16",
                                    "chunk5/fp32/e6m9",
                                    "kahan/e6m9",
                                    "kahan/fp32",
                                    "e2m1/e6m9",
                                    "e6m9:rtz",
                                    "e8m21",
                                    "fixed23.14",
                                    "e8m20/e8m21",
                                    "kahan/fp16:ru",
                                    "chunk1/e5m7",
                                    "tf32"};
constexpr const char* kDrawing[] = {"e6m9:sr",        "e5m2:sr/e6m9:sr",
                                    "e4m3/bf16:sr4f", "chunk3/e6m9:sr/e5m7:sr",
                                    "kahan/e6m9:sr",  "fixed16.6:sr"};

}  // namespace

TEST_SUITE("accumulator") {
  TEST_CASE("texts are read, and written so that they read back") {
    using Kind = Accumulator::Kind;
    for (const char* text : kNearest) {
      CAPTURE(std::string(text));
      CHECK(to_string(Accumulator::parse(text)) == text);
    }
    for (const char* text : kDrawing) CHECK(to_string(Accumulator::parse(text)) == text);
    CHECK(Accumulator::parse("fp32") == Accumulator{});
    CHECK(!Accumulator("fp32").is_simulated());
    CHECK(to_string(Accumulator("chunk64/e6m9/e6m9")) == "chunk64/e6m9");
    const Accumulator chunked("chunk64/e6m9:sr/bf16");
    CHECK(chunked.kind == Kind::Chunked);
    CHECK(chunked.chunk == 64);
    CHECK(chunked.inner == Quantizer("e6m9:sr"));
    CHECK(chunked.sum == Quantizer("bf16"));
    CHECK(chunked.is_stochastic());
    CHECK(!Accumulator("kahan/bf16").is_stochastic());
    CHECK(Accumulator("kahan/bf16").draws() == 4);
  }

  TEST_CASE("what is no accumulator is named") {
    const auto has = [](const std::string& text, const char* what) {
      CAPTURE(text);
      CAPTURE(std::string(what));
      return refusal(text).find(what) != std::string::npos;
    };
    for (const char* text :
         {"", "/", "e6m9/", "/e6m9", "e5m2/e6m9/bf16", "chunk/e6m9", "chunk0/e6m9", "chunk64",
          "chunk-3/e6m9", "chunk6x/e6m9", "chunk64/e6m9/bf16/bf16", "chunk99999999999/e6m9",
          "kahan", "kahan/e6m9/bf16", "bfp8", "mxfp8", "e4m3+scale=current", "kahan/nvfp4",
          "e6m9 "}) {
      CHECK(has(text, (std::string("sums '") + text + "'").c_str()));
      CHECK(has(text, "chunkN/F/G"));
    }
    CHECK(has("chunk0/e6m9", "from 1 to 2147483647"));
    CHECK(has("chunk64", "one or two formats"));
    CHECK(has("bfp8", "a sum is one number"));
    CHECK(has("kahan/e8m22", "22 with which a sum is rounded once"));
    CHECK(has("fixed8.4-wrap", "no bounds"));
    CHECK(has("e5m2-bias147", "below 2^-147"));
    CHECK(has("nf4", "is a table"));
    for (const char* text : {"e8m21", "fixed23.14", "e5m2-bias146"}) CHECK(refusal(text).empty());
    // Cut between characters.
    std::string accents;
    for (int i = 0; i < 60; ++i) accents += "\u00e9";
    CHECK(has(accents, "\u00e9\u2026'"));
    CHECK(refusal(std::string(5000, 'x')).size() < 6000);
  }

  TEST_CASE("to odd: what directed roundings of the hardware say") {
    std::mt19937_64 words(5);
    const auto any = [&] {
      const uint64_t w = words();
      const auto low = static_cast<uint32_t>(w);
      switch (w >> 61) {
        case 0: return float_of(low);                                           // anything
        case 1: return float_of((low & kSignBit) | (low & 0x00FFFFFFu));        // tiny
        case 2: return float_of((low & 0x807FFFFFu) | 0x7E800000u);             // huge
        case 3: return static_cast<float>(static_cast<int32_t>(low % 17) - 8);  // small integers
        default: return float_of((low & 0x80FFFFFFu) | (0x3E000000u + (low & 0x01000000u)));
      }
    };
    volatile float a = 0, b = 0, c = 0;
    float (*volatile fma)(float, float, float) = [](float x, float y, float z) {
      return std::fma(x, y, z);
    };
    int64_t bad = 0, odd = 0;
    for (int64_t i = 0; i < 400000; ++i) {
      a = any();
      b = any();
      c = i % 4 == 0 ? -(a * b) : any();
      std::fesetround(FE_DOWNWARD);
      const float below = fma(a, b, c);
      std::fesetround(FE_UPWARD);
      const float above = fma(a, b, c);
      std::fesetround(FE_TOWARDZERO);
      const float cut = fma(a, b, c);
      std::fesetround(FE_TONEAREST);
      const float near = fma(a, b, c);
      float wanted = near;  // exact, with the sign of zero that rounding to nearest gives
      if (below < above) wanted = float_of(bits_of(cut) | 1u), ++odd;
      const float got = fma_to_odd(a, b, c);
      bad += !reference::same(got, wanted) ? 1 : 0;
      if (b == 1.0f) bad += !reference::same(add_to_odd(a, c), wanted) ? 1 : 0;
    }
    CHECK(bad == 0);
    CHECK(odd > 100000);
  }

  TEST_CASE("matmul: sums written out term by term, words by output and term") {
    StepState state;
    state.random_step = 3;
    for (const bool floats : {false, true})
      for (const char* text : floats ? std::span<const char* const>(kDrawing)
                                     : std::span<const char* const>(kNearest)) {
        CAPTURE(std::string(text));
        const Sums sums{Accumulator(text), key_of(state), 4, 1, 3};
        const std::vector<ExactRounding> rounding = roundings_of(sums);
        for (const auto& [m, k, n] : std::vector<std::array<int64_t, 3>>{
                 {3, 7, 5}, {1, 1, 1}, {2, 300, 2}, {17, 11, 6}, {2, 5, 700}}) {
          const Tensor a = numbers({m, k}, 1, floats), b = numbers({k, n}, 2, floats);
          MatmulArgs args;
          args.a = a;
          args.b = b;
          args.out = Tensor::empty({m, n}, DType::F32, kCpu);
          args.sums = sums;
          kernels::matmul(kStream, args);
          const std::vector<double> x = a.to_doubles(), y = b.to_doubles();
          const int64_t pitch = (n + 3) / 4 * 4;
          int64_t bad = 0;
          for (int64_t i = 0; i < m; ++i)
            for (int64_t j = 0; j < n; ++j) {
              std::vector<double> row, column;
              for (int64_t p = 0; p < k; ++p) {
                row.push_back(x[static_cast<size_t>(i * k + p)]);
                column.push_back(y[static_cast<size_t>(p * n + j)]);
              }
              const float wanted = written_out(row, column, sums, rounding,
                                               static_cast<uint64_t>((m + i) * pitch + j),
                                               static_cast<uint64_t>(3 * m * pitch));
              bad += reference::same(args.out.data<float>()[i * n + j], wanted) ? 0 : 1;
            }
          CHECK(bad == 0);
        }
      }
  }

  TEST_CASE(
      "matmul: factors, bias and output come after the sums; partial sums of many factors go on "
      "drawing") {
    StepState state;
    const Tensor a = numbers({5, 64}, 1, true), b = numbers({64, 6}, 2, true),
                 bias = numbers({6}, 3, true);
    const auto run = [&](MatmulArgs args) {
      args.a = a;
      args.b = b;
      args.out = Tensor::empty({5, 6}, DType::F32, kCpu);
      args.sums = {Accumulator("e6m9:sr"), key_of(state)};
      kernels::matmul(kStream, args);
      return args.out.to_floats();
    };
    MatmulArgs whole;
    whole.bias = bias;
    whole.a_factor = Tensor::from(std::vector<float>{0.3f}, {1});
    whole.output = "e4m3";
    const std::vector<float> plain = run({}), got = run(whole), add = bias.to_floats();
    const reference::Reference e4m3("e4m3");
    for (size_t i = 0; i < plain.size(); ++i)
      CHECK(got[i] == e4m3(std::fma(plain[i], 0.3f, 0.0f) + add[i % 6]).value);

    // A factor for each 16 terms: as many products, whose words go on where those of the one before end.
    Factors by_16{numbers({20}, 9, true), 1, 16};
    MatmulArgs parts;
    parts.a = a;
    parts.b = b;
    parts.out = Tensor::empty({5, 6}, DType::F32, kCpu);
    parts.sums = {Accumulator("e6m9:sr"), key_of(state)};
    scaled_matmul(kStream, parts, by_16, {});
    std::vector<float> wanted(30, 0.0f);
    for (int64_t part = 0; part < 4; ++part) {
      MatmulArgs one;
      one.a = a.slice(1, part * 16, part * 16 + 16);
      one.b = b.slice(0, part * 16, part * 16 + 16);
      one.out = Tensor::empty({5, 6}, DType::F32, kCpu);
      one.sums = {Accumulator("e6m9:sr"), key_of(state), part * 16};
      kernels::matmul(kStream, one);
      for (int64_t i = 0; i < 30; ++i) {
        const float factor = by_16.values.data<float>()[i / 6 * 4 + part];
        float& sum = wanted[static_cast<size_t>(i)];
        sum = std::fma(one.out.data<float>()[i], factor, sum);
      }
    }
    CHECK(parts.out.to_floats() == wanted);
  }

  TEST_CASE("NaN, infinities and formats that saturate; nothing to add is +0") {
    const float inf = std::numeric_limits<float>::infinity();
    const auto sum = [&](std::vector<float> a, std::vector<float> b, const char* how) {
      const auto k = static_cast<int64_t>(a.size());
      MatmulArgs args;
      args.a = Tensor::from(a, {1, k});
      args.b = Tensor::from(b, {k, 1});
      args.out = Tensor::empty({1, 1}, DType::F32, kCpu);
      args.sums.how = Accumulator(how);
      kernels::matmul(kStream, args);
      return args.out.data<float>()[0];
    };
    for (const char* how : {"e6m9", "fp32/bf16", "chunk2/e6m9", "kahan/bf16"}) {
      CAPTURE(std::string(how));
      CHECK(std::isnan(sum({1, NAN, 2}, {1, 1, 1}, how)));
      CHECK(std::isnan(sum({inf, -inf}, {1, 1}, how)));
      CHECK(bits_of(sum({}, {}, how)) == 0u);
    }
    CHECK(std::isnan(sum({inf, 1}, {1, 1}, "kahan/bf16")));  // Inf − Inf compensates it
    CHECK(sum({inf, 1}, {1, 1}, "bf16") == inf);
    CHECK(sum({3e38f, 3e38f}, {2, -2}, "bf16") == inf);       // does not come back
    CHECK(sum({448, 448, -448}, {1, 1, 1}, "e4m3") == 0.0f);  // e4m3 saturates
    CHECK(sum({1, 0x1p-12f, 0x1p-12f}, {1, 1, 1}, "e6m9") == 1.0f);
    // Terms that a plain sum swallows one by one are kept by chunks and by compensation.
    std::vector<float> ones(4096, 1.0f);
    CHECK(sum(ones, ones, "bf16") == 256.0f);
    CHECK(sum(ones, ones, "chunk64/bf16") == 4096.0f);
    CHECK(sum(ones, ones, "kahan/bf16") == 4096.0f);
  }

  TEST_CASE(
      "conv and batched products: those of matmul, group and matrix being the matrix's number") {
    StepState state;
    for (const char* text : {"e6m9:sr", "chunk4/e6m9:sr/bf16", "kahan/e5m10", "e5m2/e6m9"})
      for (const int64_t groups : {1, 2, 4}) {
        CAPTURE(std::string(text));
        Windows w;
        w.images = 2;
        w.groups = groups;
        w.channels = 4 / groups;
        w.h = {5, 5, 3, 1, 1, -1, 1};
        w.w = {4, 4, 3, 1, 1, -1, 1};
        const int64_t outputs = 8 / groups, depth = w.columns(), rows = w.rows();
        const Tensor image = numbers({2, 5, 4, 4}, 1, true),
                     weight = numbers({groups, 9, w.channels, outputs}, 2, true),
                     grad = numbers({2, 5, 4, 8}, 3, true);
        const Sums sums{Accumulator(text), key_of(state)};
        ConvArgs conv;
        conv.image = image;
        conv.weight = weight;
        conv.windows = w;
        conv.out = Tensor::empty({2, 5, 4, 8}, DType::F32, kCpu);
        conv.sums = sums;
        kernels::conv(kStream, conv);
        ConvWeightArgs back;
        back.grad = grad;
        back.image = image;
        back.windows = w;
        back.out = Tensor::empty({8, depth}, DType::F32, kCpu);
        back.sums = sums;
        kernels::conv_weight(kStream, back);
        for (int64_t g = 0; g < groups; ++g) {
          std::vector<float> matrix;
          const float* pixels = image.data<float>();
          for (int64_t row = 0; row < rows; ++row)
            for (int64_t k = 0; k < depth; ++k) {
              const int64_t tap = k / w.channels, h = row / 4 % 5 + tap / 3 - 1,
                            x = row % 4 + tap % 3 - 1;
              const bool there = h >= 0 && h < 5 && x >= 0 && x < 4;
              matrix.push_back(
                  there ? pixels[((row / 20 * 5 + h) * 4 + x) * 4 + g * w.channels + k % w.channels]
                        : 0.0f);
            }
          const Tensor windows = Tensor::from(matrix, {rows, depth});
          MatmulArgs one;
          one.a = windows;
          one.b = weight.slice(0, g, g + 1).reshape({depth, outputs});
          one.out = Tensor::empty({rows, outputs}, DType::F32, kCpu);
          one.sums = sums.of(g, groups);
          kernels::matmul(kStream, one);
          const Tensor y = conv.out.reshape({rows, 8}).slice(1, g * outputs, (g + 1) * outputs);
          CHECK(y.to_floats() == one.out.to_floats());
          MatmulArgs dw;
          dw.a = grad.reshape({rows, 8}).slice(1, g * outputs, (g + 1) * outputs).transpose(0, 1);
          dw.b = windows;
          dw.out = Tensor::empty({outputs, depth}, DType::F32, kCpu);
          dw.sums = sums.of(g, groups);
          kernels::matmul(kStream, dw);
          CHECK(back.out.slice(0, g * outputs, (g + 1) * outputs).to_floats() ==
                dw.out.to_floats());
        }
        BatchedMatmulArgs many;
        many.a = numbers({3, 4, 7}, 4, true);
        many.b = numbers({3, 7, 5}, 5, true);
        many.out = Tensor::empty({3, 4, 5}, DType::F32, kCpu);
        many.sums = sums;
        many.sums.matrix = 2;
        many.sums.matrices = 6;
        kernels::batched_matmul(kStream, many);
        for (int64_t b = 0; b < 3; ++b) {
          MatmulArgs one;
          one.a = many.a.slice(0, b, b + 1).reshape({4, 7});
          one.b = many.b.slice(0, b, b + 1).reshape({7, 5});
          one.out = Tensor::empty({4, 5}, DType::F32, kCpu);
          one.sums = sums;
          one.sums.matrix = 2 + b;
          one.sums.matrices = 6;
          kernels::matmul(kStream, one);
          CHECK(many.out.slice(0, b, b + 1).to_floats() == one.out.to_floats());
        }
      }
  }

  TEST_CASE("kernels refuse what they cannot sum so") {
    const auto message = [](const Sums& sums, DType dtype) {
      MatmulArgs args;
      args.a = Tensor::zeros({2, 3}, dtype, kCpu);
      args.b = Tensor::zeros({3, 2}, dtype, kCpu);
      args.out = Tensor::zeros({2, 2}, dtype, kCpu);
      args.sums = sums;
      try {
        kernels::matmul(kStream, args);
      } catch (const Error& error) {
        return std::string(error.what());
      }
      return std::string();
    };
    Sums sums;
    sums.how = "e6m9";
    CHECK(message(sums, DType::F32).empty());
    CHECK(message(sums, DType::F64).find("matmul: F64 tensors are for gradient checks") == 0);
    sums.matrix = 1;
    CHECK(message(sums, DType::F32).find("matrix 0 to 0 of 1, got 1") != std::string::npos);
    sums = {};
    sums.how.kind = Accumulator::Kind::Kahan;
    sums.how.sum = "bfp8";
    CHECK(message(sums, DType::F32).find("a sum is one number") != std::string::npos);
    sums.how = "chunk4/e6m9";
    sums.how.chunk = 0;
    CHECK(message(sums, DType::F32).find("at least 1 term, got 0") != std::string::npos);
  }

  TEST_CASE(
      "each product of a layer keeps its sums by its own accumulator, with draws of its own") {
    const auto pass = [](const char* forward, const char* dx, const char* dw) {
      OpFormats f;
      f.forward_acc = forward;
      f.dx_acc = dx;
      f.dw_acc = dw;
      Run run(kCpu, 3);
      const OpRow row{"linear",
                      {},
                      {},
                      [](Tape& t, std::span<const Var> in, const OpFormats& formats) {
                        return ops::linear(t, in[0], in[1], {}, formats, RandomSite(kSite));
                      },
                      {}};
      const Tensor inputs[] = {numbers({6, 40}, 1, true), numbers({5, 40}, 2, true)};
      return run_row(row, run, inputs, f);
    };
    const Pass plain = pass("fp32", "fp32", "fp32");
    const auto differs = [&](const Pass& p) {
      return std::array<bool, 3>{!same_bits(p.y, plain.y), !same_bits(p.grads[0], plain.grads[0]),
                                 !same_bits(p.grads[1], plain.grads[1])};
    };
    CHECK(differs(pass("e5m2", "fp32", "fp32")) == std::array<bool, 3>{true, false, false});
    CHECK(differs(pass("fp32", "e5m2", "fp32")) == std::array<bool, 3>{false, true, false});
    CHECK(differs(pass("fp32", "fp32", "e5m2")) == std::array<bool, 3>{false, false, true});
    // The words are those of the layer's own streams.
    const Pass drawn = pass("e6m9:sr", "fp32", "fp32");
    MatmulArgs args;
    args.a = numbers({6, 40}, 1, true);
    args.b = numbers({5, 40}, 2, true).transpose(0, 1);
    args.out = Tensor::empty({6, 5}, DType::F32, kCpu);
    args.sums.how = "e6m9:sr";
    StepState first;
    first.random_step = 1;
    args.sums.key = {3, RandomSite(kSite).stream("forward_acc"), 0, &first};
    kernels::matmul(kStream, args);
    CHECK(same_bits(drawn.y, args.out));
  }

  TEST_CASE(
      "attention: the backward pass makes the scores again with the words of the forward pass") {
    // One query and v the identity: y is p, and with a gradient of ones dv is p as the backward pass has it.
    ops::AttentionFormats f;
    f.qk.forward_acc = "e5m2:sr";
    Run run(kCpu, 9);
    Tape tape(run);
    std::vector<float> identity(16, 0.0f);
    for (size_t i = 0; i < 16; i += 5) identity[i] = 1;
    const Var q = tape.leaf(numbers({1, 1, 8}, 1, true)),
              k = tape.leaf(numbers({1, 4, 8}, 2, true)),
              v = tape.leaf(Tensor::from(identity, {1, 4, 4}));
    const Var y = ops::attention(tape, q, k, v, {}, f, ops::AttentionSites("a"));
    tape.backward(y, Tensor::from(std::vector<float>(4, 1.0f), {1, 1, 4}));
    const std::vector<float> p = y.value.to_floats(), dv = tape.grad(v).to_floats();
    for (size_t i = 0; i < 4; ++i) CHECK(dv[4 * i] == p[i]);
    // The scores are those of the batched product with the words of qk's forward_acc.
    BatchedMatmulArgs args;
    args.a = numbers({1, 1, 8}, 1, true);
    args.b = numbers({1, 4, 8}, 2, true);
    args.turn_b = true;
    args.out = Tensor::empty({1, 1, 4}, DType::F32, kCpu);
    args.sums.how = "e5m2:sr";
    StepState first;
    first.random_step = 1;
    args.sums.key = {9, ops::AttentionSites("a").qk.stream("forward_acc"), 0, &first};
    kernels::batched_matmul(kStream, args);
    MaskedSoftmaxArgs softmax;
    softmax.rows.scores = args.out;
    softmax.rows.scale = 1 / std::sqrt(8.0);
    softmax.out = Tensor::empty({1, 1, 4}, DType::F32, kCpu);
    kernels::masked_softmax(kStream, softmax);
    CHECK(softmax.out.to_floats() == p);
  }

  TEST_CASE(
      "ops with products: bits do not depend on threads or the instruction set, hard values "
      "included") {
    Run run;
    for (const OpRow& row : op_table()) {
      if (!has_products(row)) continue;
      for (const auto& shapes : row.shapes)
        for (const SummedFormats& one : kSummedFormats) {
          CAPTURE(std::string(row.name));
          CAPTURE(std::string(one.sums));
          const OpFormats formats = formats_of(row, one);
          CHECK(same_on_every_cpu(row, run, hard_inputs(shapes), formats));
        }
    }
  }

  TEST_CASE(
      "policies: layers with products take accumulators, others refuse; models go on in pieces or "
      "say why not") {
    Run run;
    nn::SequenceOptions o;
    o.layers = 1;
    o.heads = 2;
    o.width = 8;
    o.context = 12;
    const auto net = nn::gpt(11, o);
    net->initialise(run);
    const auto set = [&](const char* sums, std::vector<nn::LayerType> types) {
      nn::Rule rule;
      rule.types = std::move(types);
      rule.forward_acc = sums;
      nn::Policy policy;
      policy.rules.push_back(rule);
      nn::apply(policy, *net);
      return nn::obstacle_of(*net);
    };
    const std::vector<nn::LayerType> products{nn::LayerType::Linear, nn::LayerType::Attention};
    CHECK(set("chunk4/e6m9", products).empty());
    for (const nn::Layer& layer : nn::layers_of(*net))
      CHECK(layer.formats->forward_acc.is_simulated() == layer.has_product());
    CHECK(set("e6m9:sr", {nn::LayerType::Linear}).find("e6m9:sr draws") != std::string::npos);
    CHECK(set("e6m9:sr", {nn::LayerType::Attention}).find("qk.forward_acc e6m9:sr") !=
          std::string::npos);
    CHECK(set("kahan/e6m9", {nn::LayerType::Linear}).empty());
    CHECK(set("kahan/e6m9", {nn::LayerType::Attention}).find("pv.forward_acc kahan/e6m9") !=
          std::string::npos);
    CHECK_THROWS_AS(set("e6m9", {nn::LayerType::Normalization}), Error);

    CHECK(set("chunk4/e6m9", products).empty());
    std::vector<int32_t> letters;
    for (int32_t i = 0; i < 24; ++i) letters.push_back(i * 7 % 11);
    const Tensor tokens = Tensor::from(letters, {2, 12});
    const nn::EvaluationMode mode(*net);
    Tape tape(run, Tape::Recording::Off);
    const Tensor whole = (*net)(tape, tape.constant(tokens)).value;
    const nn::InPieces pieces(*net, 2, 12);
    int64_t at = 0;
    for (const int64_t length : {5, 1, 6}) {
      const auto range = [&](const Tensor& t) {
        return kernels::contiguous(run.stream(), t.slice(1, at, at + length));
      };
      CHECK(same_bits((*net)(tape, tape.constant(range(tokens))).value, range(whole)));
      at += length;
    }
  }

  TEST_CASE("a small network learns with 16-bit sums in chunks, and less well with 8-bit ones") {
    const auto loss_after = [](const char* sums) {
      OpFormats f = OpFormats::make("e4m3", "e5m2");
      f.forward_acc = f.dx_acc = f.dw_acc = sums;
      Run run(kCpu, 4);
      const auto net = nn::mlp(16, std::vector<int64_t>{32}, 4, f);
      net->initialise(run);
      const Tensor x = random_tensor({64, 16}, -1, 1, 3);
      std::vector<int32_t> labels;
      for (int64_t i = 0; i < 64; ++i) {
        const float* row = x.data<float>() + i * 16;
        labels.push_back((row[0] + row[1] + row[2] > 0 ? 1 : 0) + (row[3] > row[4] ? 2 : 0));
      }
      const Tensor wanted = Tensor::from(labels, {64});
      float last = 0;
      for (int step = 0; step < 150; ++step) {
        Tape tape(run);
        const Var loss = ops::cross_entropy(tape, (*net)(tape, tape.constant(x)), wanted);
        tape.backward(loss);
        for (Parameter* p : net->parameters()) {
          float* w = p->value.mutable_data<float>();
          const float* g = p->grad.data<float>();
          for (int64_t i = 0; i < p->value.numel(); ++i) w[i] -= 0.2f * g[i];
          p->grad = {};
        }
        last = loss.value.data<float>()[0];
      }
      return last;
    };
    const float fp32 = loss_after("fp32"), chunks = loss_after("chunk8/e6m9"),
                coarse = loss_after("e3m1");
    CAPTURE(fp32);
    CAPTURE(chunks);
    CAPTURE(coarse);
    CHECK(std::abs(chunks - fp32) < 0.05f);
    CHECK(coarse > fp32 + 0.05f);
  }
}

#if defined(ULP_COMMAND)

using namespace ulp::command;

TEST_SUITE("accumulator") {
  TEST_CASE("the command: flags, what is saved, resuming, scoring, what is refused") {
    const Folder folder;
    const std::string whole = folder / "whole", cut = folder / "cut";
    const std::string train =
        "train --hidden 16 --epochs 2 --batch-size 64 --forward-acc "
        "chunk8/e6m9:sr/bf16 "
        "--dx-acc kahan/fp16 --dw-acc e5m2:sr/e6m9:sr ";
    const std::string out = succeed(train + "--out '" + whole + "'").out;
    for (const char* said :
         {"forward_acc chunk8/e6m9:sr/bf16", "dx_acc kahan/fp16", "dw_acc e5m2:sr/e6m9:sr"})
      CHECK(out.find(said) != std::string::npos);
    const std::string config = slurp(whole + "/config.json");
    for (const char* kept : {"\"forward_acc\": \"chunk8/e6m9:sr/bf16\"",
                             "\"dx_acc\": \"kahan/fp16\"", "\"dw_acc\": \"e5m2:sr/e6m9:sr\""})
      CHECK(config.find(kept) != std::string::npos);
    // Stopped and resumed on another number of threads: the same weights.
    succeed(train + "--checkpoint-every 10 --keep 100 --out '" + cut + "'");
    CHECK(slurp(cut + "/model.safetensors") == slurp(whole + "/model.safetensors"));
    for (const auto& file : std::filesystem::directory_iterator(cut)) {
      const std::string name = file.path().filename().string();
      if (name.starts_with("checkpoint-") && name != "checkpoint-20.safetensors")
        std::filesystem::remove(file.path());
    }
    const std::string again = succeed(train + "--resume --threads 1 --out '" + cut + "'").out;
    CHECK(again.find("resumed    checkpoint-20.safetensors") != std::string::npos);
    CHECK(slurp(cut + "/model.safetensors") == slurp(whole + "/model.safetensors"));
    // Scored with other sums.
    CHECK(succeed("eval '" + whole + "' --forward-acc e4m3").out.find("forward_acc e4m3") !=
          std::string::npos);
    check_refused("eval '" + whole + "' --dx-acc e4m3", 2, {"--dx-acc", "no backward pass"});
    check_refused("train --forward-acc bfp8", 2, {"--forward-acc", "a sum is one number"});
    check_refused("train --dw-acc e8m22", 2, {"--dw-acc", "22"});
    check_refused("sweep --formats fp32 --forward-acc e4m3 --out '" + (folder / "sweep") + "'", 2,
                  {"--formats", "reference only"});
  }
}

#endif
