#include <algorithm>
#include <cmath>
#include <regex>
#include <span>
#include <sstream>

#include "core/codebook.h"
#include "core/error.h"
#include "kernels/quantised.h"
#include "tests/conformance_parts.h"

namespace ulp::conformance {

using reference::Mismatches;
using reference::Reference;
using reference::Rounded;
using reference::same;
using reference::ScaledReference;

// ---- scales that are no powers of two, transforms --------------------------------------------------------------------
namespace {

/// x ≥ 0, at most FLT_MAX. Compared as integers: from 1 / x being beyond FLT_MAX, GCC 13.3 infers that x, a subnormal, is 0.
float finite(float x) { return std::bit_cast<uint32_t>(x) > 0x7f7fffffu ? kMost : x; }

/// The largest magnitude, NaN if there is Inf or NaN among the values.
float amax_of(const std::vector<float>& values) {
  float amax = 0;
  for (const float x : values) {
    if (!std::isfinite(x)) return std::nanf("");
    amax = std::max(amax, std::fabs(x));
  }
  return amax;
}

float reciprocal_scale(float numerator, float amax) {
  const float scale = finite(numerator / amax);
  return amax == 0 || scale == 0 ? 1.0f : scale;
}

/// Fast Walsh–Hadamard transform: its last stage joins the transforms of both halves.
void transform(std::span<float> x) {
  if (x.size() == 1) return;
  const size_t half = x.size() / 2;
  transform(x.first(half));
  transform(x.last(half));
  for (size_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a + b;
    x[i + half] = a - b;
  }
}

}  // namespace

ScaledTensorReference::ScaledTensorReference(const std::string& text) {
  std::smatch match;
  std::regex_match(text, match, std::regex(R"(([^+:]*)((?:\+[^+:]*)*)(:.*)?)"));
  const std::string base = match[1], parts = match[2], rounding = match[3];
  std::regex_match(base, match,
                   std::regex(R"((.*?)(-(?:g\d+|axis\d|t\d+x\d+))?(-scalef32|-scalee4m3)?)"));
  std::string element = match[1], blocks = match[2];
  const std::string scale = match[3];
  nvfp4_ = element == "nvfp4";
  if (nvfp4_) {
    element = "e2m1";
    if (blocks.empty()) blocks = "-g16";
  }
  three_quarters_ = parts.find("+q34") != std::string::npos;
  for (const int n : {16, 32})
    if (parts.find("+rht" + std::to_string(n)) != std::string::npos) hadamard_ = n;

  if (nvfp4_ || scale == "-scalee4m3") scaling_ = Scaling::E4m3;
  const bool row = parts.find("+scale=row") != std::string::npos;
  if (scale == "-scalef32" || row || parts.find("+scale=current") != std::string::npos)
    scaling_ = Scaling::Fp32;
  if (scaling_ != Scaling::None) {
    plain_ = Quantizer::parse(element + rounding);
    plain_.format.overflow = Overflow::Saturate;
    block_ = Quantizer::parse("bfp8" + blocks).block;
    if (row) block_.kind = Block::Kind::Row;
  } else {
    std::string rule;  // that of one power of two for the whole tensor
    if (const size_t at = parts.find("+scale="); at != std::string::npos)
      rule = parts.substr(at, parts.find('+', at + 1) - at);
    plain_ = Quantizer::parse(base + rule + rounding);
    block_ = plain_.block;
    if (block_.kind != Block::Kind::None) scaling_ = Scaling::PowerOfTwo;
  }
  if (scaling_ == Scaling::PowerOfTwo) return;
  if (is_list(plain_)) {
    const ListReference list(plain_);
    max_ = static_cast<float>(list.max());
    element_ = list;
  } else {
    const Reference reference(plain_);
    max_ = static_cast<float>(reference.max());
    element_ = reference;
  }
}

void ScaledTensorReference::scale_by_fp32(Values& area, const Words& words, float& factor) const {
  const float amax = amax_of(area);
  if (std::isnan(amax)) {
    factor = amax;
    area.assign(area.size(), amax);
    return;
  }
  const float scale = reciprocal_scale(max_, amax);
  factor = finite(1.0f / scale);
  for (size_t i = 0; i < area.size(); ++i) area[i] = element_(area[i] * scale, words[i]).value;
}

void ScaledTensorReference::scale_by_e4m3(Values& area, const Words& words,
                                          float tensor_scale) const {
  const float amax = amax_of(area);
  if (std::isnan(amax) || std::isnan(tensor_scale)) {
    area.assign(area.size(), std::nanf(""));
    return;
  }
  static const Reference e4m3("e4m3");
  const float d = e4m3(finite(amax * (tensor_scale * (1.0f / max_)))).value;
  const float scale = finite(tensor_scale / d);
  for (size_t i = 0; i < area.size(); ++i) area[i] = element_(area[i] * scale, words[i]).value * d;
}

void ScaledTensorReference::scale_by_power_of_two(Values& area, const Words& words,
                                                  DType out) const {
  if (!three_quarters_) {
    const std::vector<Rounded> rounded = reference::BlockReference(plain_, out)(area, words);
    for (size_t i = 0; i < area.size(); ++i) area[i] = rounded[i].value;
    return;
  }
  const float amax = amax_of(area);
  const ScaledReference reference(plain_, reference::least_scale_of(plain_, out));
  const int exponent = std::isnan(amax) ? 0 : reference.scale_exponent(amax);
  for (size_t i = 0; i < area.size(); ++i)
    area[i] = std::isnan(amax) ? amax : reference(0.75f * area[i], exponent, words[i]).value;
}

void ScaledTensorReference::turn(Values& values, const TensorCase& tensor, bool back) const {
  const RandomSource source(RandomKey{.seed = tensor.key.seed, .stream = fnv1a32("rht")});
  const auto n = static_cast<size_t>(hadamard_);
  const Block line{Block::Kind::Row, 0, 0, 0};
  for (const std::vector<int64_t>& indices : blocks_of(line, tensor.shape, tensor.group_axis))
    for (size_t first = 0; first + n <= indices.size(); first += n) {
      Values group(n), signs(n);
      for (size_t i = 0; i < n; ++i) {
        signs[i] = source.word(first + i) >= 0x80000000u ? -1.0f : 1.0f;
        group[i] = values[static_cast<size_t>(indices[first + i])] * (back ? 1.0f : signs[i]);
      }
      transform(group);
      const float share = back && n == 32 ? 0.125f : 0.25f;
      for (size_t i = 0; i < n; ++i)
        values[static_cast<size_t>(indices[first + i])] =
            group[i] * share * (back ? signs[i] : 1.0f);
    }
}

Scaled ScaledTensorReference::operator()(const TensorCase& tensor, DType out) const {
  Values x = tensor.x;
  if (hadamard_ > 0) turn(x, tensor, false);
  float tensor_scale = 1, factor = 1;
  if (nvfp4_) {
    const float amax = amax_of(x);
    tensor_scale = std::isnan(amax) ? amax : reciprocal_scale(448.0f * max_, amax);
    factor = std::isnan(amax) ? amax : finite(1.0f / tensor_scale);
  }
  if (three_quarters_) factor = 4.0f / 3.0f;
  const RandomSource random(tensor.key);
  Scaled result{Values(x.size()), {}, Values(x.size())};
  for (const std::vector<int64_t>& indices : blocks_of(block_, tensor.shape, tensor.group_axis)) {
    Values area;
    Words words;
    for (const int64_t i : indices) {
      area.push_back(x[static_cast<size_t>(i)]);
      words.push_back(random.word(static_cast<uint64_t>(i)));
    }
    switch (scaling_) {
      case Scaling::Fp32:
        scale_by_fp32(area, words, factor);
        result.factors.push_back(factor);
        break;
      case Scaling::E4m3: scale_by_e4m3(area, words, tensor_scale); break;
      case Scaling::PowerOfTwo: scale_by_power_of_two(area, words, out); break;
      case Scaling::None:
        for (size_t i = 0; i < area.size(); ++i) area[i] = element_(area[i], words[i]).value;
    }
    for (size_t i = 0; i < area.size(); ++i) {
      result.values[static_cast<size_t>(indices[i])] = area[i];
      result.whole[static_cast<size_t>(indices[i])] = area[i] * factor;
    }
  }
  if (nvfp4_ || three_quarters_) result.factors = {factor};
  if (hadamard_ > 0) turn(result.whole, tensor, true);
  return result;
}

std::vector<ScaledCase> scaled_table() {
  std::ifstream file = open_data("scaled_blocks.txt");
  std::vector<ScaledCase> cases;
  ScaledCase next;
  for (std::string line, word; std::getline(file, line);) {
    std::istringstream words(line);
    words >> word;
    if (word == "input") {
      std::vector<int64_t> extents;
      words >> next.input >> next.tensor.group_axis;
      for (int64_t extent = 0; words >> extent;) extents.push_back(extent);
      next.tensor.shape = Shape(extents);
    } else if (word == "case") {
      words >> next.quantizer >> next.tensor.key.seed;
    } else if (word != "#") {
      std::vector<float>& numbers = word == "x"         ? next.tensor.x
                                    : word == "v"       ? next.want.values
                                    : word == "factors" ? next.want.factors
                                                        : next.want.whole;
      numbers = numbers_of(line.substr(word.size()));
      if (word == "y") cases.push_back(next);
    }
  }
  return cases;
}

void compare_numbers(const std::string& what, const std::vector<float>& got,
                     const std::vector<float>& want, Tally& tally) {
  tally.compared += static_cast<int64_t>(want.size());
  if (got.size() != want.size())
    tally.bad.add(format_message("{}: {} numbers, want {}", {what, got.size(), want.size()}));
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i)
    if (!same(got[i], want[i]))
      tally.bad.add(format_message("{} {}: {}, want {}", {what, i, hex(got[i]), hex(want[i])}));
}

void compare_scaled(const std::string& quantizer, const TensorCase& tensor, const Scaled& want,
                    DType out, Tally& tally) try {
  const std::string what =
      format_message("{} {} axis {}", {quantizer, tensor.shape, tensor.group_axis});
  const Quantizer q = Quantizer::parse(quantizer);
  if (out == DType::F32)
    compare_numbers(what + " y", run(q, tensor, out).values, want.whole, tally);
  if (want.factors.empty()) return;
  const Tensor factors =
      Tensor::empty({static_cast<int64_t>(want.factors.size())}, DType::F32, kCpu);
  compare_numbers(what + " v", quantise(q, tensor, out, factors, {}).to_floats(), want.values,
                  tally);
  compare_numbers(what + " factor", factors.to_floats(), want.factors, tally);
} catch (const Error& refusal) {
  tally.bad.add(refusal.what());
}

}  // namespace ulp::conformance
