#include "core/device.h"

#include <cstdint>
#include <cstring>

#include "core/arena.h"
#include "core/error.h"
#include "core/host_pool.h"
#include "core/memory_error.h"

#if defined(ULP_HAS_CUDA)
#include <array>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "core/cuda_check.h"
#include "core/staging.h"
#endif

namespace ulp {

std::string to_string(Device device) {
  return device.type == DeviceType::Cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

namespace {

// What looks for the use of freed memory must see it freed.
#if defined(ULP_GUARD) || defined(__SANITIZE_ADDRESS__)
constexpr size_t kLeastKept = SIZE_MAX;
#else
constexpr size_t kLeastKept = HostPool::kLeast;
#endif

/// Never destroyed: tensors may outlive every other object.
HostPool& host_pool() {
  static auto& pool = *new HostPool(kLeastKept);
  return pool;
}

void* allocate_host(size_t bytes) {
  void* pointer = host_pool().allocate(bytes);
  if (pointer == nullptr)
    throw MemoryError(format_message("cpu: out of memory, asked for {} bytes", {bytes}));
  return pointer;
}

#if !defined(ULP_HAS_CUDA)
[[noreturn]] void no_cuda(Device device) {
  throw_error("{}: {}; use the cpu", device, cuda_missing_reason());
}
#endif

}  // namespace

#if defined(ULP_HAS_CUDA)

int cuda_device_count() {
  static const int count = [] {
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) {
      cudaGetLastError();  // clears the sticky error of a machine without a driver
      return 0;
    }
    return n;
  }();
  return count;
}

std::string cuda_missing_reason() {
  return cuda_device_count() > 0 ? "" : "no CUDA GPU on this machine";
}

namespace {

void check_device(Device device) {
  ULP_CHECK(device.index >= 0 && device.index < cuda_device_count(),
            "{}: there is no such device; this machine has {} CUDA device(s)", device,
            cuda_device_count());
}

void use(Device device) { ULP_CUDA_CHECK(cudaSetDevice(device.index)); }

}  // namespace

Stream stream_of(Device device) {
  if (device.type == DeviceType::Cpu) return {device, nullptr};
  check_device(device);
  static std::array<cudaStream_t, 128> streams{};
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  cudaStream_t& stream = streams[static_cast<size_t>(device.index)];
  use(device);
  if (stream == nullptr) {
    ULP_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    cudaMemPool_t pool = nullptr;
    ULP_CUDA_CHECK(cudaDeviceGetDefaultMemPool(&pool, device.index));
    uint64_t keep = UINT64_MAX;
    ULP_CUDA_CHECK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
  }
  return {device, stream};
}

namespace {

/// What is being recorded on a device, and which pointers came from arenas. Never destroyed: tensors may die after it.
struct Recordings {
  struct One {
    std::shared_ptr<Arena> arena;  // null: nothing is being recorded
    std::vector<void*> to_free;
  };
  std::mutex mutex;
  std::array<One, 128> of;
  std::unordered_map<void*, std::shared_ptr<Arena>> owners;
};
Recordings& recordings() {
  static auto& all = *new Recordings;
  return all;
}

void check_not_recorded(Device device) {
  Recordings& all = recordings();
  const std::lock_guard lock(all.mutex);
  ULP_CHECK(
      all.of[static_cast<size_t>(device.index)].arena == nullptr,
      "{}: work that is recorded as a graph can neither wait for the device nor exchange data "
      "with the host",
      device);
}

[[noreturn]] void throw_out_of_memory(Device device, size_t bytes) {
  cudaGetLastError();
  size_t free_bytes = 0, total = 0;
  ULP_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
  throw MemoryError(format_message("{}: out of memory, asked for {} bytes, {} of {} bytes are free",
                                   {device, bytes, free_bytes, total}));
}

}  // namespace

void synchronize(Stream stream) {
  if (stream.device.type == DeviceType::Cpu) return;
  check_not_recorded(stream.device);
  use(stream.device);
  ULP_CUDA_CHECK(cudaStreamSynchronize(static_cast<cudaStream_t>(stream.handle)));
}

void* Arena::take(size_t bytes) {
  constexpr size_t kSmall =
      4096;  // a block much larger than what is asked for is kept for something larger
  const auto at = free_.lower_bound(bytes);
  if (reuses_ && at != free_.end() && at->first <= 2 * bytes + kSmall) {
    void* pointer = at->second;
    free_.erase(at);
    return pointer;
  }
  void* pointer = nullptr;
  const cudaError_t status = cudaMalloc(&pointer, bytes);
  if (status == cudaErrorMemoryAllocation) throw_out_of_memory(device_, bytes);
  ULP_CUDA_CHECK(status);
  sizes_[pointer] = bytes;
  return pointer;
}

void Arena::give_back(void* pointer) { free_.emplace(sizes_.at(pointer), pointer); }

Arena::~Arena() {
  cudaSetDevice(device_.index);
  for (const auto& [pointer, bytes] : sizes_) cudaFree(pointer);  // waits for the device
}

ArenaScope::ArenaScope(Device device, std::shared_ptr<Arena> arena) : device_(device) {
  Recordings& all = recordings();
  const std::lock_guard lock(all.mutex);
  Recordings::One& own = all.of[static_cast<size_t>(device.index)];
  ULP_CHECK(own.arena == nullptr, "{}: a graph is being recorded already", device);
  own.arena = std::move(arena);
}

ArenaScope::~ArenaScope() {
  Recordings::One own;
  {
    Recordings& all = recordings();
    const std::lock_guard lock(all.mutex);
    std::swap(own, all.of[static_cast<size_t>(device_.index)]);
  }
  for (void* pointer : own.to_free) deallocate(device_, pointer);
}

UnsharedMemory::UnsharedMemory(Device device) {
  if (device.type == DeviceType::Cpu) return;
  Recordings& all = recordings();
  const std::lock_guard lock(all.mutex);
  arena_ = all.of[static_cast<size_t>(device.index)].arena;
  if (arena_ != nullptr) arena_->reuses_ = false;
}

UnsharedMemory::~UnsharedMemory() {
  if (arena_ != nullptr) arena_->reuses_ = true;
}

void* allocate(Device device, size_t bytes) {
  if (device.type == DeviceType::Cpu) return allocate_host(bytes);
  const Stream stream = stream_of(device);
  const size_t wanted = bytes == 0 ? 1 : bytes;
  {
    Recordings& all = recordings();
    const std::lock_guard lock(all.mutex);
    if (const auto& arena = all.of[static_cast<size_t>(device.index)].arena) {
      void* pointer = arena->take(wanted);
      all.owners[pointer] = arena;
      return pointer;
    }
  }
  void* pointer = nullptr;
  const cudaError_t status =
      cudaMallocAsync(&pointer, wanted, static_cast<cudaStream_t>(stream.handle));
  if (status == cudaErrorMemoryAllocation) throw_out_of_memory(device, bytes);
  ULP_CUDA_CHECK(status);
  return pointer;
}

void deallocate(Device device, void* pointer) noexcept {
  if (device.type == DeviceType::Cpu) return host_pool().deallocate(pointer);
  try {
    std::shared_ptr<Arena> owner;  // its last owner frees it outside the lock
    Recordings& all = recordings();
    {
      const std::lock_guard lock(all.mutex);
      if (const auto at = all.owners.find(pointer); at != all.owners.end()) {
        owner = std::move(at->second);
        all.owners.erase(at);
        owner->give_back(pointer);
        return;
      }
      Recordings::One& own = all.of[static_cast<size_t>(device.index)];
      if (own.arena != nullptr) {
        own.to_free.push_back(pointer);
        return;
      }
    }
    cudaFreeAsync(pointer, static_cast<cudaStream_t>(stream_of(device).handle));
  } catch (...) {
    // The device is gone with everything on it, or the host has no memory to write down what is to be freed.
  }
}

// Between the host and a device through page-locked chunks, where there are any (core/staging.h): then a copy to the device
// does not wait for its earlier work; a copy from it does.
void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes) {
  if (bytes == 0) return;
  if (to_device.type == DeviceType::Cpu && from_device.type == DeviceType::Cpu) {
    std::memcpy(to, from, bytes);
    return;
  }
  const bool to_cpu = to_device.type == DeviceType::Cpu;
  const bool from_cpu = from_device.type == DeviceType::Cpu;
  if (!(to_device == from_device)) check_not_recorded(to_cpu ? from_device : to_device);
  const Stream stream = stream_of(to_cpu ? from_device : to_device);
  if (to_cpu && Staging::of(stream).from_device(to, from, bytes)) return;
  if (from_cpu && Staging::of(stream).to_device(to, from, bytes)) return;
  if (!to_cpu && !from_cpu && !(from_device == to_device)) synchronize(stream_of(from_device));
  ULP_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault,
                                 static_cast<cudaStream_t>(stream.handle)));
  if (!(to_device == from_device)) synchronize(stream);
}

#else

int cuda_device_count() { return 0; }

std::string cuda_missing_reason() { return "this build has no CUDA"; }

Stream stream_of(Device device) {
  if (device.type == DeviceType::Cuda) no_cuda(device);
  return {device, nullptr};
}

void synchronize(Stream) {}

UnsharedMemory::UnsharedMemory(Device) {}
UnsharedMemory::~UnsharedMemory() = default;

void* allocate(Device device, size_t bytes) {
  if (device.type == DeviceType::Cuda) no_cuda(device);
  return allocate_host(bytes);
}

void deallocate(Device, void* pointer) noexcept { host_pool().deallocate(pointer); }

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes) {
  if (to_device.type == DeviceType::Cuda) no_cuda(to_device);
  if (from_device.type == DeviceType::Cuda) no_cuda(from_device);
  if (bytes > 0) std::memcpy(to, from, bytes);
}

#endif

}  // namespace ulp
