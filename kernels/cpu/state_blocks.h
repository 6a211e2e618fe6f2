#pragma once

#include <array>

#include "core/codes.h"
#include "kernels/cpu/spans.h"
#include "kernels/cpu/table_search.h"
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
  /// Rounds the values, which become what is stored, and stores them.
  void write(float* values, int64_t begin, int64_t n) const;

 private:
  void make_codes(const float* numbers, int64_t n, uint32_t* codes) const;
  void write_groups(float* values, int64_t begin, int64_t n) const;

  void* data_ = nullptr;
  DType dtype_ = DType::F32;
  RandomSource random_{};
  bool rounds_ = false;
  SpanGrid grid_{};
  // codes
  CodeRule code_{};
  std::array<float, 256> numbers_{};     // of all codes of up to 8 bits
  const TableSearch* search_ = nullptr;  // among a table's numbers
  // groups
  int64_t group_ = 0;
  float* factors_ = nullptr;
  BlockRule rule_{};
  Grid element_{};
};

}  // namespace ulp::cpu
