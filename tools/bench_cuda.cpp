#include "tools/bench_cuda.h"

#include "core/error.h"
#include "kernels/kernels.h"
#include "tools/bench_machine.h"

#if defined(ULP_HAS_CUDA)
#include "core/cuda_check.h"
#endif

namespace ulp::tools {

void check_gpu(const char* bench) {
  if (cuda_device_count() == 0)
    throw_error("{}: it measures a GPU, and there is none to use: {}", bench,
                cuda_missing_reason());
}

CudaTimer::CudaTimer(Device device) : stream_(stream_of(device)) {
  ULP_CHECK(device.type == DeviceType::Cuda, "bench: wanted a CUDA device, got {}", device);
  constexpr int64_t kFloats = int64_t{1} << 26;  // 256 MiB: more than any L2
  other_data_ = Tensor::empty({kFloats}, DType::F32, device);
  sum_ = Tensor::empty({1}, DType::F32, device);
  kernels::fill(stream_, {other_data_, 0});
}

/// Read, not written: lines still to be written back would be paid for by the run that follows.
void CudaTimer::flush_l2() const {
  kernels::sum(stream_, {other_data_, sum_, 1, other_data_.numel(), 1});
}

#if defined(ULP_HAS_CUDA)

namespace {

class Event {
 public:
  Event() { ULP_CUDA_CHECK(cudaEventCreate(&event_)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }

  void record(Stream stream) {
    ULP_CUDA_CHECK(cudaEventRecord(event_, static_cast<cudaStream_t>(stream.handle)));
  }
  /// Seconds from `begin` to this one; waits for both.
  double since(const Event& begin) const {
    float milliseconds = 0;
    ULP_CUDA_CHECK(cudaEventSynchronize(event_));
    ULP_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin.event_, event_));
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

std::string gpu_description(Device device) {
  cudaDeviceProp properties{};
  int version = 0;
  ULP_CUDA_CHECK(cudaGetDeviceProperties(&properties, device.index));
  ULP_CUDA_CHECK(cudaRuntimeGetVersion(&version));
  return std::string(properties.name) + ", CUDA " + std::to_string(version / 1000) + "." +
         std::to_string(version % 1000 / 10);
}

std::vector<double> CudaTimer::medians(const std::vector<Call>& calls, int repeats) const {
  constexpr int kUntimed = 2;
  std::vector<std::vector<double>> seconds(calls.size());
  Event begin, end;
  for (int run = 0; run < kUntimed + repeats; ++run)
    for (size_t i = 0; i < calls.size(); ++i) {
      flush_l2();  // and the call is queued while that runs: the host's time does not count
      begin.record(stream_);
      calls[i]();
      end.record(stream_);
      const double elapsed = end.since(begin);
      if (run >= kUntimed) seconds[i].push_back(elapsed);
    }
  std::vector<double> result;
  for (const std::vector<double>& all : seconds) result.push_back(median(all));
  return result;
}

#else

std::string gpu_description(Device) { return cuda_missing_reason(); }

std::vector<double> CudaTimer::medians(const std::vector<Call>&, int) const {
  throw_error("bench: {}", cuda_missing_reason());
}

#endif

double copy_bandwidth(const CudaTimer& timer, int64_t bytes, int repeats) {
  const Stream stream = timer.stream();
  const Tensor from = Tensor::empty({bytes / 4}, DType::F32, stream.device);
  const Tensor to = Tensor::empty({bytes / 4}, DType::F32, stream.device);
  kernels::fill(stream, {from, 1});
  const double seconds = timer.median_of([&] { kernels::copy(stream, {from, to}); }, repeats);
  return 2.0 * static_cast<double>(from.bytes()) / seconds;
}

}  // namespace ulp::tools
