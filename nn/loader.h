#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/staging_block.h"
#include "core/tensor.h"

namespace ulp::nn {

/// Gathers the batches of an epoch on a thread of its own, ahead of whoever trains on them. For samples that do not stay in the
/// device's memory: it copies rows as they are; what is done to them is done on the device.
class Loader {
 public:
  /// images: (R, …) of any type, labels: (R) I32, both contiguous on the CPU; they must not change. Batches of `size` rows.
  Loader(Device device, Tensor images, Tensor labels, int64_t size);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// From now on batches of this order (indices below R), beginning with the one at `position`.
  void begin(std::vector<int32_t> order, int64_t position);
  /// Queues copying rows order[position] … order[position + size − 1] to the device's tensors: images (size, …) and labels
  /// (size). Waits for the thread if it has come no further; a position that is not the next one begins there. At most two
  /// copies are on their way; a third waits for the first.
  void send(int64_t position, Tensor images, Tensor labels);

 private:
  struct Slot {
    std::unique_ptr<StagingBlock> block;
    int64_t position = 0;
  };
  void work();
  void restart(int64_t position);  // with the lock held
  void fill(const Slot& slot, const std::vector<int32_t>& order);
  bool can_fill() const;

  Tensor images_, labels_;
  int64_t size_;
  size_t row_bytes_, label_offset_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<const std::vector<int32_t>> order_;
  int64_t next_ = 0;  // the position that the thread gathers next
  int64_t coming_ =
      0;  // that of the first batch that was not sent: once gathered, the first one ready
  uint64_t beginning_ = 0;  // what was gathered for an earlier one is of no use
  bool stop_ = false;
  std::deque<Slot> free_, ready_;
  std::deque<Slot> sent_;  // of the caller's thread alone
  std::thread thread_;     // the last member: it uses the others
};

}  // namespace ulp::nn
