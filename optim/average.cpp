#include "optim/average.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "kernels/quantised.h"
#include "optim/parameter_format.h"

namespace ulp::optim {

Average::Average(Run& run, std::vector<Parameter*> parameters, const AverageOptions& options)
    : run_(run), options_(options) {
  ULP_CHECK(options.start >= 0 && options.start <= UINT32_MAX,
            "average: start must be from 0 to {} steps, got {}", UINT32_MAX, options.start);
  ULP_CHECK(options.every >= 1 && options.every <= UINT32_MAX,
            "average: every must be from 1 to {} steps, got {}", UINT32_MAX, options.every);
  ULP_CHECK(options.decay >= 0 && options.decay < 1,
            "average: decay must be from 0 to below 1, got {}", options.decay);
  ULP_CHECK(options.format.scale.kind != Scale::Kind::Delayed,
            "average: {} remembers every call, and an average is rounded at some steps only; take "
            "+scale=current",
            options.format);
  for (Parameter* p : parameters) {
    ULP_CHECK(p->value.defined(), "average: {} has no value yet; initialise the model first",
              p->path);
    check_axis("average", *p, "average", options.format);
    averages_.push_back(
        {p, Tensor::zeros(p->value.shape(), storage_type(options.format), run.device())});
  }
  const AverageState first;
  state_ = Tensor::empty({static_cast<int64_t>(sizeof first)}, DType::U8, run.device());
  copy_bytes(state_.mutable_raw(), run.device(), &first, kCpu, sizeof first);
}

AverageState* Average::device_state() const {
  Tensor handle = state_;
  return static_cast<AverageState*>(handle.mutable_raw());
}

int64_t Average::count() const {
  AverageState state;
  copy_bytes(&state, kCpu, state_.raw(), run_.device(), sizeof state);
  return state.count;
}

void Average::update() {
  const Stream stream = run_.stream();
  AverageRule rule;
  rule.exponential = options_.kind == AverageOptions::Kind::Ema;
  rule.share = static_cast<float>(1 - options_.decay);
  rule.start = static_cast<uint32_t>(options_.start);
  rule.every = static_cast<uint32_t>(options_.every);
  kernels::begin_average(stream, {device_state(), run_.device_state(), rule});
  AverageArgs args{{}, options_.format, device_state()};
  for (const Averaged& one : averages_) {
    const RandomKey key{run_.seed(), one.parameter->site().stream("average"), 0,
                        run_.device_state()};
    if (options_.format.is_elementwise())
      args.weights.push_back({one.parameter->value, one.average, key});
    else
      update_blocks(one, key);
  }
  if (!args.weights.empty()) kernels::average(stream, args);
}

void Average::update_blocks(const Averaged& one, const RandomKey& key) {
  const Stream stream = run_.stream();
  const Tensor exact = Tensor::empty(one.average.shape(), DType::F32, run_.device());
  kernels::copy(stream, {one.average, exact});
  kernels::average(stream, {{{one.parameter->value, exact, {}}}, {}, device_state()});
  QuantiseUse use;
  use.quantizer = at_rank(options_.format, exact.rank());
  use.axis = std::max(0, exact.rank() - 1);
  use.key = key;
  const Tensor rounded = quantised(stream, exact, use, one.average.dtype());
  kernels::copy(stream, {rounded, one.average, &device_state()->gate});
}

int64_t Average::bytes() const {
  int64_t bytes = 0;
  for (const Averaged& one : averages_) bytes += one.average.bytes();
  return bytes;
}

void Average::exchange() {
  for (Averaged& one : averages_) std::swap(one.parameter->value, one.average);
}

std::map<std::string, Tensor> Average::tensors() const {
  std::map<std::string, Tensor> all{{"average.state", state_}};
  for (const Averaged& one : averages_) all[one.parameter->path + ".average"] = one.average;
  return all;
}

std::map<std::string, std::string> Average::formats() const {
  std::map<std::string, std::string> all;
  for (const Averaged& one : averages_)
    all[one.parameter->path + ".average"] = to_string(options_.format);
  return all;
}

}  // namespace ulp::optim
