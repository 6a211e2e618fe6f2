#include <algorithm>
#include <cmath>
#include <sstream>

#include "core/codebook.h"
#include "core/error.h"
#include "kernels/quantised.h"
#include "tests/conformance_parts.h"
#include "tests/paths.h"

namespace ulp::conformance {

using reference::Mismatches;
using reference::Reference;
using reference::Rounded;
using reference::same;
using reference::ScaledReference;

bool is_list(const Quantizer& q) {
  return q.format.kind == FormatKind::Posit || q.format.kind == FormatKind::Codebook;
}

std::ifstream open_data(const char* name) {
  const std::string path = std::string(paths::kTestData) + "/" + name;
  std::ifstream file(path);
  ULP_CHECK(file.good(), "{} cannot be read", path);
  return file;
}

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

}  // namespace ulp::conformance
