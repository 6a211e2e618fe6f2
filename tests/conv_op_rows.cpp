#include "autograd/conv.h"
#include "tests/op_table.h"

namespace ulp::tests {
namespace {

using Inputs = std::span<const Var>;
using Entries = std::vector<std::vector<Shape>>;

const std::vector<const char*> kAllRoles{"input",          "weight",    "output",
                                         "grad_output_dx", "weight_dx", "grad_input",
                                         "grad_output_dw", "input_dw",  "grad_weight"};

Var bias_of(Inputs in) { return in.size() > 2 ? in[2] : Var{}; }

OpRow conv2d_row(const char* name, ops::ConvOptions options, Entries shapes,
                 const ProductFactors& factors = {}) {
  return {name,
          {"conv", "conv_weight", "sum"},
          std::move(shapes),
          [options, factors](Tape& t, Inputs in, const OpFormats& f) {
            return ops::conv2d(t, in[0], in[1], bias_of(in), options, f, RandomSite(kSite),
                               factors);
          },
          kAllRoles};
}

OpRow transpose_row(const char* name, ops::ConvTransposeOptions options, Entries shapes,
                    const ProductFactors& factors = {}) {
  return {name,
          {"conv", "conv_weight", "sum"},
          std::move(shapes),
          [options, factors](Tape& t, Inputs in, const OpFormats& f) {
            return ops::conv_transpose2d(t, in[0], in[1], bias_of(in), options, f,
                                         RandomSite(kSite), factors);
          },
          kAllRoles};
}

OpRow conv1d_row(const char* name, ops::Conv1dOptions options, Entries shapes) {
  return {name,
          {"conv", "conv_weight", "sum"},
          std::move(shapes),
          [options](Tape& t, Inputs in, const OpFormats& f) {
            return ops::conv1d(t, in[0], in[1], bias_of(in), options, f, RandomSite(kSite));
          },
          kAllRoles};
}

}  // namespace

std::vector<OpRow> conv_op_rows() {
  return {
      conv2d_row("conv2d", {.padding = 1},
                 {{{1, 1, 1, 1}, {1, 3, 3, 1}, {1}},
                  {{0, 4, 4, 2}, {3, 3, 3, 2}, {3}},
                  {{2, 5, 4, 3}, {4, 3, 3, 3}, {4}},
                  {{1, 4, 5, 2}, {3, 2, 4, 2}, {3}},
                  {{2, 6, 5, 16}, {9, 3, 3, 16}, {9}}}),
      conv2d_row("conv2d without bias", {}, {{{2, 6, 6, 1}, {6, 5, 5, 1}}}),
      conv2d_row("conv2d with strides", {.stride = {2, 3}, .padding = {2, 0}, .dilation = {1, 2}},
                 {{{2, 9, 8, 3}, {4, 3, 2, 3}, {4}}, {{1, 4, 7, 8}, {5, 2, 3, 8}, {5}}}),
      conv2d_row("conv2d with a stride beyond its kernel", {.stride = 3},
                 {{{2, 8, 7, 2}, {3, 2, 2, 2}, {3}}, {{2, 7, 7, 5}, {4, 1, 1, 5}, {4}}}),
      conv2d_row("conv2d of one pixel", {},
                 {{{3, 4, 5, 6}, {7, 1, 1, 6}, {7}}, {{0, 2, 2, 3}, {2, 1, 1, 3}, {2}}}),
      conv2d_row("conv2d in two groups", {.padding = 1, .groups = 2},
                 {{{2, 5, 4, 4}, {6, 3, 3, 2}, {6}}, {{2, 5, 4, 12}, {8, 3, 3, 6}, {8}}}),
      conv2d_row("conv2d depthwise", {.stride = 2, .padding = 1, .groups = 5},
                 {{{2, 6, 5, 5}, {5, 3, 3, 1}, {5}}, {{2, 5, 5, 5}, {10, 3, 3, 1}, {10}}}),
      transpose_row("conv_transpose2d", {.stride = 2, .padding = 1, .output_padding = 1},
                    {{{1, 1, 1, 1}, {1, 3, 3, 1}, {1}},
                     {{0, 4, 4, 2}, {3, 3, 3, 2}, {3}},
                     {{2, 3, 4, 3}, {4, 3, 3, 3}, {4}},
                     {{1, 3, 2, 16}, {6, 4, 4, 16}, {6}}}),
      transpose_row("conv_transpose2d with dilation and groups",
                    {.stride = {1, 3}, .padding = {0, 1}, .dilation = {2, 1}, .groups = 2},
                    {{{2, 3, 3, 4}, {6, 3, 2, 2}, {6}}, {{2, 3, 3, 12}, {6, 2, 3, 6}}}),
      conv2d_row("conv2d with factors", {.padding = 1},
                 {{{2, 5, 4, 3}, {4, 3, 3, 3}, {4}}, {{2, 6, 5, 16}, {9, 3, 3, 16}, {9}}},
                 kOneFactor),
      conv2d_row("conv2d of one pixel with factors", {}, {{{3, 4, 5, 6}, {7, 1, 1, 6}, {7}}},
                 kOneFactor),
      conv2d_row("conv2d in groups with factors", {.padding = 1, .groups = 2},
                 {{{2, 5, 4, 4}, {6, 3, 3, 2}, {6}}, {{2, 5, 4, 12}, {8, 3, 3, 6}, {8}}},
                 kOneFactor),
      transpose_row("conv_transpose2d with factors", {.stride = 2, .padding = 1},
                    {{{2, 3, 4, 3}, {4, 3, 3, 3}, {4}}}, kOneFactor),
      conv1d_row(
          "conv1d", {.stride = 2, .padding = 2, .dilation = 2},
          {{{1, 1, 1}, {1, 1, 1}, {1}}, {{0, 7, 2}, {3, 3, 2}, {3}}, {{2, 11, 3}, {4, 3, 3}, {4}}}),
      conv1d_row("conv1d depthwise", {.padding = 1, .groups = 3},
                 {{{2, 7, 3}, {3, 2, 1}, {3}}, {{2, 7, 3}, {6, 3, 1}}}),
  };
}

}  // namespace ulp::tests
