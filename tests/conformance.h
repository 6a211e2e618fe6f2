#pragma once

// Comparisons of the number core with references that share no code with it. The suites assert that these find nothing;
// `ulp_tests --conformance` runs them for every format and prints what was compared.

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/grid.h"
#include "core/quantizer.h"
#include "core/random.h"
#include "core/shape.h"
#include "reference.h"

namespace ulp::conformance {

/// What comparisons came to.
struct Tally {
  int64_t compared = 0;
  reference::Mismatches bad;
};

inline constexpr std::array kDeterministic = {"rne", "rna", "rnu", "rtz", "ru", "rd", "odd"};
inline constexpr std::array kRoundings = {"rne", "rna", "rnu", "rtz",   "ru",  "rd",
                                          "odd", "sr",  "sr5", "sr16f", "sr7c"};
inline constexpr std::array kScaleRules = {"-floor", "-ceil", "-even", "-rceil"};

std::string hex(float x);

// ---- inputs ---------------------------------------------------------------------------------------------------------
/// A hash that makes test data: no two arguments in a row look alike.
uint32_t scramble(uint64_t n);
/// A float with an exponent from `low` to `high`, both signs.
float spread_float(uint64_t n, int low, int high);
/// Tensors in which blocks of one kind lie side by side: ordinary numbers; zeros; all of fp32's exponents; subnormals only;
/// the largest numbers; here and there an Inf or NaN.
std::vector<float> mixed_values(int64_t n, uint64_t seed, bool with_specials);

// ---- formats that are lists of numbers ------------------------------------------------------------------------------
/// A posit's number, read off its bit string character by character. 0 < code < 2^(n−1).
double posit_number(uint32_t code, int n, int es);

/// What posits and tables make of a value. A posit's nearest number changes at the number of one more bit between two
/// codes (rounding cuts the bit string), a table's in the middle.
class ListReference {
 public:
  explicit ListReference(const Quantizer& quantizer);
  reference::Rounded operator()(double x, uint32_t random = 0) const;
  /// Numbers, boundaries of nearest rounding, one fp32 ulp either side, with both signs; ±0, ±Inf, NaN, the ends of fp32.
  std::vector<float> hard_inputs() const;
  /// The largest magnitude.
  double max() const;

 private:
  bool rounds_up(size_t low, double x, uint32_t random) const;

