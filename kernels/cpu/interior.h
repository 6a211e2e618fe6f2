#pragma once

#include <array>
#include <type_traits>

#include "kernels/cpu/spans.h"
#include "kernels/interior.h"

namespace ulp::cpu {

/// The interior of a kernel: its draws 0 … 3, and what they meet where that is wanted. Nothing is done to F64.
class Interior {
 public:
  Interior(const Quantizer& q, const RandomKey& key, const InteriorTrace& trace = {});
  /// Rounds n values, which draw `which` knows by the indices from `index` on.
  void apply(size_t which, float* values, int64_t n, int64_t index) const {
    if (met_[which] != nullptr) note(which, values, n, index);
    for (int64_t i = 0; i < n; i += kBlock)
      at_[which].apply(values + i, std::min(kBlock, n - i), index + i);
  }
  void apply(size_t, double*, int64_t, int64_t) const {}
  /// A value, made canonical and rounded.
  template <class T>
  T one(size_t which, T value, int64_t index) const {
    value = canonical(value);
    apply(which, &value, 1, index);
    return value;
  }
  /// Nothing is rounded at n indices.
  void gap(size_t which, int64_t n, int64_t index) const {
    if (met_[which] != nullptr)
      std::fill(met_[which] + index, met_[which] + index + n, float_of(kGapBits));
  }

 private:
  void note(size_t which, const float* values, int64_t n, int64_t index) const {
    for (int64_t i = 0; i < n; ++i) met_[which][index + i] = canonical(values[i]);
  }

  std::array<BlockQuantiser, 4> at_;
  std::array<float*, 4> met_{};
};

inline Interior::Interior(const Quantizer& q, const RandomKey& key, const InteriorTrace& trace)
    : at_{BlockQuantiser(q, later_draw(key, 0)), BlockQuantiser(q, later_draw(key, 1)),
          BlockQuantiser(q, later_draw(key, 2)), BlockQuantiser(q, later_draw(key, 3))} {
  for (size_t draw = 0; draw < met_.size(); ++draw)
    if (Tensor t = trace.at[draw]; t.defined()) met_[draw] = t.mutable_data<float>();
}

}  // namespace ulp::cpu
