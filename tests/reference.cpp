#include "reference.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string_view>

#include "core/error.h"
#include "tests/paths.h"

namespace ulp::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr size_t kMostPoints = (1 << 17) + 4;

double pow2(int exponent) { return std::ldexp(1.0, exponent); }

bool is_p3109(const Format& f) {
  return f.kind == FormatKind::Float &&
         (f.specials == Specials::P3109 || f.specials == Specials::P3109Finite);
}

bool has_minus_zero(const Format& f) {
  return f.kind == FormatKind::Float && f.specials != Specials::Fnuz && !is_p3109(f);
}

/// The number that a code without its sign stands for, special codes ignored. The codes go on beyond the last exponent
/// field, as the lattice does.
double decode(const Format& f, uint64_t code) {
  const int m = f.significand_bits;
  const int field = static_cast<int>(code >> m);
  const double fraction = static_cast<double>(code & ((uint64_t{1} << m) - 1));
  if (field == 0) return std::ldexp(fraction, 1 - f.bias - m);
  return std::ldexp(std::ldexp(1.0, m) + fraction, field - f.bias - m);
}

uint64_t largest_code(const Format& f) {
  const int e = f.exponent_bits, m = f.significand_bits;
  const uint64_t codes = uint64_t{1} << (e + m);
  // P3109: Inf takes the topmost code; NaN that of −0, or without a sign the one above Inf.
  if (is_p3109(f))
    return codes - 1 - (f.specials == Specials::P3109 ? 1 : 0) - (f.is_unsigned ? 1 : 0);
  if (f.specials == Specials::Ieee) return ((uint64_t{1} << e) - 1) * (uint64_t{1} << m) - 1;
  return codes - (f.specials == Specials::Fn ? 2 : 1);
}

}  // namespace

bool full() {
  const char* value = std::getenv("ULP_FULL");
  return value != nullptr && std::string_view(value) == "1";
}

uint64_t stride(uint64_t stride) { return full() ? 1 : stride; }

Reference::Reference(const Quantizer& quantizer, float block_amax) : quantizer_(quantizer) {
  const Format& f = quantizer.format;
  switch (f.kind) {
    case FormatKind::Fp32:
      quantizer_.format = Format::parse("e8m23");
      read_float();
      break;
    case FormatKind::Float: read_float(); break;
    case FormatKind::Fixed: {
      const double step = pow2(-f.fraction_bits);
      const double codes = pow2(f.word_bits);
      const double most = (f.is_unsigned ? codes : codes / 2) - 1;
      const double least = f.is_unsigned ? 0 : f.symmetric ? most : codes / 2;
      read_integers(step, most, least);
      break;
    }
    case FormatKind::BlockFloat: {
      const int exponent = block_amax == 0 ? -126 : std::max(std::ilogb(block_amax), -126);
      const double most = pow2(f.word_bits - 1) - 1;
      read_integers(pow2(exponent + 2 - f.word_bits), most, most);
      break;
    }
    case FormatKind::Hbfp: {
      int exponent = -126;  // of the power of two just above amax, or amax itself
      if (block_amax != 0) {
        const double significand = std::frexp(block_amax, &exponent);  // in [1/2, 1)
        exponent = std::max(significand == 0.5 ? exponent - 1 : exponent, -126);
      }
      const double step = std::max(pow2(exponent - (f.word_bits - 1)), 0x1p-149);
      const double most = pow2(exponent) / step - 1;
      read_integers(step, most, most);
      break;
    }
    default: throw_error("reference: no such kind of format: {}", f);
  }
}

void Reference::read_float() {
  const Format& f = quantizer_.format;
  min_normal_ = pow2(1 - f.bias);
  step_ = pow2(1 - f.bias - f.significand_bits);
  uint64_t last = largest_code(f);
  while (decode(f, last) >= 0x1p128) {
    beyond_is_infinity_ = true;
    --last;
  }
  max_ = decode(f, last);
  lowest_ = f.is_unsigned ? 0 : -max_;
  const uint64_t beyond = last + (uint64_t{2} << f.significand_bits);
  if (beyond >= kMostPoints) return;
  for (uint64_t code = 0; code <= beyond; ++code) points_.push_back(decode(f, code));
}

