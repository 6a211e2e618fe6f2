#include "core/staging_block.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

#if defined(ULP_HAS_CUDA)
#include "core/cuda_check.h"
#endif

namespace ulp {

#if defined(ULP_HAS_CUDA)

StagingBlock::StagingBlock(Device device, size_t bytes) : device_(device) {
  const size_t size = std::max<size_t>(bytes, 1);
  if (device_.type == DeviceType::Cpu) {
    data_ = static_cast<unsigned char*>(allocate(kCpu, size));
    return;
  }
  ULP_CUDA_CHECK(cudaSetDevice(device_.index));
  void* memory = nullptr;
  ULP_CUDA_CHECK(cudaHostAlloc(&memory, size, cudaHostAllocDefault));
  data_ = static_cast<unsigned char*>(memory);
  cudaEvent_t event = nullptr;
  const cudaError_t status = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (status != cudaSuccess) cudaFreeHost(memory);
  ULP_CUDA_CHECK(status);
  read_ = event;
}

StagingBlock::~StagingBlock() {
  if (device_.type == DeviceType::Cpu) {
    deallocate(kCpu, data_);
    return;
  }
  cudaEventSynchronize(static_cast<cudaEvent_t>(read_));
  cudaEventDestroy(static_cast<cudaEvent_t>(read_));
  cudaFreeHost(data_);
}

void StagingBlock::send(void* to, size_t offset, size_t bytes) {
  if (bytes == 0) return;
  if (device_.type == DeviceType::Cpu) {
    std::memcpy(to, data_ + offset, bytes);
    return;
  }
  const auto stream = static_cast<cudaStream_t>(stream_of(device_).handle);
  ULP_CUDA_CHECK(cudaMemcpyAsync(to, data_ + offset, bytes, cudaMemcpyHostToDevice, stream));
  ULP_CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(read_), stream));
}

void StagingBlock::wait() {
  if (device_.type == DeviceType::Cuda)
    ULP_CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(read_)));
}

#else

StagingBlock::StagingBlock(Device device, size_t bytes)
    : device_(device),
      data_(static_cast<unsigned char*>(allocate(device, std::max<size_t>(bytes, 1)))) {}

StagingBlock::~StagingBlock() { deallocate(device_, data_); }

void StagingBlock::send(void* to, size_t offset, size_t bytes) {
  if (bytes > 0) std::memcpy(to, data_ + offset, bytes);
}

void StagingBlock::wait() {}

#endif

}  // namespace ulp
