#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "autograd/run.h"
#include "kernels/augment.h"
#include "nn/data/dataset.h"
#include "nn/loader.h"
#include "nn/normalisation.h"

namespace ulp::nn {

/// images: (n, D) F32, scaled to [0, 1] or normalised.  labels: (n) I32.
struct Batch {
  Tensor images, labels;
};

/// What becomes of samples on their way into a batch.
struct BatchOptions {
  Normalisation normalisation{};
  /// Of shuffled batches only: samples in order are for evaluation. The change of a sample follows from the run's seed, the
  /// epoch and its place in the epoch's order.
  Augmentation augmentation{};
  /// A split of more bytes stays on the host, from where a thread gathers batches ahead of the steps (Loader). No bit depends
  /// on it.
  int64_t resident_bytes = INT64_MAX;
};

/// A split, cut into batches that are gathered one at a time: from the memory of the run's device, or by a loader.
class Batches {
 public:
  /// Throws unless size is at least 1 and the split has a sample, with labels in [0, data.classes), which are looked at here
  /// and never again; and where the options do not fit the samples.
  Batches(Run& run, const Dataset& data, const Split& split, int64_t size,
          const BatchOptions& options = {});

  int64_t samples() const { return labels_.numel(); }
  int64_t size() const { return size_; }
  /// Whole batches in one pass over the split: the last partial one is dropped.
  int64_t steps() const { return samples() / size_; }
  /// Whether the samples are in the device's memory.
  bool resident() const { return resident_; }

  /// Begins an epoch: makes its order, which depends on the run's seed and the epoch only, and sets the step state's
  /// batch_offset to its start, or, to go on with an epoch, to another place in it. Not within a recorded step (StepGraph).
  void shuffle(int64_t epoch, int64_t batch_offset = 0);
  /// The whole batch at batch_offset, which it moves on. Throws after the last one of the epoch. Only one Batches of a run
  /// is walked through at a time.
  Batch next();

  class Range;
  /// Every batch of an epoch: shuffle(epoch), then next() steps() times.
  Range shuffled(int64_t epoch);
  /// All samples as they stand, never augmented, the last batch perhaps smaller. Touches neither order nor batch_offset.
  Range in_order();

 private:
  Batch empty_batch(int64_t n) const;
  GatherRowsArgs gather_into(const Batch& batch) const;
  AugmentRowsArgs augment_into(const Batch& batch) const;
  Batch slice(int64_t begin, int64_t end) const;
  bool plain() const { return !normal_.defined() && !augmentation_.any(); }

  Run& run_;
  float scale_;
  int64_t size_;
  int32_t height_, width_, channels_;
  Augmentation augmentation_;
  bool resident_;
  Tensor images_,
      labels_;     // (R, D) U8 or F32, (R) I32: on the device if they are resident, else on the CPU
  Tensor normal_;  // (2, C) F32; undefined: scale
  Tensor order_;   // (R) I32; undefined before the first epoch and where a loader has it
  Tensor epoch_;   // U8, sizeof(StepState): the epoch as the random_step of its draws
  bool begun_ = false;
  std::unique_ptr<Loader> loader_;
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
  enum class Order : uint8_t { Shuffled, AsTheyStand };
  Range(Batches& batches, Order order, int64_t count)
      : batches_(&batches), order_(order), count_(count) {}

  Batches* batches_;
  Order order_;
  int64_t count_;
};

}  // namespace ulp::nn
