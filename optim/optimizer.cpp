#include "optim/optimizer.h"

#include <algorithm>
#include <cmath>

#include "autograd/role_stats.h"
#include "core/error.h"
#include "core/pattern.h"
#include "kernels/quantised.h"
#include "kernels/state.h"
#include "optim/parameter_format.h"

namespace ulp::optim {
namespace {

constexpr std::array<const char*, 4> kNames = {"sgd", "adam", "adamw", "lion"};
constexpr const char* kSteps = "optimizer.steps";

void check_coefficient(const std::string& who, const char* name, double value) {
  ULP_CHECK(std::isfinite(value) && value >= 0, "{}: {} must be a number >= 0, got {}", who, name,
            value);
}

void check_beta(const std::string& who, const char* name, double value) {
  ULP_CHECK(value >= 0 && value < 1, "{}: {} must be a number >= 0 and below 1, got {}", who, name,
            value);
}

Tensor as_f32(Stream stream, const Tensor& tensor) {
  Tensor out = Tensor::empty(tensor.shape(), DType::F32, tensor.device());
  kernels::copy(stream, {tensor, out});
  return out;
}

bool is_adam(const OptimizerOptions& o) {
  return o.algorithm == Algorithm::Adam || o.algorithm == Algorithm::AdamW;
}

bool keeps(const OptimizerOptions& o, Slot slot) {
  switch (slot) {
    case Slot::Master: return o.accumulator.has_value();
    case Slot::Moment1: return o.algorithm != Algorithm::Sgd || o.momentum > 0;
    case Slot::Moment2: return is_adam(o);
    case Slot::Compensation: return o.update == Update::Kahan;
  }
  return false;
}

UpdateRule rule_of(const OptimizerOptions& o) {
  switch (o.algorithm) {
    case Algorithm::Sgd: return o.momentum > 0 ? UpdateRule::Momentum : UpdateRule::Sgd;
    case Algorithm::Adam:
    case Algorithm::AdamW: return UpdateRule::Adam;
    case Algorithm::Lion: return UpdateRule::Lion;
  }
  return UpdateRule::Sgd;
}

void check_options(const OptimizerOptions& o) {
  const std::string who = to_string(o.algorithm);
  check_coefficient(who, "lr", o.lr);
  check_beta(who, "momentum", o.momentum);
  check_coefficient(who, "weight_decay", o.weight_decay);
  check_coefficient(who, "grad_scaling", o.grad_scaling);
  check_beta(who, "beta1", o.beta1);
  check_beta(who, "beta2", o.beta2);
  ULP_CHECK(std::isfinite(o.eps) && static_cast<float>(o.eps) > 0,
            "{}: eps must be a number above 0, got {}", who, o.eps);
  const bool sgd = o.algorithm == Algorithm::Sgd;
  ULP_CHECK(sgd || (o.momentum == 0 && !o.nesterov),
            "{}: momentum and nesterov are for sgd; {} has beta1 and beta2", who, who);
  ULP_CHECK(!o.nesterov || o.momentum > 0, "sgd: nesterov needs a momentum above 0");
}

/// A format for a state that there is not.
void check_used(const OptimizerOptions& o) {
  const std::string who = to_string(o.algorithm);
  ULP_CHECK(keeps(o, Slot::Moment1) || o.moment1.is_identity(),
            "sgd: a format of moment1 ({}) needs a momentum above 0", o.moment1);
  ULP_CHECK(keeps(o, Slot::Moment2) || o.moment2.is_identity(),
            "{}: a format of moment2 ({}) is for adam and adamw; {} keeps no second moment", who,
            o.moment2, who);
  ULP_CHECK(keeps(o, Slot::Compensation) || o.compensation.is_identity(),
            "{}: a format of the compensation ({}) needs kahan updates", who, o.compensation);
  const Quantizer& kept = o.accumulator ? *o.accumulator : o.weight;
  for (const auto& [name, format] : {std::pair("weight", &o.weight),
                                     {"accumulator", &kept},
                                     {"grad", &o.grad},
                                     {"moment1", &o.moment1},
                                     {"compensation", &o.compensation}})
    ULP_CHECK(has_negatives(format->format),
              "{}: {} has negative numbers, and {} has none; unsigned formats are for moment2", who,
              name, *format);
  ULP_CHECK(o.grad_normalisation == GradNormalisation::None || o.grad.is_elementwise(),
            "{}: gradients that are normalised take a format without blocks, got {}", who, o.grad);
  ULP_CHECK(o.update == Update::Plain || kept.is_elementwise(),
            "{}: kahan updates need {} without blocks, got {}", who,
            o.accumulator ? "an accumulator" : "weights", kept);
}

void apply(const ParameterGroup& group, OptimizerOptions& o, double& lr_factor) {
  if (group.lr_factor) lr_factor = *group.lr_factor;
  if (group.weight_decay) o.weight_decay = *group.weight_decay;
  if (group.weight) o.weight = *group.weight;
  if (group.grad) o.grad = *group.grad;
  if (group.moment1) o.moment1 = *group.moment1;
  if (group.moment2) o.moment2 = *group.moment2;
  if (group.compensation) o.compensation = *group.compensation;
  if (group.accumulator) o.accumulator = *group.accumulator;
}

void check_patterns(const OptimizerOptions& o, const std::vector<Parameter*>& parameters) {
  std::vector<std::string> paths;
  for (const Parameter* p : parameters) paths.push_back(p->path);
  for (const ParameterGroup& group : o.groups) {
    const bool found = std::any_of(paths.begin(), paths.end(), [&](const std::string& path) {
      return matches(group.pattern, path);
    });
    if (found) continue;
    std::string near;
    for (const std::string& name : similar(group.pattern, paths))
      near += (near.empty() ? "" : ", ") + name;
    throw_error("{}: the group '{}' matches no parameter; similar: {}", to_string(o.algorithm),
                group.pattern, near.empty() ? "there are none" : near);
  }
}

bool is_fused(const Optimizer::State& s) {
  if (!s.options.weight.is_elementwise() || !s.options.grad.is_elementwise()) return false;
  return std::all_of(kSlots.begin(), kSlots.end(),
                     [&](Slot slot) { return !s[slot].defined() || in_kernel(s.format(slot)); });
}

/// Without what is stored.
Optimizer::State state_of(const OptimizerOptions& options, Parameter* p) {
  Optimizer::State state{p, options, 1, {}};
  state.options.groups.clear();
  if (p->value.numel() < options.moments_from)
    state.options.moment1 = state.options.moment2 = Quantizer{};
  for (const ParameterGroup& group : options.groups)
    if (matches(group.pattern, p->path)) apply(group, state.options, state.lr_factor);
  return state;
}

void check_state(const Optimizer::State& state) {
  const std::string who = to_string(state.options.algorithm);
  const Parameter& p = *state.parameter;
  check_options(state.options);
  check_coefficient(who, "lr_factor", state.lr_factor);
  check_used(state.options);
  check_axis(who, p, "weight", state.options.weight);
  check_axis(who, p, "gradient", state.options.grad);
  for (const Slot slot : kSlots) check_axis(who, p, to_string(slot), state.format(slot));
}

/// "group 'fc*', group '*.bias'": those that a parameter is in.
std::string groups_of(const OptimizerOptions& options, const Parameter& p) {
  std::string text;
  for (const ParameterGroup& group : options.groups)
    if (matches(group.pattern, p.path))
      text += (text.empty() ? "group '" : ", group '") + group.pattern + "'";
  return text;
}

/// One launch serves both.
bool go_together(const Optimizer::State& a, const Optimizer::State& b) {
  const OptimizerOptions &x = a.options, &y = b.options;
  return x.weight == y.weight && x.grad == y.grad && x.accumulator == y.accumulator &&
         x.moment1 == y.moment1 && x.moment2 == y.moment2 && x.compensation == y.compensation &&
         x.weight_decay == y.weight_decay && a.lr_factor == b.lr_factor;
}

}  // namespace

void check(const OptimizerOptions& options, const std::vector<Parameter*>& parameters) {
  check_options(options);
  check_patterns(options, parameters);
  for (Parameter* p : parameters) {
    ULP_CHECK(p->value.defined(), "{}: {} has no value yet; initialise the model first",
              to_string(options.algorithm), p->path);
    const std::string groups = groups_of(options, *p);
    try {
      check_state(state_of(options, p));
    } catch (const Error& error) {
      if (groups.empty()) throw;
      throw_error("{} ({} of {})", error.what(), p->path, groups);
    }
  }
}

std::string to_string(Algorithm algorithm) { return kNames[static_cast<size_t>(algorithm)]; }

Algorithm parse_algorithm(std::string_view text) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (text == kNames[i]) return static_cast<Algorithm>(i);
  throw_error("'{}' is no optimizer; there are sgd, adam, adamw and lion", text);
}

