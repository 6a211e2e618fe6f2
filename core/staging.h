#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <mutex>

#include "core/device.h"

namespace ulp {

/// Page-locked host memory through which a device exchanges bytes with the host: a ring of chunks, made at the first use and
/// kept. While one chunk is on its way, the host fills or empties another. Only for work that is not being recorded.
class Staging {
 public:
  static constexpr size_t kChunk = size_t{1} << 20;
  static constexpr size_t kChunks = 4;

  /// The one of a device. The stream must be the device's own.
  static Staging& of(Stream stream);

  /// Queues a copy to the device. Returns as soon as all bytes are in the ring: the host may reuse its memory, the device gets
  /// them in order with its other work. False, and nothing is done, if there is no page-locked memory to be had.
  bool to_device(void* to, const void* from, size_t bytes);

  /// Copies from the device what its queued work leaves there, and waits for it. False as above.
  bool from_device(void* to, const void* from, size_t bytes);

  /// For tests: whether page-locked memory is used at all. Without it copies give the same bytes.
  static void enable(bool on);

 private:
  struct Chunk {
    void* host = nullptr;
    cudaEvent_t idle = nullptr;  // recorded behind the last copy that uses the chunk
  };

  bool ready();
  Chunk& next_chunk() { return chunks_[next_++ % kChunks]; }
  void release() noexcept;

  std::mutex mutex_;
  cudaStream_t stream_ = nullptr;
  bool refused_ = false;
  size_t next_ = 0;
  std::array<Chunk, kChunks> chunks_;
};

}  // namespace ulp
