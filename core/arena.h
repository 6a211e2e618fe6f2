#pragma once

#include <cstddef>
#include <map>
#include <memory>

#include "core/device.h"

namespace ulp {

/// Memory of one recorded graph. Blocks that are given back serve again within the recording: work is ordered, so the new
/// owner writes after the old one was read. Everything goes back to the device with the arena.
class Arena {
 public:
  explicit Arena(Device device) : device_(device) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void* take(size_t bytes);
  void give_back(void* pointer);

 private:
  friend class UnsharedMemory;

  Device device_;
  bool reuses_ = true;
  std::multimap<size_t, void*> free_;
  std::map<void*, size_t> sizes_;  // of all blocks
};

/// While it lives, memory of the device comes from the arena; what was made before and is freed meanwhile lives on until
/// the end, because a free cannot be recorded. Only one a device.
class ArenaScope {
 public:
  ArenaScope(Device device, std::shared_ptr<Arena> arena);
  ~ArenaScope();
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Device device_;
};

/// While it lives, a recording takes memory that none of its earlier tensors had: for what is written from outside before the
/// graph runs. Whoever keeps such a tensor as long as the graph keeps the memory from later ones too. Nothing where nothing is
/// being recorded.
class UnsharedMemory {
 public:
  explicit UnsharedMemory(Device device);
  ~UnsharedMemory();
  UnsharedMemory(const UnsharedMemory&) = delete;
  UnsharedMemory& operator=(const UnsharedMemory&) = delete;

 private:
  std::shared_ptr<Arena> arena_;
};

}  // namespace ulp
