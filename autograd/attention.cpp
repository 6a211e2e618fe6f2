#include "autograd/attention.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "autograd/interior.h"
#include "autograd/product.h"
#include "kernels/attention.h"
#include "kernels/matmul_unit.h"

namespace ulp::ops {
namespace {

constexpr int64_t kChunkScores = int64_t{1} << 23;

/// True if a chunk can be rounded without the others, and again to the same values.
bool is_local(const Quantizer& q) {
  return q.is_identity() || (q.is_elementwise() && !q.has_factor()) ||
         (q.follows_reduction() && q.scale.kind != Scale::Kind::Delayed &&
          q.scale.kind != Scale::Kind::E4M3Tensor);
}

/// Matrices (B, rows, columns), summed over along their columns, or, turned, along their rows.
struct Matrices {
  Tensor values;
  bool turned = false;
  bool fits_tf32 = false;

  int axis() const { return turned ? 1 : 2; }
  Matrices chunk(int64_t begin, int64_t end) const {
    return {values.slice(0, begin, end), turned, fits_tf32};
  }
};

/// A role whose tensor is made in chunks, each with a draw of its own.
struct RoleKeys {
  RandomKey first;
  RandomKey of(int64_t chunk, uint32_t draws = 1) const {
    RandomKey key = first;
    key.ordinal += static_cast<uint32_t>(chunk) * draws;
    return key;
  }
};

enum class Count : bool { No, Yes };

/// x as the role makes it; x itself if it changes nothing.
Tensor rounded(const RoleUse& use, const Tensor& x, const Quantizer& q, const char* role, int axis,
               const RandomKey& key, DType dtype, Count count = Count::Yes) {
  if (q.is_identity()) {
    if (count == Count::Yes) use.count(x, role);
    return x;
  }
  Run& run = use.tape.run();
  QuantiseUse how;
  how.quantizer = q;
  how.axis = axis;
  how.key = key;
  how.math = run.math();
  if (count == Count::Yes) how.stats = use.stats_for(x, q, role);
  if (q.scale.kind == Scale::Kind::Delayed) {
    how.scaling = run.scaling(use.site.stream(role), q);
    how.frozen = !use.tape.recording();
  }
  return quantised(run.stream(), x, how, dtype);
}

void check_type(const Tensor& x, const OpFormats& f) {
  ULP_CHECK(x.dtype() != DType::F64 || f.is_identity(),
            "attention: F64 tensors are for gradient checks and take no format");
}

Matrices operand(const RoleUse& use, const Matrices& x, const Quantizer& q, const char* role) {
  Run& run = use.tape.run();
  if (q.is_identity()) {
    use.count(x.values, role);
    return x;
  }
  return {rounded(use, x.values, q, role, x.axis(), run.key(use.site.stream(role)),
                  attention_operand(q).type),
          x.turned, attention_operand(q).fits_tf32};
}

/// out = factor · a · bᵀ, a: (B, M, K), b: (B, N, K), rounded.
void multiply(const Run& run, const Matrices& a, const Matrices& b, const Tensor& out,
              const Sums& sums, const Quantizer& rounding = {}, double factor = 1) {
  BatchedMatmulArgs args;
  args.sums = sums;
  args.factor = factor;
  args.output = rounding;
  args.a = a.values;
  args.b = b.values;
  args.out = out;
  args.turn_a = a.turned;
  args.turn_b = !b.turned;
  args.math = run.math();
  args.fits_tf32 = (a.fits_tf32 || a.values.dtype() != DType::F32) &&
                   (b.fits_tf32 || b.values.dtype() != DType::F32);
  kernels::batched_matmul(run.stream(), args);
}

/// q, k and v by head: (B, T, D), (B, S, D), (B, S, E), B = N·H, contiguous.
struct Heads {
  Tensor q, k, v;
};

/// One attention of heads, forward and backward. A copy is kept for the backward pass.
class Attention {
 public:
  Attention(Tape& tape, const AttentionOptions& o, const AttentionFormats& f,
            const AttentionSites& sites, const Heads& x)
      : tape_(tape),
        o_(o),
        f_(f),
        qk_{tape, sites.qk},
        softmax_{tape, sites.softmax},
        pv_{tape, sites.pv},
        batch_(x.q.size(0)),
        queries_(x.q.size(1)),
        keys_(x.k.size(1)),
        width_(x.q.size(2)),
        depth_(x.v.size(2)) {
    for (const OpFormats* formats : {&f.qk, &f.softmax, &f.pv}) check_type(x.q, *formats);
    if (o_.scale == 0) o_.scale = 1 / std::sqrt(static_cast<double>(width_));
    gains_ = attention_gains(o_.keys);
    keeps_ = !is_local(f.qk.output) || !is_local(f.pv.input);
    whole_ = keeps_;
    if (tape.recording())
      for (const Quantizer* q :
           {&f.pv.input_dw, &f.pv.grad_input, &f.qk.grad_output_dx, &f.qk.grad_output_dw})
        whole_ = whole_ || !is_local(*q);
    chunk_ = whole_ ? batch_
                    : std::clamp<int64_t>(kChunkScores / std::max<int64_t>(1, queries_ * keys_), 1,
                                          std::max<int64_t>(1, batch_));
    chunks_ = chunk_ == 0 ? 0 : (batch_ + chunk_ - 1) / chunk_;
  }

