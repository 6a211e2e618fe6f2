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
}

void Sgd::set_lr(double lr) {
  check_coefficient("lr", lr);
  options_.lr = lr;
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

void Sgd::update_fused(State& state) {
  Parameter& p = *state.parameter;
  SgdArgs args;
  args.weight = p.value;
  args.master = state.master;
  args.momentum = state.momentum;
  args.grad = p.grad;
  args.weight_format = options_.weight;
  args.master_format = options_.accumulator.value_or(Quantizer{});
  args.grad_format = options_.grad;
  args.momentum_format = options_.momentum_format;
  args.weight_key = key(p, "weight");
  args.master_key = key(p, "master");
  args.grad_key = key(p, "grad");
  args.momentum_key = key(p, "momentum");
  args.momentum_coef = static_cast<float>(options_.momentum);
  args.weight_decay = static_cast<float>(options_.weight_decay);
  args.nesterov = options_.nesterov;
  args.state = run_.device_state();
  kernels::sgd(run_.stream(), args);
}

void Sgd::update_blocks(State& state) {
  // The scale of a block is known only when all its values are: fp32 copies go through the same kernel without formats,
  // and each state is quantised from them.
  Parameter& p = *state.parameter;
  const Stream stream = run_.stream();
  const float scaling = run_.state().grad_scaling;
  Tensor grad = Tensor::empty(p.grad.shape(), DType::F32, p.grad.device());
  kernels::scale(stream, {{p.grad, {}, {}}, grad, scaling, {}, {}});
  if (!options_.grad.is_identity())
    grad = quantised(grad, options_.grad, key(p, "grad"), DType::F32);

  SgdArgs args;
  args.weight = as_f32(stream, state.master.defined() ? state.master : p.value);
  if (state.momentum.defined()) args.momentum = as_f32(stream, state.momentum);
  args.grad = grad;
  args.grad_ready = true;
  args.momentum_coef = static_cast<float>(options_.momentum);
  args.weight_decay = static_cast<float>(options_.weight_decay);
  args.nesterov = options_.nesterov;
  args.state = run_.device_state();
  kernels::sgd(stream, args);

  Tensor value = args.weight;
  if (state.master.defined()) {
    const Quantizer& q = *options_.accumulator;
    if (!q.is_identity()) value = quantised(value, q, key(p, "master"), state.master.dtype());
    state.master = value;
  }
  p.value = options_.weight.is_identity()
                ? as_f32(stream, value)
                : quantised(value, options_.weight, key(p, "weight"), p.value.dtype());
  if (state.momentum.defined())
    state.momentum = options_.momentum_format.is_identity()
                         ? args.momentum
                         : quantised(args.momentum, options_.momentum_format, key(p, "momentum"),
                                     state.momentum.dtype());
}

void Sgd::step() {
  StepState now = run_.state();  // another optimizer of the run may have left its own
  now.lr = static_cast<float>(options_.lr);
  now.grad_scaling = static_cast<float>(options_.grad_scaling);
  run_.set_state(now);
  const bool elementwise = options_.weight.is_elementwise() && options_.grad.is_elementwise() &&
                           options_.momentum_format.is_elementwise() &&
                           (!options_.accumulator || options_.accumulator->is_elementwise());
  for (State& state : states_) {
    Parameter& p = *state.parameter;
    if (!p.grad.defined()) continue;
    ULP_CHECK(p.grad.shape() == p.value.shape(), "sgd: {} has shape {} and its gradient {}", p.path,
              p.value.shape(), p.grad.shape());
    if (elementwise)
      update_fused(state);
    else
      update_blocks(state);
    p.grad = {};
  }
  StepState next = run_.state();
  ++next.random_step;
  if (next.found_inf == 0) ++next.optimizer_step;
  next.found_inf = 0;
  run_.set_state(next);
}

void Sgd::zero_grad() {
  for (State& state : states_) state.parameter->grad = {};
}

}  // namespace ulp::optim
