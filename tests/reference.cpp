#include "reference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "core/error.h"

namespace ulp::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr size_t kMostPoints = (1 << 17) + 4;

double pow2(int exponent) { return std::ldexp(1.0, exponent); }

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
  lowest_ = -max_;
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
  // Without significand bits every significand but zero's is 1, which is odd.
  if (!points_.empty() && magnitude < points_.back()) {
    const auto above = std::upper_bound(points_.begin(), points_.end(), magnitude);
    const auto code = (above - points_.begin()) - 1;
    return {above[-1], above[0] - above[-1], f.significand_bits == 0 ? code != 0 : code % 2 == 1};
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
      f.kind == FormatKind::Float && (f.specials == Specials::Ieee || beyond_is_infinity_);
  return has_infinity ? (negative ? -kInfinity : kInfinity) : std::nan("");
}

Rounded Reference::operator()(float x, uint32_t random) const {
  const Format& f = quantizer_.format;
  if (std::isnan(x)) return {std::nanf(""), false};
  const bool negative = std::signbit(x);
  if (std::isinf(x)) return {static_cast<float>(infinity(negative)), false};
  const double magnitude = std::fabs(static_cast<double>(x));
  const Place at = place(magnitude);
  double y = at.low + (rounds_up(at, magnitude, negative, random) ? at.step : 0);
  if (f.flush_subnormals && y < min_normal_) y = 0;
  if (negative) y = -y;
  if (f.kind != FormatKind::Float) y += 0.0;  // no −0
  if (f.kind == FormatKind::Float && f.specials == Specials::Fnuz) y += 0.0;
  if (f.overflow == Overflow::None) return {static_cast<float>(y), false};
  if (f.overflow == Overflow::Wrap) {
    const double codes = pow2(f.word_bits);
    double code = std::fmod(y / step_, codes);
    if (code < 0) code += codes;
    if (!f.is_unsigned && code >= codes / 2) code -= codes;
    return {static_cast<float>(code * step_ + 0.0), false};
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

bool same(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

}  // namespace ulp::reference
