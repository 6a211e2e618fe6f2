#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "autograd/run.h"
#include "kernels/augment.h"
#include "nn/data/dataset.h"
#include "nn/loader.h"
#include "nn/normalisation.h"

namespace ulp::nn {

/// Of images: inputs (n, D) F32, scaled to [0, 1] or normalised, labels (n) I32. Of a text: inputs (n, T) and labels (n·T) I32, the
/// tokens and those that follow them.
struct Batch {
  Tensor inputs, labels;
};

/// Where a training or an evaluation gets its batches: images (Batches) or a text (TextBatches). Samples are images or windows.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  BatchSource(const BatchSource&) = delete;
  BatchSource& operator=(const BatchSource&) = delete;

  /// Of an epoch.
  virtual int64_t samples() const = 0;
  int64_t size() const { return size_; }
  /// Whole batches of an epoch: a last partial one is dropped.
  int64_t steps() const { return samples() / size_; }

  /// Begins an epoch: its samples depend on the run's seed and the epoch only. Sets the step state's batch_offset to its start,
  /// or, to go on with an epoch, to another place in it. Not within a recorded step (StepGraph).
  virtual void shuffle(int64_t epoch, int64_t batch_offset = 0) = 0;
  /// The whole batch at batch_offset, which it moves on. Throws after the last one of the epoch. Only one source of a run is
  /// walked through at a time.
  virtual Batch next() = 0;

  class Range;
  /// Every batch of an epoch: shuffle(epoch), then next() steps() times.
  Range shuffled(int64_t epoch);
  /// All samples as they stand, never augmented, the last batch perhaps smaller. Touches neither order nor batch_offset.
  Range in_order();

 protected:
  explicit BatchSource(int64_t size);
  /// Samples of in_order, and some of them.
  virtual int64_t samples_in_order() const { return samples(); }
  virtual Batch slice(int64_t begin, int64_t end) const = 0;
  /// Queues the step of batch_offset to the next batch; `before` is called with the old one.
  void move_on(Run& run, const std::function<void(int64_t)>& before = {}) const;

  int64_t size_;
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
class Batches : public BatchSource {
 public:
  /// Throws unless size is at least 1 and the split has a sample, with labels in [0, data.classes), which are looked at here
  /// and never again; and where the options do not fit the samples.
  Batches(Run& run, const Dataset& data, const Split& split, int64_t size,
          const BatchOptions& options = {});

  int64_t samples() const override { return labels_.numel(); }
  /// Whether the samples are in the device's memory.
  bool resident() const { return resident_; }

  void shuffle(int64_t epoch, int64_t batch_offset = 0) override;
  Batch next() override;

 private:
  Batch empty_batch(int64_t n) const;
  GatherRowsArgs gather_into(const Batch& batch) const;
  AugmentRowsArgs augment_into(const Batch& batch) const;
  Batch slice(int64_t begin, int64_t end) const override;
  bool plain() const { return !normal_.defined() && !augmentation_.any(); }

  Run& run_;
  float scale_;
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

/// Windows of a text that is in the device's memory, (L) U8 or I32. An epoch has as many as there are from end to end, or as said;
/// they begin at random places, window i of all epochs where word i of the seed's draw says: how many of them make an epoch
/// changes nothing. In order they stand end to end, and what is left at the end has no part.
class TextBatches : public BatchSource {
 public:
  /// Windows of `length` tokens; epoch_windows 0: as many as there are from end to end. Throws unless the text is longer.
  TextBatches(Run& run, const Tensor& text, int64_t length, int64_t size,
              int64_t epoch_windows = 0);

  int64_t samples() const override { return windows_; }
  void shuffle(int64_t epoch, int64_t batch_offset = 0) override;
  Batch next() override;

 private:
  Batch empty_batch(int64_t n) const;
  int64_t samples_in_order() const override { return (text_.numel() - 1) / length_; }
  Batch slice(int64_t begin, int64_t end) const override;

  Run& run_;
  Tensor text_;
  int64_t length_, windows_;
  Tensor epoch_;  // U8, sizeof(StepState): the epoch's first window as its batch_offset
  bool begun_ = false;
};

/// For a range-based for loop; the source must outlive it.
class BatchSource::Range {
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
  friend class BatchSource;
  enum class Order : uint8_t { Shuffled, AsTheyStand };
  Range(BatchSource& source, Order order, int64_t count)
      : source_(&source), order_(order), count_(count) {}

  BatchSource* source_;
  Order order_;
  int64_t count_;
};

}  // namespace ulp::nn
