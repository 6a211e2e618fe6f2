// Which kernel takes an optimizer's step, and what it is told.

#include <cmath>
#include <utility>
#include <vector>

#include "core/codebook.h"
#include "kernels/cuda/optimizer.cuh"

namespace ulp::cuda {
namespace {

using namespace optimizer;

/// Up to so many elements, and where no short form serves, a thread takes a quad: many begin at once, in little code.
constexpr int64_t kMostForQuads = int64_t{1} << 20;
int64_t most_for_quads = kMostForQuads;

/// Blocks for one parameter: a few of a GPU's worth, so that what each reads before it starts counts little.
constexpr int64_t kMostBlocks = 2112;

/// The native type whose numbers are the format's; U8 if there is none.
DType native_type(const Format& format) {
  static const std::pair<Format, DType> kAll[] = {{Quantizer::parse("bf16").format, DType::BF16},
                                                  {Quantizer::parse("fp16").format, DType::F16},
                                                  {Quantizer::parse("e4m3").format, DType::F8E4M3},
                                                  {Quantizer::parse("e5m2").format, DType::F8E5M2}};
  for (const auto& [own, dtype] : kAll)
    if (own == format) return dtype;
  return DType::U8;
}

/// How states of this rule are moved in short forms; dtype: theirs.
StateBytes short_bytes(const StateRule& rule, const Quantizer& q, DType dtype) {
  using How = Rounder::How;
  const Rounder& r = rule.rounder;
  const bool rounds = r.how == How::Copy || (r.how != How::Any && r.makes_no_nan);
  if (dtype != DType::U8) return rounds ? native_bytes(dtype) : StateBytes::None;
  const DType native = native_type(q.format);
  if (rounds && native != DType::U8) return native_bytes(native);
  if (rule.table.size == 0 && !(rounds && rule.quick.serves)) return StateBytes::None;
  switch (rule.code.bits) {
    case 16: return StateBytes::Codes16;
    case 8: return StateBytes::Codes8;
    case 4: return StateBytes::Codes4;
    default: return StateBytes::None;
  }
}

/// dtype: of the states that are kept, U8 for codes.
StateRule rule_of(Device device, const Quantizer& q, const RandomKey& key, DType dtype) {
  using How = Rounder::How;
  StateRule rule{};
  if (q.is_elementwise()) {
    rule.rounder = make_rounder(device, q, key);
  } else {
    rule.block = make_block_rule(q, DType::F32);
    rule.group = q.block.columns;
    while (1 << rule.group_shift < rule.group) ++rule.group_shift;
    rule.rounder = make_rounder(device, q, key, make_block_grid(q, rule.block));
  }
  How& how = rule.rounder.how;
  if (how == How::NearestPosit || how == How::StochasticPosit) how = How::Any;
  if (dtype == DType::U8) {
    rule.code = make_code_rule(q.format);
    rule.quick = make_short_float(rule.code);
    const bool table = rule.code.kind == CodeRule::Kind::Table;
    if (table) rule.code.table = table_on(device, q.format.table);
    if (rule.code.bits <= 8)
      rule.numbers = table ? rule.code.table : code_numbers_on(device, q.format);
    if (rule.code.bits <= 8 && table && q.bits == RandomBits{}) rule.table = steps_on(device, q);
  }
  rule.bytes = short_bytes(rule, q, dtype);
  rule.converts = rule.bytes != StateBytes::None && rule.bytes != StateBytes::F32 &&
                  rule.bytes == native_bytes(native_type(q.format)) &&
                  (how == How::Nearest || how == How::NearestCut);
  rule.shift = quad_shift(rule.bytes);
  rule.as_is = rule.converts || (how == How::Copy && rule.bytes == StateBytes::F32);
  // Inf of the format's own comes of a number beyond its bounds, a bit more for the product with this.
  const FastGrid& fast = rule.rounder.fast;
  const bool to_infinity =
      fast.overflow == kInfinityBits || (fast.overflow ^ fast.overflow_flip) == kInfinityBits;
  rule.reach = 1;
  if (rule.group == 0 && (rule.converts || to_infinity)) {
    const float most = std::min(float_of(fast.max), float_of(fast.max ^ fast.max_flip));
    rule.reach = kMaxFloat / most * (to_infinity ? 1 + 0x1p-20f : 1.0f);
  }
  return rule;
}

/// What rounding can make of a number near zero.
float least_step(const StateRule& rule, const Quantizer& q) {
  const FastGrid& fast = rule.rounder.fast;
  if (rule.table.size != 0)
    return std::max(std::abs(codebook(q.format.table).values.front()),
                    std::abs(codebook(q.format.table).values.back()));
  if (fast.form != FastGrid::Form::Spaced) return 0;
  return std::ldexp(float_of(fast.low), static_cast<int>(fast.spread) - 23);
}

/// What is made of numbers after they were rounded stays within the reach of its own format if they were within theirs.
bool followers_fit(const StateRule& kept, const Quantizer& q, const StateRule* copy,
                   const StateRule* compensation) {
  if (copy == nullptr && compensation == nullptr) return true;
  const float step = least_step(kept, q);
  return kept.group == 0 && (copy == nullptr || 2 * step * copy->reach <= kMaxFloat) &&
         (compensation == nullptr || 0x1p8f * step * compensation->reach <= kMaxFloat);
}

StateArray array_of(const StoredState& state, const RandomKey& key) {
  if (!state.defined()) return {};
  StateArray array{};
  array.data = written(state.data);
  if (state.scales.defined()) array.factors = static_cast<float*>(written(state.scales));
  array.stream = key.counted_stream();
  array.dtype = state.data.dtype();
  array.aligned = is_aligned(array.data, array.dtype);
  return array;
}

Parameter make_parameter(const OptimizerParameter& from) {
  Parameter p{};
  const StateArray weight = array_of({from.weight}, from.weight_key);
  const bool has_master = from.master.defined();
  p.states[kKept] = has_master ? array_of(from.master, from.master_key) : weight;
  if (has_master) p.states[kCopy] = weight;
  p.states[kMoment1] = array_of(from.moment1, from.moment1_key);
  p.states[kMoment2] = array_of(from.moment2, from.moment2_key);
  p.states[kCompensation] = array_of(from.compensation, from.compensation_key);
  p.n = from.weight.numel();
  p.grad_stream = from.grad_key.counted_stream();
  p.grad_type = DType::F32;
  return p;
}

/// The parameters in the device's memory. Made anew where something changed, which no recorded step can do.
const Parameter* table_of(Stream stream, ParameterTable& table,
                          const std::vector<Parameter>& parameters) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(parameters.data());
  const std::vector<unsigned char> now(bytes, bytes + parameters.size() * sizeof(Parameter));
  if (table.on_host != now) {
    const auto size = static_cast<int64_t>(now.size());
    if (!table.on_device.defined() || table.on_device.numel() != size)
      table.on_device = Tensor::empty({size}, DType::U8, stream.device);
    table.on_host.clear();  // a copy that fails leaves no table
    copy_bytes(table.on_device.mutable_raw(), stream.device, now.data(), kCpu, now.size());
    table.on_host = now;
  }
  return static_cast<const Parameter*>(table.on_device.raw());
}

/// What quads_kernel serves.
bool takes_quads(const Work& w) {
  for (const StateRule& rule : w.rules) {
    const bool coded = rule.code.bits != 0;
    if (rule.group != 0 || (coded && !(rule.quick.serves && has_piece(rule.code.bits))))
      return false;
  }
  return true;
}

}  // namespace

