// Bytes between the host and a GPU: all sizes, in order with the device's work, without waiting where nobody has to wait.

#include <doctest/doctest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "core/cuda_graph.h"
#include "core/error.h"
#include "core/tensor.h"
#include "kernels/kernels.h"

#if defined(ULP_HAS_CUDA)
#include <atomic>
#include <chrono>

#include "core/cuda_check.h"
#include "core/staging.h"
#endif

#if defined(ULP_HAS_CUDA)

using namespace ulp;

namespace {

constexpr Device kGpu = cuda_device(0);
constexpr size_t kChunk = Staging::kChunk, kRing = Staging::kChunks * kChunk;

using Bytes = std::vector<unsigned char>;

Bytes some_bytes(size_t n, unsigned seed) {
  Bytes bytes(n);
  uint32_t word = 2654435761u * (seed + 1);
  for (unsigned char& byte : bytes) {
    word = 1664525u * word + 1013904223u;
    byte = static_cast<unsigned char>(word >> 24);
  }
  return bytes;
}

/// There and back; what was sent is destroyed at once, as the contract allows.
Bytes returned(const Bytes& bytes, size_t offset) {
  const Tensor there =
      Tensor::zeros({static_cast<int64_t>(bytes.size() + offset)}, DType::U8, kGpu);
  auto* address = static_cast<unsigned char*>(Tensor(there).mutable_raw()) + offset;
  Bytes sent = bytes;
  copy_bytes(address, kGpu, sent.data(), kCpu, sent.size());
  sent.assign(sent.size(), 0xEE);
  Bytes back(bytes.size() + 2, 0xDD);
  copy_bytes(back.data() + 1, kCpu, address, kGpu, bytes.size());
  CHECK(back.front() == 0xDD);
  CHECK(back.back() == 0xDD);
  return Bytes(back.begin() + 1, back.end() - 1);
}

void check_all_sizes() {
  for (const size_t n : {size_t{0}, size_t{1}, size_t{3}, size_t{4097}, kChunk - 1, kChunk,
                         kChunk + 1, 2 * kChunk, 3 * kChunk + 5, kRing, kRing + 1, 3 * kRing - 7}) {
    CAPTURE(n);
    const Bytes bytes = some_bytes(n, static_cast<unsigned>(n));
    CHECK((returned(bytes, 0) == bytes));
    CHECK((returned(bytes, 3) == bytes));
  }
}

/// Keeps the device's stream busy until it is opened, for at most ten seconds.
class Gate {
 public:
  explicit Gate(Stream stream) {
    ULP_CUDA_CHECK(cudaLaunchHostFunc(static_cast<cudaStream_t>(stream.handle), wait, this));
  }
  void open() { open_ = true; }
  bool held() const { return !gave_up_; }

 private:
  static void wait(void* self) {
    auto& gate = *static_cast<Gate*>(self);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!gate.open_) {
      if (std::chrono::steady_clock::now() > end) {
        gate.gave_up_ = true;
        return;
      }
      std::this_thread::yield();
    }
  }
  std::atomic<bool> open_{false}, gave_up_{false};
};

}  // namespace

TEST_SUITE("cuda_copies") {
  TEST_CASE("bytes of all sizes there and back, with page-locked memory and without") {
    for (const bool pinned : {true, false}) {
      CAPTURE(pinned);
      Staging::enable(pinned);
      check_all_sizes();
    }
    Staging::enable(true);
  }

  TEST_CASE("copies keep their order with the kernels around them") {
    const Stream stream = stream_of(kGpu);
    const Tensor sum = Tensor::zeros({1}, DType::F32, kGpu),
                 term = Tensor::zeros({1}, DType::F32, kGpu);
    float expected = 0;
    for (int i = 1; i <= 100; ++i) {
      const auto value = static_cast<float>(i);
      copy_bytes(Tensor(term).mutable_raw(), kGpu, &value, kCpu, sizeof value);
      kernels::add(stream, {{sum, term}, sum, 0, {}, {}});
      expected += value;
      if (i % 10 == 0) CHECK(sum.to_floats()[0] == expected);
    }
  }

  TEST_CASE("a copy to the device does not wait for the device") {
    const Stream stream = stream_of(kGpu);
    const Bytes bytes = some_bytes(kRing, 9);
    const Tensor there = Tensor::zeros({static_cast<int64_t>(kRing)}, DType::U8, kGpu);
    void* address = Tensor(there).mutable_raw();
    copy_bytes(address, kGpu, bytes.data(), kCpu, 1);  // the ring exists
    synchronize(stream);
    Gate gate(stream);
    copy_bytes(address, kGpu, bytes.data(), kCpu, kRing);
    gate.open();
    Bytes back(kRing);
    copy_bytes(back.data(), kCpu, address, kGpu, kRing);
    CHECK(gate.held());
    CHECK((back == bytes));
  }

  TEST_CASE("several threads copy at once") {
    std::vector<std::thread> threads;
    std::atomic<int> right{0};
    for (unsigned t = 0; t < 4; ++t)
      threads.emplace_back([&, t] {
        for (unsigned i = 0; i < 8; ++i) {
          const Bytes bytes = some_bytes(kChunk * i / 2 + t, 100 * t + i);
          const Tensor there =
              Tensor::empty({static_cast<int64_t>(bytes.size() + 1)}, DType::U8, kGpu);
          void* address = Tensor(there).mutable_raw();
          copy_bytes(address, kGpu, bytes.data(), kCpu, bytes.size());
          Bytes back(bytes.size());
          copy_bytes(back.data(), kCpu, address, kGpu, back.size());
          if (back == bytes) ++right;
        }
      });
    for (std::thread& thread : threads) thread.join();
    CHECK(right == 32);
  }

  TEST_CASE("while a graph is recorded both directions are refused, and go on after it") {
    const Tensor there = Tensor::zeros({8}, DType::U8, kGpu),
                 other = Tensor::zeros({8}, DType::U8, kGpu);
    void* address = Tensor(there).mutable_raw();
    unsigned char byte = 5;
    CudaGraph graph;
    graph.record(stream_of(kGpu), [&] {
      CHECK_THROWS_WITH_AS(copy_bytes(address, kGpu, &byte, kCpu, 1),
                           doctest::Contains("recorded as a graph"), Error);
      CHECK_THROWS_WITH_AS(copy_bytes(&byte, kCpu, address, kGpu, 1),
                           doctest::Contains("recorded as a graph"), Error);
      copy_bytes(Tensor(other).mutable_raw(), kGpu, address, kGpu,
                 8);  // within the device: recorded
    });
    copy_bytes(address, kGpu, &byte, kCpu, 1);
    graph.launch();
    byte = 0;
    copy_bytes(&byte, kCpu, other.raw(), kGpu, 1);
    CHECK(byte == 5);
  }
}

#else

TEST_SUITE("cuda_copies") {
  TEST_CASE("copies between the host and a GPU") {}
}

#endif
