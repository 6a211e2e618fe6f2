#pragma once

#include <array>

#include "core/codes.h"
#include "kernels/cpu/code_spans.h"
#include "kernels/cpu/spans.h"
#include "kernels/kernels.h"

namespace ulp::cpu {

/// A state of an optimizer as an update reads and writes it, at most kBlock elements from a multiple of kBlock on at a time.
class StateBlocks {
 public:
  /// Of none if `state` is undefined. Its tensors were checked (check_optimizer_step).
  StateBlocks(const StoredState& state, const Quantizer& quantizer, const RandomKey& key);

  bool exists() const { return data_ != nullptr; }
  /// Elements begin … begin + n − 1 as fp32: in `buffer`, or where they lie.
  const float* read(int64_t begin, int64_t n, float* buffer) const;
  /// Where new values (canonical) may be put: where they lie if nothing is to be rounded, else `buffer`.
  float* place(int64_t begin, float* buffer) const;
  /// Rounds the values and stores them, unless they lie there. They become what is stored if they are kept, else anything.
  enum class After : bool { Dropped, Kept };
  void write(float* values, int64_t begin, int64_t n, After after = After::Kept) const;

 private:
  void write_groups(float* values, int64_t begin, int64_t n) const;
  /// Rounded numbers, of runs with these factors: a run with NaN has the codes 0.
  void write_numbers(const float* values, int64_t begin, int64_t n, RunFactors factors) const;
  /// True, and done, for long tables.
  bool write_table_codes(const float* values, int64_t begin, int64_t n) const;
  uint8_t* bytes_from(int64_t begin) const;

  void* data_ = nullptr;
  DType dtype_ = DType::F32;
  RandomSource random_{};
  bool rounds_ = false;
  SpanGrid grid_{};
  // codes, those of native types too
  CodeRule code_{};
  FastCodes fast_{};
  bool looks_up_ = false;
  std::array<float, 256> numbers_{};  // of all codes, where they are looked up
  // groups
  int64_t group_ = 0;
  float* factors_ = nullptr;
  BlockRule rule_{};
  Grid element_{};
};

}  // namespace ulp::cpu