OptimizerOptions OptimizerOptions::of(Algorithm algorithm) {
  OptimizerOptions o;
  o.algorithm = algorithm;
  o.lr = algorithm == Algorithm::Sgd ? 0.1 : algorithm == Algorithm::Lion ? 1e-4 : 1e-3;
  if (algorithm == Algorithm::Lion) o.beta2 = 0.99;
  return o;
}

Decay OptimizerOptions::resolved_decay() const {
  const bool own = algorithm == Algorithm::AdamW || algorithm == Algorithm::Lion;
  return decay.value_or(own ? Decay::Decoupled : Decay::Coupled);
}

const char* to_string(Slot slot) {
  switch (slot) {
    case Slot::Master: return "master";
    case Slot::Moment1: return "moment1";
    case Slot::Moment2: return "moment2";
    case Slot::Compensation: return "compensation";
  }
  return "?";
}

const Quantizer& Optimizer::State::format(Slot slot) const {
  static const Quantizer none{};
  switch (slot) {
    case Slot::Master: return options.accumulator ? *options.accumulator : none;
    case Slot::Moment1: return options.moment1;
    case Slot::Moment2: return options.moment2;
    case Slot::Compensation: return options.compensation;
  }
  return none;
}

Optimizer::Optimizer(Run& run, std::vector<Parameter*> parameters, const OptimizerOptions& options)
    : run_(run), options_(options) {
  check(options, parameters);
  for (Parameter* p : parameters) {
    const std::string who = to_string(options.algorithm);
    for (const State& state : states_)
      ULP_CHECK(state.parameter != p, "{}: {} is given twice", who, p->path);
    State state = state_of(options, p);
    make_states(state);
    states_.push_back(std::move(state));
  }
  for (size_t i = 0; i < states_.size(); ++i) {
    const bool fused = is_fused(states_[i]);
    const auto at = std::find_if(launches_.begin(), launches_.end(), [&](const Launch& l) {
      return fused && l.fused && go_together(states_[l.states.front()], states_[i]);
    });
    if (at != launches_.end())
      at->states.push_back(i);
    else
      launches_.push_back({{i}, fused, std::make_shared<ParameterTable>()});
  }
  updates_on_device_ = Tensor::zeros({1}, DType::I32, run_.device());
  steps_on_device_ = Tensor::zeros({1}, DType::I32, run_.device());
  run_.keep_scalings();  // weights and states were quantised
  set_lr(options.lr);
}