void Reference::read_integers(double step, double most, double least) {
  step_ = step;
  max_ = most * step;
  lowest_ = 0 - least * step;  // never −0
  if (most + 3 >= static_cast<double>(kMostPoints)) return;
  for (double integer = 0; integer <= std::max(most, least) + 2; ++integer)
    points_.push_back(integer * step);
}

Reference::Place Reference::place(double magnitude) const {
  const Format& f = quantizer_.format;
  if (f.kind != FormatKind::Float) {
    const double integer = std::floor(magnitude / step_);
    return {integer * step_, step_, std::fmod(integer, 2) == 1};
  }
  // Without significand bits every significand but zero's is 1, which is odd; P3109 goes by the code.
  if (!points_.empty() && magnitude < points_.back()) {
    const auto above = std::upper_bound(points_.begin(), points_.end(), magnitude);
    const auto code = (above - points_.begin()) - 1;
    const bool by_code = f.significand_bits > 0 || is_p3109(f);
    return {above[-1], above[0] - above[-1], by_code ? code % 2 == 1 : code != 0};
  }
  const double step = magnitude < min_normal_
                          ? step_
                          : pow2(std::ilogb(magnitude) - static_cast<int>(f.significand_bits));
  const double significand = std::floor(magnitude / step);
  return {significand * step, step, std::fmod(significand, 2) == 1};
}

bool Reference::rounds_up(const Place& at, double magnitude, bool negative, uint32_t random) const {
  const double rest = magnitude - at.low;
  if (rest == 0) return false;
  const double fraction = rest / at.step;  // in (0, 1)
  switch (quantizer_.rounding) {
    case Rounding::TowardZero: return false;
    case Rounding::Up: return !negative;
    case Rounding::Down: return negative;
    case Rounding::Odd: return !at.low_is_odd;
    case Rounding::NearestEven: return fraction == 0.5 ? at.low_is_odd : fraction > 0.5;
    case Rounding::NearestAway: return fraction >= 0.5;
    case Rounding::NearestUp: return fraction == 0.5 ? !negative : fraction > 0.5;
    case Rounding::Stochastic: break;
  }
  const RandomBits bits = quantizer_.bits;
  const int n = bits.count;
  if (n == 32 && bits.variant == RandomBits::Variant::Plain)
    return random < std::floor(std::ldexp(fraction, 32));
  const double word = std::floor(std::ldexp(static_cast<double>(random), n - 32));
  switch (bits.variant) {
    case RandomBits::Variant::Plain: return std::floor(std::ldexp(fraction, n)) + word >= pow2(n);
    case RandomBits::Variant::Centred:
      return std::floor(std::ldexp(fraction, n + 1)) + 2 * word + 1 >= pow2(n + 1);
    case RandomBits::Variant::Nearest:
      return std::nearbyint(std::ldexp(fraction, n)) + word >= pow2(n);
  }
  return false;
}

double Reference::overflow(bool negative) const {
  const double bound = negative ? lowest_ : max_;
  if (negative && lowest_ == 0) return 0;  // unsigned formats clamp, whatever overflow becomes
  const double signed_infinity = negative ? -kInfinity : kInfinity;
  const Rounding mode = quantizer_.rounding;
  const bool points_back = mode == Rounding::TowardZero || mode == Rounding::Odd ||
                           mode == (negative ? Rounding::Up : Rounding::Down);
  switch (quantizer_.format.overflow) {
    case Overflow::Infinity: return points_back ? bound : signed_infinity;
    case Overflow::Nan: return std::nan("");
    case Overflow::Clamp: return beyond_is_infinity_ && !points_back ? signed_infinity : bound;
    default: return bound;
  }
}

double Reference::infinity(bool negative) const {
  const Format& f = quantizer_.format;
  if (f.overflow == Overflow::Saturate) return negative ? lowest_ : max_;
  const bool has_infinity =
      f.kind == FormatKind::Float && !(negative && f.is_unsigned) &&
      (f.specials == Specials::Ieee || f.specials == Specials::P3109 || beyond_is_infinity_);
  return has_infinity ? (negative ? -kInfinity : kInfinity) : std::nan("");
}

