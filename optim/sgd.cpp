#include "optim/sgd.h"

#include <cmath>

#include "core/error.h"
#include "kernels/quantised.h"

namespace ulp::optim {
namespace {

void check_coefficient(const char* name, double value) {
  ULP_CHECK(std::isfinite(value) && value >= 0, "sgd: {} must be a number >= 0, got {}", name,
            value);
}

/// The format as one parameter has it: a vector has one axis, whatever axis is asked for.
Quantizer at_rank(Quantizer q, int rank) {
  if (q.block.kind == Block::Kind::Axis && rank == 1) q.block.axis = 0;
  return q;
}

void check_axis(const Parameter& parameter, const char* what, const Quantizer& q) {
  ULP_CHECK(q.block.kind != Block::Kind::Axis || parameter.value.rank() == 1 ||
                q.block.axis < parameter.value.rank(),
            "sgd: the {} format {} needs axis {}, but {} has shape {}", what, q, q.block.axis,
            parameter.path, parameter.value.shape());
}

Tensor as_f32(Stream stream, const Tensor& tensor) {
  Tensor out = Tensor::empty(tensor.shape(), DType::F32, tensor.device());
  kernels::copy(stream, {tensor, out});
  return out;
}

}  // namespace

Sgd::Sgd(Run& run, std::vector<Parameter*> parameters, const SgdOptions& options)
    : run_(run), options_(options) {
  check_coefficient("lr", options.lr);
  check_coefficient("momentum", options.momentum);
  check_coefficient("weight_decay", options.weight_decay);
  check_coefficient("grad_scaling", options.grad_scaling);
  ULP_CHECK(!options.nesterov || options.momentum > 0, "sgd: nesterov needs a momentum above 0");
  ULP_CHECK(options.momentum > 0 || options.momentum_format.is_identity(),
            "sgd: a momentum format ({}) needs a momentum above 0", options.momentum_format);
  for (Parameter* p : parameters) {
    for (const State& state : states_)
      ULP_CHECK(state.parameter != p, "sgd: {} is given twice", p->path);
    ULP_CHECK(p->value.defined(), "sgd: {} has no value yet; initialise the model first", p->path);
    check_axis(*p, "weight", options_.weight);
    check_axis(*p, "accumulator", options_.accumulator.value_or(Quantizer{}));
    check_axis(*p, "gradient", options_.grad);
    check_axis(*p, "momentum", options_.momentum_format);
    State state{p, {}, {}};
    const auto first = [&](const char* role) {
      return RandomKey{run_.seed(), RandomSite(p->path).stream(role), 0, nullptr};
    };
    if (options_.accumulator) {
      const Quantizer& q = *options_.accumulator;
      state.master = q.is_identity() ? as_f32(run_.stream(), p->value)
                                     : quantised(p->value, q, first("master"), storage_type(q));
    }
    if (options_.momentum > 0)
      state.momentum =
          Tensor::zeros(p->value.shape(), storage_type(options_.momentum_format), run_.device());
    const Tensor& source = state.master.defined() ? state.master : p->value;
    p->value = options_.weight.is_identity() ? as_f32(run_.stream(), source)
                                             : quantised(source, options_.weight, first("weight"),
                                                         storage_type(options_.weight));
    p->grad = {};
    states_.push_back(std::move(state));
  }
  updates_on_device_ = Tensor::zeros({1}, DType::I32, run_.device());
  set_lr(options.lr);
}

void Sgd::set_rates(std::span<const float> rates) {
  ULP_CHECK(!rates.empty(), "sgd: there are no learning rates");
  for (const float rate : rates) check_coefficient("lr", rate);
  if (rates.size() != rates_.size()) {
    rates_on_device_ =
        Tensor::empty({static_cast<int64_t>(rates.size())}, DType::F32, run_.device());
    run_.note_replaced();
  }
  copy_bytes(rates_on_device_.mutable_raw(), run_.device(), rates.data(), kCpu, rates.size_bytes());
  const int32_t none = 0;
  copy_bytes(updates_on_device_.mutable_raw(), run_.device(), &none, kCpu, sizeof none);
  rates_.assign(rates.begin(), rates.end());
  updates_ = 0;
}

void Sgd::set_lr(double lr) {
  check_coefficient("lr", lr);
  const float rate = static_cast<float>(lr);
  if (rates_.size() != 1 || rates_.front() != rate) set_rates({&rate, 1});
}

double Sgd::lr() const {
  return rates_[static_cast<size_t>(std::min(updates_, static_cast<int64_t>(rates_.size()) - 1))];
}

RandomKey Sgd::key(const Parameter& parameter, const char* role) const {
  return {run_.seed(), RandomSite(parameter.path).stream(role), 0, run_.device_state()};
}

Tensor Sgd::quantised(const Tensor& in, const Quantizer& quantizer, const RandomKey& key,
                      DType dtype) const {
  QuantiseUse use;
  use.quantizer = at_rank(quantizer, in.rank());
  use.axis = std::max(0, in.rank() - 1);
  use.key = key;
  if (quantizer.scale.kind == Scale::Kind::Delayed)
    use.scaling = run_.scaling(key.stream, quantizer);
  return ulp::quantised(run_.stream(), in, use, dtype);
}

SgdArgs Sgd::arguments() const {
  SgdArgs args;
  args.momentum_coef = static_cast<float>(options_.momentum);
  args.weight_decay = static_cast<float>(options_.weight_decay);
  args.nesterov = options_.nesterov;
  args.rates = rates_on_device_;
  args.updates = updates_on_device_;
  args.state = run_.device_state();
  return args;
}

void Sgd::update_fused() {
  SgdArgs args = arguments();
  args.grad_scaling = static_cast<float>(options_.grad_scaling);
  args.weight_format = options_.weight;
  args.master_format = options_.accumulator.value_or(Quantizer{});
  args.grad_format = options_.grad;
  args.momentum_format = options_.momentum_format;
  for (const State& state : states_) {
    const Parameter& p = *state.parameter;
    if (!p.grad.defined()) continue;
    args.parameters.push_back({p.value, state.master, state.momentum, p.grad, key(p, "weight"),
                               key(p, "master"), key(p, "grad"), key(p, "momentum")});
  }
  kernels::sgd(run_.stream(), args);
}

void Sgd::update_blocks(State& state) {
  // The scale of a block is known only when all its values are: fp32 copies go through the same kernel without formats,
  // and each state is quantised from them. Tensors stay where they are: a recorded step knows their addresses.
  Parameter& p = *state.parameter;
  const Stream stream = run_.stream();
  Tensor grad = Tensor::empty(p.grad.shape(), DType::F32, p.grad.device());
  kernels::scale(stream, {{p.grad, {}, {}}, grad, options_.grad_scaling, {}, {}});
  if (!options_.grad.is_identity())
    grad = quantised(grad, options_.grad, key(p, "grad"), DType::F32);

  SgdArgs args = arguments();
  SgdParameter update;
  update.weight = as_f32(stream, state.master.defined() ? state.master : p.value);
  if (state.momentum.defined()) update.momentum = as_f32(stream, state.momentum);
  update.grad = grad;
  args.parameters = {update};
  kernels::sgd(stream, args);

  const auto store = [&](const Tensor& value, const Quantizer& q, const char* role,
                         const Tensor& to) {
    const Tensor rounded = q.is_identity() ? value : quantised(value, q, key(p, role), to.dtype());
    kernels::copy(stream, {rounded, to, run_.device_state()});
    return rounded;
  };
  Tensor value = update.weight;
  if (state.master.defined()) value = store(value, *options_.accumulator, "master", state.master);
  store(value, options_.weight, "weight", p.value);
  if (state.momentum.defined())
    store(update.momentum, options_.momentum_format, "momentum", state.momentum);
}

void Sgd::step() {
  for (const State& state : states_) {
    const Parameter& p = *state.parameter;
    ULP_CHECK(!p.grad.defined() || p.grad.shape() == p.value.shape(),
              "sgd: {} has shape {} and its gradient {}", p.path, p.value.shape(), p.grad.shape());
  }
  const bool elementwise = options_.weight.is_elementwise() && options_.grad.is_elementwise() &&
                           options_.momentum_format.is_elementwise() &&
                           (!options_.accumulator || options_.accumulator->is_elementwise());
  if (elementwise)
    update_fused();
  else
    for (State& state : states_)
      if (state.parameter->grad.defined()) update_blocks(state);
  zero_grad();
  run_.advance(updates_on_device_);
  run_.mirror([this] { ++updates_; });
}

std::map<std::string, Tensor> Sgd::tensors() const {
  std::map<std::string, Tensor> all;
  for (const State& state : states_) {
    if (state.master.defined()) all[state.parameter->path + ".master"] = state.master;
    if (state.momentum.defined()) all[state.parameter->path + ".momentum"] = state.momentum;
  }
  return all;
}

std::map<std::string, std::string> Sgd::formats() const {
  std::map<std::string, std::string> all;
  for (const State& state : states_) {
    if (state.master.defined())
      all[state.parameter->path + ".master"] = to_string(*options_.accumulator);
    if (state.momentum.defined())
      all[state.parameter->path + ".momentum"] = to_string(options_.momentum_format);
  }
  return all;
}

void Sgd::zero_grad() {
  for (State& state : states_) state.parameter->grad = {};
}

}  // namespace ulp::optim
