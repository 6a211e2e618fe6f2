// Steps of LSTM and GRU: one case a kernel, instances of every width, domain, format and missing part.

#include <string>

#include "kernels/recurrent.h"
#include "tools/cases/case_tools.h"

namespace ulp::cases {
namespace {

constexpr const char* kFormats[] = {"fp32",     "e4m3",     "e5m2:sr", "fixed8.4:rtz",
                                    "posit8.1", "e6m9:sr4", "bf16:odd"};
constexpr Domain kDomains[] = {Domain::Modest, Domain::Hard, Domain::Few, Domain::Wide,
                               Domain::Tiny};

struct StepCase {
  int64_t rows, width;
  Domain domain;
  const char *interior, *first, *second;
  uint32_t missing;  // bits of what is undefined
};

std::string text(const StepCase& c) {
  return "(" + std::to_string(c.rows) + ", " + std::to_string(c.width) + "), domain " +
         std::to_string(static_cast<int>(c.domain)) + ", " + c.interior + ", " + c.first + ", " +
         c.second + ", without " + std::to_string(c.missing);
}

std::vector<StepCase> step_cases() {
  constexpr int64_t kSizes[][2] = {{0, 5},  {1, 1},   {3, 2},    {2, 7},    {5, 33},   {64, 64},
                                   {7, 67}, {1, 500}, {17, 129}, {64, 512}, {3, 1030}, {300, 96}};
  std::vector<StepCase> all;
  uint32_t turn = 0;
  for (const auto& [rows, width] : kSizes)
    for (int k = 0; k < 14; ++k, ++turn)
      all.push_back({rows, width, kDomains[turn % std::size(kDomains)],
                     k < 7 ? "fp32" : kFormats[turn % std::size(kFormats)],
                     kFormats[turn / 2 % std::size(kFormats)],
                     kFormats[turn / 3 % std::size(kFormats)], turn % 8});
  return all;
}

/// The inputs of a step and its draws.
class Step {
 public:
  Step(Comparison& compare, const StepCase& c)
      : compare_(compare), c_(c), state_(step_state(compare, some_step())) {}
  Pair in(int64_t parts, uint64_t seed) const {
    return compare_.input({c_.rows, parts * c_.width}, DType::F32, c_.domain, seed);
  }
  /// Empty if bit `bit` is missing.
  Pair maybe(uint32_t bit, uint64_t seed) const {
    return (c_.missing >> bit & 1) != 0 ? Pair{} : in(1, seed);
  }
  Pair out(int64_t parts) const { return compare_.output({c_.rows, parts * c_.width}); }
  RecurrentRounding rounding(const char* format, Side side, uint32_t stream) const {
    return {Quantizer::parse(format), key_on(state_, side, stream)};
  }

 private:
  Comparison& compare_;
  const StepCase& c_;
  Pair state_;
};

void check_lstm(Comparison& compare) {
  for (const StepCase& c : step_cases())
    for (const bool halves : {false, true}) {
      if (!compare.takes(c.rows * c.width * 16)) continue;
      const Step step(compare, c);
      const Pair input = step.in(4, 11), hidden = step.in(4, 12), before = step.in(1, 13);
      const Pair saved = step.out(5), cell = step.out(1), h = step.out(1);
      const auto run = [&](LstmPart part) {
        compare.run(kernels::lstm_step, [&](Side d) {
          LstmStepArgs a{input.on(d), hidden.on(d), before.on(d), saved.on(d), cell.on(d), h.on(d)};
          a.part = part;
          a.interior = step.rounding(c.interior, d, 0x11);
          a.cell = step.rounding(c.first, d, 0x12);
          a.state = step.rounding(c.second, d, 0x13);
          return a;
        });
      };
      if (halves) {
        run(LstmPart::Cell);
        run(LstmPart::Hidden);
      } else {
        run(LstmPart::Whole);
      }
      const char* const how = halves ? ", in halves" : "";
      compare.same(saved, "gates of ", text(c), how);
      compare.same(cell, "cells of ", text(c), how);
      compare.same(h, "states of ", text(c), how);
    }
}

void check_lstm_backward(Comparison& compare) {
  for (const StepCase& c : step_cases()) {
    if (!compare.takes(c.rows * c.width * 16)) continue;
    const Step step(compare, c);
    const Pair gy = step.maybe(0, 21), gh = step.maybe(1, 22), gc = step.maybe(2, 23);
    const Pair saved = step.in(5, 24), before = step.in(1, 25);
    const Pair gates = step.out(4), cell = step.out(1);
    compare.run(kernels::lstm_step_backward, [&](Side d) {
      LstmStepBackwardArgs a{gy.on(d),     gh.on(d),    gc.on(d),  saved.on(d),
                             before.on(d), gates.on(d), cell.on(d)};
      a.state = step.rounding(c.interior, d, 0x21);
      a.gates_format = step.rounding(c.first, d, 0x22);
      a.cell = step.rounding(c.second, d, 0x23);
      return a;
    });
    compare.same(gates, "gradients of gates, ", text(c));
    compare.same(cell, "gradients of cells, ", text(c));
  }
}

void check_gru(Comparison& compare) {
  for (const StepCase& c : step_cases()) {
    if (!compare.takes(c.rows * c.width * 12)) continue;
    const Step step(compare, c);
    const Pair input = step.in(3, 31), hidden = step.in(3, 32), before = step.in(1, 33);
    const Pair saved = step.out(4), h = step.out(1);
    compare.run(kernels::gru_step, [&](Side d) {
      GruStepArgs a{input.on(d), hidden.on(d), before.on(d), saved.on(d), h.on(d)};
      a.interior = step.rounding(c.interior, d, 0x31);
      a.state = step.rounding(c.second, d, 0x32);
      return a;
    });
    compare.same(saved, "gates of ", text(c));
    compare.same(h, "states of ", text(c));
  }
}

void check_gru_backward(Comparison& compare) {
  for (const StepCase& c : step_cases()) {
    if (!compare.takes(c.rows * c.width * 12)) continue;
    const Step step(compare, c);
    const Pair gy = step.maybe(0, 41), gh = step.maybe(1, 42), gd = step.maybe(2, 43);
    const Pair saved = step.in(4, 44), before = step.in(1, 45);
    const Pair input = step.out(3), hidden = step.out(3), direct = step.out(1);
    compare.run(kernels::gru_step_backward, [&](Side d) {
      GruStepBackwardArgs a{gy.on(d),     gh.on(d),    gd.on(d),     saved.on(d),
                            before.on(d), input.on(d), hidden.on(d), direct.on(d)};
      a.state = step.rounding(c.interior, d, 0x41);
      a.input_format = step.rounding(c.first, d, 0x42);
      a.hidden_format = step.rounding(c.second, d, 0x43);
      return a;
    });
    compare.same(input, "gradients of input gates, ", text(c));
    compare.same(hidden, "gradients of hidden gates, ", text(c));
    compare.same(direct, "gradients past the product, ", text(c));
  }
}

}  // namespace

std::span<const KernelCase> recurrent_kernel_cases() {
  static constexpr KernelCase kAll[] = {{"lstm_step", check_lstm},
                                        {"lstm_step_backward", check_lstm_backward},
                                        {"gru_step", check_gru},
                                        {"gru_step_backward", check_gru_backward}};
  return kAll;
}

}  // namespace ulp::cases
