#include "conformance.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <map>
#include <regex>
#include <span>
#include <sstream>

#include "core/codebook.h"
#include "core/error.h"
#include "kernels/quantised.h"

namespace ulp::conformance {

using reference::Mismatches;
using reference::Reference;
using reference::Rounded;
using reference::same;
using reference::ScaledReference;

namespace {

constexpr float kMost = std::numeric_limits<float>::max();
constexpr float kInf = std::numeric_limits<float>::infinity();

bool is_list(const Quantizer& q) {
  return q.format.kind == FormatKind::Posit || q.format.kind == FormatKind::Codebook;
}

std::ifstream open_data(const char* name) {
  const std::string path = std::string(ULP_TEST_DATA) + "/" + name;
  std::ifstream file(path);
  ULP_CHECK(file.good(), "{} cannot be read", path);
  return file;
}

/// fp32 bits in hex; four digits are the upper half, the lower half being 0.
float number_of(const std::string& digits) {
  const auto bits = static_cast<uint32_t>(std::stoul(digits, nullptr, 16));
  return float_of(digits.size() == 4 ? bits << 16 : bits);
}

std::vector<float> numbers_of(const std::string& line) {
  std::istringstream words(line);
  std::vector<float> numbers;
  for (std::string word; words >> word;) numbers.push_back(number_of(word));
  return numbers;
}

}  // namespace

std::string hex(float x) { return format_message("{:#010x}", {ErrorArg(bits_of(x))}); }

// ---- inputs ---------------------------------------------------------------------------------------------------------
uint32_t scramble(uint64_t n) {
  n = (n + 0x9E3779B97F4A7C15u) * 0xBF58476D1CE4E5B9u;
  n = (n ^ (n >> 29)) * 0x94D049BB133111EBu;
  return static_cast<uint32_t>(n >> 32);
}

float spread_float(uint64_t n, int low, int high) {
  const uint32_t word = scramble(n);
  const float significand = 1.0f + std::ldexp(static_cast<float>(word & 0x7FFFFF), -23);
  const int exponent =
      low + static_cast<int>(scramble(n + 77) % static_cast<uint32_t>(high - low + 1));
  const float x = std::ldexp(significand, exponent);
  return (word >> 31) != 0 ? -x : x;
}

std::vector<float> mixed_values(int64_t n, uint64_t seed, bool with_specials) {
  std::vector<float> values;
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t at = seed * 1000003 + static_cast<uint64_t>(i);
    switch (scramble(seed + static_cast<uint64_t>(i) / 40) % 6) {
      case 0:
      case 1: values.push_back(spread_float(at, -9, 3)); break;
      case 2: values.push_back(scramble(at) % 2 == 0 ? 0.0f : -0.0f); break;
      case 3: values.push_back(spread_float(at, -149, 127)); break;
      case 4: values.push_back(spread_float(at, -149, -127)); break;
      default: values.push_back(scramble(at) % 5 == 0 ? -kMost : spread_float(at, 110, 127));
    }
    if (with_specials && scramble(at + 5) % 70 == 0)
      values.back() =
          scramble(at) % 2 == 0 ? std::nanf("") : (scramble(at) % 4 == 1 ? kInf : -kInf);
  }
  return values;
}

// ---- formats that are lists of numbers ------------------------------------------------------------------------------
double posit_number(uint32_t code, int n, int es) {
  std::string bits;
  for (int i = n - 2; i >= 0; --i) bits += (code >> i & 1) != 0 ? '1' : '0';
  size_t at = 0;
  while (at < bits.size() && bits[at] == bits[0]) ++at;
  const int run = static_cast<int>(at), k = bits[0] == '1' ? run - 1 : -run;
  ++at;  // the bit that ends the regime
  int e = 0;
  for (int i = 0; i < es; ++i, ++at) e = 2 * e + (at < bits.size() && bits[at] == '1' ? 1 : 0);
  double fraction = 1, weight = 0.5;
  for (; at < bits.size(); ++at, weight /= 2)
    if (bits[at] == '1') fraction += weight;
  return std::ldexp(fraction, k * (1 << es) + e);
}

