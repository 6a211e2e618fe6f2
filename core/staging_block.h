#pragma once

#include <cstddef>

#include "core/device.h"

namespace ulp {

/// Host memory that a device reads by itself, page-locked where that is a GPU: whoever fills it does not wait for the device.
class StagingBlock {
 public:
  StagingBlock(Device device, size_t bytes);
  ~StagingBlock();
  StagingBlock(const StagingBlock&) = delete;
  StagingBlock& operator=(const StagingBlock&) = delete;

  unsigned char* data() { return data_; }
  /// Queues a copy of `bytes` from `offset` on to the device's memory `to`, and returns at once. Not while a graph is recorded.
  void send(void* to, size_t offset, size_t bytes);
  /// Waits until all that was sent has been read.
  void wait();

 private:
  Device device_;
  unsigned char* data_ = nullptr;
  void* read_ = nullptr;  // the event after the last copy
};

}  // namespace ulp