  /// y (B, T, E), rounded.
  Tensor forward(const Heads& x) {
    Run& run = tape_.run();
    q_ = operand(qk_, {x.q}, f_.qk.input, "input");
    k_ = operand(qk_, {x.k}, f_.qk.weight, "weight");
    v_ = operand(pv_, {x.v, true}, f_.pv.weight, "weight");
    score_ = keys_of(qk_, f_.qk.output, "output", 1);
    interior_ = keys_of(softmax_, f_.softmax.interior, "interior", 3);
    p_ = keys_of(pv_, f_.pv.input, "input", 1);
    score_sums_ = sums_of(qk_, f_.qk, kForwardProduct);
    const Sums y_sums = sums_of(pv_, f_.pv, kForwardProduct);
    const Quantizer rounding = in_product(pv_, f_.pv.output);
    const Tensor y =
        Tensor::empty({batch_, queries_, depth_}, pv_.result_type(x.q, rounding), x.q.device());
    for (int64_t c = 0; c < chunks_; ++c) {
      const auto [begin, end] = range(c);
      const Scores scores = scores_of(c, Count::Yes);
      const Shape& all = scores.values.shape();
      const InteriorTrace trace =  // the backward pass makes the same numbers again
          interior_trace(softmax_, f_.softmax.interior, {all, all, {all[0], all[1]}});
      const Matrices p =
          probabilities(c, scores, f_.pv.input, "input", p_.of(c), Count::Yes, trace);
      count_interior(softmax_, f_.softmax.interior, interior_.of(c, 3), trace);
      multiply(run, p, v_.chunk(begin, end), y.slice(0, begin, end), of_chunk(y_sums, c), rounding,
               gains_.sums);
      if (keeps_ && tape_.recording()) {
        kept_scores_ = tape_.save("attention", scores.values);
        kept_to_round_ = scores.to_round;
        kept_p_ = tape_.save("attention", p.values);
      }
    }
    return after_product(pv_, y, f_.pv.output, "output");
  }

  /// A type that holds the gradients of q, k and v.
  DType gradient_type(const Tensor& gy) const {
    const DType types[] = {qk_.result_type(gy, f_.qk.grad_input),
                           qk_.result_type(gy, f_.qk.grad_weight),
                           pv_.result_type(gy, f_.pv.grad_weight)};
    const bool alike = types[0] == types[1] && types[0] == types[2];
    return alike ? types[0] : qk_.result_type(gy, {});
  }

