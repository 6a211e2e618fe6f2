#include "autograd/attention.h"
#include "tests/op_table.h"

namespace ulp::tests {
namespace {

using Inputs = std::span<const Var>;

const std::vector<const char*> kRolesOfProducts{"input",          "weight",    "output",
                                                "grad_output_dx", "weight_dx", "grad_input",
                                                "grad_output_dw", "input_dw",  "grad_weight"};

ops::AttentionOptions with(int64_t heads, bool causal, Tensor lengths = {}) {
  ops::AttentionOptions o;
  o.heads = heads;
  o.causal = causal;
  o.lengths = std::move(lengths);
  return o;
}

/// Lengths from 0 (of the third sequence) to beyond the keys.
Tensor some_lengths(int64_t sequences, Device device) {
  std::vector<int32_t> lengths;
  for (int64_t n = 0; n < sequences; ++n) lengths.push_back(static_cast<int32_t>((n * 3 + 2) % 8));
  return Tensor::from(lengths, {sequences}, device);
}

OpRow row(const char* name, std::vector<std::vector<Shape>> shapes,
          std::function<Var(Tape&, Inputs, const OpFormats&)> build) {
  OpRow r;
  r.name = name;
  r.kernels = {"batched_matmul", "mask_scores", "masked_softmax", "masked_softmax_backward",
               "copy"};
  r.shapes = std::move(shapes);
  r.build = std::move(build);
  r.roles = kRolesOfProducts;
  r.common_law = false;  // test_attention.cpp
  return r;
}

}  // namespace

std::vector<OpRow> attention_op_rows() {
  static const ops::AttentionSites sites(kSite);
  const auto formats = [](const OpFormats& f) { return ops::AttentionFormats{f, {}, f}; };
  return {
      row("attention",
          {{{1, 1, 1}, {1, 1, 1}, {1, 1, 1}},
           {{0, 2, 4}, {0, 3, 4}, {0, 3, 4}},
           {{2, 3, 4}, {2, 5, 4}, {2, 5, 6}},
           {{3, 4, 8}, {3, 8, 8}, {3, 8, 4}},
           {{1, 5, 6}, {1, 260, 6}, {1, 260, 6}}},
          [=](Tape& t, Inputs in, const OpFormats& f) {
            return ops::attention(t, in[0], in[1], in[2], with(in[0].shape()[2] > 1 ? 2 : 1, false),
                                  formats(f), sites);
          }),
      row("attention, causal with padding",
          {{{1, 1, 1}, {1, 1, 1}, {1, 1, 1}},
           {{3, 3, 4}, {3, 5, 4}, {3, 5, 4}},
           {{5, 8, 4}, {5, 8, 4}, {5, 8, 4}}},
          [=](Tape& t, Inputs in, const OpFormats& f) {
            return ops::attention(
                t, in[0], in[1], in[2],
                with(1, true, some_lengths(in[0].shape()[0], in[0].value.device())), formats(f),
                sites);
          }),
      row("attention of unit size",
          {{{2, 3, 4}, {2, 5, 4}, {2, 5, 6}}, {{3, 4, 8}, {3, 8, 8}, {3, 8, 4}}},
          [=](Tape& t, Inputs in, const OpFormats& f) {
            ops::AttentionOptions o = with(2, true);
            o.keys = 7.5;
            return ops::attention(t, in[0], in[1], in[2], o, formats(f), sites);
          }),
      row("attention of unit size over many keys", {{{1, 3, 2}, {1, 1030, 2}, {1, 1030, 2}}},
          [=](Tape& t, Inputs in, const OpFormats& f) {
            ops::AttentionOptions o = with(1, false);
            o.keys = 1030;
            return ops::attention(t, in[0], in[1], in[2], o, formats(f), sites);
          }),
      row("self_attention", {{{1, 1, 3}}, {{0, 2, 6}}, {{2, 3, 12}}, {{2, 8, 24}}, {{1, 33, 6}}},
          [=](Tape& t, Inputs in, const OpFormats& f) {
            return ops::self_attention(t, in[0], with(in[0].shape()[2] > 3 ? 2 : 1, true),
                                       formats(f), sites);
          }),
  };
}

}  // namespace ulp::tests
