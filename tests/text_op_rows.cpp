#include "autograd/embedding.h"
#include "autograd/rotary.h"
#include "tests/op_table.h"

namespace ulp::tests {
namespace {

using Inputs = std::span<const Var>;

/// Some of `count` tokens, 0 among them; of seven, one is never used.
Tensor some_tokens(const Shape& shape, int64_t count, Device device) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < shape.numel(); ++i)
    tokens.push_back(static_cast<int32_t>(i % 3 == 0 ? 0 : (i * i + 2 * i) % count));
  return Tensor::from(tokens, shape, device);
}

OpRow row(const char* name, std::vector<const char*> kernels,
          std::vector<std::vector<Shape>> shapes, std::vector<const char*> roles,
          std::function<Var(Tape&, Inputs, const OpFormats&)> build) {
  OpRow r;
  r.name = name;
  r.kernels = std::move(kernels);
  r.shapes = std::move(shapes);
  r.build = std::move(build);
  r.roles = std::move(roles);
  r.common_law = false;  // test_embedding.cpp
  return r;
}

OpRow embedding_row(const char* name, const Shape& tokens, std::vector<std::vector<Shape>> tables) {
  return row(name, {"embedding", "group_tokens", "embedding_backward"}, std::move(tables),
             {"weight", "output", "grad_output_dw", "grad_weight"},
             [tokens](Tape& t, Inputs in, const OpFormats& f) {
               return ops::embedding(t, some_tokens(tokens, in[0].shape()[0], in[0].value.device()),
                                     in[0], f, RandomSite(kSite));
             });
}

}  // namespace

std::vector<OpRow> text_op_rows() {
  static const RandomSite site(kSite);
  static const std::vector<const char*> activation{"input", "output", "grad_output_dx",
                                                   "grad_input"};
  OpRow swiglu =
      row("swiglu", {"swiglu", "swiglu_backward"},
          {{{1, 2}}, {{0, 6}}, {{3, 10}}, {{2, 3, 8}}, {{17, 66}}, {{2, 2100}}}, activation,
          [](Tape& t, Inputs in, const OpFormats& f) { return ops::swiglu(t, in[0], f, site); });
  swiglu.low = -4;
  swiglu.high = 4;
  OpRow many =
      row("cross_entropy of many classes", {"log_sum", "log_sum_backward", "sum"},
          {{{3, 1025}}, {{2, 5000}}}, {"grad_input"}, [](Tape& t, Inputs in, const OpFormats& f) {
            const Shape& s = in[0].shape();
            return ops::cross_entropy(t, in[0], some_tokens({s[0]}, s[1], in[0].value.device()), f,
                                      site);
          });
  many.common_law = true;
  return {
      many,
      embedding_row("embedding", {2, 7}, {{{1, 1}}, {{7, 3}}, {{5, 8}}, {{300, 33}}}),
      embedding_row("embedding of many", {5000}, {{{3, 5}}}),
      embedding_row("embedding of long rows", {3}, {{{2, 1030}}}),
      row("positions", {"add", "sum", "fill"},
          {{{1, 1, 1}, {3, 1}}, {{0, 2, 3}, {5, 3}}, {{3, 4, 5}, {6, 5}}, {{2, 7, 8}, {9, 8}}},
          {"output", "grad_input", "grad_weight"},
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::add_positions(t, in[0], in[1], 2, f, site);
          }),
      row("positions of all", {"add", "sum"}, {{{3, 4, 5}, {4, 5}}},
          {"output", "grad_input", "grad_weight"},
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::add_positions(t, in[0], in[1], 0, f, site);
          }),
      row("rotary", {"rotary"},
          {{{1, 1, 1, 2}},
           {{0, 3, 2, 4}},
           {{2, 5, 3, 6}},
           {{2, 7, 2, 8}},
           {{1, 70, 2, 16}},
           {{1, 2, 1, 2100}}},
          activation,
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::rotary(t, in[0], 3, ops::kRotaryBase, f, site);
          }),
      swiglu,
  };
}

}  // namespace ulp::tests