  /// What backward needs beside what forward made.
  void keep(const Heads& x, bool dq, bool dk, bool dv) {
    const auto save = [&](const Matrices& m) {
      return Kept{tape_.save("attention", m.values), m.turned, m.fits_tf32};
    };
    kept_q_ = save(q_);
    kept_k_ = save(k_);
    // k as (outer, sum) = (D, S), q as (D, T), v as (S, E).
    if (dq)
      k_dq_ = shares(f_.qk.weight, f_.qk.weight_dx)
                  ? turned(kept_k_)
                  : save(operand(qk_, {x.k, true}, f_.qk.weight_dx, "weight_dx"));
    if (dk)
      q_dk_ = shares(f_.qk.input, f_.qk.input_dw)
                  ? turned(kept_q_)
                  : save(operand(qk_, {x.q, true}, f_.qk.input_dw, "input_dw"));
    if (dq || dk)
      v_dp_ = shares(f_.pv.weight, f_.pv.weight_dx)
                  ? turned(save(v_))
                  : save(operand(pv_, {x.v}, f_.pv.weight_dx, "weight_dx"));
    if (dv && !shares(f_.pv.input, f_.pv.input_dw))
      p_dv_ = keys_of(pv_, f_.pv.input_dw, "input_dw", 1);
    q_ = k_ = v_ = {};
  }