Rounded Reference::operator()(double x, uint32_t random) const {
  const Format& f = quantizer_.format;
  if (std::isnan(x)) return {std::nanf(""), false};
  const bool negative = std::signbit(x);
  if (std::isinf(x)) return {static_cast<float>(infinity(negative)), false};
  const double magnitude = std::fabs(x);
  const Place at = place(magnitude);
  double y = at.low + (rounds_up(at, magnitude, negative, random) ? at.step : 0);
  if (f.flush_subnormals && y < min_normal_) y = 0;
  if (negative) y = -y;
  if (!has_minus_zero(f)) y += 0.0;
  if (f.overflow == Overflow::None) return {static_cast<float>(y), false};
  if (f.overflow == Overflow::Wrap) {
    const double codes = pow2(f.word_bits);
    double code = std::fmod(y / step_, codes);
    if (code < 0) code += codes;
    if (!f.is_unsigned && code >= codes / 2) code -= codes;
    return {static_cast<float>(code * step_ + 0.0), y > max_ || y < lowest_};
  }
  if (y > max_ || y < lowest_) return {static_cast<float>(overflow(negative) + 0.0), true};
  return {static_cast<float>(y), false};
}

std::vector<double> Reference::values() const {
  const Format& f = quantizer_.format;
  std::vector<double> values;
  for (const double point : points_) {
    if (f.flush_subnormals && point < min_normal_ && point != 0) continue;
    if (point <= max_) values.push_back(point);
    if (-point >= lowest_ && point != 0) values.push_back(-point);
  }
  for (const bool negative : {false, true})
    if (f.kind == FormatKind::Float && std::isinf(infinity(negative)))
      values.push_back(infinity(negative));
  return values;
}

namespace {

Quantizer element_of(const Quantizer& scaled) {
  Quantizer element = scaled;
  element.block = {};
  element.scale = {};
  element.format.overflow = Overflow::Saturate;
  return element;
}

}  // namespace

ScaledReference::ScaledReference(const Quantizer& quantizer, int least_scale)
    : element_(element_of(quantizer)), rule_(quantizer.scale.rule), least_scale_(least_scale) {
  const Format& f = quantizer.format;
  precision_ = f.kind == FormatKind::Float
                   ? f.significand_bits + 1
                   : std::ilogb(element_.max() * std::ldexp(1.0, f.fraction_bits)) + 1;
  most_scale_ = 254 - std::max(0, std::ilogb(element_.points()[1]));
}

int ScaledReference::scale_exponent(float amax) const {
  const double a = amax;
  const int element_exponent = std::ilogb(element_.max());
  const int exponent = a < 0x1p-126 ? -127 : std::ilogb(a);
  int unbiased = exponent - element_exponent;
  switch (rule_) {
    case Scale::Rule::Ceil:
      if (a < 0x1p-126 ? a != 0 : a != pow2(exponent)) ++unbiased;
      break;
    case Scale::Rule::Even: {
      const double step = pow2(std::max(exponent, -126) + 1 - precision_);
      if (std::floor(a / step + 0.5) * step >= pow2(exponent + 1)) ++unbiased;
      break;
    }
    case Scale::Rule::RoundCeil: {  // the least power of two not below the fp32 product
      const float inverse = 1.0f / static_cast<float>(element_.max());
      const auto product = static_cast<float>(a * static_cast<double>(inverse));
      unbiased = product == 0 ? -127 : std::ilogb(product);
      if (std::isfinite(product) && pow2(unbiased) < product) ++unbiased;
      unbiased = std::clamp(unbiased, -127, 127);
      break;
    }
    case Scale::Rule::Shift:  // log2 a, rounded: squares of fp32 numbers are exact
      unbiased = a == 0 ? 0 : std::ilogb(a);
      if (a * a >= std::ldexp(2.0, 2 * unbiased)) ++unbiased;
      break;
    default: break;
  }
  return a == 0 ? least_scale_ : std::clamp(unbiased + 127, least_scale_, most_scale_);
}

Rounded ScaledReference::operator()(float x, int scale_exponent, uint32_t random) const {
  const Rounded element =
      element_(std::ldexp(static_cast<double>(x), 127 - scale_exponent), random);
  const double y = std::ldexp(static_cast<double>(element.value), scale_exponent - 127);
  return {static_cast<float>(y), element.clamped};
}

