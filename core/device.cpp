#include "core/device.h"

#include <cstdlib>
#include <cstring>

#include "core/error.h"

#if defined(ULP_HAS_CUDA)
#include <array>
#include <mutex>

#include "core/cuda_check.h"
#endif

namespace ulp {

std::string to_string(Device device) {
  return device.type == DeviceType::Cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

namespace {

constexpr size_t kAlignment = 64;

void* allocate_host(size_t bytes) {
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* pointer = std::aligned_alloc(kAlignment, rounded == 0 ? kAlignment : rounded);
  ULP_CHECK(pointer != nullptr, "cpu: out of memory, asked for {} bytes", bytes);
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

void synchronize(Stream stream) {
  if (stream.device.type == DeviceType::Cpu) return;
  use(stream.device);
  ULP_CUDA_CHECK(cudaStreamSynchronize(static_cast<cudaStream_t>(stream.handle)));
}

void* allocate(Device device, size_t bytes) {
  if (device.type == DeviceType::Cpu) return allocate_host(bytes);
  const Stream stream = stream_of(device);
  void* pointer = nullptr;
  const cudaError_t status =
      cudaMallocAsync(&pointer, bytes == 0 ? 1 : bytes, static_cast<cudaStream_t>(stream.handle));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free_bytes = 0, total = 0;
    ULP_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
    throw_error("{}: out of memory, asked for {} bytes, {} of {} bytes are free", device, bytes,
                free_bytes, total);
  }
  ULP_CUDA_CHECK(status);
  return pointer;
}

void deallocate(Device device, void* pointer) noexcept {
  if (device.type == DeviceType::Cpu) {
    std::free(pointer);
    return;
  }
  try {
    cudaFreeAsync(pointer, static_cast<cudaStream_t>(stream_of(device).handle));
  } catch (const Error&) {
    // The device is gone with everything on it.
  }
}

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes) {
  if (bytes == 0) return;
  if (to_device.type == DeviceType::Cpu && from_device.type == DeviceType::Cpu) {
    std::memcpy(to, from, bytes);
    return;
  }
  const bool to_cpu = to_device.type == DeviceType::Cpu;
  const Stream stream = stream_of(to_cpu ? from_device : to_device);
  if (!to_cpu && from_device.type == DeviceType::Cuda && !(from_device == to_device))
    synchronize(stream_of(from_device));
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

void* allocate(Device device, size_t bytes) {
  if (device.type == DeviceType::Cuda) no_cuda(device);
  return allocate_host(bytes);
}

void deallocate(Device, void* pointer) noexcept { std::free(pointer); }

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes) {
  if (to_device.type == DeviceType::Cuda) no_cuda(to_device);
  if (from_device.type == DeviceType::Cuda) no_cuda(from_device);
  if (bytes > 0) std::memcpy(to, from, bytes);
}

#endif

}  // namespace ulp