  /// Gradients by head from that of y. `room`: where those that are defined are to be, as far as their formats allow.
  Heads backward(const Tensor& gy, bool dq, bool dk, bool dv, const Heads& room = {}) const {
    Run& run = tape_.run();
    const Attention back = with_operands();
    const bool alike = shares(f_.pv.grad_output_dx, f_.pv.grad_output_dw);
    Matrices g_dp, g_dv;
    if (dq || dk) g_dp = operand(pv_, {gy}, f_.pv.grad_output_dx, "grad_output_dx");
    if (dv)
      g_dv = (dq || dk) && alike ? Matrices{g_dp.values, true, g_dp.fits_tf32}
                                 : operand(pv_, {gy, true}, f_.pv.grad_output_dw,
                                           alike ? "grad_output_dx" : "grad_output_dw");
    const RoleKeys dp_keys = keys_of(pv_, f_.pv.grad_input, "grad_input", 1);
    const bool one_ds = shares(f_.qk.grad_output_dx, f_.qk.grad_output_dw);
    const char* dk_role = one_ds ? "grad_output_dx" : "grad_output_dw";
    const RoleKeys ds_dq = keys_of(qk_, f_.qk.grad_output_dx, "grad_output_dx", 1);
    const RoleKeys ds_dk = one_ds ? ds_dq : keys_of(qk_, f_.qk.grad_output_dw, "grad_output_dw", 1);
    const Sums dp_sums = dq || dk ? sums_of(pv_, f_.pv, kDxProduct) : Sums{},
               dv_sums = dv ? sums_of(pv_, f_.pv, kDwProduct) : Sums{},
               dq_sums = dq ? sums_of(qk_, f_.qk, kDxProduct) : Sums{},
               dk_sums = dk ? sums_of(qk_, f_.qk, kDwProduct) : Sums{};
    const Matrices k_dq = dq ? k_dq_.get() : Matrices{}, q_dk = dk ? q_dk_.get() : Matrices{},
                   v_dp = dq || dk ? v_dp_.get() : Matrices{};

    const Quantizer q_rounding = in_product(qk_, f_.qk.grad_input),
                    k_rounding = in_product(qk_, f_.qk.grad_weight),
                    v_rounding = in_product(pv_, f_.pv.grad_weight),
                    p_rounding = early(pv_, f_.pv.grad_input);
    const auto made = [&](const Tensor& in, const Quantizer& rounding, int64_t rows,
                          int64_t columns) {
      const DType type = qk_.result_type(gy, rounding);
      return in.defined() && in.dtype() == type
                 ? in
                 : Tensor::empty({batch_, rows, columns}, type, gy.device());
    };
    Heads d;
    if (dq) d.q = made(room.q, q_rounding, queries_, width_);
    if (dk) d.k = made(room.k, k_rounding, keys_, width_);
    if (dv) d.v = made(room.v, v_rounding, keys_, depth_);
    // One kernel makes the probabilities and the gradient of the scores where it can round both.
    const bool same_p = shares(f_.pv.input, f_.pv.input_dw);
    const Quantizer& of_p = same_p ? f_.pv.input : f_.pv.input_dw;
    const bool p_beside = dv && (dq || dk) && !(same_p && keeps_) && fuses_chunk(pv_, of_p);
    for (int64_t c = 0; c < chunks_; ++c) {
      const auto [begin, end] = range(c);
      const Scores scores = back.scores_of(c, Count::No);
      Matrices p;
      const RandomKey p_key = same_p ? p_.of(c) : p_dv_.of(c);
      if (p_beside)
        p = {Tensor::empty(scores.values.shape(), p_type(scores, of_p), gy.device()), true,
             attention_operand(of_p).fits_tf32};
      else if (dv && same_p && keeps_)
        p = {kept_p_.get(), true, false};
      else if (dv)
        p = back.probabilities(c, scores, of_p, same_p ? "input" : "input_dw", p_key,
                               same_p ? Count::No : Count::Yes, {}, !same_p);
      p.turned = true;
      if (dv && !p_beside)
        multiply(run, p, g_dv.chunk(begin, end), d.v.slice(0, begin, end), of_chunk(dv_sums, c),
                 v_rounding, gains_.sums);
      if (!dq && !dk) continue;
      const Tensor dp = Tensor::empty({end - begin, queries_, keys_},
                                      pv_.result_type(gy, p_rounding), gy.device());
      multiply(run, g_dp.chunk(begin, end), v_dp.chunk(begin, end), dp, of_chunk(dp_sums, c),
               p_rounding);
      hide_masked(c, dp, f_.pv.grad_input);
      Gradient grad{dp, dp_keys.of(c), {}, {}, {}};
      if (!fuses_chunk(pv_, f_.pv.grad_input))
        grad.values = rounded(pv_, dp, f_.pv.grad_input, "grad_input", 2, grad.key, DType::F32);
      else if (p_rounding.is_identity())
        grad.to_round = f_.pv.grad_input;
      if (p_beside) grad.p = p.values, grad.p_format = of_p, grad.p_key = p_key;
      Matrices ds;
      if (dq) {
        ds = score_gradient(c, scores, grad, f_.qk.grad_output_dx, "grad_output_dx", ds_dq.of(c),
                            false);
        multiply(run, ds, k_dq.chunk(begin, end), d.q.slice(0, begin, end), of_chunk(dq_sums, c),
                 q_rounding, gains_.sums);
      }
      if (dk) {
        if (dq) grad.p = {};  // it is there
        if (dq && one_ds)
          ds.turned = true;
        else
          ds = score_gradient(c, scores, grad, f_.qk.grad_output_dw, dk_role, ds_dk.of(c), true);
        multiply(run, ds, q_dk.chunk(begin, end), d.k.slice(0, begin, end), of_chunk(dk_sums, c),
                 k_rounding, gains_.sums);
      }
      if (p_beside)
        multiply(run, p, g_dv.chunk(begin, end), d.v.slice(0, begin, end), of_chunk(dv_sums, c),
                 v_rounding, gains_.sums);
    }
    if (dq) d.q = after_product(qk_, d.q, f_.qk.grad_input, "grad_input");
    if (dk) d.k = after_product(qk_, d.k, f_.qk.grad_weight, "grad_weight");
    if (dv) d.v = after_product(pv_, d.v, f_.pv.grad_weight, "grad_weight");
    return d;
  }