int least_scale_of(const Quantizer& quantizer, DType out) {
  if (out != DType::BF16) return 0;
  const double step = ScaledReference(quantizer).element().points()[1];
  int least = 0;
  while (std::ldexp(step, least - 127) < 0x1p-133) ++least;
  return least;
}

BlockReference::BlockReference(const Quantizer& quantizer, DType out) : quantizer_(quantizer) {
  if (quantizer.scale.rule != Scale::Rule::None)
    scaled_.emplace(quantizer, least_scale_of(quantizer, out));
}

std::vector<Rounded> BlockReference::operator()(std::span<const float> block,
                                                std::span<const uint32_t> random) const {
  float amax = 0;
  for (const float x : block) {
    if (!std::isfinite(x)) return std::vector<Rounded>(block.size(), {std::nanf(""), false});
    amax = std::max(amax, std::fabs(x));
  }
  std::vector<Rounded> rounded;
  if (scaled_) {
    const int exponent = scaled_->scale_exponent(amax);
    for (size_t i = 0; i < block.size(); ++i)
      rounded.push_back((*scaled_)(block[i], exponent, random[i]));
  } else {
    const Reference reference(quantizer_, amax);
    for (size_t i = 0; i < block.size(); ++i) rounded.push_back(reference(block[i], random[i]));
  }
  return rounded;
}

std::vector<std::string> p3109_names() {
  std::vector<std::string> names;
  for (char precision = '1'; precision <= '7'; ++precision)
    for (const char* domain : {"", "-finite"})
      for (const char* sign : {"", "-unsigned"})
        for (const char* overflow : {"", "-sat", "-nan"})
          names.push_back(std::string("binary8p") + precision + domain + sign + overflow);
  return names;
}

std::vector<P3109Table> p3109_tables() {
  std::ifstream file(std::string(paths::kTestData) + "/p3109_values.txt");
  const auto number = [](const std::string& half) {
    return std::bit_cast<float>(static_cast<uint32_t>(std::stoul(half + "0000", nullptr, 16)));
  };
  std::vector<P3109Table> tables;
  std::string word;
  while (file >> word) {
    if (word == "#") {
      std::getline(file, word);
    } else if (word == "values") {
      tables.emplace_back();
      file >> tables.back().name;
      for (int code = 0; code < 256; ++code) {
        file >> word;
        tables.back().values.push_back(number(word));
      }
    } else if (word == "round") {
      file >> tables.back().rounded_name;
    } else {
      P3109Table::Row row{};
      row.x = std::bit_cast<float>(static_cast<uint32_t>(std::stoul(word, nullptr, 16)));
      for (float& y : row.y) {
        file >> word;
        y = number(word);
      }
      tables.back().rounded.push_back(row);
    }
  }
  return tables;
}

std::vector<float> hard_inputs(const Reference& reference) {
  std::vector<float> inputs;
  const auto around = [&](double point) {
    const float x = static_cast<float>(point);  // overflow to Inf is an input too
    for (const float near :
         {x, std::nextafter(x, std::numeric_limits<float>::infinity()), std::nextafter(x, 0.0f)}) {
      inputs.push_back(near);
      inputs.push_back(-near);
    }
  };
  const std::vector<double>& points = reference.points();
  for (size_t i = 0; i < points.size(); ++i) {
    around(points[i]);
    if (i > 0) around((points[i - 1] + points[i]) / 2);
  }
  for (const uint32_t bits : {0u, 1u, 0x007FFFFFu, 0x00800000u, 0x7F7FFFFFu, 0x7F800000u,
                              0x7F800001u, 0x7FC00000u, 0x7FFFFFFFu}) {
    inputs.push_back(std::bit_cast<float>(bits));
    inputs.push_back(std::bit_cast<float>(bits | 0x80000000u));
  }
  return inputs;
}

void Mismatches::add(const std::string& what) {
#pragma omp critical(ulp_reference_mismatches)
  {
    if (count_ < 5) first_ += (count_ > 0 ? "\n" : "") + what;
    ++count_;
  }
}

void report(const Mismatches& bad) {
  INFO(bad.first());
  CHECK(bad.count() == 0);
}

bool same(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

}  // namespace ulp::reference
