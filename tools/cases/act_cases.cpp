// The kernels of kernels/activations.h, losses.h and place.h.

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/activations.h"
#include "kernels/losses.h"
#include "kernels/place.h"
#include "tools/cases/case_tools.h"

namespace ulp::cases {
namespace {

void check_softmax(Comparison& compare) {
  const Pair state = step_state(compare, some_step());
  const auto once = [&](const Pair& in, const char* interior) {
    const Shape shape = in.reference.shape();
    const bool rounds = std::string_view(interior) != "fp32";
    if (!compare.takes(in.reference.numel(),
                       shape[0] == 0 ? "" : width_of(shape) + (rounds ? " rounds" : "")))
      return;
    const Pair out = compare.output(shape), differences = compare.output(shape),
               exps = compare.output(shape), sums = compare.output({shape[0]});
    const auto make = [&](bool traced) {
      compare.run(kernels::softmax, [&](Side d) {
        InteriorTrace trace;
        if (traced) trace = {{differences.on(d), exps.on(d), sums.on(d)}};
        return SoftmaxArgs{in.on(d), out.on(d), Quantizer::parse(interior), key_on(state, d),
                           trace};
      });
      compare.same(out, to_string(shape), " interior ", std::string(interior));
    };
    make(false);
    if (!rounds) return;
    make(true);
    compare.same(differences, "differences of ", to_string(shape), std::string(interior));
    compare.same(exps, "exps of ", to_string(shape), std::string(interior));
    compare.same(sums, "sums of ", to_string(shape), std::string(interior));
  };
  // The differences show which of two zeros was the largest.
  for (const int64_t columns : {2, 40})
    for (const bool negative : {false, true}) {
      std::vector<float> zeros;
      for (int64_t i = 0; i < 2 * columns; ++i)
        zeros.push_back((i % columns == columns - 1) != negative ? -0.0f : 0.0f);
      once(compare.both(Tensor::from(zeros, {2, columns})), "e2m1-bias0:rtz");
    }
  for (const char* interior :
       {"fp32", "e5m2", "bf16:sr", "fixed8.4:sr", "fixed8.-2", "e4m3:rtz", "e6m9:sr4c"}) {
    for (const Shape& shape : kRows)
      for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Few})
        once(compare.input(shape, DType::F32, domain, 141), interior);
    for (const int64_t columns : {1, 2, 3, 40}) once(special_rows(compare, columns), interior);
    once(compare.input({300, 3}, DType::F32, Domain::Hard, 142), interior);
  }
}

void check_softmax_backward(Comparison& compare) {
  for (const Shape& shape : kRows)
    for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard}) {
      if (!compare.takes(shape.numel(), shape[0] == 0 ? "" : width_of(shape))) continue;
      const Pair grad = compare.input(shape, DType::F32, domain, 151),
                 y = compare.input(shape, DType::F32, domain, 152), out = compare.output(shape);
      compare.run(kernels::softmax_backward, [&](Side d) {
        return SoftmaxBackwardArgs{grad.on(d), y.on(d), out.on(d)};
      });
      compare.same(out, to_string(shape), " domain ", static_cast<int>(domain));
    }
}

/// Calls body(input, labels, loss, smoothing) for all kinds; some labels are of no class.
void for_label_losses(
    Comparison& compare,
    const std::function<void(const Pair&, const Pair&, LabelLoss, double)>& body) {
  for (const LabelLoss loss : {LabelLoss::Nll, LabelLoss::CrossEntropy, LabelLoss::Squares})
    for (const double smoothing : {0.0, 0.1, 1.0}) {
      for (const Shape& shape : kRows)
        for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard})
          if (compare.takes(shape.numel()))
            body(compare.input(shape, DType::F32, domain, 161),
                 labels_for(compare, shape[0], shape[1], 162), loss, smoothing);
      for (const int64_t columns : {1, 2, 3, 40}) {
        const Pair rows = special_rows(compare, columns);
        const int64_t n = rows.reference.size(0);
        if (!compare.takes(rows.reference.numel())) continue;
        std::vector<int32_t> labels(static_cast<size_t>(n));
        for (size_t i = 0; i < labels.size(); ++i)
          labels[i] = i == 0   ? -1
                      : i == 1 ? static_cast<int32_t>(columns)
                               : static_cast<int32_t>(static_cast<int64_t>(i) % columns);
        body(rows, compare.both(Tensor::from(labels, {n})), loss, smoothing);
      }
    }
}