 private:
  struct Kept {
    Saved values;
    bool turned = false, fits_tf32 = false;
    Matrices get() const { return {values.get(), turned, fits_tf32}; }
  };
  static Kept turned(Kept k) {
    k.turned = !k.turned;
    return k;
  }
  struct Range {
    int64_t begin, end;
  };
  /// Scores of a chunk, and whether the softmax still has to round them.
  struct Scores {
    Tensor values;
    bool to_round = false;
  };

  Range range(int64_t c) const { return {c * chunk_, std::min(batch_, (c + 1) * chunk_)}; }

  RoleKeys keys_of(const RoleUse& use, const Quantizer& q, const char* role, uint32_t draws) const {
    if (q.is_identity() || chunks_ == 0) return {};
    return {use.tape.run().key(use.site.stream(role), draws * static_cast<uint32_t>(chunks_))};
  }

  /// How a product keeps its sums: those of all matrices, of which chunks take theirs.
  Sums sums_of(const RoleUse& use, const OpFormats& formats, const ProductRole& product) const {
    Sums sums = use.sums(formats.*product.accumulator, product.sums);
    sums.matrices = std::max<int64_t>(1, batch_);
    return sums;
  }
  Sums of_chunk(Sums sums, int64_t c) const {
    sums.matrix = range(c).begin;
    return sums;
  }

  /// The kernels of a chunk's softmax round such a format themselves.
  static bool fuses_chunk(const RoleUse& use, const Quantizer& q) {
    return use.fuses(q) && !q.has_factor();
  }

  /// What of a result's format the product itself applies.
  static Quantizer in_product(const RoleUse& use, const Quantizer& q) {
    return fuses_chunk(use, q) && !q.is_stochastic() ? q : Quantizer{};
  }
  /// The rest of it.
  static Tensor after_product(const RoleUse& use, const Tensor& x, const Quantizer& q,
                              const char* role) {
    return in_product(use, q) == q && fuses_chunk(use, q) ? x : use.kept(x, q, role, 2);
  }
  /// What of the format of scores, or of their gradient, is applied by the product, where that makes them narrow at no cost; else
  /// the softmax applies it.
  static Quantizer early(const RoleUse& use, const Quantizer& q) {
    return use.tape.run().keeps_narrow() && unit_rounds(q) ? in_product(use, q) : Quantizer{};
  }

  Attention with_operands() const {
    Attention a = *this;
    a.q_ = kept_q_.get();
    a.k_ = kept_k_.get();
    return a;
  }

  Scores scores_of(int64_t c, Count count) const {
    if (count == Count::No && keeps_) return {kept_scores_.get(), kept_to_round_};
    const auto [begin, end] = range(c);
    const Quantizer rounding = early(qk_, f_.qk.output);
    const Tensor scores = Tensor::empty({end - begin, queries_, keys_},
                                        qk_.result_type(q_.values, rounding), q_.values.device());
    multiply(tape_.run(), q_.chunk(begin, end), k_.chunk(begin, end), scores,
             of_chunk(score_sums_, c), rounding);
    hide_masked(c, scores, f_.qk.output);
    if (fuses_chunk(qk_, f_.qk.output)) return {scores, rounding != f_.qk.output};
    return {rounded(qk_, scores, f_.qk.output, "output", 2, score_.of(c), DType::F32, count),
            false};
  }

  MaskedRows mask_of(int64_t c, const Tensor& scores) const {
    MaskedRows r;
    r.scores = scores;
    r.lengths = o_.lengths;
    r.first = range(c).begin;
    r.heads = o_.heads;
    r.causal = o_.causal;
    return r;
  }

  /// Numbers of masked keys become 0 if others could see them: in groups, rotations or the largest of a tensor.
  void hide_masked(int64_t c, const Tensor& x, const Quantizer& q) const {
    if (q.is_elementwise() && !q.has_factor()) return;
    if (o_.causal || o_.lengths.defined()) kernels::mask_scores(tape_.stream(), {mask_of(c, x)});
  }

