#include "autograd/tape.h"

#include "core/error.h"

namespace ulp {

const Tensor& Saved::get() const {
  ULP_CHECK(tensor_.version() == version_,
            "{}: a tensor it saved for backward was changed in place afterwards; copy it before "
            "writing to it",
            op_);
  return tensor_;
}

Var Tape::leaf(Tensor value) {
  if (!recording_) return constant(std::move(value));
  nodes_.push_back({"leaf", {}, 1, {}, {}, nullptr});
  return {std::move(value), this, static_cast<int32_t>(nodes_.size()) - 1, 0};
}

Var Tape::watch(Parameter& parameter) {
  ULP_CHECK(parameter.value.defined(),
            "{}: the parameter has no value yet; initialise the model first",
            parameter.path.empty() ? "parameter" : parameter.path);
  const auto known = watched_.find(&parameter);
  if (known != watched_.end()) return known->second;
  const Var var = leaf(parameter.value);
  if (var.needs_grad()) nodes_.back().parameter = &parameter;
  watched_.emplace(&parameter, var);
  return var;
}

Saved Tape::save(const char* op, Tensor tensor) {
  if (recording_ && tensor.defined() && saved_.insert(tensor.storage()).second)
    saved_bytes_ += tensor.bytes();
  return {op, std::move(tensor)};
}

std::vector<Var> Tape::record(const char* op, const OpFormats& formats, std::span<const Var> inputs,
                              std::vector<Tensor> outputs, Backward backward) {
  bool needed = false;
  for (const Var& input : inputs) {
    ULP_CHECK(input.tape == nullptr || input.tape == this, "{}: an input belongs to another tape",
              op);
    needed = needed || input.needs_grad();
  }
  std::vector<Var> vars;
  const bool recorded = recording_ && needed;
  const int32_t node = recorded ? static_cast<int32_t>(nodes_.size()) : -1;
  for (size_t k = 0; k < outputs.size(); ++k)
    vars.push_back({std::move(outputs[k]), this, node, static_cast<int32_t>(k)});
  if (recorded) {
    Node& added = nodes_.emplace_back();
    added.op = op;
    added.outputs = static_cast<int32_t>(vars.size());
    added.formats = formats;
    added.backward = std::move(backward);
    for (const Var& input : inputs) added.inputs.push_back({input.node, input.output});
  }
  return vars;
}

Var Tape::record(const char* op, const OpFormats& formats, std::initializer_list<Var> inputs,
                 Tensor output, Backward backward) {
  return record(op, formats, std::span<const Var>(inputs.begin(), inputs.size()),
                std::vector<Tensor>{std::move(output)}, std::move(backward))
      .front();
}

void Tape::backward(const Var& loss, double share) {
  ULP_CHECK(loss.value.defined() && loss.value.numel() == 1,
            "backward: wanted a loss of one value, got {}; give a gradient of its shape instead",
            loss.value);
  Tensor grad = Tensor::empty(loss.shape(), loss.value.dtype(), loss.value.device());
  kernels::fill(stream(), {grad, share, run_.device_state()});
  backward(loss, grad);
}

void Tape::backward(const Var& output, Tensor grad) {
  ULP_CHECK(!swept_, "backward: this tape was swept already; use a new tape for each step");
  ULP_CHECK(output.tape == this && output.needs_grad(),
            "backward: the result depends on no parameter that this tape watches");
  ULP_CHECK(grad.shape() == output.shape(), "backward: wanted a gradient of shape {}, got {}",
            output.shape(), grad.shape());
  swept_ = true;
  grads_.resize(nodes_.size());
  auto& first = grads_[static_cast<size_t>(output.node)];
  first.resize(static_cast<size_t>(output.output) + 1);
  first[static_cast<size_t>(output.output)] = std::move(grad);
  for (size_t index = nodes_.size(); index-- > 0;) sweep_node(index);
}

void Tape::sweep_node(size_t index) {
  Node& node = nodes_[index];
  std::vector<Tensor>& grads = grads_[index];
  if (grads.empty()) {  // the result does not depend on it
    node.backward = nullptr;
    return;
  }
  if (!node.backward) {
    Parameter* parameter = node.parameter;
    if (parameter != nullptr)
      parameter->grad =
          parameter->grad.defined() ? add(parameter->grad, grads.front()) : grads.front();
    return;
  }
  grads.resize(static_cast<size_t>(node.outputs));
  uint64_t mask = 0;
  for (size_t i = 0; i < node.inputs.size(); ++i)
    if (node.inputs[i].node >= 0) mask |= uint64_t{1} << i;
  std::vector<Tensor> inputs = node.backward(grads, Needs(mask));
  ULP_ASSERT(inputs.size() == node.inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (node.inputs[i].node < 0) continue;
    ULP_ASSERT(inputs[i].defined());
    auto& target = grads_[static_cast<size_t>(node.inputs[i].node)];
    const size_t output = static_cast<size_t>(node.inputs[i].output);
    if (target.size() <= output) target.resize(output + 1);
    target[output] = target[output].defined() ? add(target[output], inputs[i]) : inputs[i];
  }
  node.backward = nullptr;  // frees what it saved
  grads.clear();
}

Tensor Tape::add(const Tensor& a, const Tensor& b) const {
  const DType dtype = a.dtype() == DType::F64 ? DType::F64 : DType::F32;
  Tensor sum = Tensor::empty(a.shape(), dtype, a.device());
  kernels::add(stream(), {{a, b, {}}, sum, 0, {}, {}});
  return sum;
}

const Tensor& Tape::grad(const Var& leaf) const {
  static const Tensor none;
  ULP_CHECK(swept_, "grad: run backward first");
  ULP_CHECK(leaf.tape == this && leaf.needs_grad(), "grad: not a leaf of this tape");
  const auto& grads = grads_[static_cast<size_t>(leaf.node)];
  return grads.empty() ? none : grads[static_cast<size_t>(leaf.output)];
}

}  // namespace ulp
