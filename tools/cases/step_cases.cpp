// What a step does beside its updates: gradients, scales, averages.

#include <cstring>
#include <vector>

#include "kernels/quantised.h"
#include "tools/cases/core_cases.h"

namespace ulp::cases {

void check_check_gradients(Comparison& compare) {
  struct Case {
    std::vector<int64_t> sizes;
    DType dtype = DType::F32;
    Domain domain = Domain::Wide;
    float clip = 0;
    bool shifted = false;
    uint32_t interval = 1;
  };
  std::vector<Case> all = {
      {{}}, {{0}}, {{1}}, {{64, 0, 65, 4096, 4097}, DType::F32, Domain::Modest, 1}};
  for (const DType dtype : kFloats)
    for (const Domain domain : {Domain::Modest, Domain::Hard, Domain::Tiny})
      all.push_back({{5, 4095, 12289, 1}, dtype, domain, 0.5f, dtype == DType::BF16, 3});
  all.push_back({std::vector<int64_t>(90, 33), DType::F32, Domain::Wide, 1e-3f});
  all.push_back({std::vector<int64_t>(91, 4100), DType::F32, Domain::Modest, 1e6f, true});
  all.push_back({std::vector<int64_t>(200, 7), DType::BF16, Domain::Modest, 3});
  all.push_back({{3, 4096 * 4096 + 4097, 3}, DType::F32, Domain::Modest, 10});
  for (const Case& c : all) {
    int64_t work = 0;
    for (const int64_t n : c.sizes) work += n;
    if (!compare.takes(work)) continue;
    std::vector<Pair> gradients;
    for (const int64_t n : c.sizes) {
      const Pair whole = compare.input({n + 1}, c.dtype, c.domain, 131);
      gradients.push_back(c.shifted ? unaligned(whole) : view(whole, [](const Tensor& t) {
        return t.slice(0, 0, t.size(0) - 1);
      }));
    }
    for (const bool dynamic : {false, true}) {
      StepState step = some_step();
      step.good_steps = 2;
      step.loss_scale = 3;
      const Pair state = step_state(compare, step);
      compare.run(kernels::check_gradients, [&](Side d) {
        CheckGradientsArgs args;
        for (const Pair& gradient : gradients) args.gradients.push_back(gradient.on(d));
        args.policy.clip_norm = c.clip;
        args.policy.grad_scaling = 0.3f;
        args.policy.undo_loss_scale = dynamic;
        if (dynamic) args.policy.scaling.interval = c.interval;
        args.state = const_cast<StepState*>(state_on(state, d));
        return args;
      });
      compare.same(state, c.sizes.size(), " gradients of ", work, " ", text(c.dtype), ", clip ",
                   c.clip, ", dynamic ", dynamic);
    }
  }
}

void check_settle_scalings(Comparison& compare) {
  for (const int64_t count : {0, 1, 3, 128, 300})
    for (const uint32_t found_inf : {0u, 1u}) {
      StepState step = some_step();
      step.found_inf = found_inf;
      const Pair state = step_state(compare, step);
      std::vector<std::pair<Pair, Pair>> all;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t n = 2 + i % 70;
        const auto seed = static_cast<uint64_t>(i);
        all.emplace_back(compare.input({n}, DType::F32, Domain::Modest, 200 + seed),
                         compare.input({n}, DType::F32, Domain::Modest, 600 + seed));
      }
      compare.run(kernels::settle_scalings, [&](Side d) {
        SettleScalingsArgs args{{}, state_on(state, d)};
        for (const auto& [now, kept] : all) args.scalings.push_back({now.on(d), kept.on(d)});
        return args;
      });
      for (const auto& [now, kept] : all) {
        compare.same(now, "now, of ", count, ", found_inf ", found_inf);
        compare.same(kept, "kept, of ", count, ", found_inf ", found_inf);
      }
    }
}

namespace {

Pair average_state(const Comparison& compare, const AverageState& state) {
  std::vector<uint8_t> bytes(sizeof state);
  std::memcpy(bytes.data(), &state, sizeof state);
  return compare.both(Tensor::from(bytes, {static_cast<int64_t>(bytes.size())}));
}

AverageState* average_on(const Pair& state, Side side) {
  Tensor handle = state.on(side);
  return static_cast<AverageState*>(handle.mutable_raw());
}

}  // namespace

void check_begin_average(Comparison& compare) {
  for (const bool exponential : {false, true})
    for (const uint32_t start : {0u, 3u})
      for (const uint32_t every : {1u, 2u}) {
        const Pair average = average_state(compare, {});
        StepState step = some_step();
        for (int i = 0; i < 9; ++i) {
          if (i != 4) ++step.optimizer_step;  // one is skipped
          const Pair state = step_state(compare, step);
          compare.run(kernels::begin_average, [&](Side d) {
            return BeginAverageArgs{
                average_on(average, d), state_on(state, d), {exponential, 0.1f, start, every}};
          });
          compare.same(average, "step ", i, ", exponential ", exponential, ", start ", start,
                       ", every ", every);
        }
      }
}

void check_average(Comparison& compare) {
  const auto once = [&](const std::vector<int64_t>& sizes, const char* format, DType weight_type,
                        bool shifted, bool taken) {
    int64_t work = 0;
    for (const int64_t n : sizes) work += n;
    if (!compare.takes(work)) return;
    const Quantizer q = Quantizer::parse(format);
    const Pair step = step_state(compare, some_step());
    AverageState own;
    own.factor = 0.3f;
    own.gate.found_inf = taken ? 0 : 1;
    const Pair state = average_state(compare, own);
    std::vector<std::pair<Pair, Pair>> all;
    for (const int64_t n : sizes) {
      const auto tensor = [&](DType dtype, uint64_t seed) {
        const Pair whole = compare.input({n + 1}, dtype, Domain::Modest, seed);
        return shifted ? unaligned(whole)
                       : view(whole, [](const Tensor& t) { return t.slice(0, 0, t.size(0) - 1); });
      };
      all.emplace_back(tensor(weight_type, 141), tensor(storage_type(q), 142));
    }
    compare.run(kernels::average, [&](Side d) {
      AverageArgs args{{}, q, average_on(state, d)};
      uint32_t stream = 0;
      for (const auto& [weight, average] : all)
        args.weights.push_back({weight.on(d), average.on(d), key_on(step, d, ++stream)});
      return args;
    });
    for (const auto& [weight, average] : all)
      compare.same(average, std::string(format), " of ", text(weight_type), ", ", sizes.size(),
                   " weights, shifted ", shifted, ", taken ", taken);
  };
  for (const char* format :
       {"fp32", "bf16:sr", "e4m3", "e5m2:sr4", "fixed8.6:sr", "posit8.1:sr", "nf4"})
    for (const DType dtype : {DType::F32, DType::BF16, DType::F8E4M3})
      for (const bool shifted : {false, true}) once({1, 4099, 0, 33}, format, dtype, shifted, true);
  once({70}, "bf16:sr", DType::F32, false, false);
  for (const int64_t count : {0, 64, 65, 130})
    once(std::vector<int64_t>(static_cast<size_t>(count), 1031), "e6m9:sr", DType::F32, false,
         true);
}

}  // namespace ulp::cases