  MaskedRows rows(int64_t c, const Scores& scores) const {
    MaskedRows r = mask_of(c, scores.values);
    r.scale = o_.scale;
    if (scores.to_round) {
      r.score = f_.qk.output;
      r.score_key = score_.of(c);
    }
    r.interior = f_.softmax.interior;
    r.interior_key = interior_.of(c, 3);
    return r;
  }

  /// p as a role makes it; turned: groups run along the queries.
  Matrices probabilities(int64_t c, const Scores& scores, const Quantizer& q, const char* role,
                         const RandomKey& key, Count count, const InteriorTrace& trace = {},
                         bool turned = false) const {
    const bool fused = fuses_chunk(pv_, q);
    const DType narrow = p_type(scores, q);
    MaskedSoftmaxArgs args;
    args.rows = rows(c, scores);
    args.factor = gains_.probabilities;
    args.out = Tensor::empty(scores.values.shape(), fused ? narrow : p_type(scores, {}),
                             scores.values.device());
    if (fused) {
      args.output = q;
      args.key = key;
    }
    args.trace = trace;
    kernels::masked_softmax(tape_.stream(), args);
    const bool fits = attention_operand(q).fits_tf32;
    if (fused) return {args.out, false, fits};
    return {rounded(pv_, args.out, q, role, turned ? 1 : 2, key, narrow, count), false, fits};
  }

  /// The type of probabilities, or of their like, as a role makes them.
  DType p_type(const Scores& scores, const Quantizer& q) const {
    const DType wide = scores.values.dtype() == DType::F64 ? DType::F64 : DType::F32;
    return q.is_identity() ? wide : attention_operand(q).type;
  }

  /// The gradient of p, and how the kernel that reads it still has to round it. p: where that kernel also puts p in its format.
  struct Gradient {
    Tensor values;
    RandomKey key;
    Quantizer to_round;
    Tensor p;
    Quantizer p_format;
    RandomKey p_key{};
  };

  /// The gradient of the scores as a role makes it.
  Matrices score_gradient(int64_t c, const Scores& scores, const Gradient& grad, const Quantizer& q,
                          const char* role, const RandomKey& key, bool turned) const {
    const bool fused = fuses_chunk(qk_, q);
    const DType narrow = p_type(scores, q);
    MaskedSoftmaxBackwardArgs args;
    args.rows = rows(c, scores);
    args.grad = grad.values;
    args.factor = gains_.probabilities;
    args.out = Tensor::empty(grad.values.shape(), fused ? narrow : p_type(scores, {}),
                             grad.values.device());
    args.gradient = grad.to_round;
    args.gradient_key = grad.key;
    args.p = grad.p;
    args.p_output = grad.p_format;
    args.p_key = grad.p_key;
    if (fused) {
      args.output = q;
      args.key = key;
    }
    kernels::masked_softmax_backward(tape_.stream(), args);
    const bool fits = attention_operand(q).fits_tf32;
    if (fused) return {args.out, turned, fits};
    return {rounded(qk_, args.out, q, role, turned ? 1 : 2, key, narrow), turned, fits};
  }

