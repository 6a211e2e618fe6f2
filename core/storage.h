#pragma once

#include <cstddef>
#include <cstdint>

#include "core/device.h"

namespace ulp {

/// A block of bytes on one device, shared by the tensors that view it. `version` counts the times someone asked to
/// write, so that a tensor saved for backward can tell that its values changed.
class Storage {
 public:
  Storage(Device device, size_t bytes);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  Device device() const { return device_; }
  size_t bytes() const { return bytes_; }
  const void* data() const { return data_; }
  void* mutable_data() {
    ++version_;
    return data_;
  }
  uint32_t version() const { return version_; }

 private:
  Device device_;
  size_t bytes_;
  void* base_;
  void* data_;
  uint32_t version_ = 0;
};

#if defined(ULP_GUARD)
inline constexpr bool kGuardBytes = true;
#else
inline constexpr bool kGuardBytes = false;
#endif
/// Builds with ULP_GUARD put a pattern before and after every block and look at it when the block is freed.
/// This counts the blocks whose pattern was found changed (always 0 without ULP_GUARD).
int64_t guard_violations();

/// Bytes held by storages on a device now, and the most so far.
struct MemoryUse {
  int64_t now = 0;
  int64_t peak = 0;
};
MemoryUse memory_use(Device device);

}  // namespace ulp