void set_most_for_quads(int64_t elements) {
  most_for_quads = elements < 0 ? kMostForQuads : elements;
}

void optimizer_step(Stream stream, const OptimizerArgs& args) {
  check_optimizer_step(stream, args);
  if (args.parameters.empty()) return;
  const Device device = stream.device;
  const OptimizerParameter& one = args.parameters.front();
  Work w{};
  w.grad_rule = make_elementwise_rounder("optimizer_step", device, args.grad_format, one.grad_key);
  Rounder::How& grad_how = w.grad_rule.how;
  if (grad_how == Rounder::How::NearestPosit || grad_how == Rounder::How::StochasticPosit)
    grad_how = Rounder::How::Any;
  bool is_short =
      grad_how == Rounder::How::Copy || (grad_how != Rounder::How::Any && w.grad_rule.makes_no_nan);
  const auto set_rule = [&](StateIndex i, const Quantizer& q, const auto& state_of) {
    const Tensor first = state_of(one);
    w.rules[i] = rule_of(device, q, one.weight_key, first.defined() ? first.dtype() : DType::F32);
    if (!first.defined()) return;
    is_short = is_short && w.rules[i].bytes != StateBytes::None;
    for (const OptimizerParameter& p : args.parameters)
      is_short = is_short && state_of(p).dtype() == first.dtype();
  };
  using P = OptimizerParameter;
  const auto weight_of = [](const P& p) { return p.weight; };
  if (one.master.defined()) {
    set_rule(kKept, args.master_format, [](const P& p) { return p.master.data; });
    set_rule(kCopy, args.weight_format, weight_of);
  } else {
    set_rule(kKept, args.weight_format, weight_of);
  }
  set_rule(kMoment1, args.moment1_format, [](const P& p) { return p.moment1.data; });
  set_rule(kMoment2, args.moment2_format, [](const P& p) { return p.moment2.data; });
  set_rule(kCompensation, args.compensation_format, [](const P& p) { return p.compensation.data; });
  w.settings = args.settings;
  w.key = one.weight_key;
  w.rates = args.rates.data<float>();
  w.rate_count = args.rates.numel();
  w.updates = args.updates.data<int32_t>();
  w.steps = args.steps.data<int32_t>();
  w.state = args.state;

  is_short =
      is_short &&
      followers_fit(w.rules[kKept], one.master.defined() ? args.master_format : args.weight_format,
                    one.master.defined() ? &w.rules[kCopy] : nullptr,
                    one.compensation.defined() ? &w.rules[kCompensation] : nullptr);
  bool octets = false;
  for (const StateRule& rule : w.rules)
    octets = octets || (rule.code.bits != 0 && !has_piece(rule.code.bits));
  int64_t elements = 0;
  for (const OptimizerParameter& from : args.parameters) elements += from.weight.numel();
  const bool quads = takes_quads(w) && (elements <= most_for_quads || !is_short);
  const optimizer::Kernel kernel =
      quads      ? optimizer::quads_kernel()
      : is_short ? optimizer::short_kernel(args.settings.rule, one.compensation.defined())
                 : optimizer::tiles_kernel(octets);
  const int64_t per_block = kThreads * kQuad * (quads ? 1 : kTileQuads);
  std::vector<Parameter> parameters;
  std::vector<int32_t> blocks(1, 0);  // of each launch
  for (const OptimizerParameter& from : args.parameters) {
    if (!parameters.empty() && parameters.size() % kMost == 0) blocks.push_back(0);
    Parameter p = make_parameter(from);
    if (from.grad.defined()) p.grad_type = from.grad.dtype();
    p.first_block = blocks.back();
    const int32_t tail = quads ? 0 : tail_of(p.n);
    blocks.back() +=
        static_cast<int32_t>(std::min(blocks_for(p.n - tail, per_block), kMostBlocks)) +
        (tail != 0 ? 1 : 0);
    parameters.push_back(p);
  }
  ParameterTable of_call;
  const Parameter* table = nullptr;
  if (parameters.size() > 1)
    table = table_of(stream, args.table != nullptr ? *args.table : of_call, parameters);
  Tensor amax;
  if (args.settings.grad_normalisation != GradNormalisation::None) {
    amax = Tensor::empty({static_cast<int64_t>(parameters.size())}, DType::I32, device);
    ULP_CUDA_CHECK(cudaSetDevice(device.index));
    ULP_CUDA_CHECK(cudaMemsetAsync(written(amax), 0, parameters.size() * sizeof(uint32_t),
                                   static_cast<cudaStream_t>(stream.handle)));
  }
  for (size_t begin = 0; begin < parameters.size(); begin += kMost) {
    const size_t count = std::min<size_t>(kMost, parameters.size() - begin);
    w.table = table == nullptr ? nullptr : table + begin;
    w.only = parameters[begin];
    w.count = static_cast<int32_t>(count);
    w.blocks = blocks[begin / kMost];
    for (size_t i = 0; i < count; ++i) {
      const Tensor& grad = args.parameters[begin + i].grad;
      w.grads[i] = grad.defined() ? grad.raw() : nullptr;
    }
    if (amax.defined()) {
      w.amax = static_cast<uint32_t*>(written(amax)) + begin;
      launch("optimizer_step", stream, w.blocks, kThreads, optimizer::amax_kernel(), w);
    }
    launch("optimizer_step", stream, w.blocks, kThreads, kernel, w);
  }
}

}  // namespace ulp::cuda