void Optimizer::make_states(State& state) {
  Parameter& p = *state.parameter;
  const OptimizerOptions& o = state.options;
  const auto first = [&](const char* role) {
    return RandomKey{run_.seed(), p.site().stream(role), 0, nullptr};
  };
  Tensor source = as_f32(run_.stream(), p.value);
  for (const Slot slot : kSlots) {
    if (!keeps(o, slot)) continue;
    StoredState& stored = state.stored[static_cast<size_t>(slot)];
    const Quantizer& q = state.format(slot);
    stored = make_state(run_.stream(), q, p.value.shape());
    if (slot != Slot::Master) continue;
    const RandomKey own = first(to_string(slot));
    source = write_state(run_.stream(), source, q, own, stored, nullptr, scaling(own, q));
    if (source.dtype() != DType::F32) source = as_f32(run_.stream(), source);
  }
  p.value = o.weight.is_identity()
                ? as_f32(run_.stream(), source)
                : quantised(source, o.weight, first("weight"), storage_type(o.weight));
  p.grad = {};
}

void Optimizer::set_rates(std::span<const float> rates, std::span<const float> momenta) {
  const std::string who = to_string(options_.algorithm);
  ULP_CHECK(!rates.empty(), "{}: there are no learning rates", who);
  for (const float rate : rates) check_coefficient(who, "lr", rate);
  for (const float momentum : momenta) check_beta(who, "momentum", momentum);
  ULP_CHECK(momenta.empty() || momenta.size() == rates.size(),
            "{}: {} learning rates and {} momenta; there is one for each rate", who, rates.size(),
            momenta.size());
  ULP_CHECK(momenta.empty() || rule_of(options_) != UpdateRule::Sgd,
            "sgd: a schedule's momentum needs a momentum above 0 to begin with");
  if (rates.size() != rates_.size() || own_momenta_ == momenta.empty()) {
    rates_on_device_ = Tensor::empty({static_cast<int64_t>(rates.size() + momenta.size())},
                                     DType::F32, run_.device());
    run_.note_replaced();
  }
  own_momenta_ = !momenta.empty();
  std::vector<float> both(rates.begin(), rates.end());
  both.insert(both.end(), momenta.begin(), momenta.end());
  copy_bytes(rates_on_device_.mutable_raw(), run_.device(), both.data(), kCpu,
             both.size() * sizeof(float));
  const int32_t none = 0;
  copy_bytes(updates_on_device_.mutable_raw(), run_.device(), &none, kCpu, sizeof none);
  rates_.assign(rates.begin(), rates.end());
  updates_ = 0;
}

