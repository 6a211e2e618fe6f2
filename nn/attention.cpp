#include "nn/attention.h"

#include <fmt/core.h>

#include <array>

#include "autograd/shape_ops.h"

namespace ulp::nn {
namespace {

std::vector<const char*> product_roles() {
  return {"input",      "weight",         "output",   "grad_output_dx", "weight_dx",
          "grad_input", "grad_output_dw", "input_dw", "grad_weight"};
}

/// Those of one attention's sequences with themselves: for each head y = x wᵀ of (T, in) and (out, in), where width is T or
/// that of a head.
AttentionPart::Products products_of(int64_t heads, bool scores) {
  return [=](const Shape& y) {
    const int64_t t = y[1], width = y[2] / heads;
    ProductShapes s{t, scores ? t : width, scores ? width : t};
    s.repeat = ProductShapes::Repeat::Matrices;
    s.count = y[0] * heads;
    s.turned = !scores;  // v is (S, E)
    return s;
  };
}

int64_t checked(int64_t width, int64_t heads, bool rotary) {
  ULP_CHECK(
      heads >= 1 && width >= heads && width % heads == 0 && (!rotary || width / heads % 2 == 0),
      "MultiHeadAttention: {} heads must divide the width of {}{}", heads, width,
      rotary ? " into even parts, for rotary positions" : "");
  return width;
}

}  // namespace

MultiHeadAttention::MultiHeadAttention(int64_t width, int64_t heads,
                                       const AttentionSettings& settings, OpFormats formats)
    : width_(checked(width, heads, settings.rotary)),
      heads_(heads),
      settings_(settings),
      qkv_(width, 3 * width, formats, settings.bias,
           settings.qkv_init.value_or(Initialiser::kaiming_uniform(width))),
      out_(width, width, formats, settings.bias,
           settings.out_init.value_or(Initialiser::kaiming_uniform(width))),
      qk_("scores = q kᵀ", product_roles(), products_of(heads, true)),
      softmax_("probabilities = softmax(scores)", {"interior"}),
      pv_("probabilities · v", product_roles(), products_of(heads, false)) {
  qkv_.set_parts(3);
}

ops::AttentionFormats MultiHeadAttention::part_formats() const {
  return {*qk_.formats(), *softmax_.formats(), *pv_.formats()};
}

Var MultiHeadAttention::part_of(Tape& tape, const Var& qkv, int64_t i, int64_t offset) {
  const Var part = ops::slice(tape, qkv, 2, i * width_, (i + 1) * width_);
  if (!settings_.rotary || i == 2) return part;
  const int64_t n = qkv.shape()[0], t = qkv.shape()[1];
  const Var heads = ops::reshape(tape, part, {n, t, heads_, width_ / heads_});
  return ops::reshape(tape, ops::rotary(tape, heads, offset, settings_.rotary_base),
                      {n, t, width_});
}

Var MultiHeadAttention::forward(Tape& tape, const Var& x) {
  ULP_CHECK(x.value.defined() && x.shape().rank() == 3 && x.shape()[2] == width_,
            "MultiHeadAttention: x must be (N, T, {}), got {}", width_, x.value);
  ops::AttentionOptions options;
  options.heads = heads_;
  options.causal = settings_.causal;
  options.lengths = lengths_;
  options.keys = keys_for_scale_;
  const ops::AttentionSites sites(path());
  const Var qkv = qkv_(tape, x);
  Var y;
  if (!in_pieces_ && !settings_.rotary) {
    y = ops::self_attention(tape, qkv, options, part_formats(), sites);
  } else {
    const int64_t before = keys_.defined() ? keys_.size(1) : 0;
    const Var q = part_of(tape, qkv, 0, before);
    Var k = part_of(tape, qkv, 1, before), v = part_of(tape, qkv, 2, before);
    if (in_pieces_) {
      ULP_CHECK(!tape.recording(),
                "MultiHeadAttention: pieces are for evaluation, without recording");
      ULP_CHECK(
          x.shape()[0] == batch_ && before + x.shape()[1] <= longest_,
          "MultiHeadAttention: pieces of {} sequences of at most {} elements were announced; got "
          "{} elements of {} after {}",
          batch_, longest_, x.shape()[1], x.shape()[0], before);
      if (before > 0) {
        k = ops::concat(tape, std::array{tape.constant(keys_), k}, 1);
        v = ops::concat(tape, std::array{tape.constant(values_), v}, 1);
      }
      keys_ = kernels::contiguous(tape.stream(), k.value);
      values_ = kernels::contiguous(tape.stream(), v.value);
    }
    y = ops::attention(tape, q, k, v, options, part_formats(), sites);
  }
  qk_(tape, y);
  softmax_(tape, y);
  return out_(tape, pv_(tape, y));
}

bool MultiHeadAttention::unit_scale(const UnitPlace&) {
  ULP_CHECK(settings_.context >= 1,
            "MultiHeadAttention: unit scaling follows from the length of the sequences; give "
            "AttentionSettings::context");
  keys_for_scale_ = static_cast<double>(settings_.context);
  const ops::AttentionGains gains = ops::attention_gains(keys_for_scale_);
  set_scaled(fmt::format("p × {:.4g}, sums of keys × {:.4g}", gains.probabilities, gains.sums));
  return true;
}

std::string MultiHeadAttention::describe() const {
  return "MultiHeadAttention " + std::to_string(width_) + ", " + std::to_string(heads_) +
         (heads_ == 1 ? " head" : " heads") + (settings_.causal ? ", causal" : "") +
         (settings_.rotary ? ", rotary" : "");
}

std::vector<Module::Child> MultiHeadAttention::children() {
  return {{"qkv", &qkv_}, {"qk", &qk_}, {"softmax", &softmax_}, {"pv", &pv_}, {"out", &out_}};
}

void MultiHeadAttention::begin(int64_t batch, int64_t longest) {
  end();
  in_pieces_ = true;
  batch_ = batch;
  longest_ = longest;
}

void MultiHeadAttention::end() {
  in_pieces_ = false;
  keys_ = values_ = {};
}

std::string MultiHeadAttention::obstacle() const {
  if (!settings_.causal) return "every place sees those after it";
  if (lengths_.defined()) return "sequences have padding";
  return ops::attention_obstacle(part_formats());
}

}  // namespace ulp::nn
