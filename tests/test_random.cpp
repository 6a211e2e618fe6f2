#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "core/random.h"
#include "core/step_state.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/random_words.h"

namespace ulp {
namespace {

using Words = std::array<uint32_t, 4>;

Words philox(const Words& counter, uint32_t key0, uint32_t key1) {
  const PhiloxWords out =
      philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key0, key1);
  return {out.word[0], out.word[1], out.word[2], out.word[3]};
}

}  // namespace

TEST_SUITE("random") {
  TEST_CASE("Philox4x32-10 gives the known answers of Random123") {
    CHECK(philox({0, 0, 0, 0}, 0, 0) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    constexpr uint32_t kOnes = 0xffffffff;
    CHECK(philox({kOnes, kOnes, kOnes, kOnes}, kOnes, kOnes) ==
          Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    // The digits of pi.
    CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0) ==
          Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
  }

  TEST_CASE("element i draws word i mod 4 of counter (i/4, stream + ordinal·golden ratio, step)") {
    StepState state;
    state.random_step = 0xdeadbeef;
    const RandomKey key{0x0123456789abcdefu, 0xc0ffee00, 0x01234567, &state};
    const RandomSource source(key);
    for (const uint64_t index :
         {uint64_t{0}, uint64_t{1}, uint64_t{2}, uint64_t{3}, uint64_t{4}, uint64_t{1027},
          uint64_t{0x3ffffffff}, uint64_t{0x400000000}, uint64_t{0x7123456789abcde}}) {
      const uint64_t group = index / 4;
      const auto ordinal =
          static_cast<uint32_t>(uint64_t{0x01234567} * 0x9E3779B9u % (uint64_t{1} << 32));
      const Words counter = {static_cast<uint32_t>(group % (uint64_t{1} << 32)),
                             static_cast<uint32_t>(group / (uint64_t{1} << 32)),
                             0xc0ffee00u + ordinal, 0xdeadbeef};
      const Words words = philox(counter, 0x89abcdef, 0x01234567);
      CHECK(source.word(index) == words[index % 4]);
      const PhiloxWords group_words = source.words(group);
      for (int i = 0; i < 4; ++i) CHECK(group_words.word[i] == words[static_cast<size_t>(i)]);
    }
  }

  TEST_CASE("no state means step 0; seed, stream, ordinal, step and index each change the word") {
    StepState first, second;
    second.random_step = 1;
    const auto word = [](const RandomKey& key, uint64_t index) {
      return RandomSource(key).word(index);
    };
    const RandomKey key{.seed = 1, .stream = 2, .ordinal = 3, .state = nullptr};
    RandomKey same = key, later = key, seed_low = key, seed_high = key, stream = key, ordinal = key;
    same.state = &first;
    later.state = &second;
    seed_low.seed += 1;
    seed_high.seed += uint64_t{1} << 32;
    stream.stream += 1;
    ordinal.ordinal += 1;
    CHECK(word(key, 5) == word(same, 5));
    std::set<uint32_t> words;
    for (const RandomKey& k : {key, later, seed_low, seed_high, stream, ordinal})
      words.insert(word(k, 5));
    words.insert(word(key, 6));
    words.insert(word(key, 5 + (uint64_t{4} << 32)));
    CHECK(words.size() == 8);
  }

  TEST_CASE("runs of words are those of their elements, wherever they start, on every machine") {
    StepState state;
    state.random_step = 0xfedcba98;
    const RandomSource sources[] = {
        RandomSource(RandomKey{0x0123456789abcdefu, 0xc0ffee00, 7, &state}),
        RandomSource(RandomKey{~uint64_t{0}, ~uint32_t{0}, 0, nullptr})};
    // Element 2^34 is the first one of group 2^32, whose number takes the counter's second word.
    std::vector<int64_t> starts;
    for (const int64_t around : {int64_t{1} << 32, int64_t{1} << 34, int64_t{1} << 50})
      for (const int64_t back : {2100, 1030, 65, 64, 33, 4, 3, 2, 1, 0, -1})
        starts.push_back(around - back);
    for (int64_t start = 0; start < 9; ++start) starts.push_back(start);
    std::vector<int64_t> lengths = {255, 256, 257, 1000, 1023, 1024, 3000};
    for (int64_t n = 0; n <= 140; ++n) lengths.push_back(n);
    constexpr uint32_t kGuard = 0x12345678;
    constexpr size_t kGuards = 3;
    const cpu::Isa before = cpu::current_isa();
    for (const cpu::Isa isa : {cpu::Isa::Portable, cpu::Isa::Avx2, cpu::Isa::Avx512}) {
      if (!cpu::has_isa(isa)) continue;
      cpu::set_isa(isa);
      int64_t wrong = 0;
      for (const RandomSource& source : sources)
        for (const int64_t start : starts)
          for (const int64_t n : lengths) {
            const auto room = static_cast<size_t>(n + cpu::kWordSlack);
            std::vector<uint32_t> buffer(room + kGuards, kGuard);
            const uint32_t* words = cpu::random_words(source, start, n, buffer.data());
            for (int64_t i = 0; i < n; ++i)
              wrong += words[i] == source.word(static_cast<uint64_t>(start + i)) ? 0 : 1;
            wrong += std::count(buffer.end() - kGuards, buffer.end(), kGuard) == kGuards ? 0 : 1;
          }
      CAPTURE(std::string(cpu::to_string(isa)));
      CHECK(wrong == 0);
    }
    cpu::set_isa(before);
  }

  TEST_CASE("FNV-1a gives its known answers") {
    CHECK(fnv1a32("") == 0x811c9dc5u);
    CHECK(fnv1a32("a") == 0xe40c292cu);
    CHECK(fnv1a32("b") == 0xe70c2de5u);
    CHECK(fnv1a32("foobar") == 0xbf9cf968u);
    CHECK(fnv1a32("\xff") == (2166136261u ^ 0xffu) * 16777619u);  // bytes are unsigned
  }

  TEST_CASE("uniform01 is a multiple of 2^-24 in [0, 1) with mean 1/2 and variance 1/12") {
    CHECK(uniform01(0) == 0.0f);
    CHECK(uniform01(255) == 0.0f);
    CHECK(uniform01(256) == 0x1p-24f);
    CHECK(uniform01(0xffffffff) == 1 - 0x1p-24f);
    const RandomSource source(RandomKey{.seed = 5, .stream = fnv1a32("uniform01")});
    constexpr int kDraws = 1 << 20;
    double sum = 0, squares = 0;
    bool in_range = true;
    for (int i = 0; i < kDraws; ++i) {
      const double u = uniform01(source.word(static_cast<uint64_t>(i)));
      in_range = in_range && u >= 0 && u < 1 && std::floor(u * 0x1p24) == u * 0x1p24;
      sum += u;
      squares += (u - 0.5) * (u - 0.5);
    }
    CHECK(in_range);
    // Five standard deviations of a mean of n draws: 5 √(1/12n); of the squares: 5 √(1/180n).
    CHECK(std::fabs(sum / kDraws - 0.5) < 5 * std::sqrt(1.0 / 12 / kDraws));
    CHECK(std::fabs(squares / kDraws - 1.0 / 12) < 5 * std::sqrt(1.0 / 180 / kDraws));
  }
}

}  // namespace ulp
