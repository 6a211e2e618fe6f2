#pragma once

#include <cstdint>
#include <string_view>

#include "core/error.h"

namespace ulp::nn {

/// What a model of sequences is made of, beside the tokens it tells apart.
struct SequenceOptions {
  enum class Positions : uint8_t { Learned, Rotary };
  enum class Mlp : uint8_t { Gelu, Swiglu };
  enum class Norm : uint8_t { Layer, Rms };

  int64_t layers = 6, width = 384, heads = 6;
  int64_t context = 256;  // the longest sequence
  Positions positions = Positions::Learned;
  Mlp mlp = Mlp::Gelu;
  Norm norm = Norm::Layer;
  bool tie = false;  // the output is made with the embedding's table
};

inline const char* to_string(SequenceOptions::Positions p) {
  return p == SequenceOptions::Positions::Learned ? "learned" : "rotary";
}
inline const char* to_string(SequenceOptions::Mlp m) {
  return m == SequenceOptions::Mlp::Gelu ? "gelu" : "swiglu";
}
inline const char* to_string(SequenceOptions::Norm n) {
  return n == SequenceOptions::Norm::Layer ? "layer" : "rms";
}

/// Reads one of two words. Throws ulp::Error naming `what`, both and the word.
template <class E>
E parse_choice(const char* what, std::string_view text, E first, E second) {
  if (text == to_string(first)) return first;
  if (text == to_string(second)) return second;
  throw_error("{} takes {} or {}, got '{}'", what, to_string(first), to_string(second), text);
}

}  // namespace ulp::nn
