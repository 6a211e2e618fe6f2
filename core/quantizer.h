#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/format.h"

namespace ulp {

enum class Rounding : uint8_t {
  NearestEven,
  NearestAway,  // ties away from zero
  NearestUp,    // ties toward +inf
  TowardZero,
  Up,
  Down,
  Odd,
  Stochastic,
};

/// How many random bits a stochastic rounding uses, and how. With 32 plain bits the magnitude rounds up iff R < T. With
/// fewer, the top `count` bits of R are added to the dropped part: truncated (Plain), with half a step more (Centred),
/// or rounded to nearest first (Nearest). Source: the variants SRFF, SRF and SRC of gfloat.
struct RandomBits {
  enum class Variant : uint8_t { Plain, Centred, Nearest };
  uint8_t count = 32;
  Variant variant = Variant::Plain;
  bool operator==(const RandomBits&) const = default;
};

/// Which elements share one scale.
struct Block {
  enum class Kind : uint8_t { None, Tensor, Axis, Group, Row, Tile };
  Kind kind = Kind::None;
  int8_t axis = 0;      // Axis: one block for each index of this axis
  int32_t rows = 0;     // Tile: over the last two axes
  int32_t columns = 0;  // Tile; Group: elements along the reduction axis (Row: all of them)
  bool operator==(const Block&) const = default;
};

/// How a block's scale is chosen from its largest magnitude amax; M is the element's largest number. A power of two is part
/// of the values. What is not is a factor: it is kept apart where a GEMM reads the values, so that they stay exact.
struct Scale {
  enum class Kind : uint8_t {
    None,        // the format needs no scale, or has its own rule (bfp, hbfp)
    PowerOfTwo,  // 2^(X−127), X by `rule`
    E4M3,        // value = q · d, d = e4m3(amax / M): exact, so there is no factor
    E4M3Tensor,  // the same under one factor for the tensor.  Source: NVFP4 of TransformerEngine
    F32,         // factor amax / M
    Delayed,  // one factor for the tensor, from the largest magnitudes of the `history` calls before
    Squeeze,  // the tensor's logarithms are shifted and stretched (core/squeeze.h): values of no lattice
  };
  /// With e the exponent of amax and emax that of M.
  enum class Rule : uint8_t {
    None,
    Floor,      // e − emax.                            Source: OCP MX specification 1.0, §6.3
    Ceil,       // the same, one more if amax is no power of two.
    Even,       // amax is first rounded to the element's precision.
    RoundCeil,  // the exponent of amax / max, rounded up.  Source: PTX cvt.rp.ue8m0
    Shift,  // log2 amax rounded to an integer, whatever M is.  Source: WAGE, arXiv 1802.04680, eq. 7
  };
  Kind kind = Kind::None;
  Rule rule = Rule::None;
  uint16_t history = 0;  // Delayed
  bool operator==(const Scale&) const = default;
};

/// What happens to a tensor before it is quantised.
struct Transform {
  uint8_t hadamard =
      0;  // 0, or 16 or 32: random Hadamard rotations of that many elements (core/hadamard.h)
  bool three_quarters =
      false;  // x · 3/4, factor 4/3: nothing is clipped by a floor scale. Source: arXiv 2502.20586, §3
  bool operator==(const Transform&) const = default;
};

/// Everything that decides what a tensor's values become. The default changes nothing.
struct Quantizer {
  Format format{};
  Rounding rounding = Rounding::NearestEven;
  RandomBits bits{};
  Block block{};
  Scale scale{};
  Transform transform{};

  Quantizer() = default;
  /// parse(text), so that a format can be written where a Quantizer is wanted: options.weight = "e4m3".
  Quantizer(const char* text) : Quantizer(parse(text)) {}
  /// Nearest-even; a block format shares one exponent over the whole tensor.
  Quantizer(const Format& f) : format(f) {
    if (f.kind == FormatKind::BlockFloat || f.kind == FormatKind::Hbfp)
      block.kind = Block::Kind::Tensor;
  }

  bool operator==(const Quantizer&) const = default;

  bool is_identity() const { return format.is_fp32(); }
  bool is_stochastic() const { return rounding == Rounding::Stochastic && !is_identity(); }
  /// Elements do not depend on their neighbours: it can be applied inside another kernel.
  bool is_elementwise() const {
    return block.kind == Block::Kind::None && transform == Transform{};
  }
  /// Blocks or rotations follow the reduction axis of the GEMM that reads the tensor.
  bool follows_reduction() const {
    return block.kind == Block::Kind::Group || block.kind == Block::Kind::Row ||
           transform.hadamard != 0;
  }
  /// Values come with a factor that is no power of two.
  bool has_factor() const {
    return scale.kind == Scale::Kind::F32 || scale.kind == Scale::Kind::E4M3Tensor ||
           scale.kind == Scale::Kind::Delayed || transform.three_quarters;
  }

  /// Reads `format[+part…][:rounding]`: "e4m3", "e5m2:sr", "bfp8-axis0:rnu", "mxfp4+rht16+q34:sr", "e4m3+scale=current",
  /// "fp32". Throws ulp::Error naming what is wrong.
  static Quantizer parse(std::string_view text);
};

/// The text that parses back to the same quantizer; the default rounding is left out.
std::string to_string(const Quantizer& quantizer);
std::string to_string(Rounding rounding);

/// True if `dtype` represents every value exactly, factors apart. A scaled block's numbers have fp32's range, less the
/// scales that `dtype` cannot follow: then the least scale is raised (make_block_rule).
bool fits(const Quantizer& quantizer, DType dtype);
/// The narrowest native type that holds every value with its factor, turned back if it was rotated. What parameters and saved tensors use.
DType storage_type(const Quantizer& quantizer);
/// What a matrix unit reads, factors apart, so that products of two such operands are exact in fp32: BF16 for ≤ 8
/// significant bits, F16 for ≤ 11 within its range, else F32.
DType gemm_type(const Quantizer& quantizer);

}  // namespace ulp
