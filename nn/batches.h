#pragma once

#include <cstdint>
#include <vector>

#include "autograd/run.h"
#include "nn/data/dataset.h"

namespace ulp::nn {

/// images: (n, D) F32, scaled to [0, 1].  labels: (n) I32.
struct Batch {
  Tensor images, labels;
};

/// A split on the run's device, cut into batches that are gathered one at a time.
class Batches {
 public:
  /// Throws unless size is at least 1 and the split has a sample.
  Batches(Run& run, const Dataset& data, const Split& split, int64_t size);

  int64_t samples() const { return labels_.numel(); }
  int64_t size() const { return size_; }
  /// Whole batches in one pass over the split: the last partial one is dropped.
  int64_t steps() const { return samples() / size_; }

  class Range;
  /// Whole batches in an order that depends on the run's seed and the epoch only.
  Range shuffled(int64_t epoch) const;
  /// All samples as they stand, the last batch perhaps smaller.
  Range in_order() const;

 private:
  Batch gather(const std::vector<int32_t>& order, int64_t begin, int64_t end) const;

  Run& run_;
  float scale_;
  int64_t size_;
  Tensor images_, labels_;  // images on the run's device, labels on the CPU
};

/// For a range-based for loop; the Batches must outlive it.
class Batches::Range {
 public:
  class Iterator {
   public:
    Iterator(const Range& range, int64_t at) : range_(&range), at_(at) {}
    Batch operator*() const;
    Iterator& operator++() {
      ++at_;
      return *this;
    }
    bool operator!=(const Iterator& other) const { return at_ != other.at_; }

   private:
    const Range* range_;
    int64_t at_;
  };
  Iterator begin() const { return {*this, 0}; }
  Iterator end() const { return {*this, count_}; }

 private:
  friend class Batches;
  Range(const Batches& batches, std::vector<int32_t> order, int64_t count)
      : batches_(&batches), order_(std::move(order)), count_(count) {}

  const Batches* batches_;
  std::vector<int32_t> order_;
  int64_t count_;
};

}  // namespace ulp::nn
