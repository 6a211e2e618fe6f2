#include "core/host_pool.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>

namespace ulp {
namespace {

size_t rounded_up(size_t bytes, size_t step) {
  return std::max(bytes + step - 1, step) / step * step;
}

}  // namespace

HostPool::~HostPool() { give_back(use_.kept); }

void* HostPool::allocate(size_t bytes) {
  if (bytes > SIZE_MAX / 2) return nullptr;
  if (bytes < least_) return std::aligned_alloc(kAlignment, rounded_up(bytes, kAlignment));
  constexpr size_t kPage = size_t{4} << 10;
  const size_t size = rounded_up(bytes, kPage);
  const std::lock_guard lock(mutex_);
  void* pointer = nullptr;
  size_t own = size;
  if (const auto found = kept_.lower_bound(size);
      found != kept_.end() && found->first - size <= size / 8) {
    own = found->first;
    pointer = found->second.back();
    found->second.pop_back();
    if (found->second.empty()) kept_.erase(found);
    use_.kept -= own;
  } else {
    const size_t most = std::max(use_.most, use_.now + size), held = use_.now + use_.kept + size;
    if (held > most) give_back(held - most);
    pointer = std::aligned_alloc(kAlignment, size);
    if (pointer == nullptr && use_.kept > 0) {
      give_back(use_.kept);
      pointer = std::aligned_alloc(kAlignment, size);
    }
    if (pointer == nullptr) return nullptr;
  }
  try {
    in_use_.emplace(pointer, own);
  } catch (...) {
    std::free(pointer);
    return nullptr;
  }
  use_.now += own;
  use_.most = std::max(use_.most, use_.now);
  return pointer;
}

void HostPool::deallocate(void* pointer) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = in_use_.find(pointer);
  if (found == in_use_.end()) return std::free(pointer);
  const size_t size = found->second;
  in_use_.erase(found);
  use_.now -= size;
  try {
    kept_[size].push_back(pointer);
    use_.kept += size;
  } catch (...) {  // no memory to write it down
    if (const auto own = kept_.find(size); own != kept_.end() && own->second.empty())
      kept_.erase(own);
    std::free(pointer);
  }
}

HostPool::Use HostPool::use() const {
  const std::lock_guard lock(mutex_);
  return use_;
}

/// Frees kept blocks, the largest first, of so many bytes or more. The lock is held.
void HostPool::give_back(size_t bytes) {
  size_t freed = 0;
  while (freed < bytes && !kept_.empty()) {
    const auto last = std::prev(kept_.end());
    if (!last->second.empty()) {
      std::free(last->second.back());
      last->second.pop_back();
      freed += last->first;
      use_.kept -= last->first;
    }
    if (last->second.empty()) kept_.erase(last);
  }
}

}  // namespace ulp