void check_label_loss_case(Comparison& compare) {
  for_label_losses(compare, [&](const Pair& in, const Pair& labels, LabelLoss loss, double s) {
    const Pair losses = compare.output({in.reference.size(0)});
    const LabelWeights weights = LabelWeights::of(s, in.reference.size(1));
    compare.run(kernels::label_loss, [&](Side d) {
      return LabelLossArgs{in.on(d), labels.on(d), losses.on(d), loss, weights};
    });
    compare.same(losses, to_string(in.reference.shape()), " loss ", static_cast<int>(loss),
                 " smoothing ", s);
  });
}

void check_log_sum_case(Comparison& compare) {
  const auto once = [&](const Pair& in, const std::string& what) {
    const int64_t rows = in.reference.size(0), columns = in.reference.size(1);
    if (!compare.takes(rows * columns)) return;
    const Pair labels = labels_for(compare, rows, columns, 47);
    const Pair losses = compare.output({rows}), sums = compare.output({rows, 2});
    compare.run(kernels::log_sum, [&](Side d) {
      return LogSumArgs{in.on(d), labels.on(d), losses.on(d), sums.on(d)};
    });
    compare.same(losses, "losses of ", what);
    compare.same(sums, "sums of ", what);
  };
  for (const Shape& shape : kRows)
    for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Few, Domain::Hard})
      once(compare.input(shape, DType::F32, domain, 44),
           to_string(shape) + " domain " + std::to_string(static_cast<int>(domain)));
  for (const int64_t columns : {1, 2, 3, 40})
    once(special_rows(compare, columns), "special rows of " + std::to_string(columns));
}

void check_log_sum_backward_case(Comparison& compare) {
  for (const Shape& shape : kRows)
    for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard}) {
      if (!compare.takes(shape.numel())) continue;
      const Pair in = compare.input(shape, DType::F32, domain, 74),
                 sums = compare.input({shape[0], 2}, DType::F32, Domain::Modest, 75),
                 grad = compare.input({1}, DType::F32, Domain::Modest, 76);
      const Pair labels = labels_for(compare, shape[0], shape[1], 77), out = compare.output(shape);
      compare.run(kernels::log_sum_backward, [&](Side d) {
        return LogSumBackwardArgs{in.on(d),   labels.on(d), sums.on(d),
                                  grad.on(d), out.on(d),    1.0 / 3};
      });
      compare.same(out, to_string(shape), " domain ", static_cast<int>(domain));
    }
}

void check_label_loss_backward_case(Comparison& compare) {
  const Pair grad = compare.input({1}, DType::F32, Domain::Modest, 163);
  for_label_losses(compare, [&](const Pair& in, const Pair& labels, LabelLoss loss, double s) {
    const Pair out = compare.output(in.reference.shape());
    const LabelWeights weights = LabelWeights::of(s, in.reference.size(1));
    compare.run(kernels::label_loss_backward, [&](Side d) {
      return LabelLossBackwardArgs{in.on(d), labels.on(d), grad.on(d), out.on(d),
                                   loss,     weights,      1.0 / 3.0};
    });
    compare.same(out, to_string(in.reference.shape()), " loss ", static_cast<int>(loss),
                 " smoothing ", s);
  });
}

struct Placing {
  Shape in, out, begin, step;
  bool turned = false;  // the input's first and last axes lie the other way round in memory
};

