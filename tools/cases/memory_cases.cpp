// Kernels that move data, and the step that ends.

#include <cmath>
#include <vector>

#include "tools/cases/core_cases.h"

namespace ulp::cases {

void check_copy(Comparison& compare) {
  const auto once = [&](const Pair& in, DType to) {
    if (!compare.takes(in.reference.numel(), text(in.reference.dtype()) + text(to))) return;
    const Pair out = compare.output(in.reference.shape(), to);
    compare.run(kernels::copy, [&](Side d) { return CopyArgs{in.on(d), out.on(d)}; });
    const auto same = [&](const Pair& pair) {
      compare.same(pair, text(in.reference.dtype()), " to ", text(to), " ",
                   to_string(in.reference.shape()));
    };
    same(out);
    for (const uint32_t found_inf : {1u, 0u}) {  // what is skipped is not written
      StepState step;
      step.found_inf = found_inf;
      const Pair state = step_state(compare, step), kept = compare.output(in.reference.shape(), to);
      compare.run(kernels::copy, [&](Side d) {
        return CopyArgs{in.on(d), kept.on(d), state_on(state, d)};
      });
      same(kept);
    }
  };
  for (const DType dtype : {DType::F32, DType::F64, DType::BF16, DType::F16, DType::F8E4M3,
                            DType::F8E5M2, DType::I32, DType::I8, DType::U8}) {
    const Pair cube = compare.input({6, 35, 4, 9}, dtype, Domain::Hard, 91),
               matrix = compare.input({67, 130}, dtype, Domain::Hard, 92);
    const std::vector<Pair> views = {
        matrix,
        cube,
        unaligned(compare.input({1001}, dtype, Domain::Hard, 93)),
        compare.input({}, dtype, Domain::Hard, 94),
        compare.input({3, 0}, dtype, Domain::Hard, 95),
        view(matrix, [](const Tensor& t) { return t.transpose(0, 1); }),
        view(matrix, [](const Tensor& t) { return t.slice(1, 3, 4); }),
        view(matrix, [](const Tensor& t) { return t.slice(0, 5, 60).slice(1, 1, 99); }),
        view(cube, [](const Tensor& t) { return t.transpose(1, 3); }),
        view(cube,
             [](const Tensor& t) { return t.transpose(0, 2).slice(1, 4, 31).transpose(2, 3); })};
    for (const Pair& in : views) {
      once(in, dtype);
      if (is_float_up_to_32(dtype)) once(in, DType::F32);
    }
  }
}

void check_fill(Comparison& compare) {
  for (const DType dtype : {DType::F32, DType::F64})
    for (const int64_t n : {0, 1, 5, 4099})
      for (const double value : {0.0, -0.0, 1.0 / 3.0, 1e-42, std::nan("")}) {
        if (!compare.takes(n, n == 0 ? "" : text(dtype))) continue;
        const Pair out = compare.output({n}, dtype);
        compare.run(kernels::fill, [&](Side d) { return FillArgs{out.on(d), value}; });
        compare.same(out, text(dtype), " ", n, " ", value);
      }
  const Pair state = step_state(compare, some_step()), scale = compare.output({1});
  compare.run(kernels::fill, [&](Side d) {
    return FillArgs{scale.on(d), 1.0 / 3.0, state_on(state, d)};
  });
  compare.same(scale, "the state's loss scale");
  compare.run(kernels::fill, [&](Side d) {
    return FillArgs{scale.on(d), 0.1, nullptr, state_on(state, d)};
  });
  compare.same(scale, "the state's gradient factor");
}

void check_uniform(Comparison& compare) {
  const Pair state = step_state(compare, some_step());
  for (const int64_t n : {0, 1, 2, 3, 4, 5, 8, 9, 4099, 100000})
    for (const bool shifted : {false, true}) {
      if (!compare.takes(n)) continue;
      const Pair whole = compare.output({n + 1});
      const Pair out =
          shifted ? unaligned(whole)
                  : view(whole, [](const Tensor& t) { return t.slice(0, 0, t.size(0) - 1); });
      compare.run(kernels::uniform, [&](Side d) {
        return UniformArgs{out.on(d), -0.3f, 1.7f, key_on(state, d)};
      });
      compare.same(whole, n);  // the element beside the slice too
    }
}

void check_gather_rows(Comparison& compare) {
  for (const DType dtype : {DType::U8, DType::F32})
    for (const int64_t width : {1, 3, 4, 10, 784})
      for (const int64_t rows : {0, 1, 65})
        for (const bool shifted : {false, true})
          for (const bool stateful : {false, true}) {
            if (!compare.takes(rows * width)) continue;
            Pair in = compare.input({51, width}, dtype, Domain::Hard, 101);
            if (shifted) in = unaligned(in);
            const Pair indices = labels_for(compare, rows + 20, 50, 102),
                       out = compare.output({rows, width});
            const Pair labels = labels_for(compare, in.reference.size(0), 10, 103),
                       out_labels = compare.output({rows}, DType::I32);
            StepState step = some_step();
            step.batch_offset = 13;
            const Pair state = step_state(compare, step);
            const auto same = [&](const Pair& pair) {
              compare.same(pair, text(dtype), " ", rows, " rows of ", width);
            };
            compare.run(kernels::gather_rows, [&](Side d) {
              GatherRowsArgs args{in.on(d), indices.on(d), out.on(d), 1.0f / 255.0f};
              if (!stateful) return args;
              args.labels = labels.on(d);
              args.out_labels = out_labels.on(d);
              args.state = const_cast<StepState*>(state_on(state, d));
              return args;
            });
            for (const Pair& pair : {out, out_labels, state}) same(pair);
            if (rows > 50) continue;
            compare.run(kernels::gather_rows, [&](Side d) {
              return GatherRowsArgs{in.on(d),         {}, out.on(d), 0.5f, labels.on(d),
                                    out_labels.on(d), 7};
            });
            for (const Pair& pair : {out, out_labels}) same(pair);
          }
}

void check_advance_step(Comparison& compare) {
  for (const uint32_t found_inf : {0u, 1u}) {
    StepState step = some_step();
    step.found_inf = found_inf;
    const Pair state = step_state(compare, step);
    const Pair updates = compare.both(Tensor::from(std::vector<int32_t>{41}, {1}));
    const Pair steps = compare.both(Tensor::from(std::vector<int32_t>{40}, {1}));
    compare.run(kernels::advance_step, [&](Side d) {
      return AdvanceStepArgs{const_cast<StepState*>(state_on(state, d)), updates.on(d),
                             steps.on(d)};
    });
    compare.same(steps, "steps, found_inf ", found_inf);
    compare.same(state, "state, found_inf ", found_inf);
    compare.same(updates, "updates, found_inf ", found_inf);
  }
}

}  // namespace ulp::cases