ListReference::ListReference(const Quantizer& quantizer)
    : quantizer_(quantizer), is_posit_(quantizer.format.kind == FormatKind::Posit) {
  const Format& f = quantizer.format;
  if (is_posit_) {
    const uint32_t codes = 1u << (f.word_bits - 1);
    for (uint32_t code = 1; code < codes; ++code) {
      numbers_.push_back(posit_number(code, f.word_bits, f.exponent_bits));
      if (code + 1 < codes)
        boundaries_.push_back(posit_number(2 * code + 1, f.word_bits + 1, f.exponent_bits));
    }
    return;
  }
  for (const float value : codebook(f.table).values) {
    if (!numbers_.empty()) boundaries_.push_back((numbers_.back() + value) / 2);
    numbers_.push_back(value);
  }
}

double ListReference::max() const {
  return std::max(std::fabs(numbers_.front()), std::fabs(numbers_.back()));
}

/// x, or of posits its magnitude, lies between numbers `low` and `low` + 1.
bool ListReference::rounds_up(size_t low, double x, uint32_t random) const {
  const bool negative = std::signbit(x);
  const double at = is_posit_ ? std::fabs(x) : x;
  const double boundary = boundaries_[low];
  const bool low_is_odd = (low % 2 == 1) != is_posit_;  // a posit's codes count from 1
  switch (quantizer_.rounding) {
    case Rounding::NearestEven: return at == boundary ? low_is_odd : at > boundary;
    case Rounding::NearestAway: return at == boundary ? is_posit_ || !negative : at > boundary;
    case Rounding::NearestUp: return at == boundary ? !is_posit_ || !negative : at > boundary;
    case Rounding::TowardZero: return !is_posit_ && negative;
    case Rounding::Up: return !is_posit_ || !negative;
    case Rounding::Down: return is_posit_ && negative;
    case Rounding::Odd: return !low_is_odd;
    case Rounding::Stochastic: break;
  }
  // The way from low to high in units of 2^−32 is rounded as a fixed-point number between 0 and 1 is.
  const double way = (at - numbers_[low]) / (numbers_[low + 1] - numbers_[low]);
  const double whole = std::min(std::floor(std::ldexp(way, 32)), 4294967295.0);
  Quantizer unit = fixed_format(3, 0);
  unit.rounding = quantizer_.rounding;
  unit.bits = quantizer_.bits;
  return Reference(unit)(std::ldexp(whole, -32), random).value == 1;
}

Rounded ListReference::operator()(double x, uint32_t random) const {
  if (!std::isfinite(x)) return {std::nanf(""), false};
  if (is_posit_ && x == 0) return {0.0f, false};
  const double at = is_posit_ ? std::fabs(x) : x;
  const double first = numbers_.front(), last = numbers_.back();
  double y = 0;
  if (at <= first || at >= last) {
    y = at <= first ? first : last;
  } else {
    const auto above = std::upper_bound(numbers_.begin(), numbers_.end(), at);
    const auto low = static_cast<size_t>(above - numbers_.begin()) - 1;
    const bool up = numbers_[low] != at && rounds_up(low, x, random);
    y = numbers_[low + (up ? 1 : 0)];
  }
  const bool clamped = at > last || (!is_posit_ && at < first);
  return {static_cast<float>(is_posit_ && x < 0 ? -y : y), clamped};
}

std::vector<float> ListReference::hard_inputs() const {
  std::vector<float> inputs = {0.0f, 0x1p-149f, 0x1p-126f, kMost, kInf, std::nanf("")};
  for (const std::vector<double>* points : {&numbers_, &boundaries_})
    for (const double point : *points) {
      const auto x = static_cast<float>(point);
      for (const float near : {x, std::nextafter(x, kInf), std::nextafter(x, 0.0f)})
        inputs.push_back(near);
    }
  const size_t positive = inputs.size();
  for (size_t i = 0; i < positive; ++i) inputs.push_back(-inputs[i]);
  return inputs;
}

// ---- element by element ---------------------------------------------------------------------------------------------
namespace {

template <class AnyReference>
void compare_all(const std::string& name, const AnyReference& reference,
                 const std::function<float(int64_t)>& input, int64_t inputs, Tally& tally) {
  const Grid grid = make_grid(Quantizer::parse(name));
  int64_t compared = 0;
#pragma omp parallel for schedule(static) reduction(+ : compared)
  for (int64_t i = 0; i < inputs; ++i) {
    const float x = input(i);
    compare(name, grid, reference, x, bits_of(x) * 2654435761u, tally.bad);
    ++compared;
  }
  tally.compared += compared;
}

}  // namespace

