#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/quantizer.h"

namespace ulp {

/// How the sum Σ_k a·b of a product is kept. Everything but Fp32 starts from +0 and takes its terms in ascending k, one at a
/// time; `F(x)` is the exact x rounded once (core/accumulate.h), `sum` and `inner` are the formats F. Order, chunk and
/// start value belong to the policy, never to a tile size.
struct Accumulator {
  enum class Kind : uint8_t {
    Fp32,     // fp32 in the strict order of core/sum.h, or a matrix unit's sums in fast math
    Fused,    // s ← sum(a·b + s)
    Rounded,  // p = inner(a·b);  s ← sum(p + s)
    Chunked,  // t ← inner(a·b + t); after every `chunk` terms, and the last one: s ← sum(t + s), t ← +0.  Source: arXiv 1812.08011, §2.3
    Kahan,  // y = sum(a·b − c);  t = sum(s + y);  c ← sum(sum(t − s) − y);  s ← t.  An Inf is NaN after
  };
  Kind kind = Kind::Fp32;
  Quantizer sum{};
  Quantizer inner{};
  int32_t chunk = 0;

  Accumulator() = default;
  /// parse(text): options.forward_acc = "chunk64/e6m9".
  Accumulator(const char* text) : Accumulator(parse(text)) {}

  bool operator==(const Accumulator&) const = default;
  /// Summed term by term, on no matrix unit.
  bool is_simulated() const { return kind != Kind::Fp32; }
  bool is_stochastic() const;
  /// How many roundings a term has, at most; each draws for itself.
  uint32_t draws() const;
  /// The format of each of them.
  std::array<const Quantizer*, 4> roundings() const;

  /// Reads how sums are kept, F and G being formats (sum_misfit) or fp32:
  ///   "fp32"        fp32
  ///   "F"           Fused: one rounding a term
  ///   "F/G"         Rounded: products to F, sums to G
  ///   "chunkN/F"    Chunked: the sums of N terms in F, and their sum in F
  ///   "chunkN/F/G"  the same, their sum in G
  ///   "kahan/F"     Kahan in F
  /// Throws ulp::Error naming what is wrong.
  static Accumulator parse(std::string_view text);
};

/// The text that parses back to the same.
std::string to_string(const Accumulator& accumulator);

/// Why sums cannot be kept in this format; empty for fp32, and floats, fixed point and posits that one rounding reaches (core/accumulate.h).
std::string sum_misfit(const Quantizer& quantizer);
/// The same of a whole accumulator.
std::string misfit(const Accumulator& accumulator);

}  // namespace ulp
