#pragma once

// Models that take sequences piece by piece (nn/incremental.h), as a whole.

#include <string>

#include "nn/incremental.h"
#include "nn/module.h"

namespace ulp::nn {

/// Why results rounded by this quantizer would depend on how a sequence is cut: "output bfp8 has blocks beyond a row", "… draws
/// random numbers"; empty if they do not. `role` is for the text.
std::string obstacle_of(const char* role, const Quantizer& quantizer);
/// The same of how a forward product keeps its sums.
std::string obstacle_of(const Accumulator& forward_acc);

/// Why a model's results piece by piece may have other bits than those of whole sequences: the first layer that says so, with
/// its path, or whose forward formats do; empty if none.
std::string obstacle_of(Module& model);

/// A model between begin and end of all its modules that keep something; it must be in evaluation mode.
class InPieces {
 public:
  /// Of `batch` sequences of at most `longest` elements.
  InPieces(Module& model, int64_t batch, int64_t longest);
  ~InPieces();
  InPieces(const InPieces&) = delete;
  InPieces& operator=(const InPieces&) = delete;

 private:
  Module& model_;
};

}  // namespace ulp::nn
