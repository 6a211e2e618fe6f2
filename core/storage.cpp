#include "core/storage.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "core/error.h"

namespace ulp {
namespace {

constexpr size_t kGuard = kGuardBytes ? 64 : 0;
constexpr int kPattern = 0xA7;

std::atomic<int64_t> violations{0};

struct Counters {
  std::atomic<int64_t> now{0};
  std::atomic<int64_t> peak{0};
};
Counters& counters(Device device) {
  static Counters cpu;
  static Counters cuda[128];
  return device.type == DeviceType::Cpu ? cpu : cuda[device.index];
}

bool intact(const void* bytes) {
  const auto* p = static_cast<const unsigned char*>(bytes);
  for (size_t i = 0; i < kGuard; ++i)
    if (p[i] != kPattern) return false;
  return true;
}

bool intact(Device device, const void* bytes) {
  if (device.type == DeviceType::Cpu) return intact(bytes);
  std::vector<unsigned char> host(kGuard);
  copy_bytes(host.data(), kCpu, bytes, device, kGuard);
  return intact(host.data());
}

void paint(Device device, void* bytes) {
  std::vector<unsigned char> pattern(kGuard, kPattern);
  copy_bytes(bytes, device, pattern.data(), kCpu, kGuard);
}

}  // namespace

Storage::Storage(Device device, size_t bytes)
    : device_(device), bytes_(bytes), base_(allocate(device, bytes + 2 * kGuard)), data_(base_) {
  if constexpr (kGuard > 0) {
    data_ = static_cast<char*>(base_) + kGuard;
    paint(device_, base_);
    paint(device_, static_cast<char*>(data_) + bytes_);
  }
  Counters& c = counters(device);
  const int64_t now = c.now += static_cast<int64_t>(bytes);
  int64_t peak = c.peak.load();
  while (peak < now && !c.peak.compare_exchange_weak(peak, now)) {
  }
}

Storage::~Storage() {
  if constexpr (kGuard > 0) {
    try {
      if (!intact(device_, base_) || !intact(device_, static_cast<char*>(data_) + bytes_))
        ++violations;
    } catch (const Error&) {
      ++violations;
    }
  }
  counters(device_).now -= static_cast<int64_t>(bytes_);
  deallocate(device_, base_);
}

int64_t guard_violations() { return violations; }

MemoryUse memory_use(Device device) {
  return {counters(device).now.load(), counters(device).peak.load()};
}

}  // namespace ulp