  Tape& tape_;
  AttentionOptions o_;
  AttentionGains gains_;
  AttentionFormats f_;
  RoleUse qk_, softmax_, pv_;
  int64_t batch_, queries_, keys_, width_, depth_;
  bool whole_;  // a format needs all scores at once
  bool keeps_;  // one of the forward pass does: scores and probabilities are not made again
  bool kept_to_round_ = false;
  int64_t chunk_, chunks_ = 0;
  Matrices q_, k_, v_;  // as the forward pass reads them
  Kept kept_q_, kept_k_, k_dq_, q_dk_, v_dp_;
  Saved kept_scores_, kept_p_;
  RoleKeys score_, interior_, p_, p_dv_;
  Sums score_sums_;  // scores are made again in the backward pass, with the same draws
};

/// (N, T, H·D) → (N·H, T, D).
Tensor by_head(Stream stream, const Tensor& x, int64_t heads) {
  const int64_t n = x.size(0), t = x.size(1), d = x.size(2) / heads;
  return kernels::contiguous(
             stream, kernels::contiguous(stream, x).reshape({n, t, heads, d}).transpose(1, 2))
      .reshape({n * heads, t, d});
}
/// And back.
Tensor side_by_side(Stream stream, const Tensor& x, int64_t heads) {
  const int64_t n = x.size(0) / heads, t = x.size(1), d = x.size(2);
  return kernels::contiguous(stream, x.reshape({n, heads, t, d}).transpose(1, 2))
      .reshape({n, t, heads * d});
}

void check_options(const char* op, const AttentionOptions& o, int64_t sequences) {
  if (!o.lengths.defined()) return;
  ULP_CHECK(o.lengths.dtype() == DType::I32 && o.lengths.shape() == Shape{sequences},
            "{}: lengths must be I32 ({}), one for each sequence, got {}", op, sequences,
            o.lengths);
}

bool is_sequence(const Tensor& t) { return t.defined() && t.rank() == 3; }

}  // namespace

Var attention(Tape& tape, const Var& q, const Var& k, const Var& v, const AttentionOptions& o,
              const AttentionFormats& f, const AttentionSites& sites) {
  ULP_CHECK(is_sequence(q.value) && is_sequence(k.value) && is_sequence(v.value),
            "attention: q, k and v must be (N, T, H·D), (N, S, H·D), (N, S, H·E), got {}, {}, {}",
            q.value, k.value, v.value);
  const Shape &qs = q.shape(), &ks = k.shape(), &vs = v.shape();
  ULP_CHECK(
      ks[0] == qs[0] && vs[0] == qs[0] && ks[2] == qs[2] && vs[1] == ks[1],
      "attention: q {}, k {} and v {} must have as many sequences, q and k one width, k and v "
      "one length",
      qs, ks, vs);
  ULP_CHECK(o.heads >= 1 && qs[2] >= o.heads && vs[2] >= o.heads && qs[2] % o.heads == 0 &&
                vs[2] % o.heads == 0,
            "attention: {} heads do not divide the widths {} and {}", o.heads, qs[2], vs[2]);
  ULP_CHECK(!o.causal || ks[1] >= qs[1],
            "attention: causal queries are the last of the sequence: {} of them want as many keys, "
            "got {}",
            qs[1], ks[1]);
  check_options("attention", o, qs[0]);
  const Stream stream = tape.stream();
  const Heads x{by_head(stream, q.value, o.heads), by_head(stream, k.value, o.heads),
                by_head(stream, v.value, o.heads)};
  Attention op(tape, o, f, sites, x);
  const Tensor y = side_by_side(stream, op.forward(x), o.heads);
  if (tape.recording()) op.keep(x, q.needs_grad(), k.needs_grad(), v.needs_grad());
  const int64_t heads = o.heads;
  return tape.record("attention", f.qk, {q, k, v}, y,
                     [=](std::span<const Tensor> grads, Needs needs) -> std::vector<Tensor> {
                       const Heads d = op.backward(by_head(stream, grads[0], heads), needs[0],
                                                   needs[1], needs[2]);
                       const auto back = [&](const Tensor& t) {
                         return t.defined() ? side_by_side(stream, t, heads) : Tensor();
                       };
                       return {back(d.q), back(d.k), back(d.v)};
                     });
}

Var self_attention(Tape& tape, const Var& qkv, const AttentionOptions& o, const AttentionFormats& f,
                   const AttentionSites& sites) {
  ULP_CHECK(is_sequence(qkv.value) && qkv.shape()[2] % 3 == 0 && o.heads >= 1 &&
                qkv.shape()[2] >= 3 * o.heads && qkv.shape()[2] / 3 % o.heads == 0,
            "self_attention: wanted (N, T, 3·W) with W divided by {} heads, got {}", o.heads,
            qkv.value);
  const int64_t n = qkv.shape()[0], t = qkv.shape()[1], heads = o.heads,
                d = qkv.shape()[2] / 3 / heads;
  check_options("self_attention", o, n);
  const Stream stream = tape.stream();
  // (N, T, 3, H, D) → (3, N, H, T, D).
  const Tensor parts = kernels::contiguous(stream, kernels::contiguous(stream, qkv.value)
                                                       .reshape({n, t, 3, heads, d})
                                                       .transpose(1, 2)
                                                       .transpose(2, 3)
                                                       .transpose(0, 1))
                           .reshape({3, n * heads, t, d});
  const auto part = [&](int64_t i) { return parts.slice(0, i, i + 1).reshape({n * heads, t, d}); };
  const Heads x{part(0), part(1), part(2)};
  Attention op(tape, o, f, sites, x);
  const Tensor y = side_by_side(stream, op.forward(x), heads);
  if (tape.recording() && qkv.needs_grad()) op.keep(x, true, true, true);
  return tape.record(
      "self_attention", f.qk, {qkv}, y,
      [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
        const Tensor gy = by_head(stream, grads[0], heads);
        const Tensor all = Tensor::empty({3, n, heads, t, d}, op.gradient_type(gy), gy.device());
        const auto room = [&](int64_t k) {
          return all.slice(0, k, k + 1).reshape({n * heads, t, d});
        };
        const Heads g = op.backward(gy, true, true, true, {room(0), room(1), room(2)});
        int64_t i = 0;
        for (const Tensor& from : {g.q, g.k, g.v}) {
          const Tensor to = all.slice(0, i, i + 1);
          if (to.raw() != from.raw()) kernels::copy(stream, {from.reshape(to.shape()), to});
          ++i;
        }
        return {kernels::contiguous(stream, all.transpose(0, 1).transpose(2, 3).transpose(1, 2))
                    .reshape({n, t, 3 * heads * d})};
      });
}

AttentionOperand attention_operand(const Quantizer& q) {
  const bool turned = q.transform.hadamard != 0;
  if (q.is_identity()) return {};
  return {turned || storage_type(q) == DType::F32 ? DType::F32 : gemm_type(q),
          fits_tf32(q) && !q.has_factor() && !turned};
}

AttentionGains attention_gains(double keys) {
  if (keys == 0) return {};
  return {keys / std::sqrt(std::numbers::e), 1 / std::sqrt(keys)};
}

std::string attention_obstacle(const AttentionFormats& f) {
  struct Use {
    const char* name;
    const Quantizer& quantizer;
    bool along_keys;  // groups of the role hold several keys' numbers
  };
  for (const Use& use :
       {Use{"qk.input", f.qk.input, false}, Use{"qk.weight", f.qk.weight, false},
        Use{"qk.output", f.qk.output, false}, Use{"softmax.interior", f.softmax.interior, false},
        Use{"pv.input", f.pv.input, false}, Use{"pv.weight", f.pv.weight, true},
        Use{"pv.output", f.pv.output, false}}) {
    const Quantizer& q = use.quantizer;
    const std::string text = std::string(use.name) + " " + to_string(q);
    if (q.is_stochastic()) return text + " draws by position";
    if (!is_local(q)) return text + " scales by a number of the whole tensor";
    if (use.along_keys && !q.is_elementwise()) return text + " has groups along the sequence";
  }
  struct Sum {
    const char* name;
    const Accumulator& accumulator;
    bool along_keys;  // of more terms with every key
  };
  for (const Sum& sum : {Sum{"qk.forward_acc", f.qk.forward_acc, false},
                         Sum{"pv.forward_acc", f.pv.forward_acc, true}}) {
    const std::string text = std::string(sum.name) + " " + to_string(sum.accumulator);
    if (sum.accumulator.is_stochastic()) return text + " draws by position";
    if (sum.along_keys && sum.accumulator.kind == Accumulator::Kind::Kahan)
      return text + " goes on compensating over keys that are masked";
  }
  return "";
}

}  // namespace ulp::ops
