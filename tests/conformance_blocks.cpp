#include <algorithm>
#include <bit>
#include <cmath>
#include <map>

#include "core/error.h"
#include "kernels/quantised.h"
#include "tests/conformance_parts.h"

namespace ulp::conformance {

using reference::Mismatches;
using reference::Reference;
using reference::Rounded;
using reference::same;
using reference::ScaledReference;

// ---- blocks ---------------------------------------------------------------------------------------------------------
namespace {

/// Largest magnitudes at which the four rules change their mind: powers of two, the element's largest number in every
/// binade, and where rounding to the element's precision carries; one ulp either side.
std::vector<float> hard_amaxes(const ScaledReference& reference) {
  int exponent = 0;
  const double max_significand = 2 * std::frexp(reference.element().max(), &exponent);
  std::vector<double> significands = {1.0, 1.5, max_significand};
  for (int precision = 1; precision <= 12; ++precision)
    significands.push_back(2 - std::ldexp(1.0, -precision));
  std::vector<float> amaxes = {0.0f, kMost};
  for (int e = -149; e <= 127; ++e)
    for (const double significand : significands) {
      const auto x = static_cast<float>(std::ldexp(significand, e));
      for (const float near : {x, std::nextafter(x, 0.0f), std::nextafter(x, kInf)})
        if (std::isfinite(near)) amaxes.push_back(near);
    }
  return amaxes;
}

}  // namespace

void sweep_scale_exponents(const std::string& name, DType out, uint64_t stride, Tally& tally) {
  const Quantizer quantizer = Quantizer::parse(name);
  const ScaledReference reference(quantizer, reference::least_scale_of(quantizer, out));
  const BlockRule rule = make_block_rule(quantizer, out);
  const auto check = [&](float amax) {
    const int got = scale_exponent(rule, bits_of(amax));
    const int want = reference.scale_exponent(amax);
    if (got != want || got < 0 || got > 254)
      tally.bad.add(
          format_message("{} {} amax {}: X {}, want {}", {name, out, hex(amax), got, want}));
  };
  const std::vector<float> amaxes = hard_amaxes(reference);
  for (const float amax : amaxes) check(amax);
  tally.compared += static_cast<int64_t>(amaxes.size());
  if (out != DType::F32) return;
  int64_t compared = 0;
#pragma omp parallel for schedule(static) reduction(+ : compared)
  for (uint64_t bits = 0; bits < kInfinityBits; bits += stride) {
    check(float_of(static_cast<uint32_t>(bits)));
    ++compared;
  }
  tally.compared += compared;
}

std::vector<std::vector<int64_t>> blocks_of(const Block& kind, const Shape& shape, int group_axis) {
  std::map<std::vector<int64_t>, std::vector<int64_t>> blocks;
  const int rank = shape.rank();
  std::vector<int64_t> at(static_cast<size_t>(rank), 0);
  for (int64_t i = 0; i < shape.numel(); ++i) {
    int64_t rest = i;
    for (int axis = rank - 1; axis >= 0; --axis) {
      at[static_cast<size_t>(axis)] = rest % shape[axis];
      rest /= shape[axis];
    }
    std::vector<int64_t> block = at;
    switch (kind.kind) {
      case Block::Kind::None:
      case Block::Kind::Tensor: block = {}; break;
      case Block::Kind::Axis: block = {at[static_cast<size_t>(kind.axis)]}; break;
      case Block::Kind::Group: block[static_cast<size_t>(group_axis)] /= kind.columns; break;
      case Block::Kind::Row: block[static_cast<size_t>(group_axis)] = 0; break;
      case Block::Kind::Tile:
        block[static_cast<size_t>(rank - 1)] /= kind.columns;
        if (rank > 1) block[static_cast<size_t>(rank - 2)] /= kind.rows;
        break;
    }
    blocks[block].push_back(i);
  }
  std::vector<std::vector<int64_t>> lists;
  for (auto& [block, indices] : blocks) lists.push_back(std::move(indices));
  return lists;
}

Tensor quantise(const Quantizer& q, const TensorCase& tensor, DType out, const Tensor& factors,
                const Tensor& mask) {
  const Tensor x = Tensor::from(tensor.x, tensor.shape);
  const int n = q.transform.hadamard;
  if ((n != 0 || q.scale.kind == Scale::Kind::Squeeze) && !factors.defined())
    return quantised(Stream{}, x, {q, tensor.group_axis, tensor.key, {}, false, mask, {}}, out);
  QuantiseArgs args;
  args.in = x;
  if (n != 0) {
    args.in = Tensor::empty(tensor.shape, DType::F32, kCpu);
    kernels::rotate(Stream{}, {x, args.in, tensor.group_axis, n, rotation_exponent(n, Side::Left),
                               tensor.key.seed, false});
  }
  args.out = Tensor::empty(tensor.shape, out, kCpu);
  args.quantizer = q;
  args.quantizer.transform.hadamard = 0;
  args.group_axis = tensor.group_axis;
  args.key = tensor.key;
  args.factors = factors;
  args.mask = mask;
  kernels::quantise(Stream{}, args);
  return args.out;
}

TensorRun run(const Quantizer& q, const TensorCase& tensor, DType out, bool with_mask) {
  Tensor mask;
  if (with_mask) mask = Tensor::empty(tensor.shape, DType::U8, kCpu);
  TensorRun run{quantise(q, tensor, out, {}, mask).to_floats(), {}};
  if (with_mask) run.clamped.assign(mask.data<uint8_t>(), mask.data<uint8_t>() + mask.numel());
  return run;
}

std::vector<Rounded> expected_of(const Quantizer& q, const TensorCase& tensor, DType out) {
  const RandomSource random(tensor.key);
  const reference::BlockReference reference(q, out);
  std::vector<Rounded> expected(tensor.x.size());
  for (const std::vector<int64_t>& block : blocks_of(q.block, tensor.shape, tensor.group_axis)) {
    std::vector<float> values;
    std::vector<uint32_t> words;
    for (const int64_t i : block) {
      values.push_back(tensor.x[static_cast<size_t>(i)]);
      words.push_back(random.word(static_cast<uint64_t>(i)));
    }
    const std::vector<Rounded> rounded = reference(values, words);
    for (size_t j = 0; j < block.size(); ++j) expected[static_cast<size_t>(block[j])] = rounded[j];
  }
  return expected;
}

void compare(const std::string& what, const TensorRun& got, const std::vector<Rounded>& want,
             const std::vector<float>& x, Tally& tally) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (!same(got.values[i], want[i].value))
      tally.bad.add(format_message("{}: element {}, {}, became {}, want {}",
                                   {what, i, hex(x[i]), hex(got.values[i]), hex(want[i].value)}));
    if (!got.clamped.empty() && (got.clamped[i] != 0) != want[i].clamped)
      tally.bad.add(
          format_message("{}: element {}, {}, clamped {}", {what, i, hex(x[i]), got.clamped[i]}));
  }
  tally.compared += static_cast<int64_t>(want.size());
}

