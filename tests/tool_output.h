#pragma once

// What the tests of several subcommands share.

#include <string>
#include <vector>

#include "kernels/quantised.h"
#include "tests/command.h"

#if defined(ULP_COMMAND)

namespace ulp::command {

/// The output of a command that must succeed in silence.
inline std::string output(const std::string& arguments) {
  const Result r = ulp_command(arguments);
  CAPTURE(arguments);
  CAPTURE(r.err);
  CHECK(r.status == 0);
  CHECK(r.err.empty());
  return r.out;
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline QuantiseUse use_of(const std::string& format, int axis, uint64_t seed) {
  QuantiseUse use;
  use.quantizer = Quantizer::parse(format);
  use.axis = axis;
  use.key = {seed, fnv1a32("quantize/values"), 0, nullptr};
  return use;
}

inline Tensor quantised(const Tensor& in, const std::string& format, int axis, uint64_t seed) {
  return quantised(stream_of(kCpu), in, use_of(format, axis, seed));
}

}  // namespace ulp::command

#endif
