#include "tests/op_table.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "autograd/scaling.h"
#include "kernels/cpu/isa.h"
#include "tests/threads.h"

namespace ulp::tests {
namespace {

constexpr double kNoKink = -1e30;

std::vector<std::vector<Shape>> unary_shapes() {
  return {{{1}}, {{0}}, {{3, 5}}, {{2, 3, 7}}, {{17, 33}}, {{1, 4099}}};
}
std::vector<std::vector<Shape>> binary_shapes() {
  std::vector<std::vector<Shape>> all;
  for (const auto& entry : unary_shapes()) all.push_back({entry[0], entry[0]});
  return all;
}

std::vector<std::vector<Shape>> biased_shapes() {
  return {{{1, 1}, {1}}, {{0, 3}, {3}}, {{3, 5}, {5}}, {{2, 3, 8}, {8}}, {{17, 33}, {33}}};
}

Tensor labels_for(int64_t n, int64_t classes, Device device) {
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < n; ++i) labels.push_back(static_cast<int32_t>((i * 7 + 3) % classes));
  return Tensor::from(labels, {n}, device);
}

using Inputs = std::span<const Var>;

}  // namespace

std::vector<OpRow> core_op_rows() {
  static const RandomSite site(kSite);
  static const std::vector<const char*> result{"output", "grad_input"};
  static const std::vector<const char*> activation{"input", "output", "grad_output_dx",
                                                   "grad_input"};
  return {
      {"linear",
       {"matmul", "sum", "quantise"},
       {{{1, 1}, {1, 1}, {1}},
        {{0, 3}, {2, 3}, {2}},
        {{3, 5}, {4, 5}, {4}},
        {{2, 3, 9}, {7, 9}, {7}},
        {{33, 65}, {17, 65}, {17}}},
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::linear(t, in[0], in[1], in[2], f, site);
       },
       {"input", "weight", "output", "grad_output_dx", "weight_dx", "grad_input", "grad_output_dw",
        "input_dw", "grad_weight"}},
      {"linear without bias",
       {"matmul"},
       {{{3, 5}, {4, 5}}},
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::linear(t, in[0], in[1], {}, f, site);
       },
       {"input", "weight", "output", "grad_output_dx", "weight_dx", "grad_input", "grad_output_dw",
        "input_dw", "grad_weight"}},
      {"linear with factors",
       {"matmul", "sum"},
       {{{3, 5}, {4, 5}, {4}}, {{33, 65}, {17, 65}, {17}}},
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::linear(t, in[0], in[1], in[2], f, site, kOneFactor);
       },
       {"input", "weight", "output", "grad_output_dx", "weight_dx", "grad_input", "grad_output_dw",
        "input_dw", "grad_weight"}},
      {"add",
       {"add"},
       binary_shapes(),
       [](Tape& t, Inputs in, const OpFormats& f) { return ops::add(t, in[0], in[1], f, site); },
       result},
      {"subtract",
       {"subtract", "scale"},
       binary_shapes(),
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::subtract(t, in[0], in[1], f, site);
       },
       result},
      {"multiply",
       {"multiply"},
       binary_shapes(),
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::multiply(t, in[0], in[1], f, site);
       },
       result},
      {"scale",
       {"scale"},
       unary_shapes(),
       [](Tape& t, Inputs in, const OpFormats& f) { return ops::scale(t, in[0], -1.375, f, site); },
       result},
      {"scaling",
       {"scale"},
       unary_shapes(),
       [](Tape& t, Inputs in, const OpFormats&) { return ops::scaling(t, in[0], -1.375, -1.375); },
       {}},
      {"square",
       {"square", "scale", "multiply"},
       unary_shapes(),
       [](Tape& t, Inputs in, const OpFormats& f) { return ops::square(t, in[0], f, site); },
       result},
      {"relu",
       {"relu", "relu_backward"},
       unary_shapes(),
       [](Tape& t, Inputs in, const OpFormats& f) { return ops::relu(t, in[0], f, site); },
       activation,
       -2,
       2,
       0},
      {"gelu",
       {"gelu", "gelu_backward"},
       unary_shapes(),
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::gelu(t, in[0], ops::Gelu::Erf, f, site);
       },
       activation,
       -5,
       5},
      {"gelu_tanh",
       {"gelu_tanh", "gelu_tanh_backward"},
       unary_shapes(),
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::gelu(t, in[0], ops::Gelu::Tanh, f, site);
       },
       activation,
       -5,
       5},
      {"bias_relu",
       {"bias_relu", "bias_relu_backward", "sum"},
       biased_shapes(),
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::bias_relu(t, in[0], in[1], f, site);
       },
       activation,
       0.1,
       2},
      {"bias_gelu",
       {"bias_gelu", "bias_gelu_backward", "sum"},
       biased_shapes(),
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::bias_gelu(t, in[0], in[1], ops::Gelu::Erf, f, site);
       },
       activation,
       -3,
       3},
      {"bias_gelu_tanh",
       {"bias_gelu_tanh", "bias_gelu_tanh_backward", "sum"},
       biased_shapes(),
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::bias_gelu(t, in[0], in[1], ops::Gelu::Tanh, f, site);
       },
       activation,
       -3,
       3},
      {"quantize",
       {"quantise", "mask_gradient"},
       unary_shapes(),
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::quantize(t, in[0], {f.output, f.grad_input, false}, site);
       },
       result,
       -2,
       2,
       kNoKink,
       false},
      {"quantize with clamp mask",
       {"quantise", "mask_gradient"},
       unary_shapes(),
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::quantize(t, in[0], {f.output, f.grad_input, true}, site);
       },
       result,
       -2,
       2,
       kNoKink,
       false},
      {"reshape",
       {"copy"},
       {{{6}}, {{0}}, {{3, 5}}, {{2, 3, 7}}},
       [](Tape& t, Inputs in, const OpFormats&) {
         return ops::reshape(t, in[0], {in[0].value.numel(), 1});
       },
       {}},
      {"sum",
       {"sum", "scale"},
       {{{1}}, {{0}}, {{3, 5}}, {{4097}}, {{2, 4096}}, {{3, 5000}}},
       [](Tape& t, Inputs in, const OpFormats&) { return ops::sum(t, in[0]); },
       {}},
      {"mean",
       {"sum", "scale"},
       {{{1}}, {{3, 5}}, {{4097}}},
       [](Tape& t, Inputs in, const OpFormats&) { return ops::mean(t, in[0]); },
       {}},
      {"log_softmax",
       {"log_softmax", "log_softmax_backward"},
       {{{1, 1}}, {{0, 4}}, {{3, 5}}, {{7, 10}}, {{3, 4097}}},
       [](Tape& t, Inputs in, const OpFormats& f) { return ops::log_softmax(t, in[0], f, site); },
       result},
      {"cross_entropy",
       {"log_softmax", "sum", "cross_entropy_backward"},
       {{{1, 1}}, {{3, 5}}, {{7, 10}}, {{129, 10}}},
       [](Tape& t, Inputs in, const OpFormats& f) {
         return ops::cross_entropy(
             t, in[0], labels_for(in[0].shape()[0], in[0].shape()[1], in[0].value.device()), f,
             site);
       },
       {"grad_input"}},
      {"mse",
       {"subtract", "square", "sum", "scale", "multiply"},
       {{{1}, {1}}, {{3, 5}, {3, 5}}, {{17, 33}, {17, 33}}},
       [](Tape& t, Inputs in, const OpFormats& f) { return ops::mse(t, in[0], in[1], f, site); },
       {}},
  };
}

