#pragma once

// Host memory that is kept when it is freed: a training step asks for the same blocks as the one before, and pages that the
// system takes back and gives anew cost a third of a small network's step.

#include <cstddef>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace ulp {

/// Blocks of memory on the host, aligned to kAlignment bytes. Those of at least `least` bytes are kept when they are freed and
/// given out again for sizes up to an eighth below theirs. Blocks in use and kept ones together never take more than those in
/// use once did. Any thread may call.
class HostPool {
 public:
  static constexpr size_t kAlignment = 64;
  static constexpr size_t kLeast = size_t{64} << 10;

  explicit HostPool(size_t least = kLeast) : least_(least) {}
  ~HostPool();
  HostPool(const HostPool&) = delete;
  HostPool& operator=(const HostPool&) = delete;

  /// Null where the system has no memory, not even after every kept block was given back.
  void* allocate(size_t bytes);
  void deallocate(void* pointer) noexcept;

  /// Bytes of large blocks: in use, kept, and the most that were in use at once.
  struct Use {
    size_t now = 0, kept = 0, most = 0;
  };
  Use use() const;

 private:
  void give_back(size_t bytes);

  const size_t least_;
  mutable std::mutex mutex_;
  std::unordered_map<void*, size_t> in_use_;   // large blocks and their sizes
  std::map<size_t, std::vector<void*>> kept_;  // by size
  Use use_;
};

}  // namespace ulp
