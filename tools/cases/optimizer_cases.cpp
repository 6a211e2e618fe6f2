// Updates of weights: every rule, format and layout of states.

#include <string>
#include <string_view>
#include <vector>

#include "kernels/state.h"
#include "tools/cases/core_cases.h"

namespace ulp::cases {

namespace {

struct OptimizerCase {
  UpdateRule rule = UpdateRule::Sgd;
  const char* weight = "fp32";
  const char* grad = "fp32";
  const char* master = nullptr;        // nullptr: none
  const char* moment1 = "fp32";        // where the rule has one
  const char* moment2 = "fp32";        // where the rule has one
  const char* compensation = nullptr;  // nullptr: plain
  bool narrow = true;                  // states in their format's own type or codes; else F32
  GradOrder order = GradOrder::ScaleFirst;
  GradNormalisation normalisation = GradNormalisation::None;
  bool scaled = false;
  bool nesterov = false, decoupled = false, found_inf = false, shifted = false;
  float weight_decay = 0, grad_scaling = 1;
  int64_t n = 4099;
  int64_t copies = 1;  // parameters of one step, of n, n + 1, … elements
  std::string kind{};  // of Comparison::takes
};

constexpr int64_t kMuch = 100000;  // from here on values repeat

struct StatePair {
  Pair data, scales;
  StoredState on(Side side) const { return {data.on(side), scales.on(side)}; }
};

/// A state with some numbers of its format.
StatePair state_pair(Comparison& compare, const OptimizerCase& c, const char* format, int64_t n,
                     uint64_t seed) {
  if (format == nullptr) return {};
  const Quantizer q = Quantizer::parse(format);
  if (!is_packed(q) || (!c.narrow && q.is_elementwise())) {
    const DType dtype = c.narrow ? storage_type(q) : DType::F32;
    const Pair whole = n < kMuch ? compare.input({n + 1}, dtype, Domain::Modest, seed)
                                 : repeated(compare, {n + 1}, dtype, Domain::Modest, seed);
    const auto cut = [](const Tensor& t) { return t.slice(0, 0, t.size(0) - 1); };
    return {c.shifted ? unaligned(whole) : view(whole, cut), {}};
  }
  const Stream stream = stream_of(kCpu);
  const StoredState state = make_state(stream, q, {n});
  const Tensor numbers =
      n < kMuch ? values({n}, DType::F32, Domain::Modest, seed)
                : repeated(compare, {n}, DType::F32, Domain::Modest, seed).reference.to(kCpu);
  write_state(stream, numbers, q, {}, state);
  StatePair pair;
  pair.data = compare.both(state.data);
  if (state.scales.defined()) pair.scales = compare.both(state.scales);
  return pair;
}

void optimizer_once(Comparison& compare, const OptimizerCase& c) {
  if (!compare.takes(c.n, c.kind)) return;
  StepState step = some_step();
  step.found_inf = c.found_inf ? 1 : 0;
  step.grad_factor = 0.75f;
  const Pair state = step_state(compare, step);
  const auto quantizer = [](const char* format) {
    return format == nullptr ? Quantizer{} : Quantizer::parse(format);
  };
  const bool first = c.rule != UpdateRule::Sgd, second = c.rule == UpdateRule::Adam;
  struct States {
    StatePair weight, master, moment1, moment2, compensation;
    Pair grad;
  };
  std::vector<States> all;
  for (int64_t k = 0; k < c.copies; ++k) {
    const int64_t n = c.n + k;
    OptimizerCase native = c;  // weights are what layers read
    native.narrow = c.narrow && !is_packed(quantizer(c.weight));
    States s;
    const char* weight = native.narrow ? c.weight : "fp32";
    s.weight = state_pair(compare, native, weight, n, 111);
    s.master = state_pair(compare, c, c.master, n, 112);
    s.moment1 = state_pair(compare, c, first ? c.moment1 : nullptr, n, 113);
    s.moment2 = state_pair(compare, c, second ? c.moment2 : nullptr, n, 115);
    s.compensation = state_pair(compare, c, c.compensation, n, 116);
    const Domain domain = n % 2 == 0 ? Domain::Hard : Domain::Modest;
    s.grad = n < kMuch ? compare.input({n}, DType::F32, domain, 114)
                       : repeated(compare, {n}, DType::F32, domain, 114);
    all.push_back(s);
  }
  const Pair rates = compare.both(Tensor::from(std::vector<float>{0.5f, 0.05f, 0.2f}, {3}));
  const Pair updates = compare.both(Tensor::from(std::vector<int32_t>{c.nesterov ? 1 : 9}, {1}));
  const Pair steps = compare.both(Tensor::from(std::vector<int32_t>{c.decoupled ? 0 : 1234}, {1}));
  compare.run(kernels::optimizer_step, [&](Side d) {
    OptimizerArgs args;
    uint32_t stream = 0;
    for (const States& s : all) {
      OptimizerParameter p;
      p.weight = s.weight.data.on(d);
      p.grad = s.grad.on(d);
      p.master = s.master.on(d);
      p.moment1 = s.moment1.on(d);
      p.moment2 = s.moment2.on(d);
      p.compensation = s.compensation.on(d);
      for (RandomKey* key : {&p.weight_key, &p.grad_key, &p.master_key, &p.moment1_key,
                             &p.moment2_key, &p.compensation_key})
        *key = key_on(state, d, ++stream);
      args.parameters.push_back(p);
    }
    if (c.copies > 2) args.parameters[1].grad = {};  // left as it is
    args.weight_format = quantizer(c.weight);
    args.grad_format = quantizer(c.grad);
    args.master_format = quantizer(c.master);
    args.moment1_format = quantizer(c.moment1);
    args.moment2_format = quantizer(c.moment2);
    args.compensation_format = quantizer(c.compensation);
    UpdateSettings& s = args.settings;
    s.rule = c.rule;
    s.nesterov = c.nesterov;
    s.decoupled = c.decoupled;
    s.grad_scaling = c.grad_scaling;
    s.grad_order = c.order;
    s.grad_normalisation = c.normalisation;
    s.scaled = c.scaled;
    s.lr_factor = 0.5f;
    s.weight_decay = c.weight_decay;
    s.eps = 1e-8f;
    s.beta1 = 0.9;
    s.beta2 = 0.999;
    args.rates = rates.on(d);
    args.updates = updates.on(d);
    args.steps = steps.on(d);
    args.state = state_on(state, d);
    return args;
  });
  const auto same = [&](const Pair& pair, const char* what) {
    if (!pair.reference.defined()) return;
    const auto name = [](const char* format) { return format == nullptr ? "none" : format; };
    compare.same(pair, what, " of rule ", static_cast<int>(c.rule), ", weight ", name(c.weight),
                 ", master ", name(c.master), ", moments ", name(c.moment1), " ", name(c.moment2),
                 ", compensation ", name(c.compensation), ", grad ", name(c.grad), ", narrow ",
                 c.narrow, ", nesterov ", c.nesterov, ", decay ", c.weight_decay, ", decoupled ",
                 c.decoupled, ", found_inf ", c.found_inf, ", n ", c.n);
  };
  for (const States& s : all) {
    same(s.weight.data, "weight");
    for (const auto& [pair, what] :
         {std::pair{&s.master, "master"}, std::pair{&s.moment1, "moment1"},
          std::pair{&s.moment2, "moment2"}, std::pair{&s.compensation, "compensation"}}) {
      same(pair->data, what);
      same(pair->scales, what);
    }
  }
}

constexpr UpdateRule kRules[] = {UpdateRule::Sgd, UpdateRule::Momentum, UpdateRule::Adam,
                                 UpdateRule::Lion};

}  // namespace

void check_optimizer_step(Comparison& compare) {
  // Native types.
  for (const UpdateRule rule : kRules)
    for (const char* master : {static_cast<const char*>(nullptr), "fp32", "bf16:sr"})
      for (const char* moment : {"fp32", "e5m2:sr", "bf16:sr4c"})
        for (const char* weight : {"fp32", "e4m3", "e5m2:sr", "fixed8.6:rnu"})
          for (const bool narrow : {false, true})
            for (const float decay : {0.0f, 0.01f})
              for (const int64_t n : {0, 1, 4099, 2050}) {
                if (rule == UpdateRule::Sgd && std::string_view(moment) != "fp32") continue;
                OptimizerCase c;
                c.rule = rule;
                c.weight = weight;
                c.master = master;
                c.moment1 = moment;
                c.moment2 = narrow ? "bf16" : moment;
                c.grad = narrow ? "e5m2:sr" : "fp32";
                c.narrow = narrow;
                c.nesterov = narrow;
                c.decoupled = n == 2050;
                c.weight_decay = decay;
                c.n = n;
                c.shifted = n == 2050;
                c.grad_scaling = decay > 0 ? 0.37f : 1.0f;
                optimizer_once(compare, c);
                if (n != 1) continue;
                c.found_inf = true;
                optimizer_once(compare, c);
              }
  for (const char* grad : {"fp32", "e5m2:sr", "fixed8.4"}) {
    OptimizerCase c;
    c.grad = grad;
    c.grad_scaling = 0.37f;
    c.order = GradOrder::QuantiseFirst;
    optimizer_once(compare, c);
    c.order = GradOrder::ScaleFirst;
    c.scaled = true;
    optimizer_once(compare, c);
  }
  // Normalised gradients: in every kernel, of one parameter and many, with gradients of their own types.
  for (const UpdateRule rule : kRules)
    for (const GradOrder order : {GradOrder::ScaleFirst, GradOrder::QuantiseFirst})
      for (const char* grad : {"fp32", "e5m2:sr"})
        for (const int64_t copies : {1, 2, 300})
          for (const int64_t n : {0, 1, 7, 2047, 4099}) {
            if (copies == 300 && n > 7) continue;
            OptimizerCase c;
            c.rule = rule;
            c.weight = copies == 2 ? "bf16:sr" : "fixed8.7-sym:sr";
            c.compensation = copies == 2 ? "bf16" : nullptr;
            c.moment1 = n == 4099 ? "dynamic8-g256-scalef32" : "bf16";
            c.grad = grad;
            c.order = order;
            c.normalisation = GradNormalisation::Shift;
            c.grad_scaling = 0.37f;
            c.n = n;
            c.copies = copies;
            optimizer_once(compare, c);
          }
  // Codes, with and without groups.
  const char* formats[] = {"fixed8.6:sr",
                           "e3m4",
                           "e6m9:sr",
                           "fixed12.9",
                           "tf32",
                           "posit8.1",
                           "posit16.1:sr",
                           "nf4",
                           "e2m1",
                           "e2m3:sr",
                           "dynamic8",
                           "dynamic8u:sr",
                           "e3m4-none:odd",
                           "binary8p3:sr4c",
                           "dynamic8-g256-scalef32",
                           "dynamic8u-g256-scalef32:sr",
                           "nf4-g64-scalef32:sr4",
                           "e4m3-g64-scalef32:sr",
                           "e5m2-g8-scalef32",
                           "e2m1-g32-scalef32",
                           "e2m1-g4-scalef32:sr",
                           "fixed8.7-g128-scalef32",
                           "posit8.1-g16-scalef32",
                           "e6m9-g256-scalef32:sr",
                           "e2m3-g256-scalef32"};
  for (const char* format : formats)
    for (const UpdateRule rule : kRules)
      for (const bool kahan : {false, true})
        for (const int64_t n : {1, 3, 255, 256, 257, 2047, 2048, 4099}) {
          OptimizerCase c;
          if (n == 4099) c.kind = format;
          c.rule = rule;
          c.moment1 = c.moment2 = format;
          const bool grouped = !Quantizer::parse(format).is_elementwise();
          if (kahan) c.compensation = format;
          if (kahan || rule == UpdateRule::Sgd) {
            c.weight = "bf16";
            c.master = kahan && grouped ? "e6m9" : format;
          }
          c.decoupled = kahan;
          c.weight_decay = 0.01f;
          c.n = n;
          optimizer_once(compare, c);
        }
  // Kahan on weights, and combinations of layouts.
  for (const char* weight : {"bf16", "bf16:sr", "e4m3", "fp32"})
    for (const UpdateRule rule : kRules)
      for (const int64_t n : {5, 2048, 3001}) {
        OptimizerCase c;
        c.rule = rule;
        c.weight = weight;
        c.compensation = "bf16";
        c.moment1 = "e4m3-g256-scalef32";
        c.moment2 = "fixed12.9:sr";
        c.n = n;
        optimizer_once(compare, c);
      }
  // Numbers that leave a format's bounds: what is made of them in turn is made of Inf or of the largest number.
  for (const char* kept : {"fp16", "fp16:sr", "e5m2", "e5m2:sr", "e4m3", "e4m3:sr", "e4m3-ieee:sr",
                           "e3m4", "e6m9:sr", "fixed8.4", "bf16:sr"})
    for (const char* made :
         {"fp16", "e4m3", "e4m3:sr", "e5m2", "e5m2:sr", "e2m3:sr", "fixed20.10:sr", "bf16"})
      for (const bool kahan : {false, true})
        for (const float far : {1.0f, 30.0f, 1e6f}) {
          OptimizerCase c;
          c.rule = kahan ? UpdateRule::Sgd : UpdateRule::Lion;
          c.weight = kahan ? kept : made;
          c.master = kahan ? nullptr : kept;
          c.compensation = kahan ? made : nullptr;
          c.moment1 = made;
          c.grad_scaling = far;
          c.n = 1027;
          optimizer_once(compare, c);
        }
  // So large that the work may be cut in another way: native types, codes, and both.
  for (const UpdateRule rule : kRules)
    for (const bool codes : {false, true}) {
      OptimizerCase c;
      c.rule = rule;
      c.weight = codes ? "bf16:sr" : "e4m3";
      c.master = codes ? nullptr : "bf16:sr";
      c.compensation = codes ? "bf16" : nullptr;
      c.moment1 = codes ? "dynamic8-g256-scalef32:sr" : "bf16:sr";
      c.moment2 = codes ? "dynamic8u-g256-scalef32" : "bf16";
      c.grad = codes ? "fp32" : "e5m2:sr";
      c.weight_decay = 0.01f;
      c.n = (int64_t{1} << 20) + 4099;
      c.kind = "large" + std::to_string(static_cast<int>(rule)) + (codes ? "codes" : "");
      optimizer_once(compare, c);
      c.normalisation = GradNormalisation::Shift;
      optimizer_once(compare, c);
    }
  for (const int64_t copies : {0, 2, 33, 300}) {  // one launch takes 192
    OptimizerCase c;
    c.rule = copies == 33 ? UpdateRule::Adam : UpdateRule::Momentum;
    c.weight = "e4m3";
    c.master = "e6m9:sr";
    c.moment1 = "bf16:sr";
    c.moment2 = "dynamic8u-g256-scalef32";
    c.grad = "e5m2:sr";
    c.n = copies == 300 ? 7 : 2047;
    c.copies = copies;
    optimizer_once(compare, c);
  }
}

}  // namespace ulp::cases
