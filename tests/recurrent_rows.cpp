#include "autograd/recurrent.h"
#include "tests/op_table.h"

namespace ulp::tests {
namespace {

using Inputs = std::span<const Var>;

std::vector<Shape> lstm_shapes(int64_t n, int64_t t, int64_t in, int64_t h) {
  return {{n, t, in}, {4 * h, in}, {4 * h, h}, {4 * h}, {4 * h}, {n, h}, {n, h}};
}
std::vector<Shape> gru_shapes(int64_t n, int64_t t, int64_t in, int64_t h) {
  return {{n, t, in}, {3 * h, in}, {3 * h, h}, {3 * h}, {3 * h}, {n, h}};
}

Var flat(Tape& tape, const Var& v) { return ops::reshape(tape, v, {v.value.numel()}); }

/// The formats for every part; inside a step that of the output, if it can be.
ops::RecurrentFormats parts_of(const OpFormats& f) {
  ops::RecurrentFormats parts = ops::RecurrentFormats::all(f);
  if (f.output.is_elementwise()) parts.gates.interior = f.output;
  return parts;
}

/// The last state in the result: its gradient enters, too.
Var with_state(Tape& tape, const Var& y, const Var& state) {
  const Var last = ops::scale(tape, ops::sum(tape, flat(tape, state)), 0.25);
  const Var all = ops::sum(tape, flat(tape, y));
  return ops::multiply(tape, all, last);
}

}  // namespace

std::vector<OpRow> recurrent_op_rows() {
  static const ops::RecurrentSites sites(kSite);
  static const std::vector<const char*> roles{"input",          "weight",    "output",
                                              "grad_output_dx", "weight_dx", "grad_input",
                                              "grad_output_dw", "input_dw",  "grad_weight"};
  const auto lstm = [](Tape& t, Inputs in, const OpFormats& f) {
    return ops::lstm(t, in[0], {in[1], in[2], in[3], in[4]}, {in[5], in[6]}, parts_of(f), sites);
  };
  const auto gru = [](Tape& t, Inputs in, const OpFormats& f) {
    return ops::gru(t, in[0], {in[1], in[2], in[3], in[4]}, {in[5], {}}, parts_of(f), sites);
  };
  static const ops::RecurrentFactors factors{kOneFactor, {0.75, 0.75, 0.75, 1}};
  return {
      {"lstm with factors",
       {"lstm_step", "lstm_step_backward", "matmul"},
       {lstm_shapes(2, 3, 3, 2)},
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::lstm(t, in[0], {in[1], in[2], in[3], in[4]}, {in[5], in[6]}, parts_of(f),
                          sites, factors)
             .y;
       },
       roles,
       -1,
       1},
      {"gru with factors",
       {"gru_step", "gru_step_backward", "matmul"},
       {gru_shapes(2, 3, 3, 2)},
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::gru(t, in[0], {in[1], in[2], in[3], in[4]}, {in[5], {}}, parts_of(f), sites,
                         factors)
             .y;
       },
       roles,
       -1,
       1},
      {"lstm",
       {"lstm_step", "lstm_step_backward", "matmul", "sum", "copy"},
       {lstm_shapes(1, 1, 1, 1), lstm_shapes(0, 2, 3, 2), lstm_shapes(2, 3, 3, 2),
        lstm_shapes(1, 5, 2, 3), lstm_shapes(3, 4, 5, 7)},
       [lstm](Tape& t, Inputs in, const OpFormats& f) { return lstm(t, in, f).y; },
       roles,
       -1,
       1},
      {"lstm's cell state",
       {"lstm_step", "lstm_step_backward"},
       {lstm_shapes(1, 1, 2, 1), lstm_shapes(2, 3, 3, 2)},
       [lstm](Tape& t, Inputs in, const OpFormats& f) {
         const ops::RecurrentResult r = lstm(t, in, f);
         return with_state(t, r.y, r.state.c);
       },
       roles,
       -1,
       1},
      {"gru",
       {"gru_step", "gru_step_backward", "add"},
       {gru_shapes(1, 1, 1, 1), gru_shapes(0, 2, 3, 2), gru_shapes(2, 3, 3, 2),
        gru_shapes(1, 5, 2, 3), gru_shapes(3, 4, 5, 7)},
       [gru](Tape& t, Inputs in, const OpFormats& f) { return gru(t, in, f).y; },
       roles,
       -1,
       1},
      {"gru's last state",
       {"gru_step", "gru_step_backward"},
       {gru_shapes(1, 1, 2, 1), gru_shapes(2, 3, 3, 2)},
       [gru](Tape& t, Inputs in, const OpFormats& f) {
         const ops::RecurrentResult r = gru(t, in, f);
         return with_state(t, r.y, r.state.h);
       },
       roles,
       -1,
       1},
  };
}

}  // namespace ulp::tests