  Quantizer quantizer_;
  bool is_posit_;
  std::vector<double> numbers_;     // ascending; of posits the positive ones, by code from 1
  std::vector<double> boundaries_;  // between numbers i and i + 1
};

// ---- element by element ---------------------------------------------------------------------------------------------
/// One comparison of quantise_value with a reference, the clamp mark included.
template <class AnyReference>
void compare(const std::string& name, const Grid& grid, const AnyReference& reference, float x,
             uint32_t random, reference::Mismatches& bad) {
  bool clamped = false;
  const float got = quantise_value(x, grid, grid.rounding, random, &clamped);
  const reference::Rounded want = reference(x, random);
  if (reference::same(got, want.value) && clamped == want.clamped) return;
  bad.add(format_message(
      "{}: x {} R {}: got {} clamped {}, want {} clamped {}",
      {name, hex(x), random, hex(got), clamped ? 1 : 0, hex(want.value), want.clamped ? 1 : 0}));
}

/// All fp32 numbers at a stride, NaNs and Inf too; stochastic roundings get a word that depends on x.
void sweep(const std::string& quantizer, uint64_t stride, Tally& tally);
/// Every point, midpoint and neighbour of the format.
void sweep_hard(const std::string& quantizer, Tally& tally);

/// data/ml_dtypes_values.txt.
struct ValueTable {
  std::string name;
  std::vector<std::pair<float, float>> rows;  // x, y
};
std::vector<ValueTable> ml_dtypes_tables();
void compare_table(const ValueTable& table, Tally& tally);
/// gfloat's results in all its rounding modes.
void compare_table(const reference::P3109Table& table, Tally& tally);

/// Hashes of the correctly rounded results of QPyTorch's formats over 2^20 inputs: FNV-1a, 64 bits, of the output floats,
/// little-endian, −0 written as +0. Source: numerics.md §8, where the two input sets are defined.
struct Golden {
  const char* quantizer;
  char set;  // B or C
  uint64_t hash;
};
inline constexpr uint32_t kGoldenSize = 1u << 20;
std::vector<Golden> golden_hashes();
uint64_t golden_input_hash(char set);
void compare_golden(const Golden& golden, Tally& tally);

// ---- blocks ---------------------------------------------------------------------------------------------------------
/// Scale exponents where the four rules change their mind and, for F32, of all magnitudes at a stride.
void sweep_scale_exponents(const std::string& quantizer, DType out, uint64_t stride, Tally& tally);

/// The blocks of a tensor, straight from the definition: each a list of row-major indices in ascending order; blocks in
/// row-major order too.
std::vector<std::vector<int64_t>> blocks_of(const Block& block, const Shape& shape, int group_axis);

/// A tensor to be quantised.
struct TensorCase {
  std::vector<float> x;
  Shape shape;
  int group_axis = 0;
  RandomKey key;
};
struct TensorRun {
  std::vector<float> values;
  std::vector<uint8_t> clamped;  // empty: not asked for
};
TensorRun run(const Quantizer& quantizer, const TensorCase& tensor, DType out,
              bool with_mask = false);
/// For elements under powers of two, bfp and hbfp.
std::vector<reference::Rounded> expected_of(const Quantizer& quantizer, const TensorCase& tensor,
                                            DType out);
void compare(const std::string& what, const TensorRun& got,
             const std::vector<reference::Rounded>& want, const std::vector<float>& x,
             Tally& tally);

/// data/mx_blocks.txt.
struct MxTable {
  struct Made {
    std::string quantizer;
    size_t block;
    int exponent;  // 255: NaN
    std::vector<float> y;
  };
  std::vector<std::vector<float>> blocks;
  std::vector<Made> made;
};
MxTable mx_table();
void compare_mx(const MxTable& table, const MxTable::Made& made, Tally& tally);

// ---- scales that are no powers of two, transforms --------------------------------------------------------------------
/// What a tensor becomes: values, factors of the areas in row-major order (none if the quantizer has none), and both
/// multiplied and turned back.
struct Scaled {
  std::vector<float> values, factors, whole;
};

/// Quantizers with -scalef32, -scalee4m3, nvfp4, +scale=current, +scale=row, +q34 and +rhtN by the words of numerics.md §5.
/// It reads the quantizer's text itself; every operation on numbers is one fp32 operation of the definition.
class ScaledTensorReference {
 public:
  explicit ScaledTensorReference(const std::string& quantizer);
  /// `out`: what the values are stored in.
  Scaled operator()(const TensorCase& tensor, DType out) const;

 private:
  enum class Scaling { None, Fp32, E4m3, PowerOfTwo };
  using Values = std::vector<float>;
  using Words = std::vector<uint32_t>;

  void scale_by_fp32(Values& area, const Words& words, float& factor) const;
  void scale_by_e4m3(Values& area, const Words& words, float tensor_scale) const;
  void scale_by_power_of_two(Values& area, const Words& words, DType out) const;
  void turn(Values& values, const TensorCase& tensor, bool back) const;

  Scaling scaling_ = Scaling::None;
  bool nvfp4_ = false, three_quarters_ = false;
  int hadamard_ = 0;
  Block block_;
  Quantizer
      plain_;  // without factors and transforms: its blocks if they are of the old kinds, else its element
  std::function<reference::Rounded(double, uint32_t)> element_;
  float max_ = 0;
};

/// data/scaled_blocks.txt.
struct ScaledCase {
  std::string quantizer, input;
  TensorCase tensor;
  Scaled want;
};
std::vector<ScaledCase> scaled_table();
void compare_numbers(const std::string& what, const std::vector<float>& got,
                     const std::vector<float>& want, Tally& tally);
/// Runs the kernel: y, and if there are factors also values and factors.
void compare_scaled(const std::string& quantizer, const TensorCase& tensor, const Scaled& want,
                    DType out, Tally& tally);

/// Runs `element`+scale=squeeze against its definition in double. A result may be what either neighbour turns back to where a
/// boundary of rounding lies within the errors of fp32's logarithms; those errors are bounded, not chosen.
void compare_squeezed(const std::string& element, const std::string& rounding,
                      const TensorCase& tensor, Tally& tally);

// ---- the table ------------------------------------------------------------------------------------------------------
/// About two minutes on two cores. Odd, so that all low bits occur.
inline constexpr uint64_t kDefaultStride = 1021;

/// Runs everything and prints a Markdown table, a row for each format. `stride`: distance between the fp32 bit patterns
/// that element-wise formats see; tensors of block formats shrink with it. Returns the number of mismatches.
int64_t print_table(uint64_t stride);

}  // namespace ulp::conformance
