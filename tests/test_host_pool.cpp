#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "core/host_pool.h"

TEST_SUITE_BEGIN("host_pool");

using ulp::HostPool;

namespace {

constexpr size_t kKiB = 1024;

bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % HostPool::kAlignment == 0;
}

}  // namespace

TEST_CASE("large blocks come again, for sizes up to an eighth below") {
  HostPool pool;
  void* first = pool.allocate(1024 * kKiB);
  REQUIRE(first != nullptr);
  CHECK(aligned(first));
  pool.deallocate(first);
  CHECK(pool.use().now == 0);
  CHECK(pool.use().kept == 1024 * kKiB);
  void* again = pool.allocate(1000 * kKiB);
  CHECK(again == first);
  CHECK(pool.use().now == 1024 * kKiB);
  CHECK(pool.use().kept == 0);
  pool.deallocate(again);
  void* smaller = pool.allocate(512 * kKiB);
  CHECK(smaller != first);
  pool.deallocate(smaller);
  void* larger = pool.allocate(1025 * kKiB);
  CHECK(larger != nullptr);
  pool.deallocate(larger);
}

TEST_CASE("small blocks, none and too much") {
  HostPool pool;
  void* none = pool.allocate(0);
  void* small = pool.allocate(HostPool::kLeast - 1);
  REQUIRE(none != nullptr);
  REQUIRE(small != nullptr);
  CHECK(aligned(none));
  CHECK(aligned(small));
  CHECK(pool.use().now == 0);
  pool.deallocate(none);
  pool.deallocate(small);
  CHECK(pool.use().kept == 0);
  pool.deallocate(nullptr);
  void* kept = pool.allocate(256 * kKiB);
  pool.deallocate(kept);
  CHECK(pool.use().kept == 256 * kKiB);
  CHECK(pool.allocate(SIZE_MAX) == nullptr);
#if !defined(__SANITIZE_ADDRESS__)  // its own allocator ends the program
  CHECK(pool.allocate(SIZE_MAX / 4) == nullptr);
  CHECK(pool.use().kept == 0);  // given back before it was refused
#endif
  CHECK(pool.use().now == 0);
}

TEST_CASE("a pool that keeps nothing") {
  HostPool pool(SIZE_MAX);
  void* block = pool.allocate(4096 * kKiB);
  REQUIRE(block != nullptr);
  pool.deallocate(block);
  CHECK(pool.use().kept == 0);
  CHECK(pool.use().most == 0);
}

TEST_CASE(
    "kept and used blocks never take more than used ones once did, and none is given out twice") {
  HostPool pool;
  std::mt19937 random(7);
  std::vector<std::pair<unsigned char*, size_t>> blocks;
  size_t asked = 0;
  for (int i = 0; i < 4000; ++i) {
    if (blocks.size() < 12 && random() % 2 == 0) {
      const size_t size = HostPool::kLeast + random() % (4096 * kKiB);
      auto* block = static_cast<unsigned char*>(pool.allocate(size));
      REQUIRE(block != nullptr);
      block[0] = block[size - 1] = static_cast<unsigned char>(i);
      blocks.emplace_back(block, size);
      asked += size;
      for (size_t k = 0; k + 1 < blocks.size(); ++k) {
        const auto [other, bytes] = blocks[k];
        REQUIRE((other + bytes <= block || block + size <= other));
      }
    } else if (!blocks.empty()) {
      const size_t which = random() % blocks.size();
      pool.deallocate(blocks[which].first);
      asked -= blocks[which].second;
      blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(which));
    }
    const HostPool::Use use = pool.use();
    REQUIRE(use.now + use.kept <= use.most);
    REQUIRE(use.now >= asked);
    REQUIRE(use.now <= asked + asked / 8 + blocks.size() * 8 * kKiB);
  }
  for (const auto& [block, size] : blocks) pool.deallocate(block);
  CHECK(pool.use().now == 0);
}

TEST_CASE("many threads") {
  HostPool pool;
  std::vector<std::thread> threads;
  std::vector<int> wrong(8, 0);
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&pool, &wrong, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      for (int i = 0; i < 300; ++i) {
        const size_t size = HostPool::kLeast + random() % (256 * kKiB);
        auto* block = static_cast<unsigned char*>(pool.allocate(size));
        std::memset(block, t, size);
        for (size_t k = 0; k < size; k += 4096) wrong[static_cast<size_t>(t)] += block[k] != t;
        pool.deallocate(block);
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const int count : wrong) CHECK(count == 0);
  CHECK(pool.use().now == 0);
}

TEST_SUITE_END();
