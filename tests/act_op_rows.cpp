// Rows of autograd/activations.h, shape_ops.h and losses.h.

#include "autograd/activations.h"
#include "autograd/losses.h"
#include "autograd/shape_ops.h"
#include "tests/op_table.h"

namespace ulp::tests {
namespace {

using Inputs = std::span<const Var>;
using Shapes = std::vector<std::vector<Shape>>;
constexpr double kNoKink = -1e30;

const Shapes kUnary = {{{1}}, {{0}}, {{3, 5}}, {{2, 3, 7}}, {{17, 33}}, {{1, 4099}}};
const Shapes kPairs = {{{1}, {1}}, {{3, 5}, {3, 5}}, {{2, 3, 7}, {2, 3, 7}}, {{17, 33}, {17, 33}}};
const Shapes kRows = {{{1, 1}}, {{3, 5}}, {{7, 10}}, {{129, 10}}};

RandomSite site() { return RandomSite(kSite); }

/// The first sample's label is 0: a NaN in its first element is one that counts.
Tensor labels_for(const Var& x) {
  const int64_t n = x.shape()[0], classes = x.shape()[1];
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < n; ++i) labels.push_back(static_cast<int32_t>(i * 7 % classes));
  return Tensor::from(labels, {n}, x.value.device());
}

using Unary = Var (*)(Tape&, const Var&, const OpFormats&);
OpRow activation(const char* name, std::vector<const char*> kernels, Unary op, double low,
                 double high, double kink = kNoKink) {
  return {name,
          std::move(kernels),
          kUnary,
          [op](Tape& t, Inputs in, const OpFormats& f) { return op(t, in[0], f); },
          {"input", "output", "grad_output_dx", "grad_input"},
          low,
          high,
          kink};
}

using Pair = Var (*)(Tape&, const Var&, const Var&, const OpFormats&);
OpRow pair_loss(const char* name, std::vector<const char*> kernels, Pair op, double low = -2,
                double high = 2) {
  return {name,
          std::move(kernels),
          kPairs,
          [op](Tape& t, Inputs in, const OpFormats& f) { return op(t, in[0], in[1], f); },
          {"grad_input"},
          low,
          high};
}

using Labelled = Var (*)(Tape&, const Var&, const Tensor&, const OpFormats&);
OpRow label_loss(const char* name, std::vector<const char*> kernels, Labelled op) {
  return {
      name,
      std::move(kernels),
      kRows,
      [op](Tape& t, Inputs in, const OpFormats& f) { return op(t, in[0], labels_for(in[0]), f); },
      {"grad_input"}};
}

using Mover = Var (*)(Tape&, Inputs);
OpRow mover(const char* name, Shapes shapes, Mover op) {
  OpRow row;
  row.name = name;
  row.kernels = {"place", "copy"};
  row.shapes = std::move(shapes);
  row.build = [op](Tape& t, Inputs in, const OpFormats&) { return op(t, in); };
  row.moves_only = true;
  return row;
}

std::vector<OpRow> activations() {
  using F = OpFormats;
  const std::vector<const char*> hard{"hardtanh", "hardtanh_backward"};
  return {
      activation(
          "relu6", hard,
          [](Tape& t, const Var& x, const F& f) { return ops::relu6(t, x, f, site()); }, -2, 5, 0),
      activation(
          "relu6, upper end", hard,
          [](Tape& t, const Var& x, const F& f) { return ops::relu6(t, x, f, site()); }, 4, 9, 6),
      activation(
          "leaky_relu", {"leaky_relu", "leaky_relu_backward"},
          [](Tape& t, const Var& x, const F& f) { return ops::leaky_relu(t, x, 0.2, f, site()); },
          -2, 2, 0),
      activation(
          "elu", {"elu", "elu_backward"},
          [](Tape& t, const Var& x, const F& f) { return ops::elu(t, x, 0.7, f, site()); }, -5, 3,
          0),
      activation(
          "hardtanh, lower end", hard,
          [](Tape& t, const Var& x, const F& f) { return ops::hardtanh(t, x, -0.5, 3, f, site()); },
          -2, 2, -0.5),
      activation(
          "clip, upper end", {"hardtanh", "clip_backward"},
          [](Tape& t, const Var& x, const F& f) { return ops::clip(t, x, -9, 0.75, f, site()); },
          -2, 2, 0.75),
      activation(
          "sigmoid", {"sigmoid", "sigmoid_backward"},
          [](Tape& t, const Var& x, const F& f) { return ops::sigmoid(t, x, f, site()); }, -6, 6),
      activation(
          "tanh", {"tanh", "tanh_backward"},
          [](Tape& t, const Var& x, const F& f) { return ops::tanh(t, x, f, site()); }, -4, 4),
      activation(
          "silu", {"silu", "silu_backward"},
          [](Tape& t, const Var& x, const F& f) { return ops::silu(t, x, f, site()); }, -6, 6),
      activation(
          "softplus", {"softplus", "softplus_backward"},
          [](Tape& t, const Var& x, const F& f) { return ops::softplus(t, x, 1, 20, f, site()); },
          -6, 6),
      // At the threshold the value jumps by ln(1 + e^-6) / 2.
      activation(
          "softplus, beta and threshold", {"softplus", "softplus_backward"},
          [](Tape& t, const Var& x, const F& f) { return ops::softplus(t, x, 2, 6, f, site()); },
          -4, 4, 3),
      {"softmax",
       {"softmax", "softmax_backward"},
       {{{1, 1}},
        {{0, 4}},
        {{3, 5}},
        {{2, 3, 4, 5}},
        {{7, 10}},
        {{3, 100}},
        {{2, 1000}},
        {{3, 4097}}},
       [](Tape& t, Inputs in, const F& f) { return ops::softmax(t, in[0], f, site()); },
       {"output", "grad_input"}},
      {"log_softmax with more axes",
       {"log_softmax", "log_softmax_backward"},
       {{{1, 1, 1}}, {{2, 0, 4}}, {{3, 5, 2}}, {{3, 4, 10}}, {{2, 2, 33}}, {{2, 1000}}},
       [](Tape& t, Inputs in, const F& f) { return ops::log_softmax(t, in[0], f, site()); },
       {"output", "grad_input"}},
  };
}

std::vector<OpRow> losses() {
  using F = OpFormats;
  return {
      label_loss("cross_entropy with smoothing",
                 {"log_softmax", "label_loss", "label_loss_backward", "sum"},
                 [](Tape& t, const Var& x, const Tensor& labels, const F& f) {
                   return ops::cross_entropy(t, x, labels, 0.1, f, site());
                 }),
      label_loss("nll", {"label_loss", "label_loss_backward", "sum"},
                 [](Tape& t, const Var& x, const Tensor& labels, const F& f) {
                   return ops::nll(t, x, labels, f, site());
                 }),
      label_loss("sum_of_squares", {"label_loss", "label_loss_backward", "sum"},
                 [](Tape& t, const Var& x, const Tensor& labels, const F& f) {
                   return ops::sum_of_squares(t, x, labels, f, site());
                 }),
      // No draw of the two inputs lies within 1e-5 of a kink; the check below would see it.
      pair_loss("l1", {"smooth_l1", "smooth_l1_backward", "scale", "sum"},
                [](Tape& t, const Var& x, const Var& y, const F& f) {
                  return ops::l1(t, x, y, f, site());
                }),
      pair_loss("smooth_l1", {"smooth_l1", "smooth_l1_backward", "scale", "sum"},
                [](Tape& t, const Var& x, const Var& y, const F& f) {
                  return ops::smooth_l1(t, x, y, 0.6, f, site());
                }),
      pair_loss("huber", {"smooth_l1", "smooth_l1_backward", "scale", "sum"},
                [](Tape& t, const Var& x, const Var& y, const F& f) {
                  return ops::huber(t, x, y, 0.9, f, site());
                }),
      pair_loss(
          "bce_with_logits", {"bce_logits", "bce_logits_backward", "negated_product", "sum"},
          [](Tape& t, const Var& x, const Var& y, const F& f) {
            return ops::bce_with_logits(t, x, y, f, site());
          },
          -3, 3),
      pair_loss(
          "kl_divergence",
          {"kl_divergence", "kl_divergence_target_backward", "negated_product", "sum"},
          [](Tape& t, const Var& x, const Var& y, const F& f) {
            return ops::kl_divergence(t, x, y, f, site());
          },
          0.1, 2),
  };
}

std::vector<OpRow> shape_ops() {
  const Shapes any = {{{1}}, {{0}}, {{3, 5}}, {{2, 3, 7}}, {{17, 33}}};
  const Shapes matrices = {{{1, 1}}, {{0, 3}}, {{3, 5}}, {{2, 3, 7}}, {{17, 33}}};
  return {
      {"pad",
       {"place", "copy"},
       matrices,
       [](Tape& t, Inputs in, const OpFormats& f) {
         std::vector<ops::PadAxis> axes(static_cast<size_t>(in[0].shape().rank()));
         axes[0] = {1, 0};
         axes[1] = {2, 3};
         return ops::pad(t, in[0], axes, -0.5, f, site());
       },
       {"output", "grad_input"},
       -2,
       2,
       kNoKink,
       true,
       true},
      mover("concat", {{{1}, {2}}, {{0}, {0}}, {{3, 5}, {3, 2}, {3, 1}}, {{2, 3, 7}, {2, 3, 0}}},
            [](Tape& t, Inputs in) { return ops::concat(t, in, in[0].shape().rank() - 1); }),
      mover("concat of one along the first axis", any,
            [](Tape& t, Inputs in) { return ops::concat(t, in, 0); }),
      mover("slice at a step", any,
            [](Tape& t, Inputs in) { return ops::slice(t, in[0], 0, 0, in[0].shape()[0], 2); }),
      mover("slice of a middle", matrices,
            [](Tape& t, Inputs in) {
              const int last = in[0].shape().rank() - 1;
              std::vector<ops::PadAxis> axes(static_cast<size_t>(last) + 1, {2, 1});
              const Var wide = ops::pad(t, in[0], axes, 0);
              return ops::slice(t, wide, last, 2, wide.shape()[last], 3);
            }),
      mover("transpose", matrices,
            [](Tape& t, Inputs in) { return ops::transpose(t, in[0], 0, 1); }),
      mover("permute", {{{1, 1, 1}}, {{2, 0, 3}}, {{2, 3, 7}}, {{4, 5, 6}}},
            [](Tape& t, Inputs in) {
              return ops::permute(t, in[0], {2, 0, 1});
            }),
      mover("flatten", any, [](Tape& t, Inputs in) { return ops::flatten(t, in[0]); }),
  };
}

}  // namespace

std::vector<OpRow> act_op_rows() {
  std::vector<OpRow> all = activations();
  for (const auto& family : {losses(), shape_ops()})
    all.insert(all.end(), family.begin(), family.end());
  return all;
}

}  // namespace ulp::tests
