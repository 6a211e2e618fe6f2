#include <doctest/doctest.h>

#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "autograd/attention.h"
#include "autograd/role_stats.h"
#include "core/error.h"
#include "kernels/attention.h"
#include "kernels/quantised.h"
#include "nn/attention.h"
#include "nn/pieces.h"
#include "nn/policy.h"
#include "tests/near.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

/// softmax(q kᵀ / √D) v in fp64, key s of query t there if seen(n, t, s).
template <class Seen>
std::vector<double> written_out(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                                const Seen& seen) {
  const int64_t n = q.size(0), t = q.size(1), s = k.size(1), d = q.size(2) / heads,
                e = v.size(2) / heads;
  const std::vector<double> qs = q.to_doubles(), ks = k.to_doubles(), vs = v.to_doubles();
  std::vector<double> y(static_cast<size_t>(n * t * heads * e), 0.0);
  for (int64_t b = 0; b < n; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < t; ++i) {
        std::vector<double> p(static_cast<size_t>(s), 0.0);
        double sum = 0;
        for (int64_t j = 0; j < s; ++j) {
          if (!seen(b, i, j)) continue;
          double dot = 0;
          for (int64_t c = 0; c < d; ++c)
            dot += qs[static_cast<size_t>(((b * t + i) * heads + h) * d + c)] *
                   ks[static_cast<size_t>(((b * s + j) * heads + h) * d + c)];
          sum += p[static_cast<size_t>(j)] = std::exp(dot / std::sqrt(static_cast<double>(d)));
        }
        for (int64_t j = 0; j < s && sum > 0; ++j)
          for (int64_t c = 0; c < e; ++c)
            y[static_cast<size_t>(((b * t + i) * heads + h) * e + c)] +=
                p[static_cast<size_t>(j)] / sum *
                vs[static_cast<size_t>(((b * s + j) * heads + h) * e + c)];
      }
  return y;
}

/// y and the gradients of q, k and v.
struct Results {
  Tensor y, q, k, v;
};
Results results(const ops::AttentionFormats& f, const ops::AttentionOptions& o, const Tensor& q,
                const Tensor& k, const Tensor& v, const Tensor& g, RoleStats* stats = nullptr) {
  Run run;
  run.set_role_stats(stats);
  Tape tape(run);
  const Var a = tape.leaf(q), b = tape.leaf(k), c = tape.leaf(v);
  const Var y = ops::attention(tape, a, b, c, o, f, ops::AttentionSites("a"));
  tape.backward(y, g);
  return {y.value, tape.grad(a), tape.grad(b), tape.grad(c)};
}

/// Elements begin … end − 1 along an axis.
Tensor part(const Tensor& x, int axis, int64_t begin, int64_t end) {
  return kernels::contiguous(stream_of(kCpu), x.slice(axis, begin, end));
}

/// x with what lies in row `row` of each matrix times `by`.
Tensor with_row(const Tensor& x, int64_t row, float by) {
  std::vector<float> all = x.to_floats();
  const auto width = static_cast<size_t>(x.size(2)), rows = static_cast<size_t>(x.size(1));
  for (size_t i = 0; i < all.size(); ++i)
    if (i / width % rows == static_cast<size_t>(row)) all[i] *= by;
  return Tensor::from(all, x.shape());
}
/// x with its first matrix times `by`.
Tensor with_first(const Tensor& x, float by) {
  std::vector<float> all = x.to_floats();
  for (size_t i = 0; i < all.size() / static_cast<size_t>(x.size(0)); ++i) all[i] *= by;
  return Tensor::from(all, x.shape());
}

nn::AttentionSettings causal_rotary() {
  nn::AttentionSettings settings;
  settings.causal = settings.rotary = true;
  return settings;
}