void Optimizer::set_lr(double lr) {
  check_coefficient(to_string(options_.algorithm), "lr", lr);
  const float rate = static_cast<float>(lr);
  if (own_momenta_ || rates_.size() != 1 || rates_.front() != rate) set_rates({&rate, 1});
}

double Optimizer::lr() const {
  return rates_[static_cast<size_t>(std::min(updates_, static_cast<int64_t>(rates_.size()) - 1))];
}

RandomKey Optimizer::key(const Parameter& parameter, const char* role) const {
  return {run_.seed(), parameter.site().stream(role), 0, run_.device_state()};
}

Tensor Optimizer::scaling(const RandomKey& key, const Quantizer& quantizer) const {
  if (quantizer.scale.kind != Scale::Kind::Delayed) return {};
  return run_.scaling(key.stream, quantizer);
}

Tensor Optimizer::quantised(const Tensor& in, const Quantizer& quantizer, const RandomKey& key,
                            DType dtype, const Tensor& stats) const {
  QuantiseUse use;
  use.quantizer = at_rank(quantizer, in.rank());
  use.axis = std::max(0, in.rank() - 1);
  use.key = key;
  use.scaling = scaling(key, quantizer);
  use.stats = stats;
  use.frozen = stats.defined();  // to count is to look
  return ulp::quantised(run_.stream(), in, use, dtype);
}

Tensor Optimizer::read(const State& state, Slot slot) const {
  const StoredState& stored = state[slot];
  ULP_CHECK(stored.defined(), "{}: {} has no {}", to_string(options_.algorithm),
            state.parameter->path, to_string(slot));
  return read_state(run_.stream(), stored, state.format(slot), state.parameter->value.shape());
}