void sweep(const std::string& name, uint64_t stride, Tally& tally) {
  const auto inputs = static_cast<int64_t>(((uint64_t{1} << 32) + stride - 1) / stride);
  const auto input = [stride](int64_t i) {
    return float_of(static_cast<uint32_t>(static_cast<uint64_t>(i) * stride));
  };
  const Quantizer q = Quantizer::parse(name);
  if (is_list(q))
    compare_all(name, ListReference(q), input, inputs, tally);
  else
    compare_all(name, Reference(q), input, inputs, tally);
}

void sweep_hard(const std::string& name, Tally& tally) {
  const Quantizer q = Quantizer::parse(name);
  const auto sweep_inputs = [&](const auto& reference, const std::vector<float>& inputs) {
    compare_all(
        name, reference, [&](int64_t i) { return inputs[static_cast<size_t>(i)]; },
        static_cast<int64_t>(inputs.size()), tally);
  };
  if (is_list(q)) {
    const ListReference reference(q);
    sweep_inputs(reference, reference.hard_inputs());
  } else {
    const Reference reference(q);
    sweep_inputs(reference, reference::hard_inputs(reference));
  }
}

std::vector<ValueTable> ml_dtypes_tables() {
  std::ifstream file = open_data("ml_dtypes_values.txt");
  std::vector<ValueTable> tables;
  std::string word, value;
  while (file >> word >> value) {
    if (word == "#")
      std::getline(file, value);
    else if (word == "format")
      tables.push_back({value, {}});
    else
      tables.back().rows.emplace_back(number_of(word), number_of(value));
  }
  return tables;
}

namespace {

void compare_row(const std::string& name, const Grid& grid, float x, float want, Tally& tally) {
  const float got = quantise_value(x, grid, 0);
  ++tally.compared;
  if (!same(got, want))
    tally.bad.add(name + ": " + hex(x) + " gave " + hex(got) + ", not " + hex(want));
}

}  // namespace

void compare_table(const ValueTable& table, Tally& tally) {
  const Grid grid = make_grid(Quantizer::parse(table.name));
  for (const auto& [x, y] : table.rows) compare_row(table.name, grid, x, y, tally);
}

void compare_table(const reference::P3109Table& table, Tally& tally) {
  for (size_t mode = 0; mode < table.kModes.size(); ++mode) {
    const std::string name = table.rounded_name + ":" + table.kModes[mode];
    const Grid grid = make_grid(Quantizer::parse(name));
    for (const auto& [x, y] : table.rounded) compare_row(name, grid, x, y[mode], tally);
  }
}

// ---- golden hashes --------------------------------------------------------------------------------------------------
namespace {

constexpr uint32_t kGoldenColumns = 16384;

uint64_t fnv1a64(const std::vector<float>& values) {
  uint64_t hash = 14695981039346656037u;
  for (const float value : values) {
    const uint32_t bits = value == 0 ? 0u : bits_of(value);
    for (int byte = 0; byte < 4; ++byte)
      hash = (hash ^ (bits >> (8 * byte) & 255)) * 1099511628211u;
  }
  return hash;
}

std::vector<float> golden_inputs(char set) {
  std::vector<float> inputs(kGoldenSize);
  for (uint32_t i = 0; i < kGoldenSize; ++i) {
    const uint32_t w = 2654435761u * i + 12345u;
    const uint32_t row = i / kGoldenColumns, column = i % kGoldenColumns;
    const uint32_t exponent = set == 'B' ? 112 + ((w >> 23) & 31)
                                         : 100 + ((w >> 23) & 7) + 2 * (row % 8) + 2 * (column % 8);
    inputs[i] = float_of((w & 0x807FFFFFu) | exponent << 23);
  }
  return inputs;
}

}  // namespace

std::vector<Golden> golden_hashes() {
  return {{"e6m9-none:rna", 'B', 0xbe5526b06048249bu}, {"e8m7-none:rna", 'B', 0x08f95c022a62a098u},
          {"fixed8.4:rne", 'B', 0xe12b6a5ad5dc5b9fu},  {"fixed16.8:rna", 'B', 0x58029c1c1578f9b5u},
          {"bfp8:rnu", 'C', 0xb027334ca73d4fd9u},      {"bfp8-axis0:rnu", 'C', 0x808479cddf6d7b8du},
          {"bfp8-axis1:rnu", 'C', 0x0a5caa7191df1cafu}};
}