const std::vector<Placing> kPlacings = {
    {{}, {}, {}, {}},
    {{7}, {7}, {0}, {1}},
    {{7}, {30}, {3}, {4}},
    {{1}, {5}, {4}, {1000000000000}},
    {{0}, {5}, {9}, {3}},
    {{0, 3}, {4, 3}, {0, 0}, {1, 1}},
    {{33, 65}, {40, 65}, {3, 0}, {1, 1}},
    {{33, 65}, {33, 70}, {0, 2}, {1, 1}},
    {{33, 65}, {70, 200}, {1, 5}, {2, 3}},
    {{65, 33}, {70, 40}, {1, 5}, {1, 1}, true},
    {{3, 5, 7}, {3, 5, 7}, {0, 0, 0}, {1, 1, 1}, true},
    {{2, 5, 6, 3}, {2, 9, 10, 3}, {0, 2, 2, 0}, {1, 1, 1, 1}},
    {{2, 5, 6, 3}, {2, 9, 12, 4}, {0, 0, 1, 1}, {1, 2, 2, 1}, true},
    {{2, 1, 6, 1}, {2, 4, 6, 1}, {0, 3, 0, 0}, {1, 1, 1, 1}},
    {{1, 1, 6, 1, 2, 1, 1, 2},
     {1, 2, 6, 1, 2, 1, 3, 2},
     {0, 1, 0, 0, 0, 0, 2, 0},
     {1, 1, 1, 1, 1, 1, 1, 1}},
    {{16, 30, 30, 16}, {16, 34, 34, 16}, {0, 2, 2, 0}, {1, 1, 1, 1}}};

void place_once(Comparison& compare, const Placing& p, DType from, DType to, double rest) {
  if (!compare.takes(p.out.numel())) return;
  Shape stored = p.in;
  const int last = p.in.rank() - 1;
  if (p.turned) std::swap(stored[0], stored[last]);
  const Pair in = view(compare.input(stored, from, Domain::Hard, 171),
                       [&](const Tensor& t) { return p.turned ? t.transpose(0, last) : t; });
  for (const PlaceArgs::Rest how : {PlaceArgs::Rest::Stays, PlaceArgs::Rest::Filled}) {
    const Pair out = compare.output(p.out, to);
    compare.run(kernels::place,
                [&](Side d) { return PlaceArgs{in.on(d), out.on(d), p.begin, p.step, how, rest}; });
    compare.same(out, text(from), " ", to_string(p.in), " in ", text(to), " ", to_string(p.out),
                 how == PlaceArgs::Rest::Filled ? ", filled" : "");
  }
}

void check_place_case(Comparison& compare) {
  for (const Placing& p : kPlacings)
    for (const DType dtype : {DType::F32, DType::F64, DType::BF16, DType::F16, DType::F8E4M3,
                              DType::F8E5M2, DType::I32, DType::I8, DType::U8}) {
      place_once(compare, p, dtype, dtype, 0);
      if (dtype == DType::F32 || dtype == DType::F64) place_once(compare, p, dtype, dtype, -0.3);
      if (is_float_up_to_32(dtype)) place_once(compare, p, dtype, DType::F32, 7.25);
    }
}

}  // namespace

std::span<const KernelCase> act_kernel_cases() {
#define ULP_ELEMENTWISE_CASE(name, Functor, inputs) \
  {#name, [](Comparison& compare) { check_elementwise(compare, kernels::name, inputs); }},
  static constexpr KernelCase kAll[] = {{"softmax", check_softmax},
                                        {"softmax_backward", check_softmax_backward},
                                        {"label_loss", check_label_loss_case},
                                        {"label_loss_backward", check_label_loss_backward_case},
                                        {"log_sum", check_log_sum_case},
                                        {"log_sum_backward", check_log_sum_backward_case},
                                        {"place", check_place_case},
                                        ULP_ACTIVATION_KERNELS(ULP_ELEMENTWISE_CASE)
                                            ULP_ELEMENTWISE_LOSS_KERNELS(ULP_ELEMENTWISE_CASE)};
  return kAll;
}

}  // namespace ulp::cases