std::map<std::string, Tensor> Optimizer::tensors() const {
  std::map<std::string, Tensor> all{{kSteps, steps_on_device_}};
  for (const State& state : states_)
    for (const Slot slot : kSlots) {
      const StoredState& stored = state[slot];
      if (!stored.defined()) continue;
      const std::string name = state.parameter->path + "." + to_string(slot);
      const bool packed = stored.data.dtype() == DType::U8;
      all[packed ? name + ".codes" : name] = stored.data;
      if (stored.scales.defined()) all[name + ".scales"] = stored.scales;
      if (stored.factor.defined()) all[name + ".factor"] = stored.factor;
    }
  return all;
}

std::map<std::string, std::string> Optimizer::formats() const {
  std::map<std::string, std::string> all;
  for (const auto& [name, tensor] : tensors()) all[name] = "i32";
  for (const State& state : states_)
    for (const Slot slot : kSlots)
      for (const char* part : {"", ".codes", ".scales", ".factor"}) {
        const auto at = all.find(state.parameter->path + "." + to_string(slot) + part);
        if (at != all.end()) at->second = ulp::to_string(state.format(slot));
      }
  return all;
}

int64_t Optimizer::bytes() const {
  int64_t bytes = 0;
  for (const State& state : states_)
    for (const StoredState& stored : state.stored) bytes += state_bytes(stored);
  return bytes;
}

OptimizerArgs Optimizer::arguments(const State& like) const {
  const OptimizerOptions& o = like.options;
  OptimizerArgs args;
  UpdateSettings& s = args.settings;
  s.rule = rule_of(o);
  s.nesterov = o.nesterov;
  s.decoupled = o.resolved_decay() == Decay::Decoupled;
  s.grad_scaling = static_cast<float>(o.grad_scaling);
  s.grad_order = o.grad_order;
  s.grad_normalisation = o.grad_normalisation;
  s.lr_factor = static_cast<float>(like.lr_factor);
  s.weight_decay = static_cast<float>(o.weight_decay);
  s.eps = static_cast<float>(o.eps);
  s.beta1 = own_momenta_ ? -1 : o.algorithm == Algorithm::Sgd ? o.momentum : o.beta1;
  s.beta2 = o.beta2;
  args.weight_format = o.weight;
  args.grad_format = o.grad;
  args.master_format = like.format(Slot::Master);
  args.moment1_format = o.moment1;
  args.moment2_format = o.moment2;
  args.compensation_format = o.compensation;
  args.rates = rates_on_device_;
  args.updates = updates_on_device_;
  args.steps = steps_on_device_;
  args.state = run_.device_state();
  return args;
}

namespace {

OptimizerParameter parameter_of(const Optimizer::State& state) {
  OptimizerParameter p;
  p.weight = state.parameter->value;
  p.grad = state.parameter->grad;
  p.master = state[Slot::Master];
  p.moment1 = state[Slot::Moment1];
  p.moment2 = state[Slot::Moment2];
  p.compensation = state[Slot::Compensation];
  return p;
}

}  // namespace

void Optimizer::set_keys(const Parameter& p, OptimizerParameter& one) const {
  one.weight_key = key(p, "weight");
  one.grad_key = key(p, "grad");
  one.master_key = key(p, to_string(Slot::Master));
  one.moment1_key = key(p, to_string(Slot::Moment1));
  one.moment2_key = key(p, to_string(Slot::Moment2));
  one.compensation_key = key(p, to_string(Slot::Compensation));
}

void Optimizer::update_fused(const Launch& launch) {
  OptimizerArgs args = arguments(states_[launch.states.front()]);
  args.table = launch.table;
  for (const size_t index : launch.states) {
    const State& state = states_[index];
    const Parameter& p = *state.parameter;
    OptimizerParameter one = parameter_of(state);
    set_keys(p, one);
    args.parameters.push_back(std::move(one));
  }
  kernels::optimizer_step(run_.stream(), args);
}

