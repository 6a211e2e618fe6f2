#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace ulp {

enum class DeviceType : uint8_t { Cpu, Cuda };

struct Device {
  DeviceType type = DeviceType::Cpu;
  int8_t index = 0;
  bool operator==(const Device&) const = default;
};

inline constexpr Device kCpu{};
inline constexpr Device cuda_device(int index = 0) {
  return {DeviceType::Cuda, static_cast<int8_t>(index)};
}

/// "cpu", "cuda:0".
std::string to_string(Device device);

/// Where work is queued, in order. The CPU runs at once; CUDA has one ordered stream a device.
struct Stream {
  Device device;
  void* handle = nullptr;
};

/// The ordered stream of a device. Throws if this build or this machine has no such device.
Stream stream_of(Device device);

/// Number of CUDA devices this program can use: 0 without a GPU, a driver or CUDA in the build.
int cuda_device_count();
/// Why cuda_device_count() is 0, in a few words; empty if it is not.
std::string cuda_missing_reason();

/// Waits until all work queued on the stream is done.
void synchronize(Stream stream);

/// Bytes owned by the caller. CUDA memory is stream-ordered and comes from the device's pool.
void* allocate(Device device, size_t bytes);
void deallocate(Device device, void* pointer) noexcept;

/// Copies bytes between any two devices, in order with the work on both. Returns when the host may reuse its memory.
void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes);

}  // namespace ulp