uint64_t golden_input_hash(char set) { return fnv1a64(golden_inputs(set)); }

void compare_golden(const Golden& golden, Tally& tally) {
  const TensorCase tensor{
      golden_inputs(golden.set), {kGoldenSize / kGoldenColumns, kGoldenColumns}, 0, {}};
  const uint64_t hash = fnv1a64(run(Quantizer::parse(golden.quantizer), tensor, DType::F32).values);
  tally.compared += kGoldenSize;
  if (hash != golden.hash)
    tally.bad.add(
        format_message("{}: hash {:#018x}, not {:#018x}", {golden.quantizer, hash, golden.hash}));
}

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

namespace {

/// The whole quantizer, or with `factors` the values that they are kept apart from. mask is optional.
Tensor quantise(const Quantizer& q, const TensorCase& tensor, DType out, const Tensor& factors,
                const Tensor& mask) {
  const Tensor x = Tensor::from(tensor.x, tensor.shape);
  const int n = q.transform.hadamard;
  if (n != 0 && !factors.defined())
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

}  // namespace

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
  if (scale == "-scalef32" || parts.find("+scale=") != std::string::npos) scaling_ = Scaling::Fp32;
  if (scaling_ != Scaling::None) {
    plain_ = Quantizer::parse(element + rounding);
    plain_.format.overflow = Overflow::Saturate;
    block_ = Quantizer::parse("bfp8" + blocks).block;
    if (parts.find("+scale=row") != std::string::npos) block_.kind = Block::Kind::Row;
  } else {
    plain_ = Quantizer::parse(base + rounding);
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

// ---- the table ------------------------------------------------------------------------------------------------------
namespace {

/// A row: quantizers of one kind. Words of `checked` name what they were compared with.
struct Row {
  std::string format;
  std::vector<std::string>
      quantizers;  // without roundings; of element-wise formats the first is swept, the others see
                   // hard inputs only
  std::vector<std::string> checked = {};
  Tally tally = {};

  bool has(const std::string& quantizer) const {
    return std::find(quantizers.begin(), quantizers.end(), quantizer) != quantizers.end();
  }
  void lead(const char* reference) { checked.insert(checked.begin(), reference); }
  void add(const char* reference) {
    if (std::find(checked.begin(), checked.end(), reference) == checked.end())
      checked.push_back(reference);
  }
};

std::vector<Row> elementwise_rows() {
  std::vector<Row> rows = {
      {"fp32", {"fp32"}},
      {"fp16", {"fp16", "fp16-sat", "fp16-nan-ftz"}},
      {"bf16", {"bf16", "bf16-sat"}},
      {"tf32", {"tf32"}},
      {"e8m7-none", {"e8m7-none"}},
      {"e6m9", {"e6m9"}},
      {"e6m9-none", {"e6m9-none"}},
      {"e4m3", {"e4m3", "e4m3-nan", "e4m3-sat", "e4m3-ftz", "e4m3-none"}},
      {"e5m2", {"e5m2", "e5m2-nan", "e5m2-sat", "e5m2-ftz", "e5m2-none"}},
      {"e4m3-fnuz", {"e4m3-fnuz", "e4m3-fnuz-nan", "e4m3-fnuz-sat", "e4m3-fnuz-nan-bias11"}},
      {"e5m2-fnuz", {"e5m2-fnuz", "e5m2-fnuz-nan", "e5m2-fnuz-sat"}},
      {"e4m3-ieee", {"e4m3-ieee", "e4m3-ieee-sat"}},
      {"e3m4", {"e3m4", "e3m4-sat"}},
      {"e2m3", {"e2m3", "e2m3-sat"}},
      {"e3m2", {"e3m2", "e3m2-sat"}},
      {"e2m1", {"e2m1", "e2m1-sat"}},
      {"fixed8.4",
       {"fixed8.4", "fixed8.4-sat", "fixed8.4-sym", "fixed8.4-u", "fixed8.4-wrap",
        "fixed8.4-u-wrap", "fixed8.4-noclamp"}},
      {"fixed16.8", {"fixed16.8", "fixed16.8-wrap", "fixed16.8-u"}},
  };
  for (char p = '1'; p <= '7'; ++p) {
    Row row{std::string("binary8p") + p, {}};
    for (const std::string& name : reference::p3109_names())
      if (name.starts_with(row.format)) row.quantizers.push_back(name);
    rows.push_back(row);
  }
  for (const char* name :
       {"posit8.0", "posit8.1", "posit8.2", "posit16.1", "posit16.2", "nf4", "pow2x4"})
    rows.push_back({name, {name}});
  return rows;
}

std::vector<std::string> with_rules(const std::string& name) {
  std::vector<std::string> names;
  for (const char* rule : kScaleRules) names.push_back(name + rule);
  return names;
}

std::vector<Row> block_rows() {
  std::vector<Row> rows = {{"bfp8", {"bfp8", "bfp8-axis0", "bfp8-axis1", "bfp8-g32", "bfp8-t4x16"}},
                           {"hbfp8", {"hbfp8", "hbfp8-axis0", "hbfp8-g32", "hbfp8-t4x16"}}};
  for (const char* mx : {"mxfp8", "mxfp8-e5m2", "mxfp6", "mxfp6-e3m2", "mxfp4", "mxint8"})
    rows.push_back({mx, with_rules(mx)});
  return rows;
}

std::vector<Row> scaled_rows() {
  return {
      {"nvfp4", {"nvfp4", "nvfp4-g8", "nvfp4-t16x16"}},
      {"-scalee4m3", {"e2m1-g16-scalee4m3", "e2m3-t2x8-scalee4m3", "fixed8.0-sym-g16-scalee4m3"}},
      {"-scalef32",
       {"e4m3-g128-scalef32", "e4m3-t128x128-scalef32", "e4m3-t2x16-scalef32",
        "e5m2-axis0-scalef32", "fixed8.0-sym-g32-scalef32", "posit8.1-g16-scalef32",
        "nf4-g16-scalef32", "nf4-g64-scalef32"}},
      {"+scale=current", {"e4m3+scale=current", "e5m2+scale=current"}},
      {"+scale=row", {"e5m2+scale=row", "fixed8.0+scale=row"}},
      {"+q34", {"mxfp4+q34", "mxfp8-rceil+q34"}},
      {"+rht16, +rht32",
       {"mxfp4+rht16", "mxfp6-even+rht32", "mxfp4+rht32+q34", "nvfp4+rht16",
        "e4m3-g8-scalef32+rht32", "e5m2+rht16+scale=row"}}};
}

void sweep_elementwise(Row& row, uint64_t stride) {
  row.lead(is_list(Quantizer::parse(row.format)) ? "numbers and boundaries in double"
                                                 : "exact decoder in double");
  for (const std::string& quantizer : row.quantizers)
    for (const char* mode : kRoundings) {
      const bool is_rounded = quantizer != "fp32";
      if (!is_rounded && mode != kRoundings.front()) continue;
      const std::string name = quantizer + (is_rounded ? ":" + std::string(mode) : "");
      sweep_hard(name, row.tally);
      if (quantizer == row.quantizers.front()) sweep(name, stride, row.tally);
    }
}

void compare_value_tables(std::vector<Row>& rows) {
  for (Row& row : rows) {
    for (const ValueTable& table : ml_dtypes_tables())
      if (row.has(table.name)) {
        compare_table(table, row.tally);
        row.add("ml_dtypes");
      }
    for (const reference::P3109Table& table : reference::p3109_tables())
      if (row.has(table.rounded_name)) {
        compare_table(table, row.tally);
        row.add("gfloat");
      }
  }
}

void compare_golden_hashes(std::vector<Row>& rows) {
  for (Row& row : rows)
    for (const Golden& golden : golden_hashes()) {
      const std::string name = golden.quantizer;
      if (!row.has(name.substr(0, name.find(':')))) continue;
      compare_golden(golden, row.tally);
      row.add("hashes of QPyTorch's formats");
    }
}

void compare_mx_table(std::vector<Row>& rows) {
  const MxTable table = mx_table();
  for (Row& row : rows)
    for (const MxTable::Made& made : table.made)
      if (row.has(made.quantizer)) {
        compare_mx(table, made, row.tally);
        row.add("numpy with ml_dtypes");
      }
}

void compare_scaled_table(std::vector<Row>& rows) {
  const std::vector<ScaledCase> cases = scaled_table();
  for (Row& row : rows)
    for (const ScaledCase& one : cases)
      if (row.has(one.quantizer)) {
        compare_scaled(one.quantizer, one.tensor, one.want, DType::F32, row.tally);
        row.add("numpy with ml_dtypes");
      }
}

/// A tensor of about `elements` numbers with groups, tiles and rows that end in tails.
TensorCase tensor_case(int64_t elements, uint64_t turn) {
  TensorCase tensor;
  tensor.shape = {3, std::max<int64_t>(37, elements / (3 * 37)), 37};
  tensor.x = mixed_values(tensor.shape.numel(), turn, turn % 2 == 0);
  tensor.group_axis = static_cast<int>(turn % 3);
  tensor.key = {scramble(turn), static_cast<uint32_t>(turn), 1, nullptr};
  return tensor;
}

void sweep_blocks(Row& row, int64_t elements) {
  row.lead("definition in double");
  uint64_t turn = 0;
  for (const std::string& quantizer : row.quantizers)
    for (const char* mode : kRoundings) {
      const std::string name = quantizer + ":" + mode;
      const Quantizer q = Quantizer::parse(name);
      const TensorCase tensor = tensor_case(elements, ++turn);
      for (const DType out : {DType::F32, gemm_type(q)})
        compare(name, run(q, tensor, out, turn % 2 == 0), expected_of(q, tensor, out), tensor.x,
                row.tally);
    }
}

void sweep_scaled(Row& row, int64_t elements) {
  row.lead("definition in fp32 operations");
  uint64_t turn = 0;
  for (const std::string& quantizer : row.quantizers)
    for (const char* mode : kRoundings) {
      const std::string name = quantizer + ":" + mode;
      const TensorCase tensor = tensor_case(elements, ++turn);
      const ScaledTensorReference reference(name);
      for (const DType out : {DType::F32, gemm_type(Quantizer::parse(name))})
        compare_scaled(name, tensor, reference(tensor, out), out, row.tally);
    }
}

void sweep_scales(Row& row, uint64_t stride) {
  row.lead("rules in double");
  for (const std::string& quantizer : row.quantizers)
    for (const DType out : {DType::F32, DType::BF16})
      sweep_scale_exponents(quantizer, out, stride, row.tally);
}

void print(const Row& row) {
  std::string checked;
  for (const std::string& reference : row.checked)
    checked += (checked.empty() ? "" : "; ") + reference;
  const bool is_rounded = row.format != "fp32" && row.format != "e8m0";
  fmt::print("| {} | {} | {} | {} | {} | {} |\n", row.format, row.quantizers.size(), checked,
             is_rounded ? kRoundings.size() : 1, row.tally.compared, row.tally.bad.count());
  if (row.tally.bad.count() > 0) fmt::print(stderr, "{}\n", row.tally.bad.first());
}

}  // namespace

int64_t print_table(uint64_t stride) {
  // Block formats see fewer numbers: their reference looks up each element's block.
  const auto elements = static_cast<int64_t>((uint64_t{1} << 32) / stride / 32);
  std::vector<Row> values = elementwise_rows(), blocks = block_rows(), scaled = scaled_rows();
  Row scales{"e8m0", {}};
  for (const char* mx : {"mxfp8", "mxfp8-e5m2", "mxfp6", "mxfp6-e3m2", "mxfp4", "mxint8"})
    for (const std::string& name : with_rules(mx)) scales.quantizers.push_back(name);

  fmt::print(
      "| format | variants | checked against | roundings | results compared | mismatches |\n");
  fmt::print("|---|---|---|---|---|---|\n");
  int64_t compared = 0, mismatches = 0;
  const auto finish = [&](const Row& row) {
    print(row);
    std::fflush(stdout);
    compared += row.tally.compared;
    mismatches += row.tally.bad.count();
  };
  compare_value_tables(values);
  compare_golden_hashes(values);
  for (Row& row : values) {
    sweep_elementwise(row, stride);
    finish(row);
  }
  sweep_scales(scales, stride);
  finish(scales);
  compare_golden_hashes(blocks);
  compare_mx_table(blocks);
  for (Row& row : blocks) {
    sweep_blocks(row, elements);
    finish(row);
  }
  compare_scaled_table(scaled);
  for (Row& row : scaled) {
    sweep_scaled(row, elements);
    finish(row);
  }
  fmt::print("\n{} results compared, {} mismatches; stride {} through the fp32 bit patterns\n",
             compared, mismatches, stride);
  return mismatches;
}

}  // namespace ulp::conformance