/// What the gradient's quantizer gets; `args` then take what that makes of it.
Tensor Optimizer::unrounded_gradient(const State& state, OptimizerArgs& args) const {
  const Tensor& grad = state.parameter->grad;
  if (state.options.grad_order != GradOrder::ScaleFirst) return grad;
  const Tensor scaled = Tensor::empty(grad.shape(), DType::F32, grad.device());
  const Tensor factor = Tensor::empty({1}, DType::F32, grad.device());
  kernels::fill(run_.stream(), {factor, args.settings.grad_scaling, nullptr, args.state});
  kernels::multiply(run_.stream(), {{grad, factor, {}}, scaled, 0, {}, {}});
  args.settings.scaled = true;
  return scaled;
}

/// The same where it is divided by a power of two first: what a first momentum from it is. Of a step that is skipped, the
/// gradient as it is.
Tensor Optimizer::normalised_gradient(const State& state) const {
  const Parameter& p = *state.parameter;
  OptimizerArgs args = arguments(state);
  args.grad_format = args.weight_format = args.master_format = args.moment1_format =
      args.moment2_format = args.compensation_format = {};
  args.settings.rule = UpdateRule::Momentum;
  args.settings.beta1 = 0;
  args.settings.weight_decay = 0;
  OptimizerParameter one;
  one.weight = as_f32(run_.stream(), p.value);
  one.grad = p.grad;
  one.moment1 = {as_f32(run_.stream(), p.grad)};
  args.parameters = {one};
  kernels::optimizer_step(run_.stream(), args);
  return one.moment1.data;
}

void Optimizer::count_roundings(const State& state) const {
  const Parameter& p = *state.parameter;
  if (!p.grad.defined() || p.grad.numel() == 0) return;
  const OptimizerOptions& o = state.options;
  const auto counted = [&](const char* role, const Quantizer& q, const Tensor& in) {
    const RandomKey own = key(p, role);
    return quantised(in, q, own, DType::F32, run_.role_stats()->slot(own.stream, q));
  };
  const auto counted_state = [&](Slot slot, const Tensor& in) {
    const Quantizer& q = state.format(slot);
    const RandomKey own = key(p, to_string(slot));
    return count_state(run_.stream(), in, q, own, scaling(own, q),
                       run_.role_stats()->slot(own.stream, q));
  };
  OptimizerArgs args = arguments(state);
  const bool normalised =
      o.grad_normalisation != GradNormalisation::None && o.grad_order == GradOrder::ScaleFirst;
  Tensor grad = counted("grad", o.grad,
                        normalised ? normalised_gradient(state) : unrounded_gradient(state, args));
  if (o.grad.is_elementwise()) {  // the update rounds it again, as the step does
    args.settings.scaled = false;
    grad = p.grad;
  } else {
    args.grad_format = {};
  }
  args.weight_format = args.master_format = args.moment1_format = args.moment2_format =
      args.compensation_format = {};

  // The update on F32 copies; only the copy that is kept has a format, which what Kahan's compensation is depends on.
  const auto updated = [&](const Quantizer& kept) {
    OptimizerParameter copy = parameter_of(state);
    copy.grad = grad;
    copy.weight = as_f32(run_.stream(), p.value);
    for (const auto& [slot, at] :
         {std::pair(Slot::Master, &copy.master), std::pair(Slot::Moment1, &copy.moment1),
          std::pair(Slot::Moment2, &copy.moment2),
          std::pair(Slot::Compensation, &copy.compensation)})
      if (at->defined()) *at = {read(state, slot)};
    set_keys(p, copy);
    OptimizerArgs on_copies = args;
    (o.accumulator ? on_copies.master_format : on_copies.weight_format) = kept;
    on_copies.parameters = {copy};
    kernels::optimizer_step(run_.stream(), on_copies);
    return copy;
  };
  const OptimizerParameter exact = updated({});
  if (exact.moment1.defined()) counted_state(Slot::Moment1, exact.moment1.data);
  if (exact.moment2.defined()) counted_state(Slot::Moment2, exact.moment2.data);
  if (exact.compensation.defined())
    counted_state(Slot::Compensation,
                  updated(o.accumulator ? *o.accumulator : o.weight).compensation.data);
  counted("weight", o.weight,
          exact.master.defined() ? counted_state(Slot::Master, exact.master.data) : exact.weight);
}