template <class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_SUITE("attention") {
  TEST_CASE("masks, lengths and heads: as written out in fp64; queries that see nothing get 0") {
    Run run;
    const int64_t n = 4, heads = 2;
    for (const auto& [t, s] : {std::pair<int64_t, int64_t>{5, 5}, {3, 9}, {1, 8}, {7, 7}}) {
      const Tensor q = random_tensor({n, t, 6}, -2, 2, 1), k = random_tensor({n, s, 6}, -2, 2, 2),
                   v = random_tensor({n, s, 10}, -2, 2, 3);
      const std::vector<int32_t> lengths{0, 2, static_cast<int32_t>(s), 100};
      for (const bool causal : {false, true})
        for (const bool padded : {false, true}) {
          ops::AttentionOptions o;
          o.heads = heads;
          o.causal = causal;
          if (padded) o.lengths = Tensor::from(lengths, {n});
          Tape tape(run);
          const Var y = ops::attention(tape, tape.leaf(q), tape.leaf(k), tape.leaf(v), o);
          const auto seen = [&](int64_t b, int64_t i, int64_t j) {
            return (!causal || j <= s - t + i) && (!padded || j < lengths[static_cast<size_t>(b)]);
          };
          CHECK(near(y.value, written_out(q, k, v, heads, seen)));
        }
    }
  }

  TEST_CASE("q, k and v side by side give the bits of three tensors, forward and backward") {
    const Tensor all = random_tensor({3, 16, 96}, -1, 1, 4),
                 g = random_tensor({3, 16, 32}, -1, 1, 5);
    for (const char* format :
         {"fp32", "e4m3", "e4m3:sr", "mxfp8", "bfp8", "e4m3+scale=current", "e4m3+rht16"}) {
      CAPTURE(std::string(format));
      ops::AttentionFormats f;
      f.qk = f.pv = OpFormats::make(format, format);
      f.qk.output = f.pv.grad_input = "bf16:sr";
      f.softmax.interior = "bf16";
      ops::AttentionOptions o;
      o.heads = 2;
      o.causal = true;
      const ops::AttentionSites sites("model.attention");
      Run one, three;
      Tape a(one), b(three);
      const Var qkv = a.leaf(all);
      const Var y = ops::self_attention(a, qkv, o, f, sites);
      a.backward(y, g);
      std::vector<Var> parts;
      for (int64_t i = 0; i < 3; ++i)
        parts.push_back(b.leaf(kernels::contiguous(b.stream(), all.slice(2, 32 * i, 32 * i + 32))));
      const Var z = ops::attention(b, parts[0], parts[1], parts[2], o, f, sites);
      b.backward(z, g);
      CHECK(same_bits(y.value, z.value));
      for (int64_t i = 0; i < 3; ++i)
        CHECK(same_bits(kernels::contiguous(a.stream(), a.grad(qkv).slice(2, 32 * i, 32 * i + 32)),
                        b.grad(parts[static_cast<size_t>(i)])));
    }
  }

  TEST_CASE("many heads go in chunks: each has the result that it has alone") {
    // 2^23 scores a chunk: nine heads of 1024 · 1024 are two chunks.
    Run run;
    ops::AttentionOptions o;
    o.causal = true;
    const Tensor q = random_tensor({9, 1024, 2}, -2, 2, 6),
                 k = random_tensor({9, 1024, 2}, -2, 2, 7),
                 v = random_tensor({9, 1024, 2}, -2, 2, 8),
                 g = random_tensor({9, 1024, 2}, -1, 1, 9);
    const ops::AttentionFormats f{
        OpFormats::make("e4m3", "e5m2"), {}, OpFormats::make("e4m3", "e5m2")};
    const auto pass = [&](int64_t from, int64_t to) {
      Tape tape(run);
      const auto part = [&](const Tensor& x) { return tape.leaf(x.slice(0, from, to)); };
      const std::vector<Var> in{part(q), part(k), part(v)};
      const Var y = ops::attention(tape, in[0], in[1], in[2], o, f);
      tape.backward(y, g.slice(0, from, to));
      return std::vector<Tensor>{y.value, tape.grad(in[0]), tape.grad(in[1]), tape.grad(in[2])};
    };
    const std::vector<Tensor> all = pass(0, 9), last = pass(8, 9);
    for (size_t i = 0; i < all.size(); ++i)
      CHECK(same_bits(kernels::contiguous(run.stream(), all[i].slice(0, 8, 9)), last[i]));
  }

  TEST_CASE("formats: probabilities, scores and results lie in their value sets") {
    Run run;
    const Tensor q = random_tensor({2, 8, 8}, -2, 2, 1), k = random_tensor({2, 8, 8}, -2, 2, 2);
    std::vector<float> eye(2 * 8 * 8, 0.0f);
    for (size_t i = 0; i < 2 * 8; ++i) eye[i * 8 + i % 8] = 1;
    const Tensor v = Tensor::from(eye, {2, 8, 8});
    ops::AttentionFormats f;
    f.pv.input = "e4m3";
    Tape tape(run);
    const Var p = ops::attention(tape, tape.leaf(q), tape.leaf(k), tape.leaf(v), {}, f);
    QuantiseUse use;
    use.quantizer = "e4m3";
    use.axis = 1;
    CHECK(same_bits(p.value, quantised(run.stream(), p.value, use)));
    ops::AttentionFormats g = f;
    g.pv.input = {};
    g.pv.output = "e3m2";
    const Var y = ops::attention(tape, tape.leaf(q), tape.leaf(k), tape.leaf(v), {}, g);
    QuantiseUse narrower = use;
    narrower.quantizer = "e3m2";
    CHECK(same_bits(y.value, quantised(run.stream(), y.value, narrower)));
    CHECK_FALSE(same_bits(y.value, p.value));
  }

  TEST_CASE("groups of scores and of their gradients have no masked number in them") {
    const int64_t t = 48;  // groups of 32 reach over the diagonal
    const Tensor q = random_tensor({2, t, 8}, -2, 2, 1), k = random_tensor({2, t, 8}, -2, 2, 2),
                 v = random_tensor({2, t, 8}, -2, 2, 3), g = random_tensor({2, t, 8}, -1, 1, 4),
                 far_k = with_row(k, t - 1, 1000), far_v = with_row(v, t - 1, 1000);
    for (const char* format : {"mxfp8", "mxfp4", "bfp8-g32", "nvfp4", "bfp8", "e4m3+scale=current"})
      for (const bool causal : {false, true}) {
        CAPTURE(std::string(format));
        CAPTURE(causal);
        ops::AttentionFormats f;
        f.qk.output = f.pv.grad_input = Quantizer::parse(format);
        ops::AttentionOptions o;
        o.causal = causal;
        const int32_t length = static_cast<int32_t>(t) - 1;
        if (!causal) o.lengths = Tensor::from(std::vector<int32_t>{length, length}, {2});
        // Causal: the last query, which sees the last key, goes.
        const int64_t seen = causal ? t - 1 : t;
        const bool shared = !ops::attention_obstacle(f).empty();
        if (causal && shared) continue;  // the last query's scores have part in the tensor's scale
        const Tensor quiet = with_row(g, t - 1, causal ? 0.0f : 1.0f);
        const Results one = results(f, o, q, k, v, quiet),
                      two = results(f, o, q, far_k, far_v, quiet);
        CHECK(same_bits(part(one.y, 1, 0, seen), part(two.y, 1, 0, seen)));
        CHECK(same_bits(part(one.q, 1, 0, t - 1), part(two.q, 1, 0, t - 1)));
        CHECK(same_bits(part(one.v, 1, 0, t - 1), part(two.v, 1, 0, t - 1)));
      }
  }

  TEST_CASE(
      "roles that are counted have the same bits; each is counted once, with a format or without") {
    const int64_t n = 2, t = 5, s = 7, heads = 2;
    const Tensor q = random_tensor({n, t, 8}, -2, 2, 1), k = random_tensor({n, s, 8}, -2, 2, 2),
                 v = random_tensor({n, s, 6}, -2, 2, 3), g = random_tensor({n, t, 6}, -2, 2, 4);
    ops::AttentionOptions o;
    o.heads = heads;
    for (const char* format : {"fp32", "e4m3", "e5m2:sr", "bfp8:sr"}) {
      CAPTURE(std::string(format));
      ops::AttentionFormats f;
      for (OpFormats* part : {&f.qk, &f.pv}) {
        *part = OpFormats::make(format, format);
        part->output = part->grad_input = part->grad_weight = format;
      }
      const Results plain = results(f, o, q, k, v, g);
      RoleStats stats(kCpu);
      const Results counted = results(f, o, q, k, v, g, &stats);
      CHECK(same_bits(plain.y, counted.y));
      CHECK(same_bits(plain.q, counted.q));
      CHECK(same_bits(plain.k, counted.k));
      CHECK(same_bits(plain.v, counted.v));
      std::map<uint32_t, RoleStats::Total> totals = stats.totals();
      const int64_t scores = n * heads * t * s;
      const std::tuple<const char*, const char*, int64_t> roles[] = {
          {"a.qk", "input", q.numel()},      {"a.qk", "weight", k.numel()},
          {"a.qk", "output", scores},        {"a.qk", "grad_output_dx", scores},
          {"a.qk", "grad_input", q.numel()}, {"a.qk", "grad_weight", k.numel()},
          {"a.pv", "input", scores},         {"a.pv", "weight", v.numel()},
          {"a.pv", "output", g.numel()},     {"a.pv", "grad_output_dx", g.numel()},
          {"a.pv", "grad_input", scores},    {"a.pv", "grad_weight", v.numel()}};
      for (const auto& [layer, role, count] : roles) {
        CAPTURE(std::string(layer) + "/" + role);
        const auto at = totals.find(RandomSite(layer).stream(role));
        REQUIRE(at != totals.end());
        CHECK(at->second.stats.count == count);
        CHECK(at->second.quantizer == Quantizer::parse(format));
        CHECK(at->second.stats.amax() > 0);
        totals.erase(at);
      }
      CHECK(totals.empty());
    }
  }

  TEST_CASE("without an obstacle a query alone has the bits that it has among all") {
    const int64_t t = 48;
    const Tensor q = random_tensor({2, t, 8}, -2, 2, 1),
                 k = with_row(random_tensor({2, t, 8}, -2, 2, 2), t - 1, 1000),
                 v = random_tensor({2, t, 8}, -2, 2, 3);
    for (const char* format : {"fp32", "bf16", "e4m3", "mxfp8", "mxfp4", "bfp8-g32"}) {
      CAPTURE(std::string(format));
      ops::AttentionFormats f;
      f.qk.input = f.qk.weight = f.qk.output = f.pv.input = Quantizer::parse(format);
      f.softmax.interior = "bf16";
      REQUIRE(ops::attention_obstacle(f).empty());
      ops::AttentionOptions o;
      o.heads = 2;
      o.causal = true;
      Run run;
      Tape tape(run);
      const Tensor all = ops::attention(tape, tape.leaf(q), tape.leaf(k), tape.leaf(v), o, f).value;
      for (const int64_t i : {int64_t{0}, int64_t{20}, int64_t{31}, int64_t{32}, t - 1}) {
        CAPTURE(i);
        const Var alone =
            ops::attention(tape, tape.leaf(part(q, 1, i, i + 1)), tape.leaf(part(k, 1, 0, i + 1)),
                           tape.leaf(part(v, 1, 0, i + 1)), o, f);
        CHECK(same_bits(alone.value, part(all, 1, i, i + 1)));
      }
    }
  }

  TEST_CASE("dq and dk are the same whatever becomes of the probabilities before v") {
    const Tensor q = random_tensor({2, 16, 8}, -2, 2, 1), k = random_tensor({2, 16, 8}, -2, 2, 2),
                 v = random_tensor({2, 16, 8}, -2, 2, 3), g = random_tensor({2, 16, 8}, -1, 1, 4);
    for (const char* scores : {"fp32", "e3m2", "bf16", "mxfp8", "e4m3+scale=current"})
      for (const char* format : {"e4m3", "mxfp8", "nvfp4", "e4m3+scale=current"}) {
        CAPTURE(std::string(scores));
        CAPTURE(std::string(format));
        ops::AttentionFormats plain;
        plain.qk.output = Quantizer::parse(scores);
        ops::AttentionFormats f = plain;
        f.pv.input = f.pv.input_dw = Quantizer::parse(format);
        const Results one = results(plain, {}, q, k, v, g), two = results(f, {}, q, k, v, g);
        CHECK(same_bits(one.q, two.q));
        CHECK(same_bits(one.k, two.k));
        CHECK_FALSE(same_bits(one.y, two.y));
      }
  }

  TEST_CASE("a scale of the whole tensor is that of all chunks, in the backward pass too") {
    // Nine heads of 1024 · 1024 would be two chunks; those of 64 · 64 are one.
    for (const int64_t t : {64, 1024}) {
      const Tensor q = random_tensor({9, t, 2}, -2, 2, 6), k = random_tensor({9, t, 2}, -2, 2, 7),
                   v = random_tensor({9, t, 2}, -2, 2, 8), g = random_tensor({9, t, 2}, -1, 1, 9);
      const auto moved = [&](Quantizer OpFormats::*role, bool of_qk, const Tensor& other_q,
                             const Tensor& other_g, Tensor Results::*result) {
        ops::AttentionFormats f;
        OpFormats& formats = of_qk ? f.qk : f.pv;
        formats.*role = Quantizer::parse("e4m3+scale=current");
        const Results one = results(f, {}, q, k, v, g),
                      two = results(f, {}, other_q, k, v, other_g);
        return !same_bits(part(one.*result, 0, 8, 9), part(two.*result, 0, 8, 9));
      };
      CAPTURE(t);
      const Tensor loud = with_first(g, 37.3f), sharp = with_first(q, 37.3f);
      CHECK(moved(&OpFormats::grad_output_dx, true, q, loud, &Results::q));
      CHECK(moved(&OpFormats::grad_output_dw, true, q, loud, &Results::k));
      CHECK(moved(&OpFormats::grad_input, false, q, loud, &Results::q));
      CHECK(moved(&OpFormats::output, true, sharp, g, &Results::y));
      // Probabilities of one head reach 1 at most, those of the others less.
      CHECK(moved(&OpFormats::input_dw, false, sharp, g, &Results::v));
    }
  }

  TEST_CASE("no probability matrix is kept for the backward pass") {
    Run run;
    Tape tape(run);
    const Var x = tape.leaf(random_tensor({2, 512, 12}, -1, 1, 1));
    ops::self_attention(tape, x, {});
    CHECK(tape.saved_bytes() <= 4 * int64_t{2} * 512 * 12 * 4);
  }

  TEST_CASE("delayed scales and scales of whole tensors train") {
    for (const char* format : {"e4m3+scale=delayed4", "nvfp4", "bfp8-axis0"}) {
      CAPTURE(std::string(format));
      Run run;
      ops::AttentionFormats f;
      f.pv.input = Quantizer::parse(format);
      f.qk.output = Quantizer::parse(format);
      Tape tape(run);
      const Var x = tape.leaf(random_tensor({2, 16, 12}, -1, 1, 1));
      const Var y = ops::self_attention(tape, x, {}, f, ops::AttentionSites("a"));
      tape.backward(y, random_tensor({2, 16, 4}, -1, 1, 2));
      for (const float value : tape.grad(x).to_floats()) REQUIRE(std::isfinite(value));
      CHECK_FALSE(ops::attention_obstacle(f).empty());
    }
  }

  TEST_CASE("obstacles: what keeps queries from coming piece by piece") {
    ops::AttentionFormats f;
    CHECK(ops::attention_obstacle(f).empty());
    f.qk = f.pv = OpFormats::make("e4m3", "e5m2:sr");
    f.qk.weight = f.qk.input = f.pv.input = "mxfp8";
    CHECK(ops::attention_obstacle(f).empty());
    f.pv.weight = "mxfp8";
    CHECK(ops::attention_obstacle(f).find("pv.weight mxfp8") == 0);
    f.pv.weight = "e4m3:sr";
    CHECK(ops::attention_obstacle(f).find("draws") != std::string::npos);
    nn::MultiHeadAttention open(8, 2);
    CHECK_FALSE(open.obstacle().empty());
  }

  TEST_CASE("what does not fit is named") {
    Run run;
    Tape tape(run);
    const Var a = tape.leaf(Tensor::zeros({2, 3, 8}, DType::F32, kCpu)),
              b = tape.leaf(Tensor::zeros({2, 2, 8}, DType::F32, kCpu)),
              c = tape.leaf(Tensor::zeros({2, 3, 6}, DType::F32, kCpu));
    ops::AttentionOptions o;
    o.heads = 3;
    CHECK(error_of([&] { ops::attention(tape, a, a, a, o); }).find("3 heads") != std::string::npos);
    CHECK(error_of([&] { ops::attention(tape, a, a, b, {}); }).find("(2, 2, 8)") !=
          std::string::npos);
    CHECK(error_of([&] { ops::attention(tape, a, c, c, {}); }).find("(2, 3, 6)") !=
          std::string::npos);
    ops::AttentionOptions causal;
    causal.causal = true;
    CHECK(error_of([&] { ops::attention(tape, a, b, b, causal); }).find("causal") !=
          std::string::npos);
    causal.lengths = Tensor::from(std::vector<int32_t>{1}, {1});
    CHECK(error_of([&] { ops::attention(tape, a, a, a, causal); }).find("lengths") !=
          std::string::npos);
    CHECK(error_of([&] { ops::self_attention(tape, a, {}); }).find("3·W") != std::string::npos);
    CHECK(error_of([&] { nn::MultiHeadAttention(6, 2, causal_rotary()); }).find("2 heads") !=
          std::string::npos);
    nn::MultiHeadAttention layer(8, 2);
    layer.initialise(run, "block.attention");
    CHECK(error_of([&] { layer(tape, c); }).find("block.attention") == 0);
  }
}