const std::vector<OpRow>& op_table() {
  static const std::vector<OpRow> all = [] {
    std::vector<OpRow> rows;
    for (const auto& family : {core_op_rows(), act_op_rows(), conv_op_rows(), norm_op_rows(),
                               recurrent_op_rows(), text_op_rows(), attention_op_rows()})
      rows.insert(rows.end(), family.begin(), family.end());
    return rows;
  }();
  return all;
}

std::vector<double> random_values(int64_t n, double low, double high, uint64_t seed) {
  const RandomSource random({seed, 7, 0, nullptr});
  std::vector<double> values;
  for (int64_t i = 0; i < n; ++i)
    values.push_back(static_cast<float>(
        low +
        (high - low) * static_cast<double>(uniform01(random.word(static_cast<uint64_t>(i))))));
  return values;
}

Tensor random_tensor(const Shape& shape, double low, double high, uint64_t seed, DType dtype,
                     Device device) {
  const std::vector<double> values = random_values(shape.numel(), low, high, seed);
  if (dtype == DType::F64) return Tensor::from(values, shape, device);
  return Tensor::from(std::vector<float>(values.begin(), values.end()), shape, device);
}

Tensor hard_tensor(const Shape& shape, uint64_t seed) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float special[] = {
      0.0f,      -0.0f,      kInf,        -kInf, std::nanf(""), float_of(0xFFC00001u),
      0x1p-149f, -0x1p-140f, 0x1.fp-127f, 3e38f, -3e38f,        1.0f};
  std::vector<float> values;
  const RandomSource random({seed, 11, 0, nullptr});
  for (int64_t i = 0; i < shape.numel(); ++i) {
    const uint32_t word = random.word(static_cast<uint64_t>(i));
    const bool pick = word % 8 == 0;
    values.push_back(pick ? special[(word >> 8) % std::size(special)]
                          : std::ldexp(static_cast<float>(static_cast<int32_t>(word)),
                                       -31 + static_cast<int>((word >> 4) % 16) - 8));
  }
  return Tensor::from(values, shape);
}

