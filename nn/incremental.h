#pragma once

#include <cstdint>
#include <string>

namespace ulp::nn {

/// What a module implements beside Module if it can take sequences piece by piece: it keeps what later pieces need of earlier
/// ones (keys and values, recurrent states, the position). Between begin() and end(), in evaluation mode without recording, its
/// forward takes the next T elements of every sequence, T ≥ 1, and goes on from the pieces before. In strict math the results
/// are bit for bit those of the whole sequence at once, unless obstacle() says why not.
class Incremental {
 public:
  virtual ~Incremental() = default;
  /// Forgets what was kept and makes room for `batch` sequences of at most `longest` elements. A forward pass beyond it throws.
  virtual void begin(int64_t batch, int64_t longest) = 0;
  /// Frees what was kept; forward takes whole sequences again.
  virtual void end() = 0;
  /// What in the module's formats makes a piece depend on elements after it, such as a scale shared along the sequence; empty
  /// if nothing does.
  virtual std::string obstacle() const { return ""; }
};

}  // namespace ulp::nn
