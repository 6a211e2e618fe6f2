#pragma once

// What a measurement on a GPU needs: runs timed by events with a cold L2, and how fast the device can copy.

#include <functional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace ulp::tools {

/// Throws ulp::Error with the reason if this program can use no GPU at all: there is nothing that `bench` could measure then.
void check_gpu(const char* bench);

/// "NVIDIA H100 80GB HBM3, CUDA 13.0".
std::string gpu_description(Device device);

/// Times work that is queued on one device's stream.
class CudaTimer {
 public:
  using Call = std::function<void()>;  // queues work on stream()

  /// Throws if the device does not exist.
  explicit CudaTimer(Device device);
  CudaTimer(const CudaTimer&) = delete;
  CudaTimer& operator=(const CudaTimer&) = delete;

  Stream stream() const { return stream_; }
  std::string description() const { return gpu_description(stream_.device); }

  /// Median seconds of each call over `repeats` runs, which take turns, so that a clock that changes changes for all. Two
  /// runs come before that are not timed; before every run L2 is filled with other data.
  std::vector<double> medians(const std::vector<Call>& calls, int repeats) const;
  double median_of(const Call& call, int repeats) const { return medians({call}, repeats)[0]; }

 private:
  void flush_l2() const;

  Stream stream_;
  Tensor other_data_, sum_;
};

/// Bytes a second, read and written ones counted, of a device copy of `bytes` bytes: the ceiling for kernels bound by memory.
double copy_bandwidth(const CudaTimer& timer, int64_t bytes, int repeats);

}  // namespace ulp::tools
