#pragma once

// A second opinion about numbers. It shares no code and no method with core/grid.h: the points of a format are decoded
// from its codes (or written as multiples of a power of two) in double, and a rounding mode picks one of the two
// neighbours by its definition. Every difference and quotient formed here is exact in double.

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/quantizer.h"

namespace ulp::reference {

/// True if the environment has ULP_FULL=1: finer strides, or all 2^32 inputs. That takes far longer than the 300 s that
/// ctest grants a test: start ulp_tests itself.
bool full();

/// Distance between the fp32 bit patterns that a sweep visits: 1 if full(), else `stride` (odd, so that all low bits
/// occur).
uint64_t stride(uint64_t stride);

struct Rounded {
  float value;
  bool clamped;  // finite, and its rounded value lay beyond the format's largest
};

/// What a quantizer must make of a value. Element-wise formats, or one block of bfp or hbfp.
class Reference {
 public:
  explicit Reference(const Quantizer& quantizer, float block_amax = 0);
  explicit Reference(const char* quantizer) : Reference(Quantizer::parse(quantizer)) {}

  /// `random` is the word R of a stochastic rounding. x: a float, or one times a power of two.
  Rounded operator()(double x, uint32_t random = 0) const;

  /// |x| between two neighbours: low ≤ |x| < low + step, and low is where code or integer is odd.
  struct Place {
    double low, step;
    bool low_is_odd;
  };
  Place place(double magnitude) const;

  /// Points of the lattice from 0 to just beyond the largest value, ascending; empty if there would be over 2^17.
  const std::vector<double>& points() const { return points_; }
  /// Every number that can come out, ascending by magnitude, both signs, Inf too (without −0 and NaN).
  std::vector<double> values() const;

  double max() const { return max_; }
  double lowest() const { return lowest_; }

 private:
  void read_float();
  void read_integers(double step, double most, double least);
  bool rounds_up(const Place& at, double magnitude, bool negative, uint32_t random) const;
  double overflow(bool negative) const;
  double infinity(bool negative) const;

  Quantizer quantizer_;
  std::vector<double> points_;
  double max_ = 0, lowest_ = 0;
  double step_ = 0;                  // spacing everywhere, or of the subnormals of a float
  double min_normal_ = 0;            // floats only
  bool beyond_is_infinity_ = false;  // e8mY-none: the codes from 2^128 on
};

/// One block of scaled elements (OCP MX specification 1.0, §6.3): y = decode(encode(x · 2^(127−X), saturating)) · 2^(X−127),
/// each product exact, the last one an fp32 number, or Inf from 2^128 on.
class ScaledReference {
 public:
  /// least_scale: the least X that is allowed.
  explicit ScaledReference(const Quantizer& quantizer, int least_scale = 0);

  /// The X of a block by the words of the rules. Subnormal fp32 numbers count with the exponent of their field, as one of
  /// 2^−127, and their bits below it as a fraction. X stops at 254, or where the element's step reaches 2^127.
  int scale_exponent(float amax) const;
  Rounded operator()(float x, int scale_exponent, uint32_t random = 0) const;

  /// Element values.
  const Reference& element() const { return element_; }

 private:
  Reference element_;
  Scale::Rule rule_;
  int least_scale_, most_scale_, precision_;
};

/// The least X for which `out` holds every element value times 2^(X−127).
int least_scale_of(const Quantizer& quantizer, DType out);

/// What a block quantizer must make of one block that is written as `out`.
class BlockReference {
 public:
  BlockReference(const Quantizer& quantizer, DType out);
  /// random: a word for each element.
  std::vector<Rounded> operator()(std::span<const float> block,
                                  std::span<const uint32_t> random) const;

 private:
  Quantizer quantizer_;
  std::optional<ScaledReference> scaled_;  // else bfp or hbfp
};

/// The inputs on which roundings go wrong: points, midpoints, one fp32 ulp either side of both, with both signs; ±0,
/// the least and greatest subnormal, the least normal and the greatest finite fp32 number, ±Inf, quiet and other NaNs.
std::vector<float> hard_inputs(const Reference& reference);

/// All formats of IEEE P3109 with 8 bits and up to 7 significand bits, with every overflow policy.
std::vector<std::string> p3109_names();

/// data/p3109_values.txt: the numbers of a format by code, and what gfloat rounds x to.
struct P3109Table {
  static constexpr std::array<const char*, 5> kModes = {"rne", "rna", "rtz", "ru", "rd"};
  struct Row {
    float x;
    std::array<float, 5> y;  // by kModes
  };
  std::string name;
  std::vector<float> values;
  std::string rounded_name;  // with the overflow policy
  std::vector<Row> rounded;
};
std::vector<P3109Table> p3109_tables();

/// Counts disagreements across threads and keeps the first few words about them.
class Mismatches {
 public:
  void add(const std::string& what);
  int64_t count() const { return count_; }
  const std::string& first() const { return first_; }

 private:
  int64_t count_ = 0;
  std::string first_;
};
/// Fails, with those words, if there was any.
void report(const Mismatches& bad);

/// Same bits, all NaNs being one.
bool same(float a, float b);

}  // namespace ulp::reference