std::vector<uint32_t> bits_of_tensor(const Tensor& tensor) {
  std::vector<uint32_t> bits;
  for (const float v : tensor.to_floats()) bits.push_back(bits_of(v));
  return bits;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.defined() == b.defined() &&
         (!a.defined() || (a.shape() == b.shape() && bits_of_tensor(a) == bits_of_tensor(b)));
}

bool has_products(const OpRow& row) {
  return std::ranges::any_of(row.kernels, [](std::string_view kernel) {
    return kernel == "matmul" || kernel == "batched_matmul" || kernel == "conv";
  });
}

OpFormats formats_of(const OpRow& row, const SummedFormats& formats) {
  OpFormats made;
  for (const char* name : row.roles)
    for (const Role& role : kRoles)
      if (std::string_view(name) == role.name) made.*role.quantizer = formats.roles;
  made.forward_acc = made.dx_acc = made.dw_acc = formats.sums;
  return made;
}

void restart_step(Run& run) {
  StepState state = run.state();
  const uint32_t step = state.random_step;
  ++state.random_step;
  run.set_state(state);
  state.random_step = step;
  run.set_state(state);
}

Pass run_row(const OpRow& row, Run& run, std::span<const Tensor> inputs, const OpFormats& formats,
             uint64_t cotangent_seed) {
  restart_step(run);
  Tape tape(run);
  std::vector<Var> vars;
  for (const Tensor& input : inputs) vars.push_back(tape.leaf(input));
  const Var y = row.build(tape, vars, formats);
  tape.backward(y,
                random_tensor(y.shape(), -1, 1, cotangent_seed, y.value.dtype()).to(run.device()));
  Pass pass{y.value, {}};
  for (const Var& var : vars) pass.grads.push_back(tape.grad(var));
  return pass;
}

bool same_bits(const Pass& a, const Pass& b) {
  bool same = same_bits(a.y, b.y) && a.grads.size() == b.grads.size();
  for (size_t i = 0; same && i < a.grads.size(); ++i) same = same_bits(a.grads[i], b.grads[i]);
  return same;
}

bool same_on_every_cpu(const OpRow& row, Run& run, std::span<const Tensor> inputs,
                       const OpFormats& formats) {
  const Pass first = run_row(row, run, inputs, formats);
  const auto again = [&] { return same_bits(first, run_row(row, run, inputs, formats)); };
  bool same = true;
  for (const int threads : {1, 2, 3}) {
    const Threads scope(threads);
    same = again() && same;
  }
  const cpu::Isa before = cpu::current_isa();
  for (const cpu::Isa isa : {cpu::Isa::Portable, cpu::Isa::Avx2, cpu::Isa::Avx512}) {
    if (!cpu::has_isa(isa)) continue;
    cpu::set_isa(isa);
    same = again() && same;
  }
  cpu::set_isa(before);
  return same;
}

std::vector<Tensor> hard_inputs(const std::vector<Shape>& shapes) {
  std::vector<Tensor> inputs;
  for (size_t k = 0; k < shapes.size(); ++k) inputs.push_back(hard_tensor(shapes[k], 5 + k));
  return inputs;
}

}  // namespace ulp::tests
