#if defined(ULP_HAS_CUDA)

#include "core/staging.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/cuda_check.h"

namespace ulp {
namespace {

std::atomic<bool> enabled{true};

char* at(void* bytes, size_t offset) { return static_cast<char*>(bytes) + offset; }
const char* at(const void* bytes, size_t offset) {
  return static_cast<const char*>(bytes) + offset;
}

}  // namespace

void Staging::enable(bool on) { enabled = on; }

Staging& Staging::of(Stream stream) {
  // Never destroyed: the driver may be gone before it.
  static auto& all = *new std::array<Staging, 128>;
  Staging& own = all[static_cast<size_t>(stream.device.index)];
  const std::lock_guard lock(own.mutex_);
  own.stream_ = static_cast<cudaStream_t>(stream.handle);
  return own;
}

void Staging::release() noexcept {
  for (Chunk& chunk : chunks_) {
    if (chunk.idle != nullptr) cudaEventDestroy(chunk.idle);
    if (chunk.host != nullptr) cudaFreeHost(chunk.host);
    chunk = {};
  }
  cudaGetLastError();
}

bool Staging::ready() {
  if (!enabled || refused_) return false;
  if (chunks_.back().idle != nullptr) return true;
  for (Chunk& chunk : chunks_) {
    if (cudaHostAlloc(&chunk.host, kChunk, cudaHostAllocDefault) != cudaSuccess ||
        cudaEventCreateWithFlags(&chunk.idle, cudaEventDisableTiming) != cudaSuccess) {
      release();
      refused_ = true;  // asked once: a machine that refuses it is asked no more
      return false;
    }
  }
  return true;
}

bool Staging::to_device(void* to, const void* from, size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (!ready()) return false;
  for (size_t done = 0; done < bytes; done += kChunk) {
    const size_t part = std::min(kChunk, bytes - done);
    const Chunk& chunk = next_chunk();
    ULP_CUDA_CHECK(cudaEventSynchronize(chunk.idle));
    std::memcpy(chunk.host, at(from, done), part);
    ULP_CUDA_CHECK(
        cudaMemcpyAsync(at(to, done), chunk.host, part, cudaMemcpyHostToDevice, stream_));
    ULP_CUDA_CHECK(cudaEventRecord(chunk.idle, stream_));
  }
  return true;
}

bool Staging::from_device(void* to, const void* from, size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (!ready()) return false;
  // The stream orders a chunk's new bytes behind its old ones; only reading them needs the event.
  std::array<const Chunk*, kChunks> under_way{};
  size_t queued = 0;
  for (size_t done = 0; done < bytes; done += kChunk) {
    for (; queued < bytes && queued < done + kChunks * kChunk; queued += kChunk) {
      const Chunk& chunk = next_chunk();
      ULP_CUDA_CHECK(cudaMemcpyAsync(chunk.host, at(from, queued), std::min(kChunk, bytes - queued),
                                     cudaMemcpyDeviceToHost, stream_));
      ULP_CUDA_CHECK(cudaEventRecord(chunk.idle, stream_));
      under_way[queued / kChunk % kChunks] = &chunk;
    }
    const Chunk& chunk = *under_way[done / kChunk % kChunks];
    ULP_CUDA_CHECK(cudaEventSynchronize(chunk.idle));
    std::memcpy(at(to, done), chunk.host, std::min(kChunk, bytes - done));
  }
  return true;
}

}  // namespace ulp

#endif