MxTable mx_table() {
  std::ifstream file = open_data("mx_blocks.txt");
  MxTable table;
  std::string word, line;
  while (file >> word) {
    MxTable::Made made;
    if (word == "made") file >> made.quantizer >> made.block >> made.exponent;
    std::getline(file >> std::ws, line);
    if (word == "block") table.blocks.push_back(numbers_of(line));
    if (word != "made") continue;
    made.y = numbers_of(line);
    table.made.push_back(made);
  }
  return table;
}

void compare_mx(const MxTable& table, const MxTable::Made& made, Tally& tally) {
  const std::vector<float>& x = table.blocks.at(made.block);
  const Quantizer q = Quantizer::parse(made.quantizer);
  const std::string what = format_message("{} block {}", {made.quantizer, made.block});
  const TensorCase tensor{x, {static_cast<int64_t>(x.size())}, 0, {}};
  std::vector<Rounded> want;
  for (const float y : made.y) want.push_back({y, false});
  compare(what, run(q, tensor, DType::F32), want, x, tally);
  if (made.exponent == 255) return;
  float amax = 0;
  for (const float value : x) amax = std::max(amax, std::fabs(value));
  if (scale_exponent(make_block_rule(q, DType::F32), bits_of(amax)) != made.exponent)
    tally.bad.add(what + ": another scale exponent");
}

}  // namespace ulp::conformance
