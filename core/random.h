#pragma once

#include <cstdint>
#include <string_view>

#include "core/macros.h"
#include "core/step_state.h"

namespace ulp {

struct PhiloxWords {
  uint32_t word[4];
};

/// Philox4x32-10. Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11, §5.1.
ULP_HD PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// FNV-1a, 32 bits: names of random streams become numbers. `hash` continues a text hashed before.
constexpr uint32_t fnv1a32(std::string_view text, uint32_t hash = 2166136261u) {
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 16777619u;
  return hash;
}

/// Where an op stands in a model: the random stream of each of its roles is fnv1a32("module.path/role").
class RandomSite {
 public:
  RandomSite() = default;
  explicit RandomSite(std::string_view path) : prefix_(fnv1a32("/", fnv1a32(path))) {}
  uint32_t stream(std::string_view role) const { return fnv1a32(role, prefix_); }

 private:
  uint32_t prefix_ = fnv1a32("/");
};

/// Names one draw of a whole tensor. Element i gets word i mod 4 of Philox with the 64-bit seed as key and counter
/// (i/4 low, i/4 high, stream + ordinal·0x9E3779B9, step); i is the row-major logical index in the tensor.
struct RandomKey {
  uint64_t seed = 0;
  uint32_t stream = 0;               // fnv1a32("module.path/role")
  uint32_t ordinal = 0;              // uses of this stream within the step, from 0
  const StepState* state = nullptr;  // in the memory of the device that draws; null is step 0

  /// Counter word 2.
  ULP_HD uint32_t counted_stream() const { return stream + ordinal * 0x9E3779B9u; }
};

/// A RandomKey as kernels use it, with the step read once.
struct RandomSource {
  uint32_t key0 = 0, key1 = 0, stream = 0, step = 0;

  RandomSource() = default;
  ULP_HD explicit RandomSource(const RandomKey& key)
      : key0(static_cast<uint32_t>(key.seed)),
        key1(static_cast<uint32_t>(key.seed >> 32)),
        stream(key.counted_stream()),
        step(key.state == nullptr ? 0u : key.state->random_step) {}

  /// Words of elements 4·group … 4·group + 3.
  ULP_HD PhiloxWords words(uint64_t group) const {
    return philox4x32(
        {{static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), stream, step}}, key0,
        key1);
  }
  ULP_HD uint32_t word(uint64_t index) const { return words(index / 4).word[index % 4]; }
};

/// Uniform in [0, 1), a multiple of 2^-24.
ULP_HD float uniform01(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

}  // namespace ulp