void Optimizer::update_blocks(const State& state) {
  // The scale of a block is known only when all its values are: what the kernel cannot round itself goes through it as an
  // fp32 copy without a format and is quantised from there. Tensors stay where they are: a recorded step knows their
  // addresses.
  Parameter& p = *state.parameter;
  const OptimizerOptions& o = state.options;
  const Stream stream = run_.stream();
  const Shape& shape = p.value.shape();
  OptimizerArgs args = arguments(state);
  OptimizerParameter update = parameter_of(state);
  if (!o.grad.is_elementwise()) {
    update.grad = quantised(unrounded_gradient(state, args), o.grad, key(p, "grad"), DType::F32);
    args.grad_format = {};
  }
  update.grad_key = key(p, "grad");
  update.weight_key = key(p, "weight");

  struct Own {  // a state that passes through as fp32
    Slot slot;
    Tensor values;
  };
  std::vector<Own> through;
  const auto pass = [&](Slot slot, StoredState& at, Quantizer& format, RandomKey& own) {
    own = key(p, to_string(slot));
    if (!at.defined() || in_kernel(format)) return;
    at = {read_state(stream, at, format, shape)};
    format = {};
    through.push_back({slot, at.data});
  };
  pass(Slot::Master, update.master, args.master_format, update.master_key);
  pass(Slot::Moment1, update.moment1, args.moment1_format, update.moment1_key);
  pass(Slot::Moment2, update.moment2, args.moment2_format, update.moment2_key);
  pass(Slot::Compensation, update.compensation, args.compensation_format, update.compensation_key);
  const bool own_master = !through.empty() && through.front().slot == Slot::Master;
  const bool own_weight = own_master || !o.weight.is_elementwise();
  if (own_weight) {
    update.weight = as_f32(stream, p.value);
    args.weight_format = {};
  }
  args.parameters = {update};
  kernels::optimizer_step(stream, args);

  Tensor weight = update.weight;
  for (const Own& own : through) {
    const RandomKey its = key(p, to_string(own.slot));
    const Quantizer& q = state.format(own.slot);
    const Tensor rounded =
        write_state(stream, own.values, q, its, state[own.slot], args.state, scaling(its, q));
    if (own.slot == Slot::Master) weight = rounded;
  }
  if (!own_weight) return;
  const Tensor rounded = o.weight.is_identity()
                             ? weight
                             : quantised(weight, o.weight, key(p, "weight"), p.value.dtype());
  kernels::copy(stream, {rounded, p.value, args.state});
}

void Optimizer::step() {
  for (const State& state : states_) {
    const Parameter& p = *state.parameter;
    ULP_CHECK(!p.grad.defined() || p.grad.shape() == p.value.shape(),
              "{}: {} has shape {} and its gradient {}", to_string(options_.algorithm), p.path,
              p.value.shape(), p.grad.shape());
  }
  if (run_.role_stats() != nullptr)
    for (const State& state : states_) count_roundings(state);
  for (const Launch& launch : launches_) {
    const State& only = states_[launch.states.front()];
    if (launch.fused)
      update_fused(launch);
    else if (only.parameter->grad.defined())
      update_blocks(only);
  }
  zero_grad();
  run_.advance(updates_on_device_, steps_on_device_);
  run_.mirror([this] { ++updates_; });
}

void Optimizer::zero_grad() {
  for (State& state : states_) state.parameter->grad = {};
}

}  // namespace ulp::optim
